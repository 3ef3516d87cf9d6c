"""An artefact's graph in PyTorch: what ONNX Runtime's optimiser makes of sums, the gradient of networks, and what the
manifest says of it."""

from __future__ import annotations

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
from torch.nn.modules.batchnorm import _BatchNorm

from edgeadv.attacks import input_gradient, margin
from edgeadv.data.datasets import ImageSet, batches
from edgeadv.gradients.artefact import open_graph
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.integer_sums import with_integer_sums
from edgeadv.gradients.read_onnx import nodes_of, read_graph
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_export import TOLERANCES, Int8Plan, Origin, choose_calibration, data_frames, export_bundle
from edgeadv_export.own_gradients import own_gradients
from edgeadv_export.to_onnx import to_onnx
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.entries import GradientsEntry
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import ExportError, InputError

VARIANTS = ("int8-s8s8", "int8-u8s8")
IN, OUT = 5, 7
STEP = 0.0217  # of the output
BIASES = ("float", "int32", "none")


def quantised_model(tail: list[Any], *, signed: bool, bias: str, per_channel: bool, op: str) -> Any:
    """A rounded image, an ``op`` with rounded weights and a bias that is ``"float"``, ``"int32"`` or ``"none"``, then
    ``tail``."""
    rng = np.random.default_rng(0)
    size = {"Conv": (OUT, IN, 3, 3), "Gemm": (OUT, IN), "MatMul": (IN, OUT)}[op]
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
        helper.make_node("DequantizeLinear", ["w8", "sw", "zw"], ["w"], axis=1 if op == "MatMul" else 0),
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
    options: dict[str, Any] = {"Conv": {"pads": [1, 1, 1, 1]}, "Gemm": {"transB": 1}, "MatMul": {}}[op]
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


PRODUCTS = [
    *((op, channels, bias) for op, channels in (("Conv", True), ("Conv", False), ("Gemm", True)) for bias in BIASES),
    *(("MatMul", channels, "none") for channels in (True, False)),
]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("op", "per_channel", "bias"), PRODUCTS)
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
    found = logits(GraphModule(with_integer_sums(nodes_of(proto)), "product"), x)
    assert expected.std() > 3 * STEP if tail != "not rounded" else expected.std() > 0.1
    assert (np.abs(found - expected) > 1e-5).mean() < 2e-4
    np.testing.assert_allclose(found, expected, atol=STEP * 1.01)


@pytest.mark.parametrize(("scale", "zero"), [(0.01, 0), (0.05, 0), (0.05, 3)])
@pytest.mark.parametrize("tail", ["rounded at once", "not rounded"])
def test_a_bias_with_steps_of_its_own(tail: str, scale: float, zero: int) -> None:
    """Others' quantisers need not give it the step of the product."""
    proto = quantised_model(TAILS[tail], signed=False, bias="int32", per_channel=False, op="Gemm")
    tensors = {"b32": np.arange(-9, -9 + 4 * OUT, 4, dtype=np.int8), "sb": np.float32(scale), "zb": np.int8(zero)}
    kept = [each for each in proto.graph.initializer if each.name not in tensors]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *(numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())])
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == "b32":
            node.input.append("zb")
            del node.attribute[:]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3000, IN)).astype(np.float32)
    expected: NDArray[np.float32] = session.run(None, {"image": x})[0]
    found = logits(GraphModule(with_integer_sums(nodes_of(proto)), "product"), x)
    assert (np.abs(found - expected) > 1e-5).mean() < 2e-3
    np.testing.assert_allclose(found, expected, atol=STEP * 1.01)


def test_a_bias_that_is_computed_is_left_as_it_is() -> None:
    proto = quantised_model(TAILS["not rounded"], signed=False, bias="int32", per_channel=False, op="Gemm")
    at = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "Gemm")
    proto.graph.node.insert(at, helper.make_node("Identity", ["b"], ["same"]))
    proto.graph.node[at + 1].input[2] = "same"
    x = np.random.default_rng(1).standard_normal((30, IN)).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = logits(GraphModule(with_integer_sums(nodes_of(proto)), "product"), x)
    np.testing.assert_allclose(found, session.run(None, {"image": x})[0], atol=1e-5)


def logits(graph: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = graph(torch.from_numpy(x)).numpy()
    return found


def images(data: ImageSet, n: int) -> NDArray[np.float32]:
    return to_tensor(next(batches(data, data.preprocess, batch_size=n)).pixels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_numbers_do_not_change_the_gradient(digits_bundle: Bundle, digits_test: ImageSet, variant: str) -> None:
    """They change the order of the arithmetic, not the function."""
    graph = read_graph(digits_bundle.onnx(variant), "graph")
    x = torch.from_numpy(images(digits_test, 64))
    gradients = []
    for each in (graph, with_integer_sums(graph)):
        model, leaf = GraphModule(each, variant), x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)[0].flatten(1))
    cosine = nn.functional.cosine_similarity(*gradients)
    assert float(cosine.median()) > 0.9999 and float(cosine.min()) > 0.95


@pytest.mark.parametrize("variant", ["fp32", "fp16", *VARIANTS])
def test_logits_of_a_network_are_the_artefacts(digits_bundle: Bundle, digits_test: ImageSet, variant: str) -> None:
    """But for steps of int8 that one activation takes up or down."""
    x = images(digits_test, 300)
    with OnnxRuntimeBackend(digits_bundle, variant=variant, threads=1) as backend:
        expected = backend.infer(x)
    found = logits(open_graph(digits_bundle, variant, device=torch.device("cpu")), x)
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(error) < {"fp32": 1e-6, "fp16": 1e-3}.get(variant, 5e-3) and error.max() < TOLERANCES[variant]


SIDE = 64


def trained(name: str) -> PixelModel:
    """A network whose BatchNorms have statistics, factors and shifts that are not those of the beginning."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(Architecture.find(name, num_classes=10)).train()
    for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, SIDE, SIDE))
    return model.eval()


@pytest.mark.parametrize(
    "name",
    ["regnet_y_400mf", "resnet18", "alexnet", "timm/test_resnet", "timm/efficientnet_lite0", "mobilenet_v3_small"],
)
def test_the_gradient_is_the_networks(name: str) -> None:
    """In float64, of logits and pixels; the export has folded what can be."""
    model = trained(name)
    graph = nodes_of(to_onnx(model, (3, SIDE, SIDE)))
    assert "BatchNormalization" not in {node.op for node in graph.nodes}
    x, labels = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6)
    ours, theirs = (input_gradient(each.double(), x, labels, margin) for each in (GraphModule(graph, name), model))
    # weights were folded in float32
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    difference = (ours.gradient - theirs.gradient).flatten(1).norm(dim=1) / theirs.gradient.flatten(1).norm(dim=1)
    # one unit at the kink of its ReLU takes a part of a gradient with it
    assert float(difference.median()) < 1e-5 and float(difference.max()) < 0.1


# --- the manifest


@pytest.mark.parametrize("variant", ["fp32", "fp16", *VARIANTS])
def test_the_manifest_says_what_was_proven(digits_bundle: Bundle, variant: str) -> None:
    parity = digits_bundle.manifest.variants[variant].gradients.parity
    assert parity.frames == digits_bundle.manifest.variants[variant].parity.frames == 64
    assert parity.top1_agreement == 1.0 and parity.max_relative_error < TOLERANCES[variant] / 2
    assert f"graph of {variant}" in parity.reference and "onnxruntime" in parity.runtime


def test_another_network_is_not_taken_for_the_artefact(digits_bundle: Bundle, digits_test: ImageSet) -> None:
    proto = onnx.load(digits_bundle.onnx_path("int8-u8s8"))
    pixels = next(batches(digits_test, digits_test.preprocess, batch_size=64)).pixels
    with OnnxRuntimeBackend(digits_bundle, variant="int8-u8s8", threads=1) as backend:
        truth = backend.infer(to_tensor(pixels))
    graph, parity = own_gradients(proto, "int8-u8s8", sha256="0" * 64, pixels=pixels, logits=truth)
    assert parity.max_relative_error < 0.05 and graph.sha256 == "0" * 64
    for initializer in proto.graph.initializer:
        if initializer.name.endswith("scale"):
            wide = numpy_helper.to_array(initializer) * np.float32(1.3)
            initializer.CopyFrom(numpy_helper.from_array(wide, initializer.name))
    with pytest.raises(ExportError, match=r"int8-u8s8 in PyTorch does not compute what ONNX Runtime does: .*; 0.1 is"):
        own_gradients(proto, "int8-u8s8", sha256="", pixels=pixels, logits=truth)


def test_what_is_not_plain_onnx_is_named() -> None:
    node = helper.make_node("Gelu", ["image"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(InputError, match=r"node 'y' is Gelu of com.microsoft"):
        own_gradients(proto, "int8-u8s8", sha256="", pixels=np.zeros((1, 4, 4, 3), np.uint8), logits=np.zeros((1, 2)))


class Waves(nn.Module):
    """A network with an arc sine, which has no gradients here."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.asin(torch.tanh(self.body(x))).mean((2, 3)))
        return logits


def test_an_artefact_without_gradients_ships_and_says_so(
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
    reason = "the graph of int8-s8s8 has no gradients here: Asin (node of 'asin') is an operator without any"
    entry = bundle.manifest.variants["int8-s8s8"].gradients
    assert isinstance(entry, GradientsEntry) and entry.missing.startswith(reason)
    assert [text for text in told if "attacked" in text] == [
        f"int8-s8s8 can be attacked by transfer and queries only: {entry.missing}"
    ]
    with pytest.raises(InputError, match="was made with no gradients of int8-s8s8: the graph of"):
        open_graph(bundle, "int8-s8s8", device=torch.device("cpu"))
