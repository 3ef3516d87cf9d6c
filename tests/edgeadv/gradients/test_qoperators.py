"""Integer operators of ONNX and ONNX Runtime against ONNX Runtime, alone and in networks that its quantiser made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from edgeadv.gradients.artefact import ArtefactGraph
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.qoperators import DOMAIN, QOPERATORS
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv.models.builder import Architecture, build
from edgeadv_export.to_onnx import to_onnx
from edgeadv_runtime.errors import InputError

STEP, ZERO, OUT, OUT_ZERO = np.float32(0.02), np.uint8(128), np.float32(0.015), np.uint8(100)
SHAPE = (2, 4, 6, 5)


def around(op: str, inputs: list[str], tensors: dict[str, Any], **attributes: Any) -> Any:
    """An image rounded to ``x``, ``op``, and its output as floats."""
    tensors = {"s": STEP, "z": ZERO, "t": OUT, "o": OUT_ZERO, **tensors}
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["x"]),
        helper.make_node(
            op, inputs, ["y"], domain=DOMAIN if op not in ("QLinearConv", "QLinearMatMul") else "", **attributes
        ),
        helper.make_node("DequantizeLinear", ["y", "t", "o"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


X, Y = ["x", "s", "z"], ["t", "o"]
RNG = np.random.default_rng(0)
WEIGHT = {
    "w": RNG.integers(-90, 90, (3, 4, 3, 3)).astype(np.int8),
    "sw": np.array([0.01, 0.02, 0.005], np.float32),
    "zw": np.zeros(3, np.int8),
    "b": RNG.integers(-2000, 2000, 3).astype(np.int32),
}
MATRIX = {"m": RNG.integers(0, 255, (5, 7)).astype(np.uint8), "sm": np.float32(0.01), "zm": np.uint8(120)}
CASES: dict[str, tuple[str, list[str], dict[str, Any], dict[str, Any]]] = {
    "conv": ("QLinearConv", [*X, "w", "sw", "zw", *Y, "b"], WEIGHT, {"pads": [1, 1, 1, 1]}),
    "conv without a bias": ("QLinearConv", [*X, "w", "sw", "zw", *Y], WEIGHT, {"strides": [2, 2]}),
    "matmul": ("QLinearMatMul", [*X, "m", "sm", "zm", *Y], MATRIX, {}),
    "add": ("QLinearAdd", [*X, *X, *Y], {}, {}),
    "mul": ("QLinearMul", [*X, *X, *Y], {}, {}),
    "sigmoid": ("QLinearSigmoid", [*X, *Y], {}, {}),
    "leaky": ("QLinearLeakyRelu", [*X, *Y], {}, {"alpha": 0.2}),
    "softmax": ("QLinearSoftmax", [*X, *Y], {}, {"axis": 1, "opset": 13}),
    "global average": ("QLinearGlobalAveragePool", [*X, *Y], {}, {"channels_last": 0}),
    "average": ("QLinearAveragePool", [*X, *Y], {}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "concat": ("QLinearConcat", [*Y, *X, *X], {}, {"axis": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_onnxruntimes(case: str) -> None:
    """But for a step here and there, where a value lies at a half."""
    op, inputs, tensors, attributes = CASES[case]
    proto = around(op, inputs, tensors, **attributes)
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": x})[0]
    given = torch.from_numpy(x).requires_grad_()
    found = GraphModule(nodes_of(proto), case)(given)
    assert found.shape == expected.shape and len(np.unique(expected)) > 5
    difference = np.abs(found.detach().numpy() - expected)
    # ONNX Runtime's softmax is made of a table of whole numbers
    often = 0.3 if case == "softmax" else 0.02
    assert difference.max() <= OUT * 1.01 and (difference > 1e-6).mean() < often
    (gradient,) = torch.autograd.grad(found.sum(), given)
    assert float(gradient.abs().sum()) > 0


def test_every_one_of_them_is_tried() -> None:
    assert {op for op, *_ in CASES.values()} | {"QGemm"} == set(QOPERATORS)


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match=r"^QLinearAveragePool \('y'\) with its channels last is not known here$"):
        nodes_of(around("QLinearAveragePool", [*X, *Y], {}, kernel_shape=[2, 2], channels_last=1))
    with pytest.raises(InputError, match=r"QLinearWhere of com\.microsoft"):
        nodes_of(around("QLinearWhere", [*X, *Y], {}))


class Pictures(CalibrationDataReader):
    """A few batches of noise."""

    def __init__(self) -> None:
        self._batches = iter([np.random.default_rng(seed).random((4, 3, 64, 64), np.float32) for seed in range(4)])

    def get_next(self) -> Any:
        """The next of them."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with all that its quantiser knows: convolutions, sums, pools and a matrix product."""
    torch.manual_seed(0)
    model = build(Architecture.find("timm/test_resnet", num_classes=10)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 64, 64))
    path = tmp_path_factory.mktemp("floats") / "floats.onnx"
    onnx.save(to_onnx(model.eval(), (3, 64, 64)), path)
    return path


@pytest.mark.parametrize("how", ["QOperator", "QDQ", "dynamic"])
def test_a_network_quantised_by_onnxruntime(floats: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "int8.onnx"
    if how == "dynamic":
        quantize_dynamic(floats, path, weight_type=QuantType.QUInt8)
    else:
        options: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
        options |= {"activation_type": QuantType.QUInt8, "extra_options": {"ReduceRange": True}}
        quantize_static(floats, path, Pictures(), quant_format=QuantFormat[how], **options)
    proto = onnx.load(path)
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds & {"QOperator": {"QGemm"}, "QDQ": {"DequantizeLinear"}, "dynamic": {"ConvInteger"}}[how]
    x = np.random.default_rng(9).random((8, 3, 64, 64), dtype=np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(None, {"image": x[i : i + 1]})[0] for i in range(len(x))])
    graph = ArtefactGraph(nodes_of(proto), "int8-u8s8", "", single=how == "dynamic").eval()
    given = torch.from_numpy(x).requires_grad_()
    found = graph(given)
    assert np.abs(found.detach().numpy() - expected).max() <= 0.02 * np.abs(expected).max()
    float_given = torch.from_numpy(x).requires_grad_()
    of_floats = GraphModule(nodes_of(onnx.load(floats)), "floats")(float_given)
    ours, theirs = (
        torch.autograd.grad(logits[:, 3].sum(), pixels)[0].flatten(1)
        for logits, pixels in ((found, given), (of_floats, float_given))
    )
    assert float(torch.nn.functional.cosine_similarity(ours, theirs).median()) > 0.8
