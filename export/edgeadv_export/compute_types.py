"""The type that each convolution and matrix product of a graph is written in: what a device holds its plan to."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPES = {
    TensorProto.FLOAT: "Float",
    TensorProto.UINT8: "UInt8",
    TensorProto.INT8: "Int8",
    TensorProto.FLOAT16: "Half",
    TensorProto.BFLOAT16: "BFloat16",
}
_UNKNOWN, _DEQUANTIZE = "unknown", "DequantizeLinear"
# what a weight may pass through on its way: its type is where it comes from
_PASSING = (_DEQUANTIZE, "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


def compute_types(proto: Any) -> dict[str, str]:
    """What each convolution and matrix product of ``proto``, an ``onnx.ModelProto``, is written in.

    Returns:
        By the name of the node, in the order of the graph: ``"Float"``, ``"Half"``, ``"Int8"`` where both factors come
        out of a ``DequantizeLinear``, or ``"unknown"``.
    """
    weights = {tensor.name: _TYPES.get(tensor.data_type, _UNKNOWN) for tensor in proto.graph.initializer}
    makers = {output: node for node in proto.graph.node for output in node.output}

    def type_of(value: str) -> str:
        maker = makers.get(value)
        if maker is None:
            return weights.get(value, _UNKNOWN)
        return type_of(maker.input[0]) if maker.op_type in _PASSING else _given(maker)

    def written_in(node: Any) -> str:
        kind, image = type_of(node.input[1]), makers.get(node.input[0])
        # 8-bit weights alone do not make 8-bit arithmetic: the other factor has to be quantised too
        return kind if kind != "Int8" or (image is not None and image.op_type == _DEQUANTIZE) else _UNKNOWN

    return {node.name or node.output[0]: written_in(node) for node in proto.graph.node if node.op_type in COMPUTE}


def _given(node: Any) -> str:
    """The type that a ``Cast`` goes to or that a ``Constant`` has; unknown of any other node."""
    for attribute in node.attribute:
        if attribute.name == "to":
            return _TYPES.get(attribute.i, _UNKNOWN)
        if attribute.name == "value":
            return _TYPES.get(attribute.t.data_type, _UNKNOWN)
    return _UNKNOWN
