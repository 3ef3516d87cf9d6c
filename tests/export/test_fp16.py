"""fp16 of attention: what ONNX Runtime's optimiser crashes on is not in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torchvision.models import VisionTransformer

from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_export import fp16
from edgeadv_export.fp16 import to_fp16
from edgeadv_export.to_onnx import to_onnx
from edgeadv_runtime.device.isolated import call_isolated
from edgeadv_runtime.errors import ExportError

RUN = """__import__("onnxruntime").InferenceSession({!r}, providers=["CPUExecutionProvider"]).run(
    None, {{"image": __import__("numpy").load({!r})}})[0]"""


def run(proto: Any, x: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    """The output, from a process of its own: this is about graphs that kill theirs."""
    model, image = str(folder / "model.onnx"), str(folder / "x.npy")
    onnx.save(proto, model)
    np.save(image, x)
    found: NDArray[np.float32] = call_isolated(eval, RUN.format(model, image), what="the graph")
    return found


def attention(net: nn.Module) -> PixelModel:
    return PixelModel(net, Architecture(name="vit", source="torchvision", num_classes=10)).eval()


def random_head(net: nn.Module) -> nn.Module:
    """torchvision starts with a head of zeros, whose logits say nothing."""
    head: Any = net.heads
    nn.init.normal_(head.head.weight)
    return net


@pytest.fixture
def small() -> PixelModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attention(random_head(VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=10)))


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)


def test_attention_of_pytorch_runs_in_fp16_and_is_the_same_network(
    small: PixelModel, x: NDArray[np.float32], tmp_path: Path
) -> None:
    fp32 = to_onnx(small, (3, 32, 32))
    with torch.no_grad():
        expected = small(torch.from_numpy(x)).numpy()
    assert np.abs(run(fp32, x, tmp_path) - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(run(to_fp16(fp32, "vit"), x, tmp_path) - expected).max() < 5e-3 * np.abs(expected).max()


def test_without_the_reshapes_it_would_crash(
    small: PixelModel, x: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why they are there; an ONNX Runtime that passes needs them no more."""
    monkeypatch.setattr(fp16, "_fence_transposes", lambda graph: None)
    proto = to_fp16(to_onnx(small, (3, 32, 32)), "vit")
    try:
        run(proto, x, tmp_path)
    except ExportError as error:
        assert "the graph crashed onnxruntime " in str(error)
        assert "(signal SIGSEGV)" in str(error)
    else:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} opens on this processor what 1.32 on x86 crashes on")


@pytest.mark.parametrize("perm", [[1, 0, 2], [1, 2, 0], [1, 2, 0, 3], [1, 2, 3, 0]])
@pytest.mark.parametrize("side", ["left", "right", "scaled"])
def test_every_form_of_it_runs(perm: list[int], side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes of one size, so that every order of them can be multiplied."""
    monkeypatch.setattr(fp16, "check", lambda proto, name: onnx.checker.check_model(proto, full_check=True))
    rank = len(perm)
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    scale = np.array([0.5], np.float32)
    nodes = [helper.make_node("Transpose", ["image"], ["moved"], perm=perm)]
    last = "moved"
    if side == "scaled":
        nodes.append(helper.make_node("Mul", ["moved", "scale"], [last := "scaled"]))
    factors = ["weight", last] if side == "right" else [last, "weight"]
    nodes.append(helper.make_node("MatMul", factors, ["logits"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *[4] * (rank - 1)])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *[None] * (rank - 1)])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scale, "scale")],
    )
    fp32 = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(1).random([4] * rank, dtype=np.float32)
    moved = x.transpose(perm) * (0.5 if side == "scaled" else 1)
    expected = weight @ moved if side == "right" else moved @ weight
    found = run(to_fp16(fp32, "net"), x, tmp_path)
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.slow
def test_vit_b_16_itself(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Architecture.find("vit_b_16", num_classes=10)).eval()
        random_head(model.net)
    x = np.random.default_rng(0).random((2, 3, 224, 224), dtype=np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    found = run(to_fp16(to_onnx(model, (3, 224, 224)), "vit_b_16"), x, tmp_path)
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()
