"""The convolutions and matrix products of an ONNX file and the types they are written in, read without the onnx package.

A device has no onnx, and what a plan must compute in is inside the graph: this reads as much of the protocol buffer as
answers that. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BundleError

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPES = {1: "Float", 2: "UInt8", 3: "Int8", 10: "Half", 16: "BFloat16"}
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 1, 3, 5
_TENSOR_TYPE, _TENSOR_NAME = 2, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEQUANTIZE = "DequantizeLinear"
# what a weight may pass through on its way: its type is where it comes from
_PASSING = (_DEQUANTIZE, "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


class _Node(NamedTuple):
    operator: str
    name: str
    inputs: list[str]
    output: str
    constant: str | None


def compute_types(onnx: Path) -> dict[str, str]:
    """What each convolution and matrix product of ``onnx`` is written in.

    Args:
        onnx: a model with its weights inside.

    Returns:
        By the name of the node, in the order of the graph: ``"Float"``, ``"Half"``, ``"Int8"`` where both factors come out
        of a ``DequantizeLinear``, or ``"unknown"``.

    Raises:
        BundleError: the file cannot be read or is no ONNX model.
    """
    try:
        with onnx.open("rb") as stream:
            # the weights are not needed, and not read: the map ends with the last view of it
            return _compute_types(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{onnx} cannot be read as ONNX ({error}); copy the bundle again") from error


def _compute_types(data: memoryview) -> dict[str, str]:
    types: dict[str, str] = {}
    nodes: list[_Node] = []
    for graph in (value for number, value in _fields(data) if number == _MODEL_GRAPH):
        for number, value in _fields(graph):
            if number == _GRAPH_NODE:
                nodes.append(_node(value))
            elif number == _GRAPH_INITIALIZER:
                name, kind = _tensor(value)
                types[name] = kind
    if not nodes:
        raise ValueError("there is no graph in it")
    makers = {node.output: node for node in nodes}

    def type_of(value: str) -> str:
        maker = makers.get(value)
        if maker is None:
            return types.get(value, "unknown")
        return type_of(maker.inputs[0]) if maker.operator in _PASSING and maker.inputs else maker.constant or "unknown"

    def written_in(node: _Node) -> str:
        weights = type_of(node.inputs[1])
        image = makers.get(node.inputs[0])
        # 8-bit weights alone do not make 8-bit arithmetic: the other factor has to be quantised too
        return weights if weights != "Int8" or (image and image.operator == _DEQUANTIZE) else "unknown"

    return {node.name or node.output: written_in(node) for node in nodes if node.operator in COMPUTE}


def _node(data: memoryview) -> _Node:
    inputs: list[str] = []
    texts = {_NODE_OUTPUT: "", _NODE_NAME: "", _NODE_OPERATOR: ""}
    constant = None
    for number, value in _fields(data):
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number in texts:
            texts[number] = texts[number] or _text(value)
        elif number == _NODE_ATTRIBUTE:
            constant = _attribute(value) or constant
    return _Node(texts[_NODE_OPERATOR], texts[_NODE_NAME], inputs, texts[_NODE_OUTPUT], constant)


def _attribute(data: memoryview) -> str | None:
    """The type that a ``Cast`` goes to or that a ``Constant`` has; None for any other attribute."""
    parts: dict[int, Any] = dict(_fields(data))
    name = _text(parts.get(_ATTRIBUTE_NAME, memoryview(b"")))
    if name == "to":
        return _TYPES.get(parts.get(_ATTRIBUTE_INT, 0), "unknown")
    if name == "value" and _ATTRIBUTE_TENSOR in parts:
        return _tensor(parts[_ATTRIBUTE_TENSOR])[1]
    return None


def _tensor(data: memoryview) -> tuple[str, str]:
    name, kind = "", "unknown"
    for number, value in _fields(data):
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_TYPE:
            kind = _TYPES.get(value, "unknown")
    return name, kind


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", errors="replace")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of every field of a message: an int, or the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire, len(data))
        if at + size > len(data):
            raise ValueError("it is cut off or not ONNX at all")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
