"""What a graph is written in, as the manifest lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeadv_export.compute_types import compute_types
from edgeadv_runtime.bundle.bundle import Bundle


def model(nodes: list[Any], **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A graph of ``nodes``, as far as reading it needs one."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "graph", [image], [], initializer=tensors, doc_string="of a test")
    return helper.make_model(graph)


@pytest.mark.parametrize(("variant", "kind"), [("fp32", "Float"), ("fp16", "Half")])
def test_an_exported_model(tiny_bundle: Bundle, variant: str, kind: str) -> None:
    proto = onnx.load(tiny_bundle.onnx_path(variant))
    expected = [node.name for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(expected) > 10
    assert list(compute_types(proto).items()) == [(name, kind) for name in expected]
    assert tiny_bundle.manifest.variants[variant].compute == compute_types(proto)
    assert tiny_bundle.written_in(variant) == {kind}


def test_a_quantised_model(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        frames = iter([{"image": np.full((1, 3, 32, 32), value, np.float32)} for value in (0.1, 0.9)])

        def get_next(self) -> Any:
            return next(self.frames, None)

    types = compute_types(onnx.load(tiny_bundle.onnx_path("fp32")))
    kept = list(types)[:2]
    quantize_static(
        str(tiny_bundle.onnx_path("fp32")),
        str(tmp_path / "int8.onnx"),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        nodes_to_exclude=kept,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul"],
        },
    )
    expected = {name: "Float" if name in kept else "Int8" for name in types}
    assert compute_types(onnx.load(tmp_path / "int8.onnx")) == expected


def test_types_behind_other_nodes() -> None:
    half, single = np.ones((4, 4), np.float16), np.ones((4, 4), np.float32)
    eight, scale, zero = np.ones((4, 4), np.int8), np.float32(0.1), np.int8(0)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(half)),
        helper.make_node("Cast", ["w32"], ["w16"], to=TensorProto.FLOAT16),
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["w"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("MatMul", ["image", "c"], ["1"], name="of a constant"),
        helper.make_node("MatMul", ["image", "w16"], ["2"], name="of a cast"),
        helper.make_node("Gemm", ["dq", "wt", "bias"], ["3"], name="quantised"),
        helper.make_node("Gemm", ["image", "w"], ["4"], name="of 8-bit weights alone"),
        helper.make_node("MatMul", ["image", "image"], ["5"], name="of two images"),
        helper.make_node("MatMul", ["image", "w32"], ["6"]),
        helper.make_node("Relu", ["6"], ["7"], name="nothing of the kind"),
    ]
    proto = model(nodes, w32=single, w8=eight, s=np.array(scale), z=np.array(zero), bias=single[0])
    assert compute_types(proto) == {
        "of a constant": "Half",
        "of a cast": "Half",
        "quantised": "Int8",
        "of 8-bit weights alone": "unknown",
        "of two images": "unknown",
        "6": "Float",
    }
