"""The quantised graph once more, for the side that needs gradients and has no onnx; and the proof that it computes the
same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv.gradients.graph import Node, QuantisedGraph, Surrogate
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv_runtime.bundle.entries import ParityEntry
from edgeadv_runtime.bundle.variants import S8S8
from edgeadv_runtime.errors import EdgeAdvError, ExportError, InputError

from .parity import TOLERANCES, compare, summary, torch_logits

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
    try:
        graph = nodes_of(proto)
    except InputError as error:
        raise ExportError(f"no surrogate can be made: {error}") from error
    nodes = tuple(replace(node, attributes={k: _plain(v) for k, v in node.attributes.items()}) for node in graph.nodes)
    return QuantisedGraph(variant, onnx_sha256, graph.input, graph.output, nodes, graph.tensors)


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
        self._tensors = {**graph.tensors, _ONE: torch.tensor(1.0), _NONE: torch.tensor(0, dtype=torch.uint8)}
        self._made = {output: node for node in graph.nodes for output in node.outputs}
        self._users: defaultdict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self._users[name].append(node)
        # scale and zero point of the Q that takes a tensor which is counted in its steps already
        self._counted: dict[str, tuple[str, ...]] = {}

    def rewritten(self) -> QuantisedGraph:
        """The same function, in another order of arithmetic."""
        nodes: list[Node] = []
        for node in self._graph.nodes:
            if node.op == _Q and (name := node.inputs[0]) in self._counted:
                nodes.append(replace(node, inputs=(name, *self._counted[name])))
            elif node.op == "Add":
                nodes += self._sum(node)
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

    def _only(self, name: str) -> Node | None:
        """The node that takes a tensor; None where it is not just one."""
        users = self._users[name]
        return users[0] if len(users) == 1 else None

    def _rounding(self, name: str) -> Node | None:
        """The Q that takes a tensor; None where another node does."""
        user = self._only(name)
        return user if user is not None and user.op == _Q else None

    def _step(self, node: Node) -> Tensor:
        """The scale of a Q or DQ."""
        return self._tensors[node.inputs[1]]

    def _hold(self, name: str, value: Tensor) -> str:
        """``name``, which is now that of ``value``."""
        self._tensors[name] = value
        return name

    def _product(self, node: Node) -> list[Node]:
        """The nodes for a convolution or matrix product."""
        scale = self._scale(node)
        if scale is None:
            return [node]
        if self._graph.variant != S8S8 or node.op != "Conv" or self._in_8_bits(node):
            return self._in_integers(node, scale)
        (output,) = node.outputs
        user = self._only(output)
        if user is not None and user.op == "Add" and self._start_of(user) is node:
            return []
        inputs = node.inputs
        if (bias := self._bias(node, scale)) is not None:
            inputs = (*inputs[:2], self._hold(f"{output} bias", bias * scale))
        return [replace(node, op="OrderedConv", inputs=inputs)]

    def _scale(self, node: Node) -> Tensor | None:
        """Scale of the sums of ``node``, for each output channel or for all; None where its factors are not
        dequantised."""
        x, weight = (self._made.get(name) for name in node.inputs[:2])
        if x is None or weight is None or (x.op, weight.op) != (_DQ, _DQ) or weight.inputs[0] not in self._tensors:
            return None
        if (node.op == "Gemm" and {**_GEMM, **node.attributes} != _GEMM) or self._step(x).numel() > 1:
            return None
        scale = self._step(x) * self._step(weight)
        return None if scale.numel() > 1 and weight.attributes.get("axis", 1) != 0 else scale

    def _in_8_bits(self, node: Node) -> bool:
        """Whether a convolution of ``int8-s8s8`` is one of 8 bits: rounded at once, and each of its ends dequantised
        once and then taken once."""
        rounding = self._rounding(node.outputs[0])
        if rounding is None:
            return False
        ends = map(self._only, (self._made[node.inputs[0]].inputs[0], rounding.outputs[0]))
        return all(end is not None and self._only(end.outputs[0]) is not None for end in ends)

    def _in_integers(self, node: Node, scale: Tensor) -> list[Node]:
        """A product of whole numbers, and then of its scale; the bias is in the sum where it is a whole number too."""
        (output,) = node.outputs
        nodes = []
        for name, part in zip(node.inputs, ("input", "weight"), strict=False):
            made = self._made[name]
            nodes.append(replace(made, inputs=(made.inputs[0], _ONE, *made.inputs[2:]), outputs=(f"{output} {part}",)))
        inputs = [each.outputs[0] for each in nodes]
        bias = self._bias(node, scale)
        if bias is not None:
            inputs.append(self._hold(f"{output} bias", bias))
        apart = node.inputs[2:] if bias is None else ()
        rounding = self._rounding(output)
        if rounding is not None and self._step(rounding).numel() == 1 and not apart:
            scale = scale / self._step(rounding)
            self._counted[output] = (_ONE, *rounding.inputs[2:])
        factor = self._hold(f"{output} scale", self._shaped(scale, node))
        product = f"{output} product" if apart else output
        nodes.append(replace(node, inputs=tuple(inputs), outputs=(f"{output} sum",)))
        nodes.append(Node("Mul", (f"{output} sum", factor), (product,), {}))
        if apart:
            # always of float32: what is dequantised is a whole number
            addend = self._hold(f"{output} bias", self._shaped(self._tensors[apart[0]], node))
            nodes.append(Node("Add", (product, addend), (output,), {}))
        return nodes

    def _sum(self, node: Node) -> list[Node]:
        """The nodes for a sum: a convolution takes its place if it begins with the other input, which may be made after
        the convolution; two rounded tensors whose sum is rounded at once, in 8 bits, are fused.

        ``a * A + (b * B + c)`` with the ratios A and B of the scales and ``c = zero - (A * zero_a + B * zero_b)``, each
        bracket rounded once: found by comparing orders of rounding with ONNX Runtime on all 65,536 pairs of values.
        """
        if (conv := self._start_of(node)) is not None:
            others = (name for name in node.inputs if name not in conv.outputs)
            return [replace(conv, op="OrderedConv", inputs=(*conv.inputs, *others), outputs=node.outputs)]
        (output,) = node.outputs
        rounding = self._rounding(output)
        given = [made for name in node.inputs if (made := self._made.get(name)) is not None and made.op == _DQ]
        if self._graph.variant == S8S8 or len(given) < 2 or rounding is None or len(rounding.inputs) < 3:
            return [node]
        ends = [*given, rounding]
        if self._tensors[rounding.inputs[2]].dtype != torch.uint8 or any(self._step(end).numel() > 1 for end in ends):
            return [node]
        a, b, step = (self._step(end).float() for end in ends)
        zero_a, zero_b, zero = (
            self._tensors[end.inputs[2]].float() if len(end.inputs) > 2 else torch.tensor(0.0) for end in ends
        )
        first, second = a / step, b / step
        shift = (first.double() * zero_a + (second * zero_b).double()).float()
        factors = self._hold(f"{output} factors", torch.stack([first.reshape(()), second.reshape(())]))
        offset = self._hold(f"{output} offset", zero - shift)
        self._counted[output] = (_ONE, _NONE)
        names = (f"{output} first", f"{output} second")
        whole = [Node(_DQ, (end.inputs[0], _ONE), (name,), {}) for end, name in zip(given, names, strict=True)]
        return [*whole, Node("FusedSum", (*names, factors, offset), (output,), {})]

    def _shaped(self, value: Tensor, node: Node) -> Tensor:
        """One number for each channel of what ``node`` gives."""
        if value.numel() == 1 or node.op == "Gemm":
            return value
        return value.reshape(-1, *[1] * (self._tensors[self._made[node.inputs[1]].inputs[0]].ndim - 2))

    def _start_of(self, add: Node) -> Node | None:
        """The convolution of ``int8-s8s8`` whose sums begin with the other input of ``add``: the first that has a
        bias."""
        made = [self._made[name] for name in dict.fromkeys(add.inputs) if name in self._made]
        if self._graph.variant != S8S8 or len(made) < 2:
            return None
        convolutions = (node for node in made if node.op == "Conv" and len(node.inputs) > 2)
        fit = (node for node in convolutions if self._only(node.outputs[0]) and self._scale(node) is not None)
        return next(fit, None)

    def _bias(self, node: Node, scale: Tensor) -> Tensor | None:
        """The bias of ``node`` in units of ``scale``, a whole number; None where there is none, or it is added in
        float32."""
        if len(node.inputs) < 3:
            return None
        if (made := self._made.get(node.inputs[2])) is not None:
            return self._tensors[made.inputs[0]].to(torch.float32)
        return torch.round(self._tensors[node.inputs[2]] / scale) if self._rounded_next(node) else None

    def _rounded_next(self, node: Node) -> bool:
        """Whether what ``node`` gives goes to a Q and nowhere else, through Relu and Clip at most."""
        user = self._only(node.outputs[0])
        return user is not None and (user.op == _Q or (user.op in ("Relu", "Clip") and self._rounded_next(user)))


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
        pixels: preprocessed images, uint8 (n, height, width, channels).
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


def _plain(value: Any) -> Any:
    """An attribute as JSON can hold it."""
    return value.tolist() if isinstance(value, Tensor) else value
