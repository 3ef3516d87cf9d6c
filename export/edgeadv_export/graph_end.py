"""What a graph of ours ends with: logits, not the probabilities that a network makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.errors import InputError

from .foreign_output import SIGMOID, SOFTMAX, find_logits
from .foreign_scale import constants_of

# an answer that is scaled or moved is saturated where it was before
_AFFINE = ("Mul", "Div", "Add", "Sub", "Neg")


def check_end(graph: Any, logits: NDArray[np.float32], name: str) -> None:
    """Refuse a network that ends in a sigmoid or a softmax: where it is sure, its gradients vanish.

    A softmax whose logarithm is taken passes, for it takes nothing from a margin.

    Args:
        graph: of ONNX.
        logits: what it gives for real frames.
        name: of the network, for the message.

    Raises:
        InputError: it ends so.
    """
    cut = find_logits(graph, _before_scaling(graph)).cut
    if cut == SIGMOID or (cut == SOFTMAX and logits.min() >= 0):
        raise InputError(
            f"{name} gives probabilities, for it ends in a {cut}: let it return the logits that it makes them from, "
            "for attacks on probabilities find less"
        )


def _before_scaling(graph: Any) -> str:
    """The tensor that the answer of ``graph`` is, but for constants that it is multiplied by or added to."""
    makers = {value: node for node in graph.node for value in node.output}
    constants = constants_of(graph)
    value: str = graph.output[0].name
    while (node := makers.get(value)) is not None and node.op_type in _AFFINE:
        inputs = [each for each in node.input if each not in constants]
        if len(inputs) != 1 or inputs[0] not in makers:
            break
        value = inputs[0]
    return value
