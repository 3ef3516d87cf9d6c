"""The quantised graph once more, for the side that needs gradients and has no onnx; and the proof that it computes the
same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from edgeadv.gradients.graph import Node, QuantisedGraph, Surrogate
from edgeadv_runtime.bundle.entries import ParityEntry
from edgeadv_runtime.bundle.variants import S8S8
from edgeadv_runtime.errors import EdgeAdvError, ExportError

from .parity import TOLERANCES, compare, summary, torch_logits

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_ONE, _NONE = "one", "none"


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


def as_computed(graph: QuantisedGraph) -> QuantisedGraph:
    """``graph`` with its sums as ONNX Runtime forms them on an x86 processor, for one activation on another step moves
    what follows.

    Kernels for 8 bits add whole numbers, which float32 holds exactly, and scale the sum once; where it is rounded at
    once, both scales are one factor. A sum of two rounded tensors that is rounded at once is two fused multiply-adds.
    ``int8-s8s8`` is mostly summed in float32, in an order of its own (:mod:`edgeadv.gradients.ordered_conv`). In both,
    a float32 bias is rounded to a whole number where the sum is rounded next, after a Relu or Clip at most: ONNX
    Runtime's optimiser does that, and adds a branch into the sums of a biased convolution.
    """
    return _SumRewriter(graph).rewritten()


class _SumRewriter:
    """What :func:`as_computed` knows of a graph while it is rewritten."""

    def __init__(self, graph: QuantisedGraph) -> None:
        self._graph = graph
        self._tensors = dict(graph.tensors)
        self._tensors[_ONE] = torch.tensor(1.0)
        self._made = {output: node for node in graph.nodes for output in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)
        self._tensors[_NONE] = torch.tensor(0, dtype=torch.uint8)
        self._scaled: set[str] = set()  # tensors that are counted in steps of the Q that takes them
        self._summed: set[str] = set()  # the same with its zero point added

    def rewritten(self) -> QuantisedGraph:
        """The same function, in another order of arithmetic."""
        nodes: list[Node] = []
        for node in self._graph.nodes:
            if node.op == _Q and node.inputs[0] in self._scaled:
                node = replace(node, inputs=(node.inputs[0], _ONE, *node.inputs[2:]))
            if node.op == _Q and node.inputs[0] in self._summed:
                node = replace(node, inputs=(node.inputs[0], _ONE, _NONE))
            if node.op == "Add" and (conv := self._start_of(node)) is not None:
                # the convolution takes the place of the sum, for what it begins with may be made after it
                nodes += self._ordered(conv, start=node)
            elif node.op == "Add" and (summed := self._sum(node)) is not None:
                nodes += summed
            elif node.op in ("Conv", "Gemm"):
                nodes += self._product(node)
            else:
                nodes.append(node)
        used, kept = {self._graph.output}, list[Node]()
        for node in reversed(nodes):
            if used & set(node.outputs):
                used.update(node.inputs)
                kept.append(node)
        tensors = {name: tensor for name, tensor in self._tensors.items() if name in used}
        return replace(self._graph, nodes=tuple(reversed(kept)), tensors=tensors)

    def _product(self, node: Node) -> list[Node]:
        """The nodes for a convolution or matrix product."""
        scale = self._scale(node)
        if scale is None:
            return [node]
        if self._graph.variant == S8S8 and node.op == "Conv" and not self._in_8_bits(node):
            users = self._users.get(node.outputs[0], [])
            merged = len(users) == 1 and users[0].op == "Add" and self._start_of(users[0]) is node
            return [] if merged else self._ordered(node)
        return self._in_integers(node, scale)

    def _scale(self, node: Node) -> Tensor | None:
        """Scale of the sums of ``node``, for each output channel or for all; None where its factors are not
        dequantised."""
        x, weight = (self._made.get(name) for name in node.inputs[:2])
        if x is None or weight is None or (x.op, weight.op) != (_DQ, _DQ) or weight.inputs[0] not in self._tensors:
            return None
        if node.op == "Gemm" and {**_GEMM, **node.attributes} != _GEMM:
            return None
        if self._tensors[x.inputs[1]].numel() > 1:
            return None
        scale = self._tensors[x.inputs[1]] * self._tensors[weight.inputs[1]]
        return None if scale.numel() > 1 and weight.attributes.get("axis", 1) != 0 else scale

    def _in_8_bits(self, node: Node) -> bool:
        """Whether a convolution of ``int8-s8s8`` is one of 8 bits: rounded at once, and neither end shared with another
        node."""
        users = self._users.get(node.outputs[0], [])
        before = self._made[node.inputs[0]].inputs[0]
        return [u.op for u in users] == [_Q] and all(self._lonely(q) for q in (before, users[0].outputs[0]))

    def _lonely(self, rounded: str) -> bool:
        """Whether a rounded tensor is dequantised once and then taken once."""
        users = self._users.get(rounded, [])
        return len(users) == 1 and len(self._users.get(users[0].outputs[0], [])) == 1

    def _in_integers(self, node: Node, scale: Tensor) -> list[Node]:
        """A product of whole numbers, and then of its scale; the bias is in the sum where it is a whole number too."""
        (output,) = node.outputs
        x, weight = (self._made[name] for name in node.inputs[:2])
        names = [f"{output} {part}" for part in ("input", "weight", "bias", "scale", "sum", "product")]
        whole = zip((x, weight), names, strict=False)
        nodes = [Node(_DQ, (d.inputs[0], _ONE, *d.inputs[2:]), (name,), d.attributes) for d, name in whole]
        bias = self._bias(node, scale) if len(node.inputs) > 2 else None
        if bias is not None:
            self._tensors[names[2]] = bias
        apart = node.inputs[2:] if bias is None else ()
        users = self._users.get(output, [])
        if [user.op for user in users] == [_Q] and self._tensors[users[0].inputs[1]].numel() == 1 and not apart:
            scale = scale / self._tensors[users[0].inputs[1]]
            self._scaled.add(output)
        self._tensors[names[3]] = self._shaped(scale, node)
        nodes.append(Node(node.op, tuple(names[: 2 if bias is None else 3]), (names[4],), node.attributes))
        nodes.append(Node("Mul", (names[4], names[3]), (names[5] if apart else output,), {}))
        if apart:
            # always of float32: what is dequantised is a whole number
            self._tensors[names[2]] = self._shaped(self._tensors[apart[0]], node)
            nodes.append(Node("Add", (names[5], names[2]), (output,), {}))
        return nodes

    def _sum(self, node: Node) -> list[Node] | None:
        """The nodes for a sum of two rounded tensors that is rounded at once; None where ``node`` is none, or not in 8
        bits.

        ``a * A + (b * B + c)`` with the ratios A and B of the scales and ``c = zero - (A * zero_a + B * zero_b)``, each
        bracket rounded
        once: found by comparing orders of rounding with ONNX Runtime on all 65,536 pairs of values.
        """
        (output,) = node.outputs
        users = self._users.get(output, [])
        given = [made for name in node.inputs if (made := self._made.get(name)) is not None and made.op == _DQ]
        if self._graph.variant == S8S8 or len(given) < 2 or [user.op for user in users] != [_Q]:
            return None
        if len(users[0].inputs) < 3 or self._tensors[users[0].inputs[2]].dtype != torch.uint8:
            return None
        rounded = [*given, users[0]]
        if any(self._tensors[each.inputs[1]].numel() > 1 for each in rounded):
            return None
        a, b, step = (self._tensors[each.inputs[1]].float() for each in rounded)
        zeros = [self._zero(each) for each in rounded]
        first, second = a / step, b / step
        shift = (first.double() * zeros[0] + (second * zeros[1]).double()).float()
        names = [f"{output} {part}" for part in ("first", "second", "factors", "offset")]
        self._tensors[names[2]], self._tensors[names[3]] = (
            torch.stack([first.reshape(()), second.reshape(())]),
            zeros[2] - shift,
        )
        self._summed.add(output)
        whole = [Node(_DQ, (g.inputs[0], _ONE), (name,), {}) for g, name in zip(given, names, strict=False)]
        return [*whole, Node("FusedSum", tuple(names), (output,), {})]

    def _zero(self, node: Node) -> Tensor:
        """The zero point of a Q or DQ in float32."""
        return self._tensors[node.inputs[2]].float() if len(node.inputs) > 2 else torch.tensor(0.0)

    def _shaped(self, value: Tensor, node: Node) -> Tensor:
        """One number for each channel of what ``node`` gives."""
        if value.numel() == 1 or node.op == "Gemm":
            return value
        return value.reshape(-1, *[1] * (self._tensors[self._made[node.inputs[1]].inputs[0]].ndim - 2))

    def _ordered(self, node: Node, *, start: Node | None = None) -> list[Node]:
        """A convolution in float32, onto the other input of ``start``."""
        output = (start or node).outputs[0]
        inputs = [*node.inputs[:2]]
        if len(node.inputs) > 2:
            scale = self._scale(node)
            assert scale is not None
            bias = self._bias(node, scale) if start is None else None
            inputs.append(node.inputs[2])
            if bias is not None:
                inputs[2] = f"{output} bias"
                self._tensors[inputs[2]] = bias * scale
        if start is not None:
            inputs += [name for name in start.inputs if name != node.outputs[0]]
        return [Node("OrderedConv", tuple(inputs), (output,), node.attributes)]

    def _start_of(self, add: Node) -> Node | None:
        """The convolution of ``int8-s8s8`` whose sums begin with the other input of ``add``: the first that has a
        bias."""
        if (
            self._graph.variant != S8S8
            or add.inputs[0] == add.inputs[1]
            or not all(name in self._made for name in add.inputs)
        ):
            return None
        for name in add.inputs:
            node = self._made[name]
            if (
                node.op == "Conv"
                and len(node.inputs) > 2
                and len(self._users[name]) == 1
                and self._scale(node) is not None
            ):
                return node
        return None

    def _bias(self, node: Node, scale: Tensor) -> Tensor | None:
        """The bias of ``node`` in units of ``scale``, a whole number; None where it is added in float32."""
        bias, name = self._made.get(node.inputs[2]), node.inputs[2]
        if bias is not None:
            return self._tensors[bias.inputs[0]].to(torch.float32)
        return torch.round(self._tensors[name] / scale) if self._rounded_next(node) else None

    def _rounded_next(self, node: Node) -> bool:
        """Whether what ``node`` gives goes to a Q and nowhere else, through Relu and Clip at most."""
        users = self._users.get(node.outputs[0], [])
        return len(users) == 1 and (
            users[0].op == _Q or (users[0].op in ("Relu", "Clip") and self._rounded_next(users[0]))
        )


_GEMM = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}


def make(
    proto: Any,
    variant: str,
    *,
    onnx_sha256: str,
    pixels: NDArray[np.uint8],
    logits: NDArray[np.float32],
) -> tuple[QuantisedGraph, ParityEntry]:
    """The surrogate of an artefact, and the proof that it is one; arguments as for :func:`neutral` and :func:`prove`.

    Raises:
        ExportError: there can be none. The artefact does not depend on it: whatever kind of graph this stumbles over,
            it says so.
    """
    try:
        graph = as_computed(neutral(proto, variant, onnx_sha256=onnx_sha256))
        return graph, prove(graph, pixels, logits)
    except (EdgeAdvError, ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(str(error) or type(error).__name__) from error


def prove(graph: QuantisedGraph, pixels: NDArray[np.uint8], logits: NDArray[np.float32]) -> ParityEntry:
    """Compare the surrogate of ``graph`` with the artefact that it stands for.

    The surrogate is one more machine that runs the same int8 graph, so it is judged as another device is: by the
    largest error of a logit, of which :data:`TOLERANCES` allows 10%. Labels are counted and not judged: on a few dozen
    frames one that is on the fence decides their share, and a label can change only where two logits are closer than
    twice the error.

    Args:
        graph: of an int8 artefact.
        pixels: preprocessed images, uint8 (n, crop, crop, 3).
        logits: what ONNX Runtime makes of them, float32 (n, classes).

    Raises:
        InputError: the surrogate does not know an operator.
        ExportError: it is not the artefact.
    """
    name = f"the surrogate of {graph.variant}"
    found = torch_logits(Surrogate(graph), pixels, name)
    runtime = f"onnxruntime {onnxruntime.__version__}"
    parity = compare(found, logits, reference=f"surrogate, torch {torch.__version__}, CPU", runtime=runtime)
    tolerance = TOLERANCES[graph.variant]
    if not parity.max_relative_error <= tolerance:
        raise ExportError(
            f"{name} does not compute what ONNX Runtime does: {summary(parity)}; {tolerance:g} is accepted"
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
