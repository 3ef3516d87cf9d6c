"""The gate: what each rule judges, what its line says, and what it refuses to judge."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from edgeadv_runtime.errors import GateError, InputError, SchemaError
from edgeadv_runtime.records.about import ScoredData, Subject
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import Masking, RowMasking
from edgeadv_runtime.records.machine import Environment
from edgeadv_runtime.records.release_gate import Gate, Ruling
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import ArtefactId, AttackParams, Comparison, Row
from edgeadv_runtime.records.statistics import paired_difference_interval, wilson_interval
from edgeadv_runtime.records.suites import CONTROLS, SQUARE, SUITES, SuiteName

N = 1000
WHY = "at eps 8/255, pgd-margin broke 600 of 950 images that plain FGSM left standing; the reverse 0"
PASS = RowMasking(verdict="PASS")
MASKED = RowMasking(verdict="MASKED", evidence=(WHY, "something else"))
FP32, ORT, INT8 = ("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8-u8s8")
Artefact = tuple[str, str]


def sha(artefact: Artefact) -> str:
    return hashlib.sha256(f"{artefact[0]}-{artefact[1]}".encode()).hexdigest()


BEHIND = ("clean", *(name for name in SUITES["standard"] if name not in CONTROLS and name != SQUARE), "square@it")
AT = Eps.parse("8/255")


def row(artefact: Artefact, correct: int, eps: str | None = None, **changes: Any) -> Row:
    """A clean row, or the worst case at ``eps``, of what :func:`attacks` lists."""
    values: dict[str, Any] = {
        "variant": artefact[1],
        "artifact_sha256": sha(artefact),
        "backend": artefact[0],
        "provider": "cpu",
        "device": "a CPU",
        "attack": "worst-case" if eps else "clean",
        "params": AttackParams(attacks=BEHIND if eps else None),
        "eps": eps or "0",
        "eps_value": Eps.parse(eps).value if eps else 0.0,
        "n": N,
        "correct_top1": correct,
        "correct_top5": None,
        "threat": ("white-box" if artefact[0] == "torch" else "query") if eps else None,
        "gradients": "torch fp32" if eps else None,
        "zero_gradient_share": None,
        "masking": PASS if eps else None,
    }
    return Row(**(values | changes))


def attacks(worst: Row, suite: SuiteName = "standard", **without: Any) -> list[Row]:
    """A row of each attack of ``suite`` behind a worst case, as hard as it asks for; ``without`` changes or drops
    (None) some."""
    rows = []
    for name, effort in SUITES[suite].items():
        if name in CONTROLS:
            continue
        changes = without.get(name.replace("-", "_"), {})
        if changes is None:
            continue
        asked = name == SQUARE
        values: dict[str, Any] = {
            "attack": "square@it" if asked else name,
            "threat": "query" if asked else "white-box" if worst.backend == "torch" else "transfer",
            "params": AttackParams(
                steps=effort.steps, restarts=max(effort.restarts, effort.targets), queries=effort.queries
            ),
            "correct_top1": N,
        }
        rows.append(replace(worst, **(values | changes)))
    return rows


def entry(base: Artefact, artefact: Artefact, lost: int, gained: int, eps: str | None = None) -> Comparison:
    ends = [ArtefactId(backend=a[0], variant=a[1], artifact_sha256=sha(a)) for a in (base, artefact)]
    attack = "worst-case" if eps else "clean"
    return Comparison(attack=attack, eps=eps or "0", baseline=ends[0], artefact=ends[1], n=N, lost=lost, gained=gained)


def file(rows: Iterable[Row], comparisons: Iterable[Comparison] = ()) -> Results:
    """With the attacks of ``standard`` behind every worst case."""
    rows = list(rows)
    behind = [made for row in rows if row.attack == "worst-case" for made in attacks(row)]
    return Results(
        bundle=Subject(id="b" * 64, name="x.edgeadv"),
        data=ScoredData(name="d", split="test", n=N),
        environment=Environment(),
        masking=Masking(verdict="PASS"),
        rows=(*rows, *behind),
        comparisons=tuple(comparisons),
    )


@pytest.fixture
def three() -> Results:
    """Three artefacts at two budgets, with every pair compared."""
    rows = [
        row(FP32, 850),
        row(FP32, 700, "2/255"),
        row(FP32, 450, "8/255"),
        row(ORT, 850),
        row(ORT, 701, "2/255"),
        row(ORT, 450, "8/255"),
        row(INT8, 838),
        row(INT8, 690, "2/255"),
        row(INT8, 430, "8/255"),
    ]
    comparisons = [
        entry(FP32, ORT, 0, 0),
        entry(FP32, ORT, 0, 1, "2/255"),
        entry(FP32, ORT, 2, 2, "8/255"),
        entry(FP32, INT8, 20, 8),
        entry(FP32, INT8, 22, 12, "2/255"),
        entry(FP32, INT8, 45, 25, "8/255"),
        entry(ORT, INT8, 21, 9),
        entry(ORT, INT8, 21, 10, "2/255"),
        entry(ORT, INT8, 41, 21, "8/255"),
    ]
    return file(rows, comparisons)


def only(results: Results, **rules: Any) -> Ruling:
    (ruling,) = Gate(**rules).judge(results).rulings
    return ruling


def test_every_rule_has_one_line_in_order(three: Results) -> None:
    gate = Gate(min_clean=0.80, min_robust=0.40, max_drop_clean=0.01, max_drop_robust=0.02, verdict="PASS", eps=AT)
    assert [*gate.judge(three).lines] == [
        "passed min-clean 0.8 (d test, 1000 images): lowest is onnxruntime int8-u8s8 with 83.8% (838 of 1000, 95% "
        "interval "
        "81.4% to 86.0%)",
        "passed min-robust 0.4 (d test, 1000 images, suite standard): lowest is onnxruntime int8-u8s8 at eps 8/255 "
        "with at most "
        "43.0% (430 of 1000, 95% interval 40.0% to 46.1%), query, verdict PASS",
        "FAILED max-drop-clean 0.01 (d test, 1000 images): largest is onnxruntime int8-u8s8 against onnxruntime "
        "fp32: 1.20 "
        "points (21 lost, 9 gained of 1000, 95% interval 0.09 to 2.30, McNemar p 0.043)",
        "passed max-drop-robust 0.02 (d test, 1000 images, suite standard): largest is onnxruntime int8-u8s8 "
        "(query) against "
        "onnxruntime fp32 (query) at eps 8/255: 2.00 points (41 lost, 21 gained of 1000, 95% interval 0.44 to "
        "3.56, McNemar p "
        "0.015), verdict PASS",
        "passed verdict PASS (d test, 1000 images, suite standard): worst is torch fp32 at eps 8/255: verdict PASS",
    ]
    # the figures of the lines are those of the statistics
    assert wilson_interval(430, N) == pytest.approx((0.400, 0.461), abs=5e-4)
    assert paired_difference_interval(41, 21, N) == pytest.approx((0.0044, 0.0356), abs=5e-5)


@pytest.mark.parametrize(
    ("correct", "limit", "passed"),
    [
        (400, 0.40, True),
        (399, 0.40, False),
        (70, 0.07, True),
        (290, 0.29, True),
        (1000, 1.0, True),
        (999, 1.0, False),
        (0, 0.0, True),
        (333, 0.3333, False),
        (334, 0.3333, True),
    ],
)
def test_counts_are_judged_not_rounded_shares(correct: int, limit: float, passed: bool) -> None:
    assert only(file([row(FP32, correct)]), min_clean=limit).passed is passed
    assert only(file([row(FP32, 1000), row(FP32, correct, "8/255")]), min_robust=limit).passed is passed


@pytest.mark.parametrize(
    ("lost", "gained", "limit", "passed"),
    [
        (10, 0, 0.01, True),
        (11, 0, 0.01, False),
        (39, 10, 0.029, True),
        (40, 10, 0.029, False),
        (0, 0, 0.0, True),
        (1, 0, 0.0, False),
        (0, 30, 0.0, True),
        (200, 195, 0.005, True),
    ],
)
def test_drops_are_judged_by_their_counts(lost: int, gained: int, limit: float, passed: bool) -> None:
    rows = [row(FP32, 500), row(INT8, 500 - lost + gained)]
    assert only(file(rows, [entry(FP32, INT8, lost, gained)]), max_drop_clean=limit).passed is passed


def test_limits_hold_where_floats_would_miss_them() -> None:
    """The obvious comparisons would fail what is exactly at the limit."""
    assert 0.07 * 100 > 7 and 0.29 * 100 < 29 and 0.85 - 0.84 > 0.01
    for correct in (7, 29):
        assert only(file([row(FP32, correct, n=100)]), min_clean=correct / 100).passed
        assert not only(file([row(FP32, correct - 1, n=100)]), min_clean=correct / 100).passed
    rows = [row(FP32, 850), row(INT8, 840)]
    assert only(file(rows, [entry(FP32, INT8, 15, 5)]), max_drop_clean=0.01).passed


def test_the_budget_is_named_where_there_are_several(three: Results) -> None:
    for rules in ({"min_robust": 0.1}, {"max_drop_robust": 0.5}, {"verdict": "MASKED"}):
        with pytest.raises(InputError, match="was attacked at 2/255, 8/255: say with `eps` which of them is judged"):
            only(three, **rules)
    assert only(three, min_clean=0.1).passed
    assert only(file([row(FP32, 850), row(FP32, 450, "8/255")]), min_robust=0.45).passed
    # one budget under two names is one
    twice = [row(FP32, 850), row(FP32, 450, "8/255"), row(ORT, 850), row(ORT, 450, "16/510")]
    assert only(file(twice), min_robust=0.45).passed
    ruling = only(three, min_robust=0.5, eps=AT)
    assert "at eps 8/255 with at most 43.0%" in str(ruling) and not ruling.passed
    # by value, however it is written
    for text in ("2/255", "4/510", repr(2 / 255)):
        ruling = only(three, min_robust=0.5, eps=Eps.parse(text))
        assert ruling.passed and "at eps 2/255 with at most 69.0%" in ruling.text
        ruling = only(three, max_drop_robust=0.01, eps=Eps.parse(text), verdict=None)
        assert not ruling.passed and "1.10 points (21 lost, 10 gained" in ruling.text
    with pytest.raises(InputError, match=r"there is no attack at eps 4/255 in .* there are some at 2/255, 8/255"):
        only(three, min_robust=0.5, eps=Eps.parse("4/255"))


def test_the_chosen_artefacts_are_judged_and_no_others(three: Results) -> None:
    assert "lowest is torch fp32 with" in only(three, min_clean=0.5, variants=("fp32",)).text
    assert (
        "lowest is onnxruntime fp32 with"
        in only(three, min_clean=0.5, variants=("fp32",), backends=("onnxruntime",)).text
    )
    assert "lowest is onnxruntime int8-u8s8" in only(three, min_clean=0.5, variants=("int8", "fp32")).text
    assert "lowest is torch fp32" in only(three, min_clean=0.5, backends=("torch",)).text
    both = dataclasses.replace(three, rows=(*three.rows, row(("onnxruntime", "int8-s8s8"), 600)))
    assert "int8-s8s8 with 60.0%" in only(both, min_clean=0.5, variants=("int8",)).text
    assert "int8-u8s8 with 83.8%" in only(both, min_clean=0.5, variants=("int8-u8s8",)).text
    pixels = dataclasses.replace(both, rows=(*both.rows, row(("onnxruntime", "int8-s8s8-u8in"), 500)))
    assert "int8-s8s8 with 60.0%" in only(pixels, min_clean=0.5, variants=("int8",)).text
    assert "int8-s8s8-u8in with 50.0%" in only(pixels, min_clean=0.5, variants=("int8-u8in",)).text


def test_what_was_chosen_must_be_there(three: Results) -> None:
    with pytest.raises(InputError, match="has no fp16; it has torch fp32, onnxruntime fp32, onnxruntime int8-u8s8"):
        only(three, min_clean=0.5, variants=("fp32", "fp16"))
    with pytest.raises(InputError, match="has no tensorrt; it has"):
        only(three, min_clean=0.5, backends=("torch", "tensorrt"))
    with pytest.raises(InputError, match="has no artefact that was chosen"):
        only(three, min_clean=0.5, variants=("int8",), backends=("torch",))
    with pytest.raises(InputError, match="it has no rows"):
        only(file([]), min_clean=0.5)


def test_the_baseline_is_the_same_backends_or_the_first(three: Results) -> None:
    assert "int8-u8s8 against onnxruntime fp32: 1.20" in only(three, max_drop_clean=0.5).text
    # on the first that has it, and not narrowed by what was chosen
    rows = [r for r in three.rows if (r.backend, r.variant) != ORT]
    without = dataclasses.replace(three, rows=tuple(rows))
    ruling = only(without, max_drop_clean=0.5, variants=("int8",), backends=("onnxruntime",))
    assert "int8-u8s8 against torch fp32: 1.20 points (20 lost, 8 gained" in ruling.text


def test_a_comparison_is_turned_round_where_the_file_has_it_the_other_way(three: Results) -> None:
    ruling = only(three, max_drop_clean=0.0, baseline="int8-u8s8", backends=("onnxruntime",))
    assert ruling.passed
    assert "onnxruntime fp32 against onnxruntime int8-u8s8: -1.20 points (9 lost, 21 gained" in ruling.text
    assert "interval -2.30 to -0.09, McNemar p 0.043" in ruling.text


def test_the_largest_drop_is_the_one_that_counts(three: Results) -> None:
    fp16 = ("onnxruntime", "fp16")
    more = dataclasses.replace(
        three, rows=(*three.rows, row(fp16, 840)), comparisons=(*three.comparisons, entry(ORT, fp16, 10, 0))
    )
    assert "largest is onnxruntime int8-u8s8" in only(more, max_drop_clean=0.5).text
    assert "largest is onnxruntime fp16" in only(more, max_drop_clean=0.5, variants=("fp16", "fp32")).text


@pytest.mark.parametrize(("verdict", "accepted"), [("UNCHECKED", 1), ("SUSPECT", 2), ("MASKED", 3)])
def test_a_figure_that_may_not_be_believed_passes_no_robust_rule(three: Results, verdict: str, accepted: int) -> None:
    doubtful = RowMasking(verdict=verdict, evidence=(WHY,))  # type: ignore[arg-type]
    rows = [replace(r, masking=doubtful if r.masking else None) for r in three.rows]
    doubted = dataclasses.replace(three, rows=tuple(rows))
    for level, least in enumerate((None, "UNCHECKED", "SUSPECT", "MASKED")):
        for rule in ("min_robust", "max_drop_robust"):
            limit = 0.1 if rule == "min_robust" else 0.5
            ruling = Gate(**{rule: limit, "verdict": least, "eps": AT}).judge(doubted).rulings[0]
            assert ruling.passed is (level >= accepted)
            # the reason stands beside the figure, accepted or not
            assert f"verdict {verdict} ({WHY})" in ruling.text
            assert ("; the verdict asked for is" in ruling.text) is not ruling.passed
        # clean accuracy needs no gradients to be believed
        assert only(doubted, min_clean=0.8).passed and only(doubted, max_drop_clean=0.5).passed


def test_the_verdict_of_every_judged_artefact_counts_not_only_the_lowest_ones(three: Results) -> None:
    rows = [replace(r, masking=MASKED) if (r.backend, r.eps) == ("torch", "8/255") else r for r in three.rows]
    mixed = dataclasses.replace(three, rows=tuple(rows))
    assert str(only(mixed, min_robust=0.4, eps=AT)) == (
        "FAILED min-robust 0.4 (d test, 1000 images, suite standard): lowest is onnxruntime int8-u8s8 at eps 8/255 "
        "with at most "
        "43.0% (430 of 1000, 95% interval 40.0% to 46.1%), query, verdict PASS; torch fp32 has verdict MASKED "
        f"({WHY}), the verdict asked for is PASS"
    )
    assert only(mixed, min_robust=0.4, backends=("onnxruntime",), eps=AT).passed
    assert str(only(mixed, verdict="SUSPECT", eps=AT)) == (
        "FAILED verdict SUSPECT (d test, 1000 images, suite standard): worst is torch fp32 at eps 8/255: verdict "
        "MASKED "
        f"({WHY})"
    )
    assert only(mixed, verdict="MASKED", eps=AT).passed


def test_neither_end_of_a_drop_may_be_masked(three: Results) -> None:
    masked_base = dataclasses.replace(
        three,
        rows=tuple(
            replace(r, masking=MASKED) if r.eps != "0" and r.backend == "torch" else r
            for r in three.rows
            if (r.backend, r.variant) != ORT
        ),
    )
    ruling = only(masked_base, max_drop_robust=0.5, variants=("int8",), eps=AT)
    assert not ruling.passed
    assert ruling.text.endswith(f"; torch fp32 has verdict MASKED ({WHY}), the verdict asked for is PASS")


def test_at_most_stands_before_what_is_a_bound() -> None:
    clean = row(FP32, 900)
    white = file([clean, row(FP32, 650, "8/255")])
    assert "with 65.0% (650" in only(white, min_robust=0.4).text
    for changes in ({"masking": MASKED}, {"threat": "query"}):
        bound = file([clean, row(FP32, 650, "8/255", **changes)])
        assert "with at most 65.0% (650" in only(bound, min_robust=0.4).text
    nothing = file([clean, row(FP32, 0, "8/255", threat="query")])
    assert "with 0.0% (0 of" in only(nothing, min_robust=0.0).text


def test_a_budget_in_another_norm_is_said(three: Results) -> None:
    rows = [replace(r, params=replace(r.params, norm="l2")) for r in three.rows]
    gate = Gate(min_robust=0.4, max_drop_robust=0.5, verdict="PASS", eps=AT)
    for ruling in gate.judge(dataclasses.replace(three, rows=tuple(rows))).rulings:
        assert "at eps 8/255 in l2" in ruling.text
    rows = [replace(r, params=replace(r.params, norm="linf")) for r in three.rows]
    assert " in l" not in only(dataclasses.replace(three, rows=tuple(rows)), min_robust=0.4, eps=AT).text


def test_a_verdict_without_a_reason_says_so() -> None:
    results = file([row(FP32, 1, "8/255", masking=RowMasking(verdict="UNCHECKED"))])
    assert only(results, min_robust=0.0).text.endswith(
        "verdict UNCHECKED (the file does not say why); the verdict asked for is PASS"
    )


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (
            {},
            "no rule: give at least one of `min_clean`, `min_robust`, `min_corrupted`, `min_patch`, `max_drop_clean`, ",
        ),
        ({"variants": ("int8",)}, "no rule"),
        ({"min_clean": 80.0}, r"`min_clean` 80 is not a share in \[0, 1\]: did you mean 0.80\?"),
        ({"min_robust": 39.5}, r"`min_robust` 39.5 is not a share in \[0, 1\]: did you mean 0.395\?"),
        ({"min_robust": 1000.0}, r"`min_robust` 1000 is not a share in \[0, 1\]$"),
        ({"min_clean": -0.1}, r"`min_clean` -0.1 is not a share in \[0, 1\]$"),
        ({"min_clean": float("nan")}, r"`min_clean` must be a finite number, not nan$"),
        ({"max_drop_clean": 1.0}, r"`max_drop_clean` 1 is not a share in \[0, 1\): did you mean 0.01\?"),
        ({"max_drop_robust": float("inf")}, r"`max_drop_robust` must be a finite number, not inf$"),
        ({"max_drop_robust": -0.01}, r"`max_drop_robust` -0.01 is not a share in \[0, 1\)$"),
        ({"verdict": "pass"}, "`verdict` 'pass' is not one of PASS, UNCHECKED, SUSPECT, MASKED"),
        ({"min_clean": 0.8, "baseline": "fp32"}, "`baseline` needs a rule that compares"),
        ({"min_clean": 0.8, "max_drop_clean": 0.1, "eps": Eps.parse("8/255")}, "`eps` needs a rule on attacked images"),
        ({"min_robust": 0.8, "suite": "easy"}, "`suite` 'easy' is not one of fast, standard, full"),
        ({"min_clean": 0.8, "verdict": "PASS", "suite": "fast"}, "`suite` needs a rule on robust accuracy"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Gate(**rules)


def test_what_the_file_has_not_cannot_be_judged(three: Results) -> None:
    clean = [r for r in three.rows if r.attack == "clean"]
    for rule in ({"min_robust": 0.1}, {"max_drop_robust": 0.1}, {"verdict": "MASKED"}):
        with pytest.raises(InputError, match="has no attacked images: evaluate with `eps`"):
            only(file(clean), **rule)
    # an attack alone is no worst case
    with pytest.raises(InputError, match="has no attacked images"):
        only(file([*clean, row(FP32, 300, "8/255", attack="fgsm")]), min_robust=0.1)
    # one artefact of three was not attacked: it is not passed over in silence
    with pytest.raises(InputError, match=r"no worst-case row of onnxruntime fp32 at eps 8/255: evaluate it again"):
        only(file([*clean, row(FP32, 300, "8/255")]), min_robust=0.1)
    with pytest.raises(InputError, match="no clean row of onnxruntime int8-u8s8: evaluate it again"):
        only(file([row(FP32, 850), row(INT8, 400, "8/255")]), min_clean=0.1)


def test_without_a_comparison_no_drop_is_judged(three: Results) -> None:
    older = dataclasses.replace(three, comparisons=())
    with pytest.raises(
        InputError, match=r"no paired comparison of onnxruntime int8-u8s8 with onnxruntime fp32.* in one run"
    ):
        only(older, max_drop_clean=0.5)
    with pytest.raises(InputError, match="nothing to compare with fp32"):
        only(file([row(FP32, 850)]), max_drop_clean=0.5)
    with pytest.raises(InputError, match="nothing to compare with fp32"):
        only(three, max_drop_clean=0.5, variants=("fp32",))
    with pytest.raises(InputError, match="has no fp16 to compare with, but fp32, int8-u8s8"):
        only(three, max_drop_clean=0.5, baseline="fp16")
    # of another artefact of that name, or at another budget, is none
    foreign = [replace(e, artefact=replace(e.artefact, artifact_sha256="0" * 64)) for e in three.comparisons]
    with pytest.raises(InputError, match="no paired comparison"):
        only(dataclasses.replace(three, comparisons=tuple(foreign)), max_drop_clean=0.5)
    small = [e for e in three.comparisons if e.eps != "8/255"]
    with pytest.raises(InputError, match="no paired comparison"):
        only(dataclasses.replace(three, comparisons=tuple(small)), max_drop_robust=0.5, eps=AT)


@pytest.mark.parametrize(
    "change",
    [{"lost": 20}, {"gained": 10}, {"n": 999}, {"lost": "21"}, {"baseline": {}}, {"lost": -9, "gained": -21}],
)
def test_a_comparison_that_contradicts_the_rows_is_damage(three: Results, change: dict[str, Any]) -> None:
    value = three.to_json()
    value["comparisons"][three.comparisons.index(entry(ORT, INT8, 21, 9))] |= change
    with pytest.raises(SchemaError, match=r"is not a complete results file|contradicts itself"):
        only(Results.from_json(value), max_drop_clean=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0},
        {"n": "1000"},
        {"correct_top1": 1001},
        {"correct_top1": -1},
        {"masking": None},
        {"masking": {}},
        {"masking": {"verdict": "FINE"}},
        {"eps_value": "8/255"},
    ],
)
def test_a_row_that_cannot_be_is_damage(three: Results, changes: dict[str, Any]) -> None:
    value = three.to_json()
    value["rows"][2] |= changes
    with pytest.raises(SchemaError, match=r"is not a complete results file \(rows\[2\]"):
        Results.from_json(value)


# What a robust rule accepts


def judged(worst: Row, behind: list[Row], **rules: Any) -> Ruling:
    clean = row((worst.backend, worst.variant), 850)
    return only(dataclasses.replace(file([clean]), rows=(clean, worst, *behind)), **rules)


def test_the_suite_that_is_asked_for_must_have_run() -> None:
    """By what the rows say, on both sides of each of the three."""
    names = {suite: ("clean", *(r.attack for r in attacks(row(FP32, 1, "8/255"), suite))) for suite in SUITES}
    for behind in SUITES:
        for least in SUITES:
            worst = row(FP32, 450, "8/255", params=AttackParams(attacks=(*names[behind], *BEHIND)))
            made = attacks(worst, behind)
            if [*SUITES].index(behind) >= [*SUITES].index(least):
                assert judged(worst, made, min_robust=0.45, suite=least).passed
                continue
            with pytest.raises(
                InputError, match=f"attacked by less than the suite {least}: .*`suite` {behind}"
            ) as error:
                judged(worst, made, min_robust=0.0, suite=least)
            assert "torch fp32 at eps 8/255" in str(error.value)
            assert f"Evaluate it with `eps` 8/255 and `suite` {least}" in str(error.value)
    with pytest.raises(InputError, match=r"less than the suite standard: .* more\. .*square"):
        judged(row(FP32, 450, "8/255"), attacks(row(FP32, 450, "8/255"), "fast"), min_robust=0.4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"square": None}, "square did not ask it"),
        ({"square": {"threat": "transfer"}}, "square did not ask it"),
        ({"square": {"params": AttackParams(queries=999)}}, "square ran with less than 1000 queries"),
        ({"square": {"params": AttackParams()}}, "square ran with less than 1000 queries"),
        ({"square": {"eps": "2/255", "eps_value": 2 / 255}}, "square did not ask it"),
        ({"square": {"n": 10, "correct_top1": 1}}, "square did not ask it"),
        ({"square": {"attack": "square@another"}}, "square did not ask it"),  # the worst case does not name it
        ({"pgd_ce": None}, "pgd-ce did not run"),
        ({"pgd_ce": {"params": AttackParams(steps=19, restarts=1)}}, "pgd-ce ran with less than 20 steps"),
        ({"pgd_ce": {"params": AttackParams(steps=20, restarts=1, target="3")}}, "pgd-ce did not run"),
        ({"pgd_ce": {"params": AttackParams(steps=20, restarts=1, library="another 1.0")}}, "pgd-ce did not run"),
        ({"apgd_t": {"params": AttackParams(steps=50, restarts=4)}}, "apgd-t ran with less than 5 classes of 50 steps"),
        ({"noise": None}, "noise did not run"),
    ],
)
def test_one_attack_that_is_missing_or_weaker_is_named(changes: dict[str, Any], says: str) -> None:
    worst = row(FP32, 450, "8/255")
    assert judged(worst, attacks(worst), min_robust=0.45).passed
    with pytest.raises(InputError, match=f"less than the suite standard: {says}\\."):
        judged(worst, attacks(worst, **changes), min_robust=0.45)
    # what is a drop's to compare with is held to the same
    results = file([row(FP32, 850), row(INT8, 840), row(INT8, 440, "8/255")], [entry(FP32, INT8, 12, 2, "8/255")])
    weak = dataclasses.replace(results, rows=(*results.rows, worst, *attacks(worst, **changes)))
    with pytest.raises(InputError, match=f"less than the suite standard: {says}\\."):
        only(weak, max_drop_robust=0.5)
    full = dataclasses.replace(results, rows=(*results.rows, worst, *attacks(worst)))
    assert only(full, max_drop_robust=0.01).passed and not only(full, max_drop_robust=0.0099).passed


def test_more_than_is_asked_for_is_enough() -> None:
    worst = row(FP32, 450, "8/255", params=AttackParams(attacks=(*BEHIND, "pgd-ce@surrogate")))
    harder = {
        "square": {"params": AttackParams(queries=5000)},
        "apgd_t": {"params": AttackParams(steps=100, restarts=9)},
        # made for the artefact itself
        "pgd_ce": {"attack": "pgd-ce@surrogate", "params": AttackParams(steps=100, restarts=5)},
    }
    assert judged(worst, attacks(worst, **harder), min_robust=0.45).passed
    with pytest.raises(InputError, match="pgd-ce did not run"):
        transferred = {"attack": "pgd-ce@surrogate", "threat": "transfer"}
        judged(worst, attacks(worst, **harder | {"pgd_ce": transferred}), min_robust=0.45)
    # no attack moves towards more classes than there are
    few = attacks(worst, apgd_t={"params": AttackParams(steps=50, restarts=2)})
    results = file([row(FP32, 850)])
    three_classes = dataclasses.replace(results, data=replace(results.data, classes=3), rows=(worst, *few))
    assert only(three_classes, min_robust=0.45).passed
    with pytest.raises(InputError, match="apgd-t ran with less than 3 classes of 50 steps"):
        only(dataclasses.replace(three_classes, data=replace(results.data, classes=4)), min_robust=0.45)


def test_an_upper_bound_is_not_judged() -> None:
    """Whatever the suite, and whatever the worst case calls its threat."""
    worst = row(ORT, 450, "8/255", threat="transfer")
    transferred = attacks(worst, "fast")
    for suite in ("fast", "standard"):
        with pytest.raises(
            InputError, match="onnxruntime fp32 at eps 8/255 met only transferred attacks: an upper bound"
        ):
            judged(worst, transferred, min_robust=0.1, suite=suite)
    # noise is made for nobody, whoever told which draw is the strongest
    asked = attacks(replace(worst, threat="query"), "fast", noise={"threat": "query"})
    with pytest.raises(InputError, match="only transferred attacks"):
        judged(replace(worst, threat="query"), asked, min_robust=0.1, suite="fast")
    own = attacks(worst, "fast", pgd_ce={"threat": "white-box"})
    assert judged(worst, own, min_robust=0.45, suite="fast").passed
    # the verdict is a rule of its own, and says which attacks it is of
    ruling = judged(row(ORT, 450, "8/255", params=AttackParams(attacks=("clean", "fgsm"))), [], verdict="PASS")
    assert ruling.passed and ruling.scope == "d test, 1000 images, attacks clean, fgsm"


@pytest.mark.parametrize(("trained", "passed"), [(None, True), (0, True), (10, True), (11, False), (1000, False)])
def test_what_was_trained_on_passes_no_rule(three: Results, trained: int | None, passed: bool) -> None:
    seen = dataclasses.replace(three, data=replace(three.data, training_images=trained))
    gate = Gate(min_clean=0.1, min_robust=0.1, max_drop_clean=0.5, max_drop_robust=0.5, verdict="MASKED", eps=AT)
    for ruling in gate.judge(seen).rulings:
        assert ruling.passed is passed
        said = f"{trained} of the 1000 images are training images, and at most 1% may be: evaluate on others"
        assert ruling.text.endswith(said) is not passed


def test_figures_are_those_of_the_line(three: Results) -> None:
    clean, drop = Gate(min_clean=0.8, max_drop_robust=0.02, eps=AT).judge(three).rulings
    assert clean.figures["limit"] == 0.8 and clean.figures["correct"] == 838 and clean.figures["n"] == N
    assert clean.figures["artefact"]["variant"] == "int8-u8s8" and "verdict" not in clean.figures
    assert (drop.figures["lost"], drop.figures["gained"], drop.figures["drop"]) == (41, 21, 0.02)
    assert drop.figures["drop_ci95"] == pytest.approx([0.0044, 0.0356], abs=5e-5)
    assert drop.figures["baseline"]["variant"] == "fp32" and drop.figures["eps"] == "8/255"
    assert (drop.figures["verdict"], drop.figures["suite"], drop.figures["threat"]) == ("PASS", "standard", "query")
    assert tuple(drop.figures["attacks"]) == BEHIND


def test_a_file_judges_itself_by_what_a_caller_has_at_hand(three: Results) -> None:
    outcome = three.gate(eps="8/255", min_clean=0.80, max_drop_robust=0.03, backends=["onnxruntime"])
    assert outcome.passed and [line.split()[:3] for line in outcome.lines] == [
        ["passed", "min-clean", "0.8"],
        ["passed", "max-drop-robust", "0.03"],
    ]
    outcome.raise_if_failed()
    failed = three.gate(eps=AT, min_clean=0.84, max_drop_robust=0.01, min_robust=0.4)
    with pytest.raises(GateError) as error:
        failed.raise_if_failed()
    assert not failed.passed and str(error.value).count("FAILED") == 2 and "\n" not in str(error.value)
    assert "passed min-robust" not in str(error.value)
    with pytest.raises(InputError, match="less than the suite full"):
        three.gate(eps=AT, min_robust=0.4, suite="full")
