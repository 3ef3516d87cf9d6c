"""The ``-u8in`` variants: a graph that begins with the camera's pixels instead of a float tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import onnx

from edgeadv_runtime.errors import ExportError

from .onnx_form import INPUT, check

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
    names = {name for node in _nodes(graph) for name in (node.name, *node.input, *node.output)}
    if taken := sorted(
        {cast, nchw, tensor, largest} & (names | {initializer.name for initializer in graph.initializer})
    ):
        raise ExportError(f"{name} has a tensor called {taken[0]}, which its -u8in variant needs for itself; rename it")
    for node in _nodes(graph):
        node.input[:] = [tensor if source == INPUT else source for source in node.input]
    shape = [batch.dim_param, height.dim_value, width.dim_value, channels.dim_value]
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, shape))
    graph.initializer.append(onnx.helper.make_tensor(largest, onnx.TensorProto.FLOAT, [], [_LARGEST]))
    nodes = [
        onnx.helper.make_node("Cast", [INPUT], [cast], name=cast, to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", [cast], [nchw], name=nchw, perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Div", [nchw, largest], [tensor], name=tensor),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    check(model, name, uint8=True)
    return model


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of ``graph`` and, within branches and loops, of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
