"""ONNX's integer operators as what they stand for: dequantise, compute, quantise.

``QLinearConv`` and ``QLinearMatMul`` are ONNX's own, the others ONNX Runtime's (``com.microsoft``), which its quantiser
writes in the form called QOperator. Rewritten, they are the same as the form called QDQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from edgeadv_runtime.errors import InputError

from .graph import Node

DOMAIN = "com.microsoft"
_Rule = Callable[[Node, dict[str, Tensor]], Iterator[Node]]


def rewrite(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    """``node``, one of :data:`QOPERATORS`, as float nodes between Q and DQ.

    Args:
        node: with inputs as the operator has them.
        tensors: what the model holds; scales of biases are added to them.

    Raises:
        InputError: a scale is computed and not held, or an option is not known here.
    """
    if node.attributes.get("channels_last"):
        raise InputError(f"{node.op} ({node.outputs[0]!r}) with its channels last is not known here")
    return QOPERATORS[node.op](node, tensors)


def _dequantised(node: Node, at: int, *, axis: int = 1) -> tuple[Node, str]:
    """The DQ of the input at ``at``, which its scale and zero point follow, and what it gives."""
    name = f"{node.outputs[0]} input {at}"
    return Node("DequantizeLinear", node.inputs[at : at + 3], (name,), {"axis": axis}), name


def _quantised(node: Node, at: int) -> tuple[str, Node]:
    """The name of what is computed, and the Q that makes the output of it, whose scale is the input at ``at``."""
    name = f"{node.outputs[0]} unrounded"
    return name, Node("QuantizeLinear", (name, *node.inputs[at : at + 2]), node.outputs, {})


def _bias(node: Node, tensors: dict[str, Tensor], at: int) -> Iterator[Node]:
    """The DQ of a whole bias at ``at``: its step is the product of those of the two factors."""
    first, second = (tensors.get(node.inputs[place]) for place in (1, 4))
    if first is None or second is None:
        raise InputError(f"{node.op} ({node.outputs[0]!r}) computes its scales, which is not known here")
    scale = f"{node.outputs[0]} bias scale"
    tensors[scale] = first * second
    yield Node("DequantizeLinear", (node.inputs[at], scale), (f"{node.outputs[0]} bias",), {"axis": 0})


def _product(
    node: Node, tensors: dict[str, Tensor], op: str, *, axis: int, bias: int | None, rounding: int
) -> Iterator[Node]:
    """``op`` of two factors, ``axis`` of the second with a step for each place; with a bias and a Q where there are
    inputs for them."""

    def given(at: int) -> bool:
        return len(node.inputs) > at and bool(node.inputs[at])

    (first, a), (second, b) = _dequantised(node, 0), _dequantised(node, 3, axis=axis)
    yield from (first, second)
    inputs = [a, b]
    if bias is not None and given(bias):
        yield from _bias(node, tensors, bias)
        inputs.append(f"{node.outputs[0]} bias")
    made = replace(node, op=op, inputs=tuple(inputs))
    if not given(rounding):
        yield made
        return
    name, last = _quantised(node, rounding)
    yield from (replace(made, outputs=(name,)), last)


def _conv(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    return _product(node, tensors, "Conv", axis=0, bias=8, rounding=6)


def _matmul(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    return _product(node, tensors, "MatMul", axis=-1, bias=None, rounding=6)


def _gemm(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    return _product(node, tensors, "Gemm", axis=0 if node.attributes.get("transB") else 1, bias=6, rounding=7)


def _of_two(op: str) -> _Rule:
    """An operator of two tensors, each with scale and zero point, then those of the output."""

    def rule(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
        a, b = _dequantised(node, 0), _dequantised(node, 3)
        name, last = _quantised(node, 6)
        yield from (a[0], b[0], Node(op, (a[1], b[1]), (name,), {}), last)

    return rule


def _of_one(op: str) -> _Rule:
    """An operator of one tensor with scale and zero point, then those of the output."""

    def rule(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
        (x, value), (name, last) = _dequantised(node, 0), _quantised(node, 3)
        about = {key: value for key, value in node.attributes.items() if key not in ("channels_last", "opset")}
        yield from (x, Node(op, (value,), (name,), about), last)

    return rule


def _concat(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    parts = [_dequantised(node, at) for at in range(2, len(node.inputs), 3)]
    name, last = _quantised(node, 0)
    yield from (part for part, _ in parts)
    yield replace(node, op="Concat", inputs=tuple(value for _, value in parts), outputs=(name,))
    yield last


QOPERATORS: Mapping[str, _Rule] = {
    "QGemm": _gemm,
    "QLinearAdd": _of_two("Add"),
    "QLinearAveragePool": _of_one("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _of_one("GlobalAveragePool"),
    "QLinearLeakyRelu": _of_one("LeakyRelu"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _of_two("Mul"),
    "QLinearSigmoid": _of_one("Sigmoid"),
    "QLinearSoftmax": _of_one("Softmax"),
}
"""By operator, what it is rewritten to."""
