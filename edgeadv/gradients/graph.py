"""An ONNX graph in PyTorch, with gradients: node by node, by :mod:`.operators`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeadv_runtime.errors import InputError

from .operators import OPERATORS

UNCOMPUTABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What PyTorch raises, beside errors of edgeadv, where it cannot compute a graph that ONNX Runtime can."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        op: ONNX's name of it.
        inputs: names of tensors; empty for an optional one that is absent.
        outputs: names of tensors.
        attributes: numbers, strings, and lists of them.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """What is computed, without ONNX.

    Attributes:
        inputs: names of what must be given.
        outputs: names of what is made.
        nodes: in an order in which they can be computed.
        tensors: what the model holds, by name.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]

    @property
    def input(self) -> str:
        """The one input.

        Raises:
            InputError: there are others.
        """
        return _one(self.inputs, "input")

    @property
    def output(self) -> str:
        """The one output.

        Raises:
            InputError: there are others.
        """
        return _one(self.outputs, "output")


def _one(names: Sequence[str], what: str) -> str:
    if len(names) != 1:
        raise InputError(f"the model has {len(names)} {what}s ({', '.join(names)}): one is due")
    return names[0]


class GraphModule(nn.Module):
    """An ONNX graph in PyTorch, with gradients.

    Its parameters are frozen and there is nothing to train: training and evaluation mode are the same.

    Shape:
        input and output as the graph has them.
    """

    def __init__(self, graph: Graph, title: str) -> None:
        """Prepare ``graph``, on the CPU; what depends on no image is computed here, once.

        Args:
            graph: what is computed.
            title: what messages call it.

        Raises:
            InputError: the graph has an operator, or an option of one, that is not known here; or it uses a tensor
                that it does not have.
        """
        super().__init__()
        check_operators(graph, title)
        self._title, self._input, self._output = title, graph.input, graph.output
        constants, nodes = _folded(graph, title)
        self._nodes = _needed(nodes, graph.output)
        self._last_use = _last_uses(self._nodes, graph.output)
        used = {name for node in self._nodes for name in node.inputs}
        self._shapes = {k: v for k, v in constants.items() if k in used and not v.is_floating_point()}
        self._parameter_of: dict[str, str] = {}
        for name in sorted(used & constants.keys() - self._shapes.keys()):
            # ONNX's names hold dots, which are not allowed in names of parameters
            self._parameter_of[name] = f"constant_{len(self._parameter_of)}"
            self.register_parameter(self._parameter_of[name], nn.Parameter(constants[name], requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """The graph's output."""
        values = {self._input: x, **self._constants()}
        for node, done in zip(self._nodes, self._last_use, strict=True):
            values.update(run_node(node, values))
            for name in done:
                del values[name]
        return values[self._output]

    def _constants(self) -> dict[str, Tensor]:
        """What depends on no image, by name."""
        held = {name: self.get_parameter(parameter) for name, parameter in self._parameter_of.items()}
        return {**self._shapes, **held}

    def input_step(self, x: Tensor) -> float:
        """How far a pixel moves before what a quantised graph rounds it to does, in pixels; 0 where none is rounded.

        The scale of the first Q over the slope of what comes before it, such as a normalisation.

        Args:
            x: an image, float32 of shape (1, channels, height, width).
        """
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            values = {self._input: leaf, **self._constants()}
            for node in self._nodes:
                if node.op in _PRODUCTS:
                    break
                made = run_node(node, values)
                if node.op in ("QuantizeLinear", "DynamicQuantizeLinear"):
                    given = values[node.inputs[0]]
                    if not given.requires_grad:
                        return 0.0
                    (slope,) = torch.autograd.grad(given.sum(), leaf)
                    scale = values[node.inputs[1]] if node.op == "QuantizeLinear" else made[node.outputs[1]]
                    # each channel has a slope of its own
                    steepest = slope.abs().amax(dim=(0, 2, 3))
                    return float(scale.max() / steepest[steepest > 0].min()) if steepest.any() else 0.0
                values.update(made)
        return 0.0

    def split(self) -> tuple[GraphModule, GraphModule]:
        """The graph in two: what is done to pixels before the first convolution or matrix product, and the rest."""
        constants = self._constants()
        place, name = 0, self._input
        made = {self._input}
        for i, node in enumerate(self._nodes):
            live = made & {self._output, *(given for later in self._nodes[i:] for given in later.inputs)}
            if len(live) == 1:
                place, (name,) = i, live
            if node.op in _PRODUCTS:
                break
            made.update(node.outputs)
        before = Graph((self._input,), (name,), tuple(self._nodes[:place]), constants)
        after = Graph((name,), (self._output,), tuple(self._nodes[place:]), constants)
        return GraphModule(before, self._title), GraphModule(after, self._title)


def check_operators(graph: Graph, title: str) -> None:
    """Refuse a graph that has no gradients here.

    Raises:
        InputError: it has an operator that is not known here; the first such node is named.
    """
    unknown = [node for node in graph.nodes if node.op not in OPERATORS]
    if unknown:
        more = sorted({node.op for node in unknown} - {unknown[0].op})
        others = f" (nor have {', '.join(more)})" if more else ""
        raise InputError(
            f"{title} has no gradients here: {_named(unknown[0])} is an operator without any{others}; "
            "docs/reference/operators.md lists those that have"
        )


def run_node(node: Node, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of ``node`` by name."""
    inputs = [values[name] if name else None for name in node.inputs]
    while inputs and inputs[-1] is None:
        inputs.pop()
    result = OPERATORS[node.op](node.attributes, *inputs)
    results = result if isinstance(result, tuple) else (result,)
    if len(node.outputs) > len(results):
        raise InputError(f"output {node.outputs[len(results)]!r} of {node.op} is not known here")
    # statistics that nobody asks for are left over
    return dict(zip(node.outputs, results, strict=False))


def _named(node: Node) -> str:
    """A node in a message."""
    return f"{node.op} (node of {node.outputs[0]!r})"


def _folded(graph: Graph, title: str) -> tuple[dict[str, Tensor], list[Node]]:
    """All tensors that depend on no image, and the nodes that remain: weights are dequantised here."""
    constants, nodes, known = dict(graph.tensors), [], {graph.input, *graph.tensors}
    with torch.no_grad():
        for node in graph.nodes:
            missing = [name for name in node.inputs if name and name not in known]
            if missing:
                raise InputError(f"{title} lacks the tensor {missing[0]!r}, which {_named(node)} takes")
            known.update(node.outputs)
            if all(name in constants for name in node.inputs if name):
                constants |= run_node(node, constants)
            else:
                nodes.append(node)
    return constants, nodes


def _needed(nodes: list[Node], output: str) -> list[Node]:
    """Those of ``nodes`` that ``output`` depends on, in their order."""
    used, kept = {output}, list[Node]()
    for node in reversed(nodes):
        if used & set(node.outputs):
            used.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _last_uses(nodes: list[Node], output: str) -> list[list[str]]:
    """For each node the tensors that nobody needs after it: without gradients their memory is free then."""
    seen = {output}
    uses: list[list[str]] = []
    for node in reversed(nodes):
        done = {name for name in (*node.inputs, *node.outputs) if name} - seen
        seen |= done
        uses.append(sorted(done))
    return uses[::-1]
