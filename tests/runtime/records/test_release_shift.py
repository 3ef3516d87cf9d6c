"""The gate on corruptions and patches."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from edgeadv_runtime.corruptions.kinds import SETS
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.about import ScoredData, Subject
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import Masking, RowMasking
from edgeadv_runtime.records.machine import Environment
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import AttackParams, Row

N = 1000


def row(
    variant: str, attack: str, budget: str, correct: int, norm: str = "severity", verdict: Any = "UNCHECKED"
) -> Row:
    clean = attack == "clean"
    return Row(
        variant=variant,
        artifact_sha256=("a" if variant == "fp32" else "b") * 64,
        backend="onnxruntime",
        provider="cpu",
        device="a CPU",
        attack=attack,
        params=AttackParams(norm=None if clean else norm, place="square, here" if attack == "patch" else None),
        eps="0" if clean else budget,
        eps_value=0.0 if clean else Eps.parse(budget, norm=norm).value,
        threat="white-box" if norm == "area" and not clean else None,
        gradients=None,
        n=N,
        correct_top1=correct,
        correct_top5=None,
        zero_gradient_share=None,
        masking=None if clean else RowMasking(verdict=verdict),
    )


def file(*rows: Row) -> Results:
    return Results(
        bundle=Subject(id="b" * 64, name="x.edgeadv"),
        data=ScoredData(name="d", split="test", n=N),
        environment=Environment(),
        masking=Masking(verdict="UNCHECKED"),
        rows=rows,
    )


@pytest.fixture
def corrupted() -> Results:
    """fp32 with 800, 600, 700 and 300 of 1,000 right, int8 with a hundred less at the last."""
    counts = {("fog", "1"): 800, ("fog", "5"): 600, ("snow", "1"): 700, ("snow", "5"): 300}
    rows = []
    for variant, less in (("fp32", 0), ("int8-u8s8", 100)):
        rows.append(row(variant, "clean", "0", 900))
        rows += [row(variant, kind, s, count - less * (count == 300)) for (kind, s), count in counts.items()]
        rows += [row(variant, "worst-case", "1", 650), row(variant, "worst-case", "5", 200)]
    return file(*rows)


def test_the_mean_is_over_all_corruptions_and_no_worst_case(corrupted: Results) -> None:
    assert corrupted.corrupted(variant="fp32") == 0.6 and corrupted.corrupted(variant="int8") == 0.575
    assert corrupted.corrupted(variant="fp32", kind="fog") == 0.7
    with pytest.raises(InputError, match="no corruption rain"):
        corrupted.corrupted(variant="fp32", kind="rain")


@pytest.mark.parametrize(
    ("rules", "passed", "says"),
    [
        ({"min_corrupted": 0.575}, True, "lowest is onnxruntime int8-u8s8 with 57.5%"),
        ({"min_corrupted": 0.576}, False, "lowest is onnxruntime int8-u8s8"),
        ({"min_corrupted": 0.6, "variants": "fp32"}, True, "lowest is onnxruntime fp32 with 60.0%"),
        ({"max_drop_corrupted": 0.025}, True, "int8-u8s8 against onnxruntime fp32: 2.50 points"),
        ({"max_drop_corrupted": 0.024}, False, "2.50 points"),
    ],
)
def test_rules_on_corruptions(corrupted: Results, rules: dict[str, Any], passed: bool, says: str) -> None:
    (ruling,) = corrupted.gate(corruptions="fog,snow", **rules).rulings
    assert ruling.passed == passed and says in ruling.text
    assert ruling.scope == "d test, 1000 images, mean over fog, snow at severities 1, 5"
    assert ruling.figures["corruptions"] == "fog, snow at severities 1, 5"


def test_a_part_of_a_set_is_judged_by_name_only(corrupted: Results) -> None:
    with pytest.raises(InputError, match="has fog, snow at severities 1, 5, and no whole set at each severity"):
        corrupted.gate(min_corrupted=0.1)
    with pytest.raises(InputError, match="has no frost; it has fog, snow"):
        corrupted.gate(min_corrupted=0.1, corruptions="fog,frost")
    assert corrupted.gate(min_corrupted=0.7, corruptions="fog", variants="fp32").passed


def test_a_whole_set_needs_no_name() -> None:
    rows = [row("fp32", "clean", "0", 900)]
    rows += [row("fp32", kind, str(severity), 600) for kind in SETS["published"] for severity in range(1, 6)]
    (ruling,) = file(*rows).gate(min_corrupted=0.6).rulings
    assert ruling.passed and ruling.scope.endswith("mean over published at severities 1, 2, 3, 4, 5")
    with pytest.raises(InputError, match="no whole set at each severity"):
        file(*rows[:-1]).gate(min_corrupted=0.6)


def test_a_rule_on_patches() -> None:
    patched = file(
        row("fp32", "clean", "0", 900),
        row("fp32", "patch", "2%", 700, "area"),
        row("fp32", "worst-case", "2%", 700, "area"),
        row("fp32", "patch", "5%", 500, "area"),
        row("fp32", "worst-case", "5%", 500, "area"),
    )
    (ruling,) = patched.gate(min_patch="5%=0.5").rulings
    assert ruling.passed and "under a patch of 5% with at most 50.0%" in ruling.text
    assert not patched.gate(min_patch="5%=0.501").passed and patched.gate(min_patch="2%=0.7").passed
    assert ruling.scope.endswith("square, here") and ruling.figures["place"] == "square, here"
    with pytest.raises(InputError, match="no attack at eps 3%"):
        patched.gate(min_patch="3%=0.5")


def test_a_patch_that_found_nothing_passes_no_gate() -> None:
    suspect = file(
        row("fp32", "clean", "0", 900),
        row("fp32", "patch", "2%", 700, "area", "SUSPECT"),
        row("fp32", "worst-case", "2%", 700, "area", "SUSPECT"),
    )
    (ruling,) = suspect.gate(min_patch="2%=0.5").rulings
    assert not ruling.passed and "the verdict asked for is UNCHECKED" in ruling.text
    first, second = suspect.gate(min_patch="2%=0.5", verdict="SUSPECT").rulings
    assert first.passed and second.passed and second.rule == "verdict SUSPECT"


def test_a_patch_of_another_artefact_is_no_ground_to_pass() -> None:
    transferred = [row("fp32", "clean", "0", 900)]
    transferred += [
        structs.replace(row("fp32", attack, "2%", 700, "area"), threat="transfer") for attack in ("patch", "worst-case")
    ]
    with pytest.raises(InputError, match="met no patch of its own gradients: an upper bound"):
        file(*transferred).gate(min_patch="2%=0.5")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"min_robust": 0.5}, "has budgets of severity and no eps"),
        ({"min_patch": "5%=0.5"}, "has no budgets of area"),
        ({"min_patch": "5%"}, "is not written AREA=SHARE"),
        ({"min_patch": "0.05=0.5"}, "is not an area"),
        ({"min_patch": "5%=50"}, "is not a share"),
        ({"min_corrupted": 60}, "did you mean 0.60"),
    ],
)
def test_rules_that_do_not_fit_the_file_are_refused(corrupted: Results, rules: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        corrupted.gate(**rules)
