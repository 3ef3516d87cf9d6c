"""The first run of a graph in a process of its own gives what the same graph gives here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.backends.first_run import first_run, open_graph, try_graph
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import is_x86
from edgeadv_runtime.errors import BundleError, ExportError


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def test_it_gives_what_the_backend_gives(tiny_bundle: Bundle, pixels: NDArray[np.uint8]) -> None:
    found = first_run(tiny_bundle, "fp16", [pixels, pixels[:1], to_tensor(pixels)])
    with OnnxRuntimeBackend(tiny_bundle, variant="fp16") as backend:
        expected = backend.infer_pixels(pixels)
        assert found.provider == backend.provider
    whole, one, floats = found.logits
    assert np.allclose(whole, expected, rtol=1e-5, atol=1e-6) and np.array_equal(whole, floats)
    assert one.shape == (1, 10)


def test_a_file_that_is_refused_is_refused_as_ever(
    tiny_bundle: Bundle, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "x.edgeadv"))
    broken = Bundle(folder, tiny_bundle.manifest)
    (folder / "model.fp32.onnx").write_bytes(b"\x08\x0a" + b"\xff" * 100)
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx is damaged: its SHA-256"):
        first_run(broken, "fp32", [pixels])


def division() -> bytes:
    """A graph of whole numbers that divides one input by the other."""
    ends = [helper.make_tensor_value_info(name, TensorProto.INT32, [1]) for name in ("image", "by", "logits")]
    graph = helper.make_graph([helper.make_node("Div", ["image", "by"], ["logits"])], "division", ends[:2], ends[2:])
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def numbers(image: int, by: int) -> dict[str, NDArray[np.int32]]:
    return {"image": np.array([image], np.int32), "by": np.array([by], np.int32)}


def test_any_graph_can_be_tried_and_then_opened() -> None:
    (outputs,) = try_graph(division(), numbers(7, 3), what="a graph", optimised=False)
    assert np.array_equal(outputs, open_graph(division()).run(None, numbers(7, 3))[0]) and outputs.tolist() == [2]


@pytest.mark.skipif(not is_x86(), reason="only x86 processors raise a signal for the quotient that is too large by one")
def test_a_crash_of_the_library_itself_is_one_line() -> None:
    with pytest.raises(ExportError) as caught:
        try_graph(division(), numbers(-(2**31), -1), what="a graph", advice="divide by more")
    crashed = f"a graph crashed onnxruntime {onnxruntime.__version__} (signal SIGFPE): divide by more"
    assert str(caught.value) == crashed


def test_what_the_library_refuses_is_one_line() -> None:
    with pytest.raises(ExportError, match=r"^a graph does not run: .*INVALID_ARGUMENT") as caught:
        try_graph(division(), {**numbers(1, 1), "image": np.array([1.0], np.float32)}, what="a graph")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=r"^a graph does not run: "):
        try_graph(b"no graph", {}, what="a graph")
