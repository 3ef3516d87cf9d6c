"""What a graph of ours ends with: logits, not the probabilities that a network makes of them."""

from __future__ import annotations

from typing import Any

from edgeadv_runtime.errors import InputError

from .foreign_output import KEEPING, end_of
from .foreign_scale import constants_of

# an answer that is scaled, moved or cut is saturated where it was before
_AFFINE = ("Mul", "Div", "Add", "Sub", "Neg", "Clip")


def check_end(graph: Any, name: str) -> None:
    """Refuse a network that ends in a sigmoid or a softmax: where it is sure, its gradients vanish.

    A softmax whose logarithm is taken passes, for it takes nothing from a margin.

    Args:
        graph: of ONNX.
        name: of the network, for the message.

    Raises:
        InputError: it ends so.
    """
    end = _end(graph)
    if end is not None:
        raise InputError(
            f"{name} gives probabilities, for it ends in a {end}: let it return the logits that it makes them from, "
            "for attacks on probabilities find less"
        )


def _end(graph: Any) -> str | None:
    """The softmax or sigmoid that makes the answer of ``graph``, but for constants that it is multiplied by or added
    to."""
    makers = {value: node for node in graph.node for value in node.output}
    constants = constants_of(graph)
    value: str = graph.output[0].name
    while (node := makers.get(value)) is not None:
        kind, _ = end_of(node, makers, constants)
        if kind is not None:
            return None if node.op_type == "LogSoftmax" else kind
        inputs = [each for each in node.input if each not in constants]
        if not (node.op_type in KEEPING or (node.op_type in _AFFINE and len(inputs) == 1)):
            return None
        value = inputs[0] if inputs else ""
    return None
