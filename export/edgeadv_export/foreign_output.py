"""Where the logits of a file of somebody else are: what lies before its softmax or sigmoid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeadv_runtime.errors import InputError

from .foreign_file import DEFAULT_DOMAINS
from .foreign_scale import constants_of

SOFTMAX, SIGMOID, NONE = "softmax", "sigmoid", "none"
_ENDS = {"Softmax": SOFTMAX, "LogSoftmax": SOFTMAX, "Sigmoid": SIGMOID}
# of com.microsoft, in 8 bits: input, its scale and zero point, ...
_QUANTISED_ENDS = {"QLinearSoftmax": SOFTMAX, "QLinearSigmoid": SIGMOID}
# what may stand behind a softmax and changes nothing but shape, type and rounding
KEEPING = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Dropout", "QuantizeLinear", "DequantizeLinear")
# what may stand there too, with constants, as long as more stays more
_STEPS: dict[str, Callable[..., NDArray[Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}
_TAP, _TAP_BEHIND = "edgeadv_tap", "edgeadv_tap_behind"


@dataclass(frozen=True)
class Logits:
    """Where a graph has its logits.

    Attributes:
        answer: the tensor that its maker reads.
        tensor: the logits: the same, or what the softmax or sigmoid before it is given.
        cut: :data:`SOFTMAX`, :data:`SIGMOID`, or :data:`NONE` if nothing was cut off.
        dequantise: scale and zero point by name, if the logits are in 8 bits.
        behind: what the softmax or sigmoid gives; the answer if nothing was cut off.
        dequantise_behind: scale and zero point of that, if it is in 8 bits.
        half: what the answer is where that is 0.5.
    """

    answer: str
    tensor: str
    cut: str
    dequantise: tuple[str, ...] = ()
    behind: str = ""
    dequantise_behind: tuple[str, ...] = ()
    half: float = 0.5


def find_logits(graph: Any, output: str | None) -> Logits:
    """The logits of ``graph``, whose answer is the tensor ``output``, or its only output.

    Raises:
        InputError: several outputs, none, no such tensor, an output that is no tensor, or one of probabilities.
    """
    names = [each.name for each in graph.output]
    if not names:
        raise InputError("the graph has no outputs: export it with the logits as its output")
    if output is None and len(names) > 1:
        raise InputError("output", f"is needed, for the graph has {len(names)}: {_listed(names)}")
    answer = names[0] if output is None else output
    makers = {name: node for node in graph.node for name in node.output if name}
    if answer not in makers:
        raise InputError("output", f"{answer!r} is made by no node of the graph; its outputs are {_listed(names)}")
    declared = next((each for each in graph.output if each.name == answer), None)
    kind = None if declared is None else declared.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise InputError(
            f"the output {answer!r} is a {str(kind).removesuffix('_type')}, not a tensor: name another `output`"
        )
    return _before_end(graph, answer, makers) or Logits(answer, answer, NONE, behind=answer)


def _before_end(graph: Any, answer: str, makers: Mapping[str, Any]) -> Logits | None:
    """The logits before a softmax or sigmoid behind which only comes what keeps the order of the classes."""
    constants = constants_of(graph)
    steps: list[tuple[Any, str]] = []
    value = answer
    while (node := makers.get(value)) is not None:
        plain = node.domain in DEFAULT_DOMAINS
        kind, given = end_of(node, makers, constants)
        if kind is not None:
            half = _followed(
                np.array([0.01, 0.02, 0.5, 0.98, 0.99]), steps, constants, log=node.op_type == "LogSoftmax"
            )
            if half is None and kind == SOFTMAX:
                raise probabilities(answer)
            if half is None:
                return None
            if given is None:
                raise probabilities(answer)
            eight = [] if plain else list(node.input)
            return Logits(answer, given, kind, tuple(eight[1:3]), value, tuple(eight[3:5]), half)
        held = [name for name in node.input if name in constants]
        if plain and node.op_type in _STEPS and len(held) == 1:
            value = next(name for name in node.input if name not in constants)
            steps.append((node, value))
        elif plain and node.op_type == "Clip" and all(name in constants for name in node.input[1:] if name):
            value = node.input[0]
            steps.append((node, value))
        elif node.op_type in KEEPING:
            value = node.input[0]
        else:
            break
    return None


def end_of(
    node: Any, makers: Mapping[str, Any], constants: Mapping[str, NDArray[Any]]
) -> tuple[str | None, str | None]:
    """Whether ``node`` is the end of a softmax or sigmoid, written as such or in its parts, and its logits if a tensor
    holds them."""
    plain = node.domain in DEFAULT_DOMAINS
    kind = _ENDS.get(node.op_type) if plain else _QUANTISED_ENDS.get(node.op_type)
    if kind is not None:
        return kind, node.input[0]
    if not plain or node.op_type not in ("Div", "Reciprocal"):
        return None, None
    above, below = (None, node.input[0]) if node.op_type == "Reciprocal" else node.input
    divisor = makers.get(below)
    if above is None or _is_one(constants.get(above)):
        # 1 / (1 + exp(-z))
        if divisor is None or divisor.op_type != "Add":
            return None, None
        terms = [name for name in divisor.input if not _is_one(constants.get(name))]
        power = makers.get(terms[0]) if len(terms) == 1 else None
        if power is None or power.op_type != "Exp":
            return None, None
        minus = makers.get(power.input[0])
        return SIGMOID, minus.input[0] if minus is not None and minus.op_type == "Neg" else None
    # exp(z) / sum(exp(z))
    if divisor is None or divisor.op_type != "ReduceSum":
        return None, None
    powers = [makers.get(name) for name in (above, divisor.input[0])]
    given = {power.input[0] if power is not None and power.op_type == "Exp" else None for power in powers}
    return (SOFTMAX, given.pop()) if len(given) == 1 and None not in given else (None, None)


def _is_one(value: NDArray[Any] | None) -> bool:
    return value is not None and value.size > 0 and bool((value == 1).all())


def _followed(
    shares: NDArray[np.float64],
    steps: Sequence[tuple[Any, str]],
    constants: Mapping[str, NDArray[Any]],
    *,
    log: bool,
) -> float | None:
    """What becomes of the middle one of ``shares`` behind ``steps``, the last of them first; None where more does not
    stay more."""
    found: NDArray[Any] = np.log(shares) if log else shares
    for node, value in reversed(steps):
        if node.op_type == "Clip":
            ends = {a.name: a.f for a in node.attribute}
            given = [float(constants[name].ravel()[0]) if name else None for name in node.input[1:3]]
            low, high = [*given, None, None][:2]
            low, high = ends.get("min", low), ends.get("max", high)
            found = np.clip(found, -np.inf if low is None else low, np.inf if high is None else high)
            continue
        values = [found if name == value else constants[name].astype(np.float64) for name in node.input]
        if any(np.unique(each).size != 1 for each in values if each is not found):
            return None  # another number for each class
        with np.errstate(all="ignore"):
            found = _STEPS[node.op_type](*(each if each is found else each.ravel()[:1] for each in values))
    return float(found[len(found) // 2]) if (np.diff(found) > 0).all() else None


def probabilities(answer: str) -> InputError:
    """The refusal of an output that holds them."""
    return InputError(
        "output",
        f"{answer!r} holds probabilities, on which attacks find less than there is: name the tensor of the logits "
        "before them, or change the file to give their logarithms",
    )


def tapped(proto: Any, logits: Logits) -> tuple[Any, tuple[str, str, str]]:
    """A copy of ``proto`` that gives its answer, its logits and what is right behind them, and the names of the three;
    its nodes stay as they are."""
    model = copy.deepcopy(proto)
    names = [logits.answer]
    for tensor, quantised, tap in (
        (logits.tensor, logits.dequantise, _TAP),
        (logits.behind, logits.dequantise_behind, _TAP_BEHIND),
    ):
        if quantised:
            model.graph.node.append(onnx.helper.make_node("DequantizeLinear", [tensor, *quantised], [tap]))
        names.append(tap if quantised else tensor)
    kept = {each.name: copy.deepcopy(each) for each in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(kept.get(each, onnx.ValueInfoProto(name=each)) for each in dict.fromkeys(names))
    answer, tensor, behind = names
    return model, (answer, tensor, behind)


def needed_nodes(graph: Any, tensors: Sequence[str]) -> tuple[list[Any], set[str]]:
    """The nodes of ``graph`` that make ``tensors``, in their order, and every name that these read."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    found: set[int] = set()
    todo = list(tensors)
    read = set(tensors)
    while todo:
        number = makers.get(todo.pop())
        if number is not None and number not in found:
            found.add(number)
            inputs = [name for name in graph.node[number].input if name]
            read.update(inputs)
            todo += inputs
    return [node for i, node in enumerate(graph.node) if i in found], read


def find_input(graph: Any, answer: str, asked: str | None) -> str:
    """The input of ``graph`` that takes the picture.

    Raises:
        InputError: there is none, there are others that the answer depends on, or it is no tensor.
    """
    held = {each.name for each in graph.initializer}
    inputs = {each.name: each for each in graph.input if each.name not in held}
    if not inputs:
        raise InputError("the graph has no inputs: a classifier takes a picture")
    if asked is not None and asked not in inputs:
        raise InputError("input", f"{asked!r} is none of the graph; it takes {_listed(list(inputs))}")
    _, read = needed_nodes(graph, [answer])
    used = [name for name in inputs if name in read]
    if not used or (asked is not None and asked not in used):
        what = f"the input {asked!r}" if asked else "any input"
        raise InputError(f"the output {answer!r} does not depend on {what}: name another `output`")
    if len(used) > 1:
        raise InputError(
            f"the output {answer!r} depends on {len(used)} inputs ({_listed(used)}): a bundle gives a picture and no "
            "more, so make the others constants"
        )
    kind = inputs[used[0]].type.WhichOneof("value")
    if kind != "tensor_type":
        raise InputError(f"the input {used[0]!r} is a {str(kind).removesuffix('_type')}, not a tensor")
    return str(used[0])


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
