"""The quantised graph once more, for the side that needs gradients and has no onnx; and the proof that it computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from edgeadv.surrogate import Node, QuantisedGraph, Surrogate
from edgeadv_runtime.errors import ExportError

from .parity import TOLERANCES, Parity, compare, torch_logits

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_ONE = "one"


def neutral(proto: Any, variant: str, *, onnx_sha256: str) -> QuantisedGraph:
    """``proto`` without ONNX: its tensors as they are, and its nodes.

    Args:
        proto: an ``onnx.ModelProto`` of a bundle.
        variant: which artefact it is.
        onnx_sha256: hash of the file that it was written to.

    Raises:
        ExportError: a node holds a graph of its own, or comes from another library of operators.
    """
    graph = proto.graph
    tensors = {i.name: _tensor(i) for i in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.domain or any(attribute.type in _GRAPHS for attribute in node.attribute):
            raise ExportError(f"no surrogate can be made of {node.domain or 'ONNX'}'s operator {node.op_type}")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            tensors[node.output[0]] = _constant(attributes)
            continue
        plain = {key: _plain(value) for key, value in attributes.items()}
        nodes.append(Node(node.op_type, tuple(node.input), tuple(node.output), plain))
    return QuantisedGraph(variant, onnx_sha256, graph.input[0].name, graph.output[0].name, tuple(nodes), tensors)


def in_integers(graph: QuantisedGraph) -> QuantisedGraph:
    """``graph`` as ONNX Runtime computes it: convolutions and matrix products on whole numbers, scaled once, after the sum.

    Float32 holds their sums exactly, but not those of what was dequantised first: of a million activations some hundred would
    fall onto the other side of a half, and each moves what follows. Two things are done as ONNX Runtime's optimiser does them:
    where a sum is rounded at once, both scales are one factor; where it is rounded after a Relu or Clip, or at once, a float32
    bias is rounded to a whole number first.
    """
    return _Integers(graph).rewritten()


class _Integers:
    """What :func:`in_integers` knows of a graph while it is rewritten."""

    def __init__(self, graph: QuantisedGraph) -> None:
        self._graph = graph
        self._tensors = dict(graph.tensors)
        self._tensors[_ONE] = torch.tensor(1.0)
        self._made = {output: node for node in graph.nodes for output in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)
        self._scaled: set[str] = set()  # tensors that are counted in steps of the Q that takes them

    def rewritten(self) -> QuantisedGraph:
        """The same graph with whole numbers where that is possible."""
        nodes: list[Node] = []
        for node in self._graph.nodes:
            if node.op == _Q and node.inputs[0] in self._scaled:
                node = replace(node, inputs=(node.inputs[0], _ONE, *node.inputs[2:]))
            nodes += (self._product(node) if node.op in ("Conv", "Gemm") else None) or [node]
        used, kept = {self._graph.output}, list[Node]()
        for node in reversed(nodes):
            if used & set(node.outputs):
                used.update(node.inputs)
                kept.append(node)
        tensors = {name: tensor for name, tensor in self._tensors.items() if name in used}
        return replace(self._graph, nodes=tuple(reversed(kept)), tensors=tensors)

    def _product(self, node: Node) -> list[Node] | None:
        """The nodes for ``node`` in whole numbers, or None where it is not one of dequantised tensors."""
        x, weight = (self._made.get(name) for name in node.inputs[:2])
        if x is None or weight is None or (x.op, weight.op) != (_DQ, _DQ) or weight.inputs[0] not in self._tensors:
            return None
        if node.op == "Gemm" and {**_GEMM, **node.attributes} != _GEMM:
            return None
        scale = self._tensors[x.inputs[1]] * self._tensors[weight.inputs[1]]
        if self._tensors[x.inputs[1]].numel() > 1 or (scale.numel() > 1 and weight.attributes.get("axis", 1) != 0):
            return None
        (output,) = node.outputs
        names = [f"{output} {part}" for part in ("input", "weight", "bias", "scale", "sum")]
        nodes = [
            Node(_DQ, (d.inputs[0], _ONE, *d.inputs[2:]), (name,), d.attributes)
            for d, name in zip((x, weight), names, strict=False)
        ]
        if len(node.inputs) > 2:
            bias = self._bias(node, scale)
            if bias is None:
                return None
            self._tensors[names[2]] = bias
        users = self._users.get(output, [])
        if [user.op for user in users] == [_Q] and self._tensors[users[0].inputs[1]].numel() == 1:
            scale = scale / self._tensors[users[0].inputs[1]]
            self._scaled.add(output)
        if scale.numel() > 1 and node.op == "Conv":
            scale = scale.reshape(-1, *[1] * (self._tensors[weight.inputs[0]].ndim - 2))
        self._tensors[names[3]] = scale
        inputs = tuple(names[: len(node.inputs)])
        return [
            *nodes,
            Node(node.op, inputs, (names[4],), node.attributes),
            Node("Mul", (names[4], names[3]), (output,), {}),
        ]

    def _bias(self, node: Node, scale: Tensor) -> Tensor | None:
        """The bias of ``node`` in units of ``scale``, a whole number; None where it is not one."""
        bias, name = self._made.get(node.inputs[2]), node.inputs[2]
        if bias is not None:
            exact = bias.op == _DQ and len(bias.inputs) < 4 and self._tensors[bias.inputs[0]].dtype == torch.int32
            return self._tensors[bias.inputs[0]].to(torch.float32) if exact else None
        return torch.round(self._tensors[name] / scale) if self._rounded_next(node) else None

    def _rounded_next(self, node: Node) -> bool:
        """Whether what ``node`` gives goes to a Q and nowhere else, through Relu and Clip at most."""
        users = self._users.get(node.outputs[0], [])
        return len(users) == 1 and (
            users[0].op == _Q or (users[0].op in ("Relu", "Clip") and self._rounded_next(users[0]))
        )


_GEMM = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}


def prove(graph: QuantisedGraph, pixels: NDArray[np.uint8], logits: NDArray[np.float32], *, runtime: str) -> Parity:
    """Compare the surrogate of ``graph`` with the artefact that it stands for.

    The surrogate is one more machine that runs the same int8 graph, so it is judged as another device is: by the largest error
    of a logit, of which :data:`TOLERANCES` allows 10%. Labels are counted and not judged: on a few dozen frames one that is on
    the fence decides their share, and a label can change only where two logits are closer than twice the error.

    Args:
        graph: of an int8 artefact.
        pixels: preprocessed images, uint8 (n, crop, crop, 3).
        logits: what ONNX Runtime makes of them, float32 (n, classes).
        runtime: what computed these.

    Raises:
        InputError: the surrogate does not know an operator.
        ExportError: it is not the artefact.
    """
    name = f"the surrogate of {graph.variant}"
    found = torch_logits(Surrogate(graph), pixels, name)
    parity = compare(found, logits, reference=f"surrogate, torch {torch.__version__}, CPU", runtime=runtime)
    if not parity.max_relative_error <= TOLERANCES[graph.variant]:
        raise ExportError(
            f"{name} does not compute what ONNX Runtime does: {parity}; {TOLERANCES[graph.variant]:g} is accepted"
        )
    return parity


def _constant(attributes: Mapping[str, Any]) -> Tensor:
    (value,) = attributes.values()
    return _tensor(value) if isinstance(value, onnx.TensorProto) else torch.tensor(value)


def _tensor(proto: Any) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _plain(value: Any) -> Any:
    """An attribute as JSON can hold it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value).tolist()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
