"""Half precision inside the graph: float16 weights and arithmetic between a float32 input and float32 logits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeadv_runtime.errors import ExportError

from .extremes import extremes
from .onnx_form import INPUT, OUTPUT, check, quiet

FLOAT16_MAX = float(np.finfo(np.float16).max)
_NORMALISING = ("Sub", "Div", "Mul", "Add")
_PREFIX = "edgeadv_"
_SAME_SHAPE = _PREFIX + "same_shape_{rank}"


def to_fp16(fp32: Any, name: str) -> Any:
    """A float16 copy of ``fp32`` with float32 input and output.

    The normalisation of the pixels stays in float32. A pixel rounded to float16 moves by up to 6% of 1/255, the size
    of the perturbations that this product measures: it is rounded once, after the normalisation, and not before as
    well.

    Args:
        fp32: an ``onnx.ModelProto`` of :func:`to_onnx`; not changed.
        name: what to call the network in errors.

    Returns:
        A checked ``onnx.ModelProto``.

    Raises:
        ExportError: a weight does not fit into float16.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    for initializer in fp32.graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(initializer)).max(initial=0.0))
            _check_fits(name, f"weight {initializer.name}", largest)  # the converter would clamp it
    model = copy.deepcopy(fp32)
    image = copy.deepcopy(model.graph.input[0])
    # told to keep the input's type, or to skip these nodes, the converter would round the pixels before them
    nodes, constants = _detach_normalisation(model.graph)
    with quiet():
        half = convert_float_to_float16(model, keep_io_types=[OUTPUT])
        half.graph.input[0].CopyFrom(image)
        half.graph.initializer.extend(constants)
        half.graph.node.extend(nodes)
        _fence_transposes(half.graph)
        OnnxModel(half).topological_sort(is_deterministic=True)
    check(half, name)
    return half


def _detach_normalisation(graph: Any) -> tuple[list[Any], list[Any]]:
    """Move the nodes between the input and the network proper out of ``graph``, whose input then comes after them.

    Returns:
        Those nodes with the cast that joins them to the rest, and their constants under names of their own.
    """
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    nodes: list[Any] = []
    value = INPUT
    while True:
        users = [node for node in graph.node if value in node.input]
        if len(users) != 1 or users[0].op_type not in _NORMALISING or not set(users[0].input) <= {value, *initializers}:
            break
        nodes.append(copy.deepcopy(users[0]))
        graph.node.remove(users[0])
        value = nodes[-1].output[0]
    still_used = {source for node in graph.node for source in node.input}
    constants: dict[str, Any] = {}
    for node in nodes:
        for i, source in enumerate(node.input):
            if source in initializers:
                node.input[i] = _PREFIX + source
                constants[source] = copy.deepcopy(initializers[source])
                constants[source].name = _PREFIX + source
    for source in constants.keys() - still_used:
        graph.initializer.remove(initializers[source])
    joint = _PREFIX + value
    nodes.append(onnx.helper.make_node("Cast", [value], [joint], name=joint, to=onnx.TensorProto.FLOAT16))
    for node in graph.node:
        node.input[:] = [joint if source == value else source for source in node.input]
    graph.input[0].name = joint
    moved = {node.output[0] for node in nodes}
    for info in [info for info in graph.value_info if info.name in moved]:
        graph.value_info.remove(info)  # else the converter would call these float16
    return nodes, list(constants.values())


def _fence_transposes(graph: Any) -> None:
    """Put a Reshape to the same shape behind each Transpose that moves the first axis to the end of the batch axes.

    ONNX Runtime, seen with 1.32 on x86, writes such a Transpose of float16 anew when its result is multiplied by a
    matrix, to fuse both; with an operand of two axes it then does not, and dies of a null pointer while it opens the
    graph. PyTorch's own attention has it in front of its projection. A Reshape copies nothing, and no optimiser sees
    through it.
    """
    ranks: set[int] = set()
    for place in range(len(graph.node) - 1, -1, -1):
        node = graph.node[place]
        perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        rank = len(perm)
        batch = [*range(1, rank - 1), 0, rank - 1]
        if node.op_type != "Transpose" or rank < 3 or perm not in (batch, [*range(1, rank), 0]):
            continue
        ranks.add(rank)
        after = node.output[0]
        node.output[0] = _PREFIX + after
        same = [node.output[0], _SAME_SHAPE.format(rank=rank)]
        graph.node.insert(place + 1, onnx.helper.make_node("Reshape", same, [after], name=_PREFIX + node.name))
    for rank in sorted(ranks):
        zeros = np.zeros(rank, dtype=np.int64)  # each stands for the size that is there
        graph.initializer.append(onnx.numpy_helper.from_array(zeros, _SAME_SHAPE.format(rank=rank)))


def largest_activation(fp32: Any, x: NDArray[np.float32], name: str) -> float:
    """The largest absolute value that any tensor of the float32 graph takes on ``x``.

    ONNX Runtime's CPU provider computes a float16 graph in float32 on x86 and never sees the overflow that a GPU would,
    so it has to be looked for: what exceeds :data:`FLOAT16_MAX` here is infinite there.

    Args:
        fp32: an ``onnx.ModelProto`` of :func:`to_onnx`; not changed.
        x: float32 of shape (n, channels, height, width).
        name: what to call the network in errors.

    Raises:
        ExportError: the value does not fit into float16.
    """
    _, tensors, seen = extremes(fp32, x, name=name, optimised=True)
    peaks = np.abs(seen).max(axis=(0, 2))
    worst = int(np.argmax(peaks))
    _check_fits(name, f"on these frames {tensors[worst]}", largest := float(peaks[worst]))
    return largest


def _check_fits(name: str, tensor: str, largest: float) -> None:
    if not largest <= FLOAT16_MAX:
        raise ExportError(
            f"fp16 of {name} would overflow: {tensor} reaches {largest:.4g}, float16 ends at {FLOAT16_MAX:.0f}; "
            "export fp32 only (`precisions` fp32)"
        )
