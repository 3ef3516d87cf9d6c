"""Which artefact to ship, and which figure not to trust: what the page says of each, and by which rule."""

from __future__ import annotations

import dataclasses
import html
import re

import pytest
from msgspec.structs import replace

from edgeadv.reporting import build_report
from edgeadv.reporting.accuracy import Line, strongest
from edgeadv.reporting.phrases import LABELS, RULES, attack_label
from edgeadv_runtime.errors import SchemaError
from edgeadv_runtime.evaluation import verdict_rules
from edgeadv_runtime.files import write_json
from edgeadv_runtime.records import suites
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE

U8S8 = "onnxruntime int8-u8s8"


def words(markup):
    return html.unescape(" ".join(re.sub("<.*?>", " ", markup).split()))


def table(page):
    """The lines of the artefact tables: label to the cells' words."""
    rows = re.findall(r'<tr data-artefact="(.*?)".*?>(.*?)</tr>', page.source, re.DOTALL)
    return {label: [words(cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for label, row in rows}


def sentences(page):
    return [words(text) for text in re.findall(r'<p class="said.*?">(.*?)</p>', page.source)]


def with_counts(results, variant, attack, **counts):
    """The comparisons with other counts for one artefact, and its row with as many right as they leave."""
    apart = {(e.attack, e.artefact.variant): e.lost - e.gained for e in results.comparisons}
    fewer = counts["lost"] - counts["gained"] - apart[attack, variant]
    rows = [
        replace(row, correct_top1=row.correct_top1 - fewer) if (row.variant, row.attack) == (variant, attack) else row
        for row in results.rows
    ]
    comparisons = [
        replace(entry, **counts) if (entry.artefact.variant, entry.attack) == (variant, attack) else entry
        for entry in results.comparisons
    ]
    return dataclasses.replace(results, rows=tuple(rows), comparisons=tuple(comparisons))


def test_artefacts_stand_side_by_side_with_what_they_lost_and_their_own_verdict(report, several):
    page = report(several())
    assert table(page) == {
        "torch fp32": ["85.3% 83.0–87.4%", "–", "45.0% 41.9–48.1% white-box", "–", "PASS"],
        "onnxruntime fp32": [
            "85.3% 83.0–87.4%",
            "0.0 −0.3 to 0.3, p = 1",
            "≤ 45.0% 41.9–48.1% transfer",
            "0.0 −0.3 to 0.3, p = 1",
            "PASS",
        ],
        "onnxruntime fp16": [
            "85.2% 82.9–87.3%",
            "0.1 −0.4 to 0.6, p = 1",
            "≤ 44.2% 41.1–47.3% transfer",
            "0.8 −0.0 to 1.6, p = 0.077",
            "PASS",
        ],
        "onnxruntime int8-s8s8": [
            "85.3% 83.0–87.4%",
            "0.0 −0.6 to 0.6, p = 1",
            "≤ 28.0% 25.3–30.9% query",
            "17.0 14.5 to 19.4, p < 0.001",
            "MASKED at eps 8/255, square@onnxruntime-int8-s8s8 broke 170 of 853 images that every attack with "
            "gradients left "
            "standing",
        ],
        U8S8: [
            "83.3% 80.9–85.5%",
            "2.0 0.9 to 3.1, p < 0.001",
            "≤ 39.0% 36.0–42.1% query",
            "6.0 4.3 to 7.7, p < 0.001",
            "PASS",
        ],
    }
    assert sentences(page) == [
        "Do not trust the worst case of onnxruntime int8-s8s8: the verdict on it is MASKED.",
        "onnxruntime fp32 and fp16 lose neither clean nor worst-case accuracy (eps 8/255) measurably against fp32; "
        "with 1,000 "
        "images a loss of up to 1.6 points could go unseen.",
        "onnxruntime int8-u8s8 loses 2.0 points clean and 6.0 points in the worst case (eps 8/255) against fp32.",
    ]
    assert page.source.count("MASKED (hidden or false gradients)</span> <span") == 1
    assert "on onnxruntime int8-s8s8; PASS on the weights" in page.text and page.cards[0]["data-verdict"] == "PASS"
    assert not page.misplaced and not page.open


def test_a_comparison_the_other_way_round_is_turned(report, several):
    measured = several()
    turned = tuple(entry.reversed for entry in measured.comparisons)
    assert table(report(dataclasses.replace(measured, comparisons=turned))) == table(report(measured))


@pytest.mark.parametrize(
    ("lost", "gained", "loss"),
    [(9, 0, None), (10, 0, "1.0 points clean"), (60, 49, None), (80, 40, "4.0 points clean")],
    ids=["below 1 point", "1 point", "interval with 0", "4 points"],
)
def test_a_loss_is_named_from_1_point_on_and_only_if_the_interval_is_above_0(report, several, lost, gained, loss):
    page = report(with_counts(several(), "fp16", CLEAN, lost=lost, gained=gained))
    said = [text for text in sentences(page) if text.startswith("onnxruntime fp16 loses")]
    assert said == ([f"onnxruntime fp16 loses {loss} against fp32."] if loss else [])
    assert page.source.count('<span class="value lost">') == 3 + bool(loss)


@pytest.mark.parametrize(
    ("verdict", "first"),
    [
        (
            "MASKED",
            "No robust figure of this file may be trusted: the verdict is MASKED. Compare clean accuracy and "
            "latency only.",
        ),
        (
            "SUSPECT",
            "Do not choose by the robust figures: the verdict is SUSPECT, and the true worst case may be lower "
            "than any of "
            "them.",
        ),
        (
            "UNCHECKED",
            "Quote no robust figure of this file: the verdict is UNCHECKED, so they are upper bounds at best.",
        ),
    ],
)
def test_without_a_pass_the_first_sentence_is_that_no_figure_counts(report, several, verdict, first):
    page = report(several(verdict=verdict))
    said = sentences(page)
    assert said[0] == first and f'<p class="said first">{first}</p>' in page.source
    # a worst case that is doubted is no ground for a choice
    assert any("worst-case accuracy" in text for text in said) == (verdict == "UNCHECKED")
    assert any("points in the worst case" in text for text in said) == (verdict == "UNCHECKED")
    assert "onnxruntime int8-u8s8 loses 2.0 points clean" in " ".join(said)
    assert all("≤" in cells[2] for cells in table(page).values())


def test_what_is_0_is_said_first_and_needs_no_check(report, results):
    page = report(results(verdict="UNCHECKED", counts={("fgsm", "8/255"): 0, (WORST_CASE, "8/255"): 0}))
    assert sentences(page)[:2] == [
        "No artefact withstands eps 8/255: the worst case is 0.0% on each.",
        "Quote no robust figure above 0 of this file: the verdict is UNCHECKED, so they are upper bounds at best.",
    ]
    # nor does a figure that is the worst case itself flatter
    assert '<span class="word">flatters</span>' not in page.source and "≤</span>0.0%" not in page.source


def test_an_older_file_without_comparisons_says_that_it_cannot_tell(report, results):
    page = report(results())
    assert "points lost" not in page.text
    assert (
        "The file does not compare its artefacts image by image: whether one lost accuracy cannot be read off it."
        in page.text
    )
    assert table(page)["onnxruntime fp16"][:2] == ["85.2% 82.9–87.3%", "≤ 0.2% 0.1–0.7% transfer"]


def test_latency_is_that_of_one_image_of_the_same_bundle(report, several, bench):
    timed = bench()
    inference = timed.rows[1]
    other = dataclasses.replace(
        timed, bundle=replace(timed.bundle, id="another"), rows=(replace(inference, p50_ms=1.11),)
    )
    rows = (
        *timed.rows,
        replace(inference, batch=8, p50_ms=2.22, p90_ms=9.0),
        replace(inference, variant="fp32", p50_ms=8.123),
        replace(inference, variant="int8-u8s8", p50_ms=3.5),
        replace(inference, variant="int8-s8s8", p50_ms=3.3, artifact_sha256="00" * 32),
    )
    page = report(several(), dataclasses.replace(timed, rows=rows), other)
    assert {label: cells[4] for label, cells in table(page).items()} == {
        "torch fp32": "–",
        "onnxruntime fp32": "8.12",
        "onnxruntime fp16": "7.60",
        "onnxruntime int8-s8s8": "–",
        U8S8: "3.50",
    }
    # int8 is faster still, but it lost something
    assert sentences(page)[-1] == (
        "Fastest of those without a measurable loss: onnxruntime fp16, 7.60 ms (onnxruntime fp32: 8.12 ms)."
    )
    assert page.source.count("fastest without measurable loss") == 1
    assert "Latency of one image: a device, 2 threads, inference, back-to-back." in page.text
    close = tuple(replace(row, p50_ms=7.7) if row.variant == "fp32" else row for row in rows)
    assert "Fastest" not in report(several(), dataclasses.replace(timed, rows=close)).text
    elsewhere = tuple(replace(row, device="a board") if row.variant == "fp32" else row for row in rows)
    page = report(several(), dataclasses.replace(timed, rows=elsewhere))
    assert (
        "Fastest" not in page.text
        and table(page)["onnxruntime fp32"][4] == "8.12 a board, 2 threads, inference, back-to-back"
    )


@pytest.mark.parametrize(
    ("verdict", "fgsm", "worst", "flatters"),
    [
        ("PASS", 500, 401, False),
        ("PASS", 501, 401, True),
        ("UNCHECKED", 402, 401, True),
        ("UNCHECKED", 401, 401, False),
        ("MASKED", 900, 2, True),
        ("PASS", 500, None, True),
    ],
)
def test_fgsm_is_struck_where_it_flatters_and_never_shown_without_a_word(
    report, results, verdict, fgsm, worst, flatters
):
    counts = {("fgsm", "8/255"): fgsm} | ({} if worst is None else {(WORST_CASE, "8/255"): worst})
    page = report(results(counts, verdict=verdict, backends=(("torch", "fp32", "white-box"),)))
    cell = re.findall(r'<td class="c-fgsm( flatters)?".*?</td>', page.source)
    assert cell == [" flatters" if flatters else ""]
    # in the comparison, and in the headline where there is a worst case
    assert page.source.count('<span class="word">flatters</span>') == (flatters * (1 if worst is None else 2))


def test_of_two_attacks_that_are_as_strong_one_is_named_whatever_their_order(several):
    rows = [row for row in several().rows if row.params is not None and row.attack != "worst-case"]
    alike = [replace(row, correct_top1=min(each.correct_top1 for each in rows)) for row in rows]
    named = strongest(alike)
    assert strongest(alike[::-1]).attack == named.attack == strongest(alike[3:] + alike[:3]).attack
    assert named.threat == "white-box"


def test_comparison_has_the_strongest_attack_of_each_kind_by_name(report, several):
    page = report(several())
    comparison = page.source[page.source.index('id="comparison"') : page.source.index('id="curves"')]

    def cells(name):
        return [words(cell) for cell in re.findall(rf'<td class="c-{name}.*?</td>', comparison)]

    assert cells("gradient") == [
        "45.5% 42.4–48.6% APGD-T, white-box",
        "45.5% 42.4–48.6% APGD-T, transfer",
        "45.5% 42.4–48.6% APGD-T, transfer",
        "43.1% 40.1–46.2% PGD margin on int8-s8s8, transfer",
        "43.1% 40.1–46.2% PGD margin on int8-u8s8, transfer",
    ]
    assert [cell.split(" ", 2)[2] for cell in cells("query")] == [
        "Square, transfer",
        "Square, transfer",
        "Square, transfer",
        "Square on int8-s8s8, query",
        "Square on int8-u8s8, query",
    ]
    assert cells("check") == ["PASS", "PASS", "PASS", "MASKED", "PASS"]
    assert [cell.startswith("≤") for cell in cells("worst-case")] == [False, True, True, True, True]
    assert "MI-FGSM" not in comparison and comparison.count("<code>mi-fgsm</code>") == 5
    assert comparison.count('<td class="" data-label="queries">1,000</td>') == 5 + 2


def test_of_equal_figures_the_attack_on_the_artefact_itself_is_named_and_fgsm_only_if_it_is_stronger(several):
    rows = {row.attack: row for row in several().rows if row.variant == "int8-u8s8"}
    own = replace(rows["pgd-margin@int8-u8s8"], correct_top1=455, threat="white-box")
    line = Line("8/255", 8 / 255, rows | {own.attack: own})
    assert line.gradient is own
    fgsm = replace(rows["fgsm"], correct_top1=455)
    assert Line("8/255", 8 / 255, line.rows | {"fgsm": fgsm}).gradient is own
    stronger = replace(fgsm, correct_top1=454)
    assert Line("8/255", 8 / 255, line.rows | {"fgsm": stronger}).gradient is stronger
    assert [row.attack for row in line.summary] == [
        CLEAN,
        "fgsm",
        own.attack,
        "square@onnxruntime-int8-u8s8",
        WORST_CASE,
    ]


def test_a_panel_of_the_curves_has_at_most_four_lines(report, several):
    page = report(several())
    every = page.source[page.source.rindex('<details class="every">') :]
    assert len(re.findall(r'<th scope="row"><code>', every[: every.index("</details>")])) > 12
    svg = page.source[page.source.rindex('<svg class="curves"') :]
    labels = re.findall(r'<text class="label [^>]*>(.*?)</text>', svg[: svg.index("</svg>")])
    assert sorted(labels) == sorted(
        ["clean 83.3%", "FGSM 52.0%", "PGD margin on int8-u8s8 43.1%", "Square on int8-u8s8 60.0%", "worst case 39.0%"]
    )


def test_findings_come_first_and_silent_rules_are_folded(report, several):
    page = report(several())
    section = page.source[page.source.index('id="verdict"') :]
    section = section[: section.index("</section>")]
    open_part, folded = section.split('<details class="silent">')
    assert "<code>query</code>" in open_part and "queries against gradients" in open_part
    assert '<td data-label="artefact">onnxruntime int8-s8s8</td>' in open_part and "nothing found" not in open_part
    assert "2 looks that found nothing" in folded and folded.count("nothing found</td>") == 2 and "gained 4" in folded
    assert "zero-gradient, random-start" in folded


def test_every_attack_of_the_suites_has_a_label_and_a_suffix_is_said():
    names = {name for suite in suites.SUITES.values() for name in suite} | set(suites.OPTIONAL)
    assert names <= set(LABELS) and all(len(LABELS[name]) <= 13 for name in names)
    assert attack_label("pgd-margin@int8-u8s8") == "PGD margin on int8-u8s8"
    assert attack_label("square@onnxruntime-int8-u8s8") == "Square on int8-u8s8"
    assert attack_label("square@torch-fp32") == "Square on fp32" and attack_label("square@other") == "Square on other"
    assert attack_label("their attack") == "their attack" and attack_label("odd@int8-u8s8") == "odd@int8-u8s8"


def test_every_rule_of_the_check_is_explained():
    rules = {pair.rule for pair in verdict_rules.PAIRS} | {
        "zero-gradient",
        "linearity",
        "noise",
        "progress",
        "query",
        "together",
        "smoothed",
        "transfer",
        "large-eps",
        "rising",
        "probabilities",
        "unstable",
        "coverage",
        "patch",
    }
    assert rules == set(RULES)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"lost": -1},
        {"lost": 990, "gained": 20},
        {"lost": 1.5},
        {"lost": None},
        {"baseline": "torch fp32"},
        {"artefact": {}},
    ],
)
def test_comparisons_that_cannot_be(several, tmp_path, change):
    value = several().to_json()
    value["comparisons"][0] |= change
    write_json(tmp_path / "results.json", value)
    with pytest.raises(SchemaError, match="not a complete"):
        build_report([tmp_path / "results.json"], tmp_path / "report.html")


@pytest.mark.parametrize("masking", [{"verdict": "FINE"}, {"evidence": []}, "PASS"])
def test_a_verdict_on_an_artefact_that_is_none(several, tmp_path, masking):
    value = several().to_json()
    value["rows"][1]["masking"] = masking
    write_json(tmp_path / "results.json", value)
    with pytest.raises(SchemaError, match="not a complete"):
        build_report([tmp_path / "results.json"], tmp_path / "report.html")
