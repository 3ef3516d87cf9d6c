"""What a card says of where its figures end, and of what flatters them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from edgeadv.reporting.card_bundle import without_place
from edgeadv.reporting.card_markdown import markdown
from edgeadv.workflows.reporting import card
from edgeadv_runtime import Bundle
from edgeadv_runtime.records.card import Card
from tests.edgeadv.reporting.cards import Measured, command, measure


def said(made: Card) -> str:
    """All limits of a card."""
    return "\n".join(line for limit in made.limits for line in limit.lines)


def metrics(text: str) -> list[dict[str, Any]]:
    """What a hub reads of a card."""
    front = yaml.safe_load(text.split("---\n", 2)[1])
    return [metric for result in front["model-index"][0]["results"] for metric in result["metrics"]]


def with_data(results: Path, out: Path, **changes: Any) -> Path:
    """A results file that is of other images."""
    value = json.loads(results.read_text(encoding="utf-8"))
    value["data"] |= changes
    out.write_text(json.dumps(value))
    return out


def test_int8_on_the_images_that_let_it_through(int8: Measured, run: Path, split: Path, tmp_path: Path) -> None:
    options = ("--precision", "fp32,int8-u8s8", "--calibration-count", "32", "--max-drop", "60")
    assert command("export", run, *options, "--out", tmp_path / "run.edgeadv") == 0
    scored = ("--data", split, "--attack", "fgsm", "--eps", "8/255", "--precision")
    of_int8 = measure(tmp_path / "run.edgeadv", tmp_path, *scored, "int8-u8s8").results
    assert "The export let int8 through on these very images, quote its accuracy on others: int8-u8s8." in said(
        card(of_int8, tmp_path / "run.edgeadv")
    )
    of_fp32 = measure(tmp_path / "run.edgeadv", tmp_path, *scored, "fp32").results
    assert "The export let" not in said(card(of_fp32, tmp_path / "run.edgeadv"))
    # other images of the same data and split: nobody knows; of other data there is no doubt
    limits = said(card(int8.files, int8.bundle))
    assert "let int8 through on images of mnist5k (test) too, whether some of them are scored here" in limits
    assert "these very images" not in limits
    assert "The export let" not in said(card(with_data(int8.results, tmp_path / "o.json", name="o"), int8.bundle))


def test_what_pytorch_scored_is_not_the_file(int8: Measured, tmp_path: Path) -> None:
    options = ("--data", "mnist5k", "--eps", "0.05", "--attack", "fgsm", "--limit", "20", "--precision", "fp32")
    of_torch, of_both = tmp_path / "torch.json", tmp_path / "both.json"
    assert command("evaluate", int8.bundle, *options, "--backend", "torch", "--out", of_torch) == 0
    limits = said(card([of_torch, int8.bench], int8.bundle))
    assert "scored by PyTorch alone, which runs its graph and not the file: fp32." in limits
    assert "timed by no bench file: fp16," in limits
    assert command("evaluate", int8.bundle, *options, "--backend", "torch,onnxruntime", "--out", of_both) == 0
    assert "PyTorch alone" not in said(card(of_both, int8.bundle))


def test_the_golden_results_are_of_the_place_that_the_manifest_names(int8: Measured) -> None:
    limits = said(card(int8.files, int8.bundle)).splitlines()
    (line,) = [line for line in limits if "golden results" in line]
    parities = [entry.parity for entry in Bundle.open(int8.bundle).manifest.variants.values()]
    places = {f"{parity.runtime} against {parity.reference}" for parity in parities if parity is not None}
    assert places and all(place in line for place in places)
    # another device than that of the export, and the card knows no better
    assert "proven" not in "".join(limits) and "No file says" not in "".join(limits)


def test_where_nothing_was_attacked_the_lowest_clean_accuracy_comes_first(int8: Measured, tmp_path: Path) -> None:
    value = json.loads(int8.results.read_text(encoding="utf-8"))
    value["rows"] = [row for row in value["rows"] if row["attack"] == "clean"]
    value["comparisons"] = []
    lowest = value["rows"][-1]
    lowest["correct_top1"] = lowest["correct_top5"] = 7
    for key in ("top1", "top1_ci95", "top5", "top5_ci95"):
        lowest.pop(key)
    (tmp_path / "clean.json").write_text(json.dumps(value))
    head = card(tmp_path / "clean.json", int8.bundle).headline
    assert head.worst_case is None and head.clean is not None
    assert (head.artefact, head.clean.correct) == (f"onnxruntime {lowest['variant']}", 7)


def test_figures_on_images_that_were_trained_on_say_so_wherever_they_go(int8: Measured, tmp_path: Path) -> None:
    results = with_data(int8.results, tmp_path / "r.json", training_images=160, allow_training_images=True)
    text = Measured(int8.bundle, results, int8.bench).write(tmp_path / "card.md")
    names = [metric["name"] for metric in metrics(text)]
    assert names and all("160 of 320 images were trained on: these figures flatter" in name for name in names)
    assert "160 of 320 images were trained on: these figures flatter" in text[text.index("\n# ") : text.index("\n## ")]


def test_a_pass_of_one_file_is_no_robust_accuracy_beside_another_file(int8: Measured, tmp_path: Path) -> None:
    made = card(int8.files, int8.bundle)
    passed = msgspec.structs.replace(
        made.evaluations[0], scores=tuple(msgspec.structs.replace(score, verdict="PASS") for score in made.scores)
    )
    assert "not a robust" not in markdown(dataclasses.replace(made, evaluations=(passed,), limits=()))
    both = dataclasses.replace(made, evaluations=(passed, *made.evaluations))
    worst = [metric["name"] for metric in metrics(markdown(both)) if "worst-case" in metric["name"]]
    assert len(worst) == 12 and all("not a robust accuracy" in name for name in worst)
    assert sum("masking check PASS, of all files UNCHECKED" in name for name in worst) == 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/Jane Doe/data", "data"),
        ("/secret", "secret"),
        ("C:\\Users\\Jane Doe\\signs", "signs"),
        ("~jane/signs", "signs"),
        ("mnist5k", "mnist5k"),
        ("signs/train", "signs/train"),
        ("1/2 of them", "1/2 of them"),
    ],
)
def test_of_a_place_the_last_name_is_left(text: str, shown: str) -> None:
    assert without_place(text) == shown
