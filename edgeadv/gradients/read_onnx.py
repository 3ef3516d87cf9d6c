"""An ONNX model as nodes for :mod:`.operators`: every operator in the form that opset 20 gives it.

Older opsets say the same in other words: an attribute became an input, a default changed. What they say is rewritten
here, once, so that an operator needs one meaning only. This is the one module of edgeadv that imports onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeadv_runtime.engine.external_data import check_self_contained
from edgeadv_runtime.errors import InputError, require
from edgeadv_runtime.reading import decoded

from . import NEWEST, OLDEST
from .graph import Graph, Node
from .qoperators import DOMAIN, QOPERATORS, rewrite


def read_graph(data: bytes, name: object) -> Graph:
    """The nodes of an ONNX file.

    Args:
        data: the bytes of the file, which hold all values: nothing else is read.
        name: of the file, for messages.

    Raises:
        BundleError: it is no ONNX model, or damaged.
        InputError, MissingDependencyError: as :func:`nodes_of`.
    """
    onnx = require("onnx", extra="train")
    check_self_contained(data, name)
    with decoded(name, what="not a readable ONNX model", mend="copy the bundle again"):
        return nodes_of(onnx.load_model_from_string(data))


def nodes_of(proto: Any) -> Graph:
    """The nodes of an ``onnx.ModelProto``.

    Raises:
        MissingDependencyError: onnx is not installed.
        InputError: the opset is not read here, or a node is of another library, or holds a graph of its own.
    """
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    if not OLDEST <= opset <= NEWEST:
        raise InputError(f"the model is of opset {opset}: opsets {OLDEST} to {NEWEST} are read; convert it")
    return _Reader(opset).read(proto.graph)


class _Reader:
    """The nodes so far, and what rewriting adds to them."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.tensors: dict[str, Tensor] = {}

    def read(self, graph: Any) -> Graph:
        """All of ``graph``."""
        self.tensors |= {each.name: _tensor(each) for each in graph.initializer}
        if graph.sparse_initializer:
            raise InputError("the model holds sparse tensors, which are not read here")
        nodes = [made for proto in graph.node for made in self._rewritten(self._node(proto))]
        inputs = tuple(each.name for each in graph.input if each.name not in self.tensors)
        return Graph(inputs, tuple(each.name for each in graph.output), tuple(nodes), self.tensors)

    def _node(self, proto: Any) -> Node:
        onnx = require("onnx", extra="train")
        where = f"node {proto.name or proto.output[0]!r}"
        if proto.domain not in ("", "ai.onnx") and not (proto.domain == DOMAIN and proto.op_type in QOPERATORS):
            raise InputError(f"{where} is {proto.op_type} of {proto.domain}, whose operators are not known here")
        graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        if any(attribute.type in graphs for attribute in proto.attribute):
            raise InputError(f"{where} is {proto.op_type}, which holds a graph of its own: unroll loops and branches")
        attributes = {each.name: _value(onnx.helper.get_attribute_value(each)) for each in proto.attribute}
        return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes)

    def _rewritten(self, node: Node) -> Iterator[Node]:
        """``node`` in today's form."""
        if node.op == "Constant":
            (value,) = node.attributes.values()
            self.tensors[node.outputs[0]] = value if isinstance(value, Tensor) else torch.tensor(value)
            return
        if node.op in QOPERATORS:
            yield from rewrite(node, self.tensors)
            return
        newer, rule = _RULES.get(node.op, (0, None))
        if rule is not None and self.opset < newer:
            yield from rule(self, node)
        else:
            yield node

    def tensor(self, node: Node, name: str, value: Any, dtype: torch.dtype = torch.int64) -> str:
        """Keep a tensor that stood in an attribute, and give its name."""
        key = f"{node.outputs[0]} {name}"
        self.tensors[key] = torch.tensor(value, dtype=dtype)
        return key

    def as_inputs(self, node: Node, *names: str, dtype: torch.dtype = torch.int64) -> Node:
        """``node`` with these attributes as its next inputs, in their order."""
        rest = {key: value for key, value in node.attributes.items() if key not in names}
        added = [self.tensor(node, n, node.attributes[n], dtype) if n in node.attributes else "" for n in names]
        return replace(node, inputs=(*node.inputs, *added), attributes=rest)


_Rule = Callable[[_Reader, Node], Iterator[Node]]


def _attributes_first(*names: str, dtype: torch.dtype = torch.int64) -> _Rule:
    """The rule for an operator whose attributes became inputs."""

    def rule(reader: _Reader, node: Node) -> Iterator[Node]:
        yield reader.as_inputs(node, *names, dtype=dtype)

    return rule


def _pad(reader: _Reader, node: Node) -> Iterator[Node]:
    value = reader.tensor(node, "value", node.attributes.get("value", 0.0), torch.float32)
    moved = reader.as_inputs(
        replace(node, attributes={k: v for k, v in node.attributes.items() if k != "value"}), "pads"
    )
    yield replace(moved, inputs=(*moved.inputs, value))


def _split(reader: _Reader, node: Node) -> Iterator[Node]:
    moved = reader.as_inputs(node, "split") if reader.opset < 13 else node
    if len([name for name in moved.inputs if name]) < 2:
        # all parts are of one size
        moved = replace(
            moved, inputs=moved.inputs[:1], attributes={**moved.attributes, "num_outputs": len(node.outputs)}
        )
    yield moved


def _softmax(reader: _Reader, node: Node) -> Iterator[Node]:
    """Before opset 13 all axes from ``axis`` on, by default 1, are one."""
    (x,), (y,) = node.inputs, node.outputs
    names = [f"{y} {part}" for part in ("shape", "flat", "done")]
    yield Node("Shape", (x,), (names[0],), {})
    yield Node("Flatten", (x,), (names[1],), {"axis": node.attributes.get("axis", 1)})
    yield Node(node.op, (names[1],), (names[2],), {"axis": -1})
    yield Node("Reshape", (names[2], names[0]), (y,), {})


def _upsample(reader: _Reader, node: Node) -> Iterator[Node]:
    moved = reader.as_inputs(node, "scales", dtype=torch.float32) if reader.opset < 9 else node
    yield from _resize(reader, replace(moved, op="Resize"))


def _resize(reader: _Reader, node: Node) -> Iterator[Node]:
    """Until opset 10 there was one way to place pixels."""
    x, scales = node.inputs
    old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    yield replace(node, inputs=(x, "", scales), attributes={**node.attributes, **old})


def _dropout(reader: _Reader, node: Node) -> Iterator[Node]:
    """Nothing is dropped when nothing is trained; nobody asks what was dropped."""
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    if training and not (training in reader.tensors and not reader.tensors[training].item()):
        raise InputError(f"Dropout {node.outputs[0]!r} drops numbers at random: export the model in evaluation mode")
    yield Node("Identity", node.inputs[:1], node.outputs[:1], {})


def _batch_norm(reader: _Reader, node: Node) -> Iterator[Node]:
    if not node.attributes.get("spatial", 1):
        raise InputError(f"BatchNormalization of each position ({node.outputs[0]!r}) is not known here")
    yield replace(
        node, outputs=node.outputs[:1], attributes={k: v for k, v in node.attributes.items() if k != "spatial"}
    )


_AXES = _attributes_first("axes")
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_RULES: Mapping[str, tuple[int, _Rule]] = {
    "BatchNormalization": (9, _batch_norm),
    "Clip": (11, _attributes_first("min", "max", dtype=torch.float32)),
    "Dropout": (NEWEST + 1, _dropout),
    "LogSoftmax": (13, _softmax),
    "Pad": (11, _pad),
    "ReduceSum": (13, _AXES),
    "Resize": (11, _resize),
    "Slice": (10, _attributes_first("starts", "ends", "axes")),
    "Softmax": (13, _softmax),
    "Split": (18, _split),
    "Squeeze": (13, _AXES),
    "Unsqueeze": (13, _AXES),
    "Upsample": (10, _upsample),
    **{f"Reduce{name}": (18, _AXES) for name in _REDUCTIONS},
}
"""By operator, the first opset that needs no rewriting, and what is to be done before."""


def _tensor(proto: Any) -> Tensor:
    onnx = require("onnx", extra="train")
    value = np.array(onnx.numpy_helper.to_array(proto))
    try:
        return torch.from_numpy(value)
    except TypeError as error:
        raise InputError(f"tensor {proto.name!r} is of type {value.dtype}, which is not known here") from error


def _value(value: Any) -> Any:
    """An attribute in Python's types; tensors as PyTorch's."""
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "data_type"):
        return _tensor(value)
    return [_value(each) for each in value] if isinstance(value, list | tuple) or hasattr(value, "append") else value
