"""Where the logits of a file of somebody else are: what lies before its softmax or sigmoid."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from edgeadv_runtime.errors import InputError

from .foreign_file import DEFAULT_DOMAINS

SOFTMAX, SIGMOID, NONE = "softmax", "sigmoid", "none"
_ENDS = {"Softmax": SOFTMAX, "LogSoftmax": SOFTMAX, "Sigmoid": SIGMOID}
# of com.microsoft, in 8 bits: input, its scale and zero point, ...
_QUANTISED_ENDS = {"QLinearSoftmax": SOFTMAX, "QLinearSigmoid": SIGMOID}
# what may stand behind a softmax without changing which class comes first
_PASSING = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Dropout", "QuantizeLinear", "DequantizeLinear")
_TAP = "edgeadv_tap"


@dataclass(frozen=True)
class Logits:
    """Where a graph has its logits.

    Attributes:
        answer: the tensor that its maker reads.
        tensor: the logits: the same, or what the softmax or sigmoid before it is given.
        cut: :data:`SOFTMAX`, :data:`SIGMOID`, or :data:`NONE` if nothing was cut off.
        dequantise: scale and zero point by name, if the logits are in 8 bits.
    """

    answer: str
    tensor: str
    cut: str
    dequantise: tuple[str, ...] = ()


def find_logits(graph: Any, output: str | None) -> Logits:
    """The logits of ``graph``, whose answer is the tensor ``output``, or its only output.

    Raises:
        InputError: several outputs, none, no such tensor, or an output that is no tensor.
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
    value = answer
    while (node := makers.get(value)) is not None:
        if node.domain in DEFAULT_DOMAINS and node.op_type in _ENDS:
            return Logits(answer, node.input[0], _ENDS[node.op_type])
        if node.op_type in _QUANTISED_ENDS:
            return Logits(answer, node.input[0], _QUANTISED_ENDS[node.op_type], tuple(node.input[1:3]))
        if node.op_type not in _PASSING:
            break
        value = node.input[0]
    return Logits(answer, answer, NONE)


def tapped(proto: Any, logits: Logits) -> tuple[Any, list[str]]:
    """A copy of ``proto`` that gives its answer and its logits, and their names; its nodes stay as they are."""
    model = copy.deepcopy(proto)
    name = logits.tensor
    if logits.dequantise:
        name = _TAP
        model.graph.node.append(onnx.helper.make_node("DequantizeLinear", [logits.tensor, *logits.dequantise], [_TAP]))
    wanted = list(dict.fromkeys([logits.answer, name]))
    kept = {each.name: copy.deepcopy(each) for each in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(kept.get(each, onnx.ValueInfoProto(name=each)) for each in wanted)
    return model, wanted


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
