"""Where a file has its logits: before a softmax and what keeps its order, and never in probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeadv_export import Asked, Examined
from edgeadv_export.examination import examine_here
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import InputError
from tests.foreign import CLASSES, SIDE, convolutional, saved

STEPS = Preprocess(resize=SIDE, crop=SIDE)
SOFTMAX = ("Softmax", ["scores"], {"axis": 1})


@pytest.fixture
def pixels(photographs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack([STEPS(frame, color_order="rgb") for frame in photographs])


def ending(*steps: tuple[str, list[str], dict[str, Any]], classes: int = CLASSES, opset: int = 17, **held: Any) -> Any:
    """A file with ``steps`` behind ``scores``, each of them called by its number."""
    nodes = [helper.make_node(op, inputs, [f"{i}"], **about) for i, (op, inputs, about) in enumerate(steps)]
    tensors = {k: np.array(v, np.int64 if k.startswith("shape") else np.float32) for k, v in held.items()}
    ends = [helper.make_tensor_value_info(f"{len(steps) - 1}", TensorProto.FLOAT, None)]
    return convolutional(classes=classes, last=nodes, outputs=ends, held=tensors, opset=opset)


def read(proto: Any, folder: Path, pixels: NDArray[np.uint8] | None, **asked: Any) -> Examined:
    about = Asked(scale="0..1", color="rgb", shape=(3, SIDE, SIDE), **asked)
    return examine_here(saved(proto, folder / "theirs.onnx"), about, pixels)


CUT = {
    "a clip": ending(SOFTMAX, ("Clip", ["0", "low", "high"], {}), low=1e-7, high=1 - 1e-7),
    "a clip of an old opset": ending(SOFTMAX, ("Clip", ["0"], {"min": 1e-7, "max": 1.0}), opset=9),
    "a clip at one end": ending(SOFTMAX, ("Clip", ["0", "low"], {}), low=1e-7),
    "percent": ending(SOFTMAX, ("Mul", ["hundred", "0"], {}), hundred=100),
    "a division": ending(SOFTMAX, ("Div", ["0", "two"], {}), two=[2]),
    "an addend": ending(SOFTMAX, ("Add", ["0", "little"], {}), little=1e-6),
    "several": ending(
        SOFTMAX, ("Mul", ["0", "two"], {}), ("Sub", ["1", "one"], {}), ("Clip", ["2", "low"], {}), two=2, one=1, low=-1
    ),
    "the logarithm": ending(("LogSoftmax", ["scores"], {"axis": 1}), ("Mul", ["0", "two"], {}), two=2),
    "exponentials over their sum": ending(
        ("Exp", ["scores"], {}), ("ReduceSum", ["0", "shape"], {"keepdims": 1}), ("Div", ["0", "1"], {}), shape=[1]
    ),
    "percent of these": ending(
        ("Exp", ["scores"], {}),
        ("ReduceSum", ["0", "shape"], {"keepdims": 1}),
        ("Div", ["0", "1"], {}),
        ("Mul", ["2", "hundred"], {}),
        ("Clip", ["3", "low", "high"], {}),
        shape=[1],
        hundred=100,
        low=1e-4,
        high=99.9999,
    ),
    "these in 16 bits": ending(
        ("Exp", ["scores"], {}),
        ("ReduceSum", ["0", "shape"], {"keepdims": 1}),
        ("Div", ["0", "1"], {}),
        ("Cast", ["2"], {"to": TensorProto.FLOAT16}),
        ("Cast", ["3"], {"to": TensorProto.FLOAT}),
        shape=[1],
    ),
    "twice these less one": ending(
        ("Exp", ["scores"], {}),
        ("ReduceSum", ["0", "shape"], {"keepdims": 1}),
        ("Div", ["0", "1"], {}),
        ("Mul", ["2", "two"], {}),
        ("Sub", ["3", "one"], {}),
        shape=[1],
        two=2,
        one=1,
    ),
    "a shape": ending(("Reshape", ["scores", "shape"], {}), ("Softmax", ["0"], {"axis": 1}), shape=[-1, CLASSES, 1, 1]),
}


@pytest.mark.parametrize("name", CUT)
def test_a_softmax_is_cut_off_with_what_keeps_its_order(name: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    found = read(CUT[name], tmp_path, pixels)
    assert any(note.startswith("the softmax at the end is cut off") for note in found.notes)
    wanted = read(convolutional(), tmp_path, pixels)
    assert found.logits is not None and wanted.logits is not None
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-6)


REFUSED = {
    "the mean of two": ending(
        ("Mul", ["scores", "three"], {}),
        ("Softmax", ["0"], {"axis": 1}),
        SOFTMAX,
        ("Add", ["1", "2"], {}),
        ("Div", ["3", "two"], {}),
        three=3,
        two=2,
    ),
    "one less": ending(SOFTMAX, ("Sub", ["one", "0"], {}), one=1),
    "a factor for each class": ending(SOFTMAX, ("Mul", ["0", "factors"], {}), factors=np.arange(1, 1 + CLASSES)),
    "a clip that makes them equal": ending(SOFTMAX, ("Clip", ["0", "low", "high"], {}), low=0.4, high=0.6),
    "two of two": ending(SOFTMAX, ("Softmax", ["0"], {"axis": 1})),
    "a softmax of groups": ending(
        ("Reshape", ["scores", "shape"], {}),
        ("Softmax", ["0"], {"axis": -1}),
        ("Reshape", ["1", "shape2"], {}),
        shape=[-1, 2, CLASSES // 2],
        shape2=[-1, CLASSES],
    ),
    "groups that are rows": ending(
        ("Reshape", ["scores", "shape"], {}),
        ("Softmax", ["0"], {"axis": -1}),
        ("Reshape", ["1", "shape2"], {}),
        shape=[-1, CLASSES // 2],
        shape2=[-1, CLASSES],
    ),
    "logarithms of groups": ending(
        ("Reshape", ["scores", "shape"], {}),
        ("LogSoftmax", ["0"], {"axis": -1}),
        ("Reshape", ["1", "shape2"], {}),
        shape=[-1, 2, CLASSES // 2],
        shape2=[-1, CLASSES],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_probabilities_are_no_logits(name: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    says = (
        r"^`output` '\d' holds probabilities, on which attacks find less than there is: name the tensor of the logits"
    )
    with pytest.raises(InputError, match=says):
        read(REFUSED[name], tmp_path, pixels)
    assert read(REFUSED[name], tmp_path, pixels, output="scores").model is not None


PARTS = {
    "a division": [("Neg", ["scores"], {}), ("Exp", ["0"], {}), ("Add", ["one", "1"], {}), ("Div", ["one", "2"], {})],
    "a reciprocal": [("Neg", ["scores"], {}), ("Exp", ["0"], {}), ("Add", ["1", "one"], {}), ("Reciprocal", ["2"], {})],
}


@pytest.mark.parametrize("name", PARTS)
def test_a_sigmoid_in_parts_is_cut_off(name: str, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    found = read(ending(*PARTS[name], ("Mul", ["3", "hundred"], {}), one=1, hundred=100), tmp_path, pixels)
    assert any("sigmoid" in note for note in found.notes)
    wanted = read(convolutional(), tmp_path, pixels)
    assert found.logits is not None and wanted.logits is not None
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-6)


def test_a_sigmoid_in_parts_without_a_tensor_of_logits_is_refused(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    steps = [
        ("Mul", ["scores", "less"], {}),
        ("Exp", ["0"], {}),
        ("Add", ["1", "one"], {}),
        ("Div", ["one", "2"], {}),
    ]
    with pytest.raises(InputError, match="holds probabilities"):
        read(ending(*steps, less=-1, one=1), tmp_path, pixels)


@pytest.mark.parametrize("frames", [True, False])
def test_logits_above_zero_are_none_of_these(frames: bool, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    proto = ending(("Relu", ["scores"], {}))
    assert read(proto, tmp_path, pixels if frames else None).model is not None


def test_a_sigmoid_in_percent_is_cut_at_its_half(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    proto = ending(("Sigmoid", ["scores"], {}), ("Mul", ["0", "hundred"], {}), hundred=100, classes=1)
    found = read(proto, tmp_path, pixels)
    assert found.logits is not None and found.logits.shape == (len(pixels), 2) and not found.logits[:, 0].any()
