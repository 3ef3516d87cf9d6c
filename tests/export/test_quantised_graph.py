"""The second file of an int8 artefact: what ONNX Runtime's optimiser makes of the graph, and what the manifest says of
it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from edgeadv.data.datasets import ImageSet, batches
from edgeadv.gradients.graph import QuantisedGraph, Surrogate
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv_export import TOLERANCES, Int8Plan, Origin, choose_calibration, data_frames, export_bundle
from edgeadv_export.quantised_graph import as_computed, neutral, prove
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.entries import SurrogateEntry
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import ExportError, InputError
from edgeadv_runtime.files import sha256_file

VARIANTS = ("int8-s8s8", "int8-u8s8")
IN, OUT = 5, 7
STEP = 0.0217  # of the output


def quantised_model(tail: list[Any], *, signed: bool, bias: str, per_channel: bool, op: str) -> Any:
    """A rounded image, an ``op`` with rounded weights and a bias that is ``"float"``, ``"int32"`` or ``"none"``, then
    ``tail``."""
    rng = np.random.default_rng(0)
    size = (OUT, IN, 3, 3) if op == "Conv" else (OUT, IN)
    scale = (rng.random(OUT if per_channel else ()) * 0.01 + 0.005).astype(np.float32)
    dtype, zero = (np.int8, 0) if signed else (np.uint8, 117)
    tensors = {
        "sx": np.float32(0.0131),
        "zx": dtype(zero),
        "sy": np.float32(STEP),
        "zy": dtype(zero),
        "w8": rng.integers(-64, 65, size).astype(np.int8),
        "sw": scale,
        "zw": np.zeros(scale.shape, np.int8),
        "low": np.float32(0),
        "high": np.float32(1.5),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["x"]),
        helper.make_node("DequantizeLinear", ["w8", "sw", "zw"], ["w"], axis=0),
    ]
    inputs = ["x", "w"]
    if bias == "float":
        tensors["b"] = rng.standard_normal(OUT).astype(np.float32)
        inputs.append("b")
    elif bias == "int32":
        tensors |= {"b32": rng.integers(-9000, 9000, OUT).astype(np.int32), "sb": scale * np.float32(0.0131)}
        nodes.append(helper.make_node("DequantizeLinear", ["b32", "sb"], ["b"], axis=0))
        inputs.append("b")
    shape = ["n", IN, 9, 8] if op == "Conv" else ["n", IN]
    options = {"pads": [1, 1, 1, 1]} if op == "Conv" else {"transB": 1}
    nodes += [helper.make_node(op, inputs, ["sum"], **options), *tail]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def pair(source: str, target: str) -> list[Any]:
    return [
        helper.make_node("QuantizeLinear", [source, "sy", "zy"], [f"{source} q"]),
        helper.make_node("DequantizeLinear", [f"{source} q", "sy", "zy"], [target]),
    ]


TAILS = {
    "rounded at once": pair("sum", "y"),
    "rounded after a relu": [helper.make_node("Relu", ["sum"], ["r"]), *pair("r", "y")],
    "rounded after a clip": [helper.make_node("Clip", ["sum", "low", "high"], ["r"]), *pair("r", "y")],
    "not rounded": [helper.make_node("Sigmoid", ["sum"], ["y"])],
    "rounded in one of two places": [
        *pair("sum", "r"),
        helper.make_node("Sigmoid", ["sum"], ["t"]),
        helper.make_node("Add", ["r", "t"], ["y"]),
    ],
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("bias", ["float", "int32", "none"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("op", "per_channel"), [("Conv", True), ("Conv", False), ("Gemm", True)])
def test_whole_numbers_are_what_onnxruntime_computes(
    tail: str, bias: str, signed: bool, op: str, per_channel: bool
) -> None:
    """With its optimiser, as a backend opens it; all but a few in a million on the same step."""
    proto = quantised_model(TAILS[tail], signed=signed, bias=bias, per_channel=per_channel, op=op)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if signed:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((64, IN, 9, 8) if op == "Conv" else (3000, IN)).astype(np.float32)
    expected: NDArray[np.float32] = session.run(None, {"image": x})[0]
    graph = neutral(proto, VARIANTS[not signed], onnx_sha256="")
    found = logits(as_computed(graph), x)
    assert expected.std() > 3 * STEP if tail != "not rounded" else expected.std() > 0.1
    assert (np.abs(found - expected) > 1e-5).mean() < 2e-4
    np.testing.assert_allclose(found, expected, atol=STEP * 1.01)


def logits(graph: QuantisedGraph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = Surrogate(graph)(torch.from_numpy(x)).numpy()
    return found


def images(data: ImageSet, n: int) -> NDArray[np.float32]:
    return to_tensor(next(batches(data, data.preprocess, batch_size=n)).pixels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_the_graph_as_written(
    digits_bundle: Bundle, digits_test: ImageSet, variant: str
) -> None:
    """Whole numbers change the order of the arithmetic, not the function."""
    graph = neutral(onnx.load(digits_bundle.onnx_path(variant)), variant, onnx_sha256="")
    x = torch.from_numpy(images(digits_test, 64))
    gradients = []
    for model in (Surrogate(graph), Surrogate(as_computed(graph))):
        leaf = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)[0].flatten(1))
    cosine = nn.functional.cosine_similarity(*gradients)
    assert float(cosine.median()) > 0.9999 and float(cosine.min()) > 0.95


@pytest.mark.parametrize(("variant", "least"), [("int8-s8s8", 0.9), ("int8-u8s8", 0.99)])
def test_nearly_all_logits_of_a_network_are_equal(
    digits_bundle: Bundle, digits_test: ImageSet, variant: str, least: float
) -> None:
    """One activation on another step would show; ONNX Runtime sums int8-s8s8 in float32, which is not exact."""
    x = images(digits_test, 300)
    graph = QuantisedGraph.load(digits_bundle.surrogate_path(variant))
    with OnnxRuntimeBackend(digits_bundle, variant=variant, threads=1) as backend:
        expected = backend.infer(x)
    error = np.abs(logits(graph, x) - expected).max(axis=1) / np.abs(expected).max()
    assert (error < 1e-5).mean() >= least


# --- the manifest


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_manifest_says_what_was_proven(digits_bundle: Bundle, variant: str) -> None:
    entry = digits_bundle.manifest.variants[variant].surrogate.to_json()
    path = digits_bundle.surrogate_path(variant)
    assert path.name == f"surrogate.{variant}.safetensors" == entry["file"]
    assert (entry["sha256"], entry["bytes"]) == (sha256_file(path), path.stat().st_size)
    parity = entry["parity"]
    assert parity["frames"] == digits_bundle.manifest.variants[variant].parity.frames == 64
    assert parity["top1_agreement"] == 1.0 and parity["max_relative_error"] < TOLERANCES[variant] / 2
    assert "surrogate" in parity["reference"] and "onnxruntime" in parity["runtime"]
    assert digits_bundle.manifest.variants["fp16"].surrogate is None


def test_the_same_bytes_every_time(digits_bundle: Bundle, tmp_path: Path) -> None:
    for variant in VARIANTS:
        path = digits_bundle.onnx_path(variant)
        as_computed(neutral(onnx.load(path), variant, onnx_sha256=sha256_file(path))).save(tmp_path / variant)
        assert (tmp_path / variant).read_bytes() == digits_bundle.surrogate_path(variant).read_bytes()


def test_another_network_is_not_taken_for_the_artefact(digits_bundle: Bundle, digits_test: ImageSet) -> None:
    graph = QuantisedGraph.load(digits_bundle.surrogate_path("int8-u8s8"))
    pixels = next(batches(digits_test, digits_test.preprocess, batch_size=64)).pixels
    with OnnxRuntimeBackend(digits_bundle, variant="int8-u8s8", threads=1) as backend:
        truth = backend.infer(to_tensor(pixels))
    assert prove(graph, pixels, truth).max_relative_error < 0.05
    wrong = {k: v * 1.3 if v.is_floating_point() and k.endswith("scale") else v for k, v in graph.tensors.items()}
    with pytest.raises(ExportError, match=r"int8-u8s8 does not compute what ONNX Runtime does: .*; 0.1 is accepted"):
        prove(replace(graph, tensors=wrong), pixels, truth)


def test_what_is_not_plain_onnx_is_named() -> None:
    node = helper.make_node("Gelu", ["image"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    with pytest.raises(ExportError, match=r"no surrogate can be made: node 'y' is Gelu of com.microsoft"):
        neutral(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), "int8-u8s8", onnx_sha256="")


class Waves(nn.Module):
    """A network with an arc sine, which no surrogate knows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.asin(torch.tanh(self.body(x))).mean((2, 3)))
        return logits


def test_an_artefact_without_a_surrogate_ships_and_says_so(
    digits_train: ImageSet, digits_test: ImageSet, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelModel(Waves(), Architecture(name="waves", source="timm", num_classes=10)).eval()
    calibration = choose_calibration(digits_train, digits_train.preprocess, count=32)
    plan = Int8Plan(calibration=calibration, images=digits_test, order=np.arange(100), max_drop=100)
    told: list[str] = []
    bundle = export_bundle(
        model,
        tmp_path / "waves.edgeadv",
        classes=digits_test.classes,
        preprocess=digits_test.preprocess,
        frames=data_frames(digits_test)[:8],
        variants=["int8-s8s8"],
        origin=Origin(title="waves", provenance={}),
        int8=plan,
        progress=told.append,
    )
    reason = "the surrogate of int8-s8s8 has no operator Asin"
    assert bundle.manifest.variants["int8-s8s8"].surrogate == SurrogateEntry(not_made=reason)
    assert [text for text in told if text.endswith(reason)] == [
        f"int8-s8s8 gets no surrogate and can be attacked by transfer and queries only: {reason}"
    ]
    assert not list(bundle.path.glob("surrogate*"))
    with pytest.raises(InputError, match=f"has no surrogate of int8-s8s8, .* of fp32: {reason}"):
        bundle.surrogate_path("int8-s8s8")


FUSES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.skipif(not FUSES, reason="the order of ONNX Runtime's kernels for AVX2 and later")
@pytest.mark.parametrize("seed", range(8))
def test_a_rounded_sum_is_what_onnxruntime_computes(seed: int) -> None:
    """On every pair of 8-bit values: by plain arithmetic one sum in 6,000 is on another step."""
    rng = np.random.default_rng(seed)
    scales, zeros = rng.random(3) * 0.05 + 0.002, rng.integers(0, 256, 3)
    tensors = {f"s{k}": np.float32(scale) for k, scale in enumerate(scales)} | {
        f"z{k}": np.uint8(z) for k, z in enumerate(zeros)
    }
    nodes = [
        helper.make_node("Split", ["image"], ["p", "q"], axis=1, num_outputs=2),
        helper.make_node("QuantizeLinear", ["p", "s0", "z0"], ["a8"]),
        helper.make_node("QuantizeLinear", ["q", "s1", "z1"], ["b8"]),
        helper.make_node("DequantizeLinear", ["a8", "s0", "z0"], ["a"]),
        helper.make_node("DequantizeLinear", ["b8", "s1", "z1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "s2", "z2"], ["c8"]),
        helper.make_node("DequantizeLinear", ["c8", "s2", "z2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("image", 1, ["n", 2])],
        [helper.make_tensor_value_info("logits", 1, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).reshape(-1, 2)
    x = ((pairs - zeros[:2]) * scales[:2]).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    made = as_computed(neutral(proto, "int8-u8s8", onnx_sha256="x"))
    assert "FusedSum" in {node.op for node in made.nodes}
    given = torch.from_numpy(x).requires_grad_(True)
    found = Surrogate(made)(given)
    np.testing.assert_array_equal(found.detach().numpy(), session.run(None, {"image": x})[0])
    # the gradient is that of a sum, but for what is beyond the range
    (gradient,) = torch.autograd.grad(found.sum(), given)
    within = (found > found.min()) & (found < found.max())
    torch.testing.assert_close(gradient[within[:, 0]], torch.ones_like(gradient[within[:, 0]]), rtol=1e-4, atol=1e-4)
