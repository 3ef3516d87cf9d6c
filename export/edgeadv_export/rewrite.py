"""A foreign graph under a bundle's contract: pixels in [0, 1] in, float32 logits out, a free batch where it can be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .foreign_file import DEFAULT_DOMAINS
from .foreign_input import Convention
from .foreign_output import SIGMOID, Logits, needed_nodes
from .foreign_scale import constants_of
from .onnx_form import INPUT, OUTPUT, strip_metadata

BATCH = "batch"


def rewritten(
    proto: Any, convention: Convention, logits: Logits, *, classes: int, half: bool, flat: bool, free: bool
) -> Any:
    """``proto`` with input ``image`` and output ``logits``, and only the nodes between them.

    Args:
        proto: of :func:`.foreign_file.load_foreign`; not changed.
        convention: how it takes a picture.
        logits: where it has its logits.
        classes: how many numbers those are for one picture.
        half: whether they are float16.
        flat: whether they are of shape (batch, classes) already.
        free: whether the batch is to be free, and not 1; a graph that has it fixed inside may not work then.

    Returns:
        An ``onnx.ModelProto``.
    """
    graph = copy.deepcopy(proto.graph)
    nodes, read = needed_nodes(graph, [logits.tensor, *logits.dequantise])
    held = [each for each in graph.initializer if each.name in read]
    _rename(nodes, held, {INPUT: f"{INPUT}_of_file", OUTPUT: f"{OUTPUT}_of_file"})
    tensor, given = (_renamed(name) for name in (logits.tensor, convention.input))
    names = {name for node in nodes for name in (node.name, *node.input, *node.output)}
    before, after = _Nodes(held, unused("before_", names)), _Nodes(held, unused("after_", names))
    image = _before(before, convention, free=free)
    last = _after(after, tensor, logits, classes=classes, half=half, flat=flat, batched=convention.batch != 0)
    _rename(nodes, [], {given: image, last: OUTPUT})
    _rename(after.nodes, [], {last: OUTPUT})
    size: Any = BATCH if free else 1
    numbers = 2 if _binary(logits, classes) else classes
    made = onnx.helper.make_graph(
        [*before.nodes, *nodes, *after.nodes],
        "classifier",
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [size, *convention.image])],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [size, numbers])],
        initializer=held,
    )
    domains = {node.domain for node in made.node} | {""}
    opsets = [each for each in proto.opset_import if each.domain in domains or each.domain in DEFAULT_DOMAINS]
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=proto.ir_version)
    strip_metadata(model)
    return model


def _binary(logits: Logits, classes: int) -> bool:
    return logits.cut == SIGMOID and classes == 1


class _Nodes:
    """Nodes that are added, with their constants among the graph's initializers."""

    def __init__(self, held: list[Any], prefix: str) -> None:
        self.nodes: list[Any] = []
        self.prefix = prefix
        self._held = held

    def add(self, op: str, value: str, *constants: NDArray[Any], **attributes: Any) -> str:
        """Add ``op`` of ``value`` and ``constants``; gives the name of what it makes."""
        name = f"{self.prefix}{op.lower()}_{len(self.nodes)}"
        names = [f"{name}_{i}" for i in range(len(constants))]
        self._held.extend(map(onnx.numpy_helper.from_array, constants, names))
        return self.join(op, [value, *names], **attributes)

    def join(self, op: str, values: list[str], **attributes: Any) -> str:
        """Add ``op`` of tensors that are there."""
        name = f"{self.prefix}{op.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, values, [name], name=name, **attributes))
        return name


def _before(made: _Nodes, convention: Convention, *, free: bool) -> str:
    """From ``image`` to what the file takes: the same steps in the same order as :meth:`Convention.feed`."""
    value, scale = INPUT, convention.scale
    if convention.color == "bgr":
        value = made.add("Gather", value, np.array([2, 1, 0], np.int64), axis=1)
    if scale.factor != 1:
        value = made.add("Mul", value, np.array(scale.factor, np.float32))
    if scale.mean:
        value = made.add("Sub", value, np.array(scale.mean, np.float32).reshape(1, -1, 1, 1))
        value = made.add("Div", value, np.array(scale.std, np.float32).reshape(1, -1, 1, 1))
    if convention.layout.endswith("nhwc"):
        value = made.add("Transpose", value, perm=[0, 2, 3, 1])
    if len(convention.shape) != 3 or "flat" in convention.layout or convention.batch == 0:
        shape = list(convention.shape)
        if convention.batch != 0:
            shape = [-1 if free else 1, *shape]
        value = made.add("Reshape", value, np.array(shape, np.int64))
    if convention.dtype == "float16":
        value = made.add("Cast", value, to=onnx.TensorProto.FLOAT16)
    return value


def _after(made: _Nodes, value: str, logits: Logits, *, classes: int, half: bool, flat: bool, batched: bool) -> str:
    """From the file's logits to (batch, classes) in float32."""
    if logits.dequantise:
        value = made.join("DequantizeLinear", [value, *(_renamed(each) for each in logits.dequantise)])
    if half:
        value = made.add("Cast", value, to=onnx.TensorProto.FLOAT)
    if not flat:
        value = made.add("Reshape", value, np.array([-1 if batched else 1, classes], np.int64))
    if _binary(logits, classes):
        zero = made.add("Mul", value, np.zeros((), np.float32))
        value = made.join("Concat", [zero, value], axis=1)
    return value


def unused(prefix: str, names: set[str]) -> str:
    """``prefix``, made longer until none of ``names`` begins with it."""
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


def _renamed(name: str) -> str:
    return f"{name}_of_file" if name in (INPUT, OUTPUT) else name


def _rename(nodes: list[Any], held: list[Any], names: dict[str, str]) -> None:
    """Give tensors other names."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in held:
        tensor.name = names.get(tensor.name, tensor.name)


def freed(proto: Any, fixed: int) -> Iterator[Any]:
    """Copies of a rewritten graph of which one may take any batch, the likeliest first: as it is, and with the batch
    of ``fixed`` pictures no longer written out in the shapes of ``Reshape``."""
    yield proto
    model = copy.deepcopy(proto)
    graph, constants = model.graph, constants_of(model.graph)
    inferred = copy.deepcopy(proto)
    inferred.graph.input[0].type.tensor_type.shape.dim[0].dim_value = fixed
    shapes = {
        each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in onnx.shape_inference.infer_shapes(inferred).graph.value_info
    }
    changed, prefix = False, unused("free_", {each.name for each in graph.initializer})
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = constants[node.input[1]].astype(np.int64).copy()
        if not shape.size or shape[0] != fixed:
            continue
        first = shapes.get(node.input[0], [])[:1]
        if first == [fixed] and not any(a.name == "allowzero" and a.i for a in node.attribute):
            shape[0] = 0  # as that of the input
        elif -1 not in shape:
            shape[0] = -1
        else:
            continue
        name = f"{prefix}shape_{len(graph.initializer)}"
        graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
        node.input[1] = name
        changed = True
    if changed:
        yield model
