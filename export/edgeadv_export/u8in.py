"""The ``-u8in`` variants: a graph that begins with the camera's pixels instead of a float tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import onnx

from edgeadv_runtime.errors import ExportError

from .to_onnx import INPUT, check

# of what is put before the graph; no exporter gives such names
_PREFIX = "u8in_"
_LARGEST = 255.0


def to_u8in(proto: Any, name: str) -> Any:
    """A copy of ``proto`` that takes uint8 NHWC pixels in 0..255 and does itself what ``to_tensor`` does outside.

    Before the graph, which stays as it is, come ``Cast`` to float32, ``Transpose`` to NCHW and ``Div`` by 255: in this
    order, for TensorRT takes no ``Transpose`` of uint8, and wants a uint8 input to be cast before anything else. It is
    the same division of the same float32 numbers, so the graph sees the very tensor that it would have been given.

    Args:
        proto: an ``onnx.ModelProto`` whose input ``image`` is float32 (batch, channels, height, width) in [0, 1]; not
            changed.
        name: what to call the network in errors.

    Returns:
        A checked ``onnx.ModelProto``: input ``image`` uint8 (batch, height, width, channels) in 0..255, output as it
        was.

    Raises:
        ExportError: the input of ``proto`` is no such tensor, or a name in it is one of those that are added.
    """
    check(proto, name)
    model = copy.deepcopy(proto)
    graph = model.graph
    batch, channels, height, width = graph.input[0].type.tensor_type.shape.dim
    cast, nchw, tensor, largest = (f"{_PREFIX}{what}" for what in ("cast", "nchw", "tensor", "largest"))
    if taken := sorted({cast, nchw, tensor, largest} & set(_values(graph))):
        raise ExportError(f"{name} has a tensor called {taken[0]}, which its -u8in variant needs for itself; rename it")
    _rename(graph, INPUT, tensor)
    image = onnx.helper.make_tensor_value_info(
        INPUT, onnx.TensorProto.UINT8, [batch.dim_param, height.dim_value, width.dim_value, channels.dim_value]
    )
    del graph.input[:]
    graph.input.append(image)
    graph.initializer.append(onnx.helper.make_tensor(largest, onnx.TensorProto.FLOAT, [], [_LARGEST]))
    first = [
        onnx.helper.make_node("Cast", [INPUT], [cast], name=cast, to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", [cast], [nchw], name=nchw, perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Div", [nchw, largest], [tensor], name=tensor),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *rest])
    check(model, name, uint8=True)
    return model


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _values(graph: Any) -> Iterator[str]:
    """Every name of a tensor or node in ``graph`` and the graphs within it."""
    yield from (initializer.name for initializer in graph.initializer)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for inner in _subgraphs(node):
            yield from _values(inner)


def _rename(graph: Any, old: str, new: str) -> None:
    """Have whatever takes ``old`` take ``new``, within branches and loops too."""
    for node in graph.node:
        node.input[:] = [new if source == old else source for source in node.input]
        for inner in _subgraphs(node):
            _rename(inner, old, new)
