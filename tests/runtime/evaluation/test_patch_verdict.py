"""When a figure under a patch is suspect: its training found no more than a grey patch does, or had no gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadv_runtime.attacks.base import CLEAN_KEY, AttackInfo, Evidence
from edgeadv_runtime.attacks.patch_controls import CONTROLS
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome
from edgeadv_runtime.evaluation.patch_verdict import patch_verdict
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams

N = 400
AREA = Eps.parse("5%", norm="area")
FP32 = Artefact("onnxruntime", "fp32", "a" * 64, "cpu", "a CPU", "one", None, None)
INT8 = Artefact("onnxruntime", "int8-u8s8", "b" * 64, "cpu", "a CPU", "two", None, None)


def info(name: str, sha: str | None) -> AttackInfo:
    return AttackInfo(name, AREA, AttackParams(norm="area"), None if sha is None else "torch fp32", sha)


INFOS = [
    info("patch", "a" * 64),
    info("patch@int8-u8s8", "b" * 64),
    info("patch-gray", None),
    info("patch-noise", None),
    info("patch-gray@int8-u8s8", None),
    info("patch-noise@int8-u8s8", None),
]


def outcome(*broken: dict[str, int], flat: int = 0) -> BatchOutcome:
    """Of each artefact how many of 400 images each attack breaks, the first ones."""
    tables = []
    for counts in broken:
        table = {(name, "5%"): np.arange(N) >= count for name, count in counts.items()}
        tables.append({CLEAN_KEY: np.ones(N, np.bool_), **table})
    flags = np.zeros(N, np.bool_)
    zero = {("patch", "5%"): np.arange(N) < flat}
    labels = np.zeros(N, np.int64)
    evidence = Evidence({}, {}, zero, flags, flags)
    empty: Any = tuple({} for _ in tables)
    return BatchOutcome(labels, labels, ("h",) * N, tuple(tables), tuple(tables), evidence, progress=empty)


def broken(patch: int, own: int, gray: int, noise: int = 0) -> dict[str, int]:
    controls = {
        f"{name}{of}": count for of in ("", "@int8-u8s8") for name, count in zip(CONTROLS, (gray, noise), strict=True)
    }
    return {"patch": patch, "patch@int8-u8s8": own, **controls}


def test_a_patch_that_breaks_more_than_its_controls_is_an_upper_bound_and_no_more() -> None:
    masking, rows = patch_verdict(INFOS, [outcome(broken(200, 180, 40, 50))], [FP32])
    assert masking.verdict == rows[0].verdict == "UNCHECKED"
    assert rows[0].evidence == (
        "a patch's figure is an upper bound: nothing without gradients looked for a better one",
    )


@pytest.mark.parametrize(
    ("patch", "gray", "verdict"),
    [
        (40, 40, "SUSPECT"),
        (43, 40, "SUSPECT"),
        (60, 40, "UNCHECKED"),
        (0, 0, "UNCHECKED"),
        (3, 3, "UNCHECKED"),
        (N, N, "UNCHECKED"),
    ],
)
def test_one_that_breaks_no_more_than_grey_is_suspect(patch: int, gray: int, verdict: str) -> None:
    masking, _ = patch_verdict(INFOS, [outcome(broken(patch, 0, gray))], [FP32])
    assert masking.verdict == verdict
    if verdict == "SUSPECT":
        assert (
            f"patch of 5% broke {patch} of 400 images of onnxruntime fp32, and patch-gray 40"
            in masking.evidence[0].text
        )


def test_a_control_that_breaks_few_cannot_tell_and_says_so() -> None:
    masking, _ = patch_verdict(INFOS, [outcome(broken(0, 0, 3))], [FP32])
    assert masking.verdict == "UNCHECKED" and masking.evidence[0].finding is None
    assert "and patch-gray 3: too few to tell what its training found" in masking.evidence[0].text


def test_a_control_counts_for_the_artefact_that_it_asked() -> None:
    int8 = broken(200, 41, 40)
    int8["patch-gray@int8-u8s8"] = int8["patch-noise@int8-u8s8"] = 4
    _, rows = patch_verdict(INFOS, [outcome(int8)], [INT8])
    assert rows[0].verdict == "UNCHECKED"
    int8["patch-noise@int8-u8s8"] = 40
    _, rows = patch_verdict(INFOS, [outcome(int8)], [INT8])
    assert rows[0].verdict == "SUSPECT" and "and patch-noise@int8-u8s8 40" in rows[0].evidence[0]


def test_an_artefact_is_judged_by_its_own_patch() -> None:
    tables = outcome(broken(200, 10, 40), broken(30, 200, 40))
    _, rows = patch_verdict(INFOS, [tables], [FP32, INT8])
    assert [row.verdict for row in rows] == ["UNCHECKED", "UNCHECKED"]
    _, rows = patch_verdict(INFOS, [outcome(broken(200, 10, 40), broken(200, 41, 40))], [FP32, INT8])
    assert [row.verdict for row in rows] == ["UNCHECKED", "SUSPECT"]


def test_without_gradients_nothing_was_trained() -> None:
    masking, _ = patch_verdict(INFOS, [outcome(broken(200, 0, 0), flat=40)], [FP32])
    assert masking.verdict == "SUSPECT" and "no gradient to follow on 10% of the images" in masking.evidence[0].text


def test_few_images_are_said() -> None:
    one = outcome(broken(200, 0, 0))
    one.top1[0][CLEAN_KEY][:350] = False  # type: ignore[index]
    masking, _ = patch_verdict(INFOS, [one], [FP32])
    assert masking.verdict == "UNCHECKED" and "only 50 images right, and 300 are due" in masking.evidence[-1].text
