"""The two int8 graphs: where they round, by how much, and who takes them."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from edgeadv.data.datasets import ImageSet
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_export import TOLERANCES
from edgeadv_export.draft import Draft
from edgeadv_export.int8 import WEIGHTED, Calibrated, calibrate
from edgeadv_export.onnx_form import OPSET
from edgeadv_export.to_onnx import to_onnx
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.errors import ExportError

VARIANTS = ("int8-s8s8", "int8-u8s8")
QUANTISED = "QuantizeLinear", "DequantizeLinear"


@pytest.fixture(scope="module")
def x(photographs: list[NDArray[np.uint8]], tiny_preprocess: Preprocess) -> NDArray[np.float32]:
    return to_tensor(np.stack([tiny_preprocess(frame, color_order="rgb") for frame in photographs]))


@pytest.fixture(scope="module")
def net(tiny_model: PixelModel) -> PixelModel:
    """The tiny network with BatchNorms that leave no branch at zero, as timm initialises them."""
    model = copy.deepcopy(tiny_model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def calibrated(net: PixelModel, x: NDArray[np.float32]) -> Calibrated:
    fp32 = to_onnx(net, (3, 32, 32))
    return calibrate(fp32, x, "tiny")


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def graph(calibrated: Calibrated, variant: str) -> Any:
    return calibrated.quantise(variant).graph


def arrays(graph: Any) -> dict[str, NDArray[Any]]:
    return {i.name: numpy_helper.to_array(i) for i in graph.initializer}


def producers(graph: Any) -> dict[str, Any]:
    return {out: node for node in graph.node for out in node.output}


def run(proto: Any, x: NDArray[np.float32], *outputs: str) -> list[NDArray[Any]]:
    """Values of the float tensors called ``outputs``, as written, without any optimisation."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for name in outputs:
        if name != "logits":
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(list(outputs), {"image": x})
    return found


def test_s8s8_rounds_inputs_and_weights_of_weighted_nodes_only(calibrated: Calibrated) -> None:
    graph = calibrated.quantise("int8-s8s8").graph
    made, initializers = producers(graph), arrays(graph)
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for source in node.input:
            users.setdefault(source, []).append(node.op_type)
    weighted = [node for node in graph.node if node.op_type in WEIGHTED]
    assert len(weighted) == len([n for n in calibrated.fp32.graph.node if n.op_type in WEIGHTED]) == 16
    for node in weighted:
        assert [made[source].op_type for source in node.input[:2]] == ["DequantizeLinear"] * 2
        assert initializers[node.input[2]].dtype == np.float32  # the bias
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            assert set(users[node.output[0]]) & set(WEIGHTED)
            assert initializers[node.input[2]].dtype == np.int8
            assert not initializers[node.input[2]].any()
        if node.op_type == "QuantizeLinear":
            assert users[node.output[0]] == ["DequantizeLinear"]
            assert not initializers[node.input[2]].any()
        # a Q between a convolution and its activation costs 11 points
        assert not (node.op_type == "QuantizeLinear" and made[node.input[0]].op_type in WEIGHTED)
    assert not [array for array in initializers.values() if array.dtype == np.int32]


def test_u8s8_leaves_headroom_for_sixteen_bits(calibrated: Calibrated) -> None:
    graph = calibrated.quantise("int8-u8s8").graph
    made, initializers = producers(graph), arrays(graph)
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert initializers[node.input[2]].dtype == np.uint8
        if node.op_type in WEIGHTED:
            weight = initializers[made[node.input[1]].input[0]]
            # two products of 255 * 64 fit into 16 bits
            assert weight.dtype == np.int8 and 32 < np.abs(weight.astype(int)).max() <= 64
    assert {"Add", "MaxPool"} <= {
        node.op_type
        for node in graph.node
        if any(made[s].op_type == "DequantizeLinear" for s in node.input if s in made)
    }
    # 256 steps for all classes would make ties
    assert made["logits"].op_type == "Gemm"


def test_graphs_keep_what_a_bundle_promises(calibrated: Calibrated, variant: str) -> None:
    proto = calibrated.quantise(variant)
    assert [i.name for i in proto.graph.input] == ["image"] and [o.name for o in proto.graph.output] == ["logits"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", OPSET)]
    assert not proto.metadata_props and not proto.graph.metadata_props and not proto.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_weights_are_rounded_as_by_hand(calibrated: Calibrated, variant: str, graph: Any) -> None:
    steps = {"int8-s8s8": 127, "int8-u8s8": 64}[variant]
    weights = {i.name: numpy_helper.to_array(i) for i in calibrated.fp32.graph.initializer}
    made, initializers = producers(graph), arrays(graph)
    seen = 0
    for node in (n for n in calibrated.fp32.graph.node if n.op_type in WEIGHTED):
        (ours,) = [n for n in graph.node if n.name == node.name]
        rounded, scale, _ = (initializers[name] for name in made[ours.input[1]].input)
        weight = weights[node.input[1]].astype(np.float64)
        absmax = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        # symmetric 7 bits are -64 to 64, and onnxruntime divides by 2 * 64 steps as well
        expected = np.rint(weight / (absmax / steps).reshape(-1, *[1] * (weight.ndim - 1)))
        np.testing.assert_allclose(scale, absmax / steps, rtol=1e-6)
        # a quotient that float32 puts on the other side of a half
        assert (rounded != expected).mean() < 1e-3 and np.abs(rounded - expected).max() <= 1
        seen += 1
    assert seen == 16


def test_activations_are_rounded_as_by_hand(
    calibrated: Calibrated, variant: str, net: PixelModel, x: NDArray[np.float32]
) -> None:
    """The normalised image, and what PyTorch feeds its last layer."""
    architecture = net.architecture
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (architecture.mean, architecture.std))
    proto = calibrated.quantise(variant)
    quantise = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "div")
    dequantise = next(n for n in proto.graph.node if quantise.output[0] in n.input)
    (found,) = run(proto, x, dequantise.output[0])
    np.testing.assert_allclose(found, by_hand((x - mean) / std, variant), rtol=1e-5, atol=1e-6)

    pooled: list[Tensor] = []
    handle = net.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        net(torch.from_numpy(x))
    handle.remove()
    gemm = next(n for n in proto.graph.node if n.op_type == "Gemm")
    scale, zero = (arrays(proto.graph)[name] for name in producers(proto.graph)[gemm.input[0]].input[1:])
    expected_scale, expected_zero = parameters(pooled[0].numpy(), variant)
    assert float(scale) == pytest.approx(expected_scale, rel=1e-4)
    assert int(zero) == expected_zero


def parameters(value: NDArray[np.float32], variant: str) -> tuple[float, int]:
    each = value.reshape(len(value), -1)
    low, high = (float(np.percentile(v, q)) for v, q in ((each.min(axis=1), 5), (each.max(axis=1), 95)))
    low, high = min(low, 0.0), max(high, 0.0)
    if variant == "int8-s8s8":
        return max(-low, high) / 127, 0
    scale = (high - low) / 255
    return scale, round(-low / scale)


def by_hand(value: NDArray[np.float32], variant: str) -> NDArray[np.float64]:
    scale, zero = parameters(value, variant)
    low, high = (-128, 127) if variant == "int8-s8s8" else (0, 255)
    steps = np.clip(np.rint(value.astype(np.float32) / np.float32(scale)) + zero, low, high)
    rounded: NDArray[np.float64] = (steps - zero) * scale
    return rounded


def test_the_same_bytes_every_time(
    calibrated: Calibrated, x: NDArray[np.float32], tmp_path: Path, net: PixelModel
) -> None:
    digests = [digest(calibrated, variant) for variant in VARIANTS]
    assert [digest(calibrated, variant) for variant in VARIANTS] == digests
    # sets of names are walked in another order by another process
    onnx.save(to_onnx(net, (3, 32, 32)), tmp_path / "fp32.onnx")
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, hashlib, numpy, onnx; from pathlib import Path; from edgeadv_export.int8 import calibrate; "
        "x = numpy.load('x.npy'); c = calibrate(onnx.load('fp32.onnx'), x, 'tiny'); "
        "print(*[hashlib.sha256(c.quantise(v).SerializeToString(deterministic=True)).hexdigest() for v in "
        "sys.argv[1:]])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", script, *VARIANTS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == digests
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fp32.onnx", "x.npy"]


def digest(calibrated: Calibrated, variant: str) -> str:
    return hashlib.sha256(calibrated.quantise(variant).SerializeToString(deterministic=True)).hexdigest()


def test_ranges_do_not_depend_on_the_order_of_the_images(
    net: PixelModel, calibrated: Calibrated, x: NDArray[np.float32]
) -> None:
    assert calibrate(to_onnx(net, (3, 32, 32)), reversed(x), "tiny").ranges == calibrated.ranges


def test_a_range_holds_95_of_100_images(calibrated: Calibrated, x: NDArray[np.float32]) -> None:
    """Of the least and the greatest value on each image alone, the 5th and the 95th percentile."""
    (logits,) = run(calibrated.fp32, x, "logits")
    low, high = np.sort(logits.min(axis=1)), np.sort(logits.max(axis=1))
    expected = (low[0] + 0.55 * (low[1] - low[0]), high[-2] + 0.45 * (high[-1] - high[-2]))  # 12 images: 11 intervals
    assert calibrated.ranges["logits"] == pytest.approx(expected, rel=1e-4)


def test_one_loud_image_does_not_cost_the_others_their_resolution(
    net: PixelModel, x: NDArray[np.float32], tmp_path: Path
) -> None:
    """An image on which every layer answers far louder than on 199 others is clipped."""
    fp32 = to_onnx(net, (3, 32, 32))
    quiet = np.concatenate([x[:1] * np.float32(0.999) ** i for i in range(199)])
    alone = calibrate(fp32, quiet, "tiny")
    loud = calibrate(fp32, [*quiet, x[0] * np.float32(200)], "tiny")
    for tensor, (low, high) in alone.ranges.items():
        assert loud.ranges[tensor] == pytest.approx((low, high), rel=0.05, abs=0.05)


def test_nothing_is_changed_left_or_said(
    calibrated: Calibrated,
    x: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    handlers = list(logging.getLogger().handlers)
    before, ranges = calibrated.fp32.SerializeToString(), dict(calibrated.ranges)
    for variant in VARIANTS:
        calibrated.quantise(variant, float_layers=list(calibrated.layers(variant))[:1])
    calibrate(calibrated.fp32, x, "tiny")
    assert calibrated.fp32.SerializeToString() == before and calibrated.ranges == ranges
    # ONNX Runtime notes its sessions there, in every process that loads it
    assert {path.name for path in tmp_path.iterdir()} <= {".ses"}
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


class Endless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)) / (x.amin((1, 2, 3))[:, None] - 0.5))


def test_ranges_must_be_finite(tmp_path: Path) -> None:
    model = PixelModel(
        Endless(), Architecture(name="net", source="timm", num_classes=10, mean=(0, 0, 0), std=(1, 1, 1))
    )
    fp32 = to_onnx(model.eval(), (3, 8, 8))
    x = np.full((2, 3, 8, 8), 0.5, np.float32)
    with pytest.raises(ExportError, match=r"net cannot be calibrated: .* is NaN or infinite"):
        calibrate(fp32, x, "net")


# --- layers


def test_layers_are_named_after_their_weights(calibrated: Calibrated, net: PixelModel) -> None:
    state = net.net.state_dict()
    assert calibrated.layers("int8-s8s8").keys() == calibrated.layers("int8-u8s8").keys()
    for layer, nodes in calibrated.layers("int8-s8s8").items():
        assert f"{layer}.weight" in state and len(nodes) == 1
    grouped = [node for nodes in calibrated.layers("int8-u8s8").values() for node in nodes]
    assert len(set(grouped)) == len(grouped)
    relus = {node.name for node in calibrated.fp32.graph.node if node.op_type in ("Relu", "Add", "MaxPool")}
    assert relus and relus <= set(grouped)


def test_squeeze_excitation_gates_belong_to_the_layer_that_makes_them(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Architecture.find("regnet_y_400mf", num_classes=10)).eval()
    x = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    calibrated = calibrate(to_onnx(model, (3, 32, 32)), x, "regnet")
    layers = calibrated.layers("int8-u8s8")
    types = {node.name: node.op_type for node in calibrated.fp32.graph.node}
    gates = [[types[node] for node in nodes] for layer, nodes in layers.items() if layer.endswith("se.fc2")]
    assert gates == [["Conv", "Sigmoid", "Mul"]] * 16


def test_a_float_layer_is_as_it_was(calibrated: Calibrated, variant: str) -> None:
    layers = calibrated.layers(variant)
    chosen = list(layers)[3]
    graph = calibrated.quantise(variant, float_layers=[chosen]).graph
    weights = {node.name: node.input[1] for node in calibrated.fp32.graph.node if node.op_type in WEIGHTED}
    for node in graph.node:
        if node.op_type in WEIGHTED:
            # the weight under its own name is float32
            assert (node.input[1] == weights[node.name]) == (node.name in layers[chosen])
    everything = calibrated.quantise(variant, float_layers=list(layers)).graph
    assert not [node for node in everything.node if node.op_type in QUANTISED]


def test_one_layer_alone(calibrated: Calibrated, variant: str, x: NDArray[np.float32]) -> None:
    layers = list(calibrated.layers(variant))
    alone = calibrated.quantise(variant, only=layers[5])
    rounded = [node.input[0] for node in alone.graph.node if node.op_type == "DequantizeLinear"]
    assert [name for name in rounded if name.endswith("weight_quantized")] == [f"net.{layers[5]}.weight_quantized"]
    truth, one, whole = (run(proto, x, "logits")[0] for proto in (calibrated.fp32, alone, calibrated.quantise(variant)))
    assert 0 < np.abs(one - truth).max() < np.abs(whole - truth).max()


# --- who takes them

PARSE = """
import sys
import tensorrt_rtx as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        pass

log = Log()
builder = trt.Builder(log)
flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
network = builder.create_network(flag)
parser = trt.OnnxParser(network, log)
parsed = parser.parse(open(sys.argv[1], "rb").read())
print(parsed, network.num_outputs, [parser.get_error(i).desc() for i in range(parser.num_errors)])
"""


@pytest.mark.parametrize(("variant", "parsed"), [("int8-s8s8", True), ("int8-u8s8", False)])
def test_tensorrt_takes_the_symmetric_graph_only(
    calibrated: Calibrated, tmp_path: Path, variant: str, parsed: bool
) -> None:
    """The real parser of TensorRT-RTX; in a process of its own, for a failed parse may poison the next one."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (tmp_path / "model.onnx").write_bytes(calibrated.quantise(variant).SerializeToString())
    found = subprocess.run(
        [sys.executable, "-c", PARSE, "model.onnx"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(f"{parsed} {int(parsed)}"), found.stdout + found.stderr


@pytest.fixture
def draft(tmp_path: Path, tiny_classes: Classes, tiny_preprocess: Preprocess) -> Iterator[Draft]:
    yield Draft(tmp_path, tiny_classes, tiny_preprocess)


def test_the_backend_computes_what_the_graph_says(
    calibrated: Calibrated, variant: str, draft: Draft, x: NDArray[np.float32]
) -> None:
    """Integer kernels against float32 arithmetic between Q and DQ: apart from an activation here and there, the
    same."""
    proto = calibrated.quantise(variant)
    draft.write(variant, proto)
    with draft.backend(variant) as backend:
        found = backend.infer(x)
    (expected,) = run(proto, x, "logits")
    assert np.abs(found - expected).max() <= TOLERANCES[variant] * np.abs(expected).max()


class Bright(nn.Module):
    """All weights are equal and its inputs bright: every pair of products is near 2 * 255 * 127, beyond 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 10)
        nn.init.ones_(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x)).mean((2, 3)))
        return logits


def has_vnni() -> bool:
    information = Path("/proc/cpuinfo")
    return not information.is_file() or "vnni" in information.read_text()


def test_default_arithmetic_without_vnni_is_beyond_the_tolerance(draft: Draft) -> None:
    """Why the backend asks for exact arithmetic, and why `verify` fails on a device that saturates.

    Seen to hold on an emulated Haswell: 0.97 here, and 0.47 on EfficientNet-Lite0.
    """
    if has_vnni():
        pytest.skip("this processor has VNNI, or does not say: 8-bit sums do not saturate here")
    architecture = Architecture(name="net", source="timm", num_classes=10, mean=(0, 0, 0), std=(1, 1, 1))
    x = np.random.default_rng(0).uniform(0.8, 1, (4, 3, 32, 32)).astype(np.float32)
    fp32 = to_onnx(PixelModel(Bright(), architecture).eval(), (3, 32, 32))
    proto = calibrate(fp32, x, "net").quantise("int8-s8s8")
    draft.write("int8-s8s8", proto)
    (expected,) = run(proto, x, "logits")
    with draft.backend("int8-s8s8") as backend:
        exact = backend.infer(x)
    session = onnxruntime.InferenceSession(str(draft.path("int8-s8s8")), providers=["CPUExecutionProvider"])
    (saturated,) = session.run(["logits"], {"image": x})
    allowed = TOLERANCES["int8-s8s8"] * np.abs(exact).max()
    assert np.abs(exact - expected).max() <= allowed < np.abs(saturated - exact).max()


def test_a_layer_that_stays_in_float32_is_not_rounded_by_the_runtime(
    digits_model: PixelModel, digits_test: ImageSet, tmp_path: Path
) -> None:
    """ONNX Runtime's optimiser rounds the weights of a convolution between two rounded tensors, with one scale for all
    channels."""
    model = copy.deepcopy(digits_model)
    body: Any = model.net.body
    layer = body[3]
    # a channel that never answers, so that only its weights are loud
    layer.weight[0] *= 1e4
    layer.bias[0] = -1e9
    images = np.stack([digits_test.preprocess(digits_test.image(i)) for i in range(0, 1000, 20)])
    x = to_tensor(images)
    fp32 = to_onnx(model, digits_test.preprocess.input_shape)
    proto = calibrate(fp32, x, "digits").quantise("int8-u8s8", float_layers=["body.3"])
    draft = Draft(tmp_path, digits_test.classes, digits_test.preprocess)
    draft.write("int8-u8s8", proto)

    def plain(level: Any) -> NDArray[np.float32]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found: NDArray[np.float32] = session.run(None, {"image": x})[0]
        return found

    as_written = plain(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    optimised = plain(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    with draft.backend("int8-u8s8") as backend:
        served = backend.infer(x)
    size = float(np.abs(as_written).max())
    assert np.abs(served - as_written).max() < 0.05 * size
    assert np.abs(optimised - as_written).max() > 0.2 * size, (
        "the optimiser leaves it alone: nothing is to be switched off"
    )
