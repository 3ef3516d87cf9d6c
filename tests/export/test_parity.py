"""The figures of the comparison, on logits small enough to work out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeadv_export.parity import compare, summary
from edgeadv_runtime.bundle.entries import FlipEntry, ParityEntry


def parity(expected: list[list[float]], got: list[list[float]]) -> ParityEntry:
    return compare(np.array(expected, np.float32), np.array(got, np.float32), reference="torch", runtime="onnxruntime")


def test_figures() -> None:
    result = parity([[4.0, 0.0], [0.0, -8.0], [1.0, 0.5]], [[4.0, 0.0], [1.0, -8.0], [1.0, 1.5]])
    assert result.frames == 3
    assert result.max_abs_error == 1
    assert result.max_relative_error == 1 / 8
    assert result.top1_agreement == pytest.approx(2 / 3)
    assert result.flips == (FlipEntry(frame=2, torch=0, artifact=1, margin=0.5),)
    # the angle between (1, 0.5) and (1, 1.5)
    assert result.min_cosine == pytest.approx(1.75 / np.sqrt(1.25 * 3.25))


def test_a_flip_needs_a_margin_of_at_most_twice_the_error() -> None:
    """Why flips are listed and not judged a second time."""
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(1000, 5))
    result = parity(expected.tolist(), (expected + rng.uniform(-0.3, 0.3, size=expected.shape)).tolist())
    assert len(result.flips) > 50
    assert all(0 <= flip.margin <= 2 * result.max_abs_error for flip in result.flips)


@pytest.mark.parametrize(("got", "error"), [(0.0, 0.0), (1.0, 1.0)])
def test_logits_that_are_all_zero_have_no_scale(got: float, error: float) -> None:
    result = parity([[0.0, 0.0]], [[got, 0.0]])
    assert result.max_relative_error == error
    assert result.min_cosine == 0


def test_json_and_text() -> None:
    result = parity([[1.0, 0.0]], [[0.0, 1.0]])
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == {
        "frames": 1,
        "max_abs_error": 1.0,
        "max_relative_error": 1.0,
        "min_cosine": 0.0,
        "top1_agreement": 0.0,
        "flips": [{"frame": 0, "torch": 0, "artifact": 1, "margin": 1.0}],
        "reference": "torch",
        "runtime": "onnxruntime",
    }
    assert summary(result) == "relative error 1, absolute 1, cosine 0.000000, 1 of 1 first labels differ"
