"""Cards of real bundles, of what the commands measured of them: nothing on a card that no file says, and nothing that
flatters."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from edgeadv.models.builder import PixelModel
from edgeadv.reporting.artefacts import milliseconds
from edgeadv.reporting.card_markdown import markdown
from edgeadv.reporting.card_page import page
from edgeadv.workflows.reporting import card
from edgeadv_runtime import Bundle, Results
from edgeadv_runtime.errors import SchemaError
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.card import Card
from edgeadv_runtime.records.evidence import Verdict
from tests.edgeadv.reporting.cards import Measured


@pytest.mark.parametrize("ending", ["html", "md", "json"])
def test_the_same_files_give_the_same_bytes_by_command_and_by_call(int8: Measured, tmp_path: Path, ending: str) -> None:
    first = int8.write(tmp_path / f"a.{ending}")
    assert int8.write(tmp_path / f"b.{ending}") == first
    card(int8.files, int8.bundle, tmp_path / f"c.{ending}")
    assert (tmp_path / f"c.{ending}").read_text(encoding="utf-8") == first
    # nothing of the machine: where a file lies is nobody's business
    assert str(tmp_path) not in first and str(int8.bundle.parent) not in first


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a JSON value, and how many entries its lists have."""
    if isinstance(value, dict):
        yield from (each for inner in value.values() for each in numbers(inner))
    elif isinstance(value, list):
        yield float(len(value))
        yield from (each for inner in value for each in numbers(inner))
    elif isinstance(value, int | float):
        yield float(value)


def written(value: float) -> set[str]:
    """How a card may write a number: as it is, in per cent or points, as milliseconds, megabytes or joules."""
    forms = {f"{value:g}", f"{value:.6g}", f"{value:,.0f}", f"{100 * value:.1f}", f"{abs(100 * value):.1f}"}
    return forms | {milliseconds(value), f"{value / 1e6:.2f}", f"{value / 1000:.3g}"}


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def backed(measured: Measured) -> set[str]:
    """Every number that the files hold, in every form; beside them those that follow from two that stand together."""
    files = [measured.bundle / "manifest.json", *measured.files]
    values = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found = set(itertools.chain.from_iterable(map(written, numbers(values))))
    found |= {each.rstrip(",") for each in NUMBER.findall(" ".join(json.dumps(value) for value in values))}
    for row in values[1]["rows"]:
        low, high = row["top1_ci95"]
        found.add(f"{100 * (high - low):.1f}")
    model = Bundle.open(measured.bundle).manifest
    assert model.weights is not None
    from safetensors.torch import load_file

    weights = load_file(measured.bundle / model.weights.file)
    trained = [each for name, each in weights.items() if "running_" not in name and each.is_floating_point()]
    return found | {f"{sum(each.numel() for each in trained):,}", "95"}


def unbacked(text: str, measured: Measured) -> list[str]:
    text = re.sub(r"\b[0-9a-f]{12}(?:[0-9a-f]{52})?\b", "", text)  # hashes, whole and shortened
    words = {"fp32", "fp16", "int8-u8s8", "int8-s8s8", "float32", "float16", "uint8", "L2", "p50", "p90", "p99", "u8in"}
    text = re.sub("|".join(sorted(words, key=len, reverse=True)), "", text)
    known = backed(measured)
    return [each for each in NUMBER.findall(text) if each.rstrip(",") not in known]


def shown(source: str) -> str:
    """What a reader sees of a page, without its drawings."""
    body = source[source.index("<body>") :]
    body = re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


@pytest.mark.parametrize("name", ["int8", "masked"])
def test_every_number_is_that_of_a_file(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    measured: Measured = request.getfixturevalue(name)
    seen = shown(measured.write(tmp_path / "card.html"))
    assert unbacked(seen, measured) == []
    text = measured.write(tmp_path / "card.md")
    body = text.split("---\n", 2)[2]
    assert unbacked(body, measured) == []
    assert len(NUMBER.findall(body)) > 100 and len(NUMBER.findall(seen)) > 100
    assert unbacked("worst case 31.4159%", measured) == ["31.4159"]


@pytest.mark.parametrize("name", ["int8", "masked"])
def test_every_cell_of_the_score_table_is_that_of_its_row(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    measured: Measured = request.getfixturevalue(name)
    text = measured.write(tmp_path / "card.md")
    table = text[text.index("## Clean and worst case") : text.index("## Masking verdict")]
    cells = [
        [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| onnxruntime")
    ]
    results = Results.load(measured.results)
    due = []
    for artefact in results.artefacts:
        for row in results.select(artefact=artefact):
            if row.attack in ("clean", "worst-case"):
                low, high = row.top1_ci95
                right = f"{row.top1:.1%} ({100 * low:.1f}–{100 * high:.1f}%)"
                case = "clean" if row.attack == "clean" else f"worst at eps {row.eps} (suite none)"
                bound = "≤ " if row.attack != "clean" and row.correct_top1 else ""
                verdict = "" if row.attack == "clean" else f"**{row.verdict}**"
                where = f"{artefact} ({row.provider}, {row.device})"
                due.append([where, case, row.threat or "", bound + right, verdict, str(row.n)])
    assert sorted(cells) == sorted(due) and len(due) > 1
    head = text[text.index("\n# ") : text.index("\n## ")]
    shown_first = next(line for line in head.splitlines() if "%" in line)
    of = re.search(r"onnxruntime (\S+) on", head)
    assert of is not None
    lowest = results.worst_case("0.1", variant=of[1])
    clean = results.clean(variant=lowest.variant)
    bound = "≤ " if lowest.correct_top1 else ""
    assert shown_first.startswith(f"| {clean.top1:.1%} (") and f"| {bound}{lowest.top1:.1%} (" in shown_first


def sources(value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        yield from (inner for key, inner in value.items() if key.endswith("source") and inner is not None)
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from sources(inner)


def test_every_section_names_the_file_that_says_it(int8: Measured, tmp_path: Path) -> None:
    value = json.loads(int8.write(tmp_path / "card.json"))
    assert (value["schema_version"], value["kind"]) == (1, "card")
    own = ("schema_version", "kind", "edgeadv_version")
    parts = {key: each for key, each in value.items() if key not in own}
    for key, part in parts.items():
        for entry in part if isinstance(part, list) else [part]:
            assert {"name", "sha256"} <= (entry if key == "sources" else entry["source"]).keys(), key
    there = {
        "results.json": int8.results,
        "bench.json": int8.bench,
        "digits.edgeadv/manifest.json": int8.bundle / "manifest.json",
    }
    named = list(sources(value)) + value["sources"]
    assert {each["name"] for each in named} == there.keys()
    for each in named:
        assert each["sha256"] == hashlib.sha256(there[each["name"]].read_bytes()).hexdigest()


def test_figures_are_those_of_the_results_the_gate_and_the_bench(int8: Measured) -> None:
    made = card(int8.files, int8.bundle)
    results, bench, bundle = Results.load(int8.results), Bench.load(int8.bench), Bundle.open(int8.bundle)
    assert [str(score) for score in made.scores] == [str(each) for each in results.artefacts]
    for score in made.scores:
        clean = results.clean(variant=score.variant)
        assert score.clean is not None and (score.clean.correct, score.clean.n) == (clean.correct_top1, clean.n)
        for worst in score.worst_cases:
            row = results.worst_case(worst.eps, variant=score.variant)
            assert (worst.figure.correct, worst.figure.n, worst.figure.ci95) == (row.correct_top1, row.n, row.top1_ci95)
            assert worst.threat == row.threat and score.verdict != "PASS" and worst.at_most
        assert [worst.eps for worst in score.worst_cases] == ["0.05", "0.1"]
    head = made.headline.worst_case
    assert head is not None and head.eps == "0.1"
    assert head.figure.correct == min(row.correct_top1 for row in results.select(attack="worst-case", eps="0.1"))
    assert made.benches[0].rows == bench.rows
    gate = bundle.manifest.variants["int8-u8s8"].gate
    assert gate is not None
    (of_gate,) = [pair for pair in made.model.gates if pair.artefact == "int8-u8s8"]
    assert (of_gate.lost, of_gate.gained, of_gate.n) == (gate.clean.lost, gate.clean.gained, gate.clean.n)
    assert of_gate.drop == pytest.approx(gate.clean.drop / 100)
    paired = [pair for pair in made.evaluations[0].comparisons if "int8" in pair.artefact]
    assert [(pair.attack, pair.eps) for pair in paired] == [
        ("clean", "0"),
        ("worst-case", "0.05"),
        ("worst-case", "0.1"),
    ]
    assert [pair.verdict is None for pair in paired] == [True, False, False]
    # what is in memory is a file for the moment
    of_objects = card([results, bench], bundle)
    assert [source.name for source in of_objects.sources[1:]] == ["results-1.json", "bench-2.json"]
    assert of_objects.headline.worst_case == head


def test_energy_is_in_joules_and_what_nobody_measured_is_said(int8: Measured, tmp_path: Path) -> None:
    text = int8.write(tmp_path / "card.md")
    assert "Energy was not measured." in text and "| not measured |" in text
    value = json.loads(int8.bench.read_text(encoding="utf-8"))
    for row in value["rows"]:
        row |= {"energy_mj_per_image": 12.3, "energy_source": "a meter of the board"}
    (tmp_path / "bench.json").write_text(json.dumps(value))
    text = Measured(int8.bundle, int8.results, tmp_path / "bench.json").write(tmp_path / "card.md")
    assert "| 0.0123 |" in text and "- Energy: a meter of the board." in text
    assert "Energy was not measured." not in text


def test_parameters_are_those_of_the_network(digits_bundle: Bundle, digits_model: PixelModel, int8: Measured) -> None:
    made = card(int8.results, digits_bundle)
    assert made.model.parameters == sum(each.numel() for each in digits_model.parameters())


def test_a_slim_copy_does_not_know_its_parameters(int8: Measured, tmp_path: Path) -> None:
    slim = Bundle.open(int8.bundle).slim(tmp_path / "slim.edgeadv", variants=["fp32"], weights=False)
    made = card(int8.results, slim)
    assert made.model.parameters is None
    assert any(line.startswith("Left out of this copy") for limit in made.limits for line in limit.lines)
    assert "| parameters | not known |" in Measured(slim.path, *int8.files).write(tmp_path / "card.md")


def test_limits_say_what_is_missing(int8: Measured) -> None:
    said = "\n".join(line for limit in card(int8.results, int8.bundle).limits for line in limit.lines)
    for text in (
        "scored by no results file: int8-s8s8, fp32-u8in, fp16-u8in, int8-s8s8-u8in, int8-u8s8-u8in.",
        "L-infinity",
        "at eps 0.05, 0.1",
        "rest on 320 images: their 95% intervals are up to",
        "no list of its training images",
        "not signed",
        "Latency and energy were not measured",
        "The attacks at eps 0.1 cover no suite: onnxruntime fp32, onnxruntime fp16, onnxruntime int8-u8s8.",
    ):
        assert text in said, text
    timed = "\n".join(line for limit in card(int8.files, int8.bundle).limits for line in limit.lines)
    assert "timed by no bench file: fp16, int8-s8s8" in timed and "Latency and energy were not" not in timed


def test_masked_stands_as_large_as_the_accuracy(masked: Measured, tmp_path: Path) -> None:
    assert card(masked.files, masked.bundle).headline.verdict == "MASKED"
    source = masked.write(tmp_path / "card.html")
    head = source[source.index('<section id="headline">') : source.index('<section id="model">')]
    assert 'data-verdict="MASKED"' in head
    numbers = re.findall(r'<p class="number">(.*?)</p>', head)
    assert len(numbers) == 3 and numbers[2] == '<span class="badge masked">MASKED</span>'
    assert "robust accuracy" not in shown("<body>" + head).replace("not a robust accuracy", "")
    text = masked.write(tmp_path / "card.md")
    top = text[text.index("\n# ") : text.index("\n## ")]
    assert "| **MASKED** |" in top and "robust accuracy" not in top.replace("not a robust accuracy", "")
    assert card(masked.files, masked.bundle).limits[0].lines[0].startswith("MASKED means that ")
    # what a training measured of a teacher has no verdict: it is no figure of a card
    assert "teacher" not in text and "teacher" not in source and "99.0%" not in text


def test_a_figure_under_attack_always_has_its_verdict_beside_it(masked: Measured, tmp_path: Path) -> None:
    text = masked.write(tmp_path / "card.md")
    rows = [line for line in text.splitlines() if line.startswith("|") and "worst at eps" in line]
    assert rows and all("**MASKED**" in row for row in rows)
    metrics = yaml.safe_load(text.split("---\n", 2)[1])["model-index"][0]["results"][0]["metrics"]
    attacked = [metric["name"] for metric in metrics if "worst-case" in metric["name"]]
    assert len(attacked) == 1 and attacked[0].startswith("masking check MASKED: ")
    assert "not a robust accuracy" in attacked[0]


@pytest.mark.parametrize("verdict", ["PASS", "UNCHECKED", "SUSPECT", "MASKED"])
def test_only_a_pass_makes_a_robust_accuracy(int8: Measured, verdict: Verdict) -> None:
    made = card(int8.files, int8.bundle)
    score = msgspec.structs.replace(made.scores[0], verdict=verdict)
    evaluation = msgspec.structs.replace(made.evaluations[0], scores=(score,), findings=())
    judged = dataclasses.replace(made, evaluations=(evaluation,), limits=())
    for text in (shown(page(judged)), markdown(judged)):
        assert ("worst-case robust accuracy" in text) == (verdict == "PASS")
        assert ("not a robust accuracy" in text) == (verdict != "PASS")
    assert f'<p class="number"><span class="badge {verdict.lower()}">{verdict}</span>' in page(judged)


def test_a_record_whose_headline_is_better_than_its_scores_is_refused(masked: Measured, tmp_path: Path) -> None:
    value = json.loads(masked.write(tmp_path / "card.json"))
    assert Card.load(tmp_path / "card.json") == card(masked.files, masked.bundle)
    value["headline"]["verdict"] = "PASS"
    with pytest.raises(SchemaError, match="contradicts itself"):
        Card.from_json(value)
    value["headline"]["verdict"] = "MASKED"
    worst = value["headline"]["worst_case"]["figure"]
    kept, value["headline"]["worst_case"]["figure"] = worst, value["headline"]["clean"]
    with pytest.raises(SchemaError, match="contradicts itself"):
        Card.from_json(value)
    value["headline"]["worst_case"]["figure"] = kept
    assert Card.from_json(value).headline == card(masked.files, masked.bundle).headline
    value["evaluations"][0]["scores"][0]["clean"]["share"] += 0.01
    with pytest.raises(SchemaError, match="share"):
        Card.from_json(value)
