"""Small ONNX classifiers as strangers make them, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES = 16, 4
Shape = Sequence[int | str | None]


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Seeded numbers of a size that keeps activations near 1."""
    fan_in = int(np.prod(shape[1:])) or 1
    return (np.random.default_rng(seed).standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)


def value(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> Any:
    """An input or output; a size is a number, a name, or None."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    held: dict[str, NDArray[Any]],
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> Any:
    """An ``onnx.ModelProto`` of these parts."""
    graph = helper.make_graph(
        list(nodes), "net", list(inputs), list(outputs), [numpy_helper.from_array(v, k) for k, v in held.items()]
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def convolutional(
    *,
    shape: Shape = ("n", 3, SIDE, SIDE),
    channels: int = 3,
    classes: int = CLASSES,
    first: Sequence[Any] = (),
    begin: str = "x",
    last: Sequence[Any] = (),
    output: str = "scores",
    output_shape: Shape | None = ("n", CLASSES),
    held: dict[str, NDArray[Any]] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    outputs: Sequence[Any] | None = None,
    inputs: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> Any:
    """Convolution, ReLU, mean over the picture, linear layer: from ``begin``, NCHW, to ``scores``.

    Args:
        shape: of the input ``x``.
        channels: of the picture at ``begin``.
        classes: numbers in ``scores``.
        first: nodes from ``x`` to ``begin``.
        begin: what the convolution takes.
        last: nodes from ``scores`` to ``output``.
        output: name of the output.
        output_shape: of it.
        held: more tensors.
        kind: of the input.
        opset: of all.
        outputs: instead of ``output``.
        inputs: beside ``x``.
        domains: of other operators.
    """
    own = {
        "conv.w": weights(8, channels, 3, 3),
        "conv.b": weights(8, 1, seed=1).ravel(),
        "fc.w": weights(classes, 8, seed=2),
        "fc.b": weights(max(classes, 1), 1, seed=3).ravel()[:classes],
    }
    nodes = [
        *first,
        helper.make_node("Conv", [begin, "conv.w", "conv.b"], ["conv"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["scores"], transB=1),
        *last,
    ]
    ends = [value(output, output_shape)] if outputs is None else outputs
    return model(nodes, [value("x", shape, kind), *inputs], ends, {**own, **(held or {})}, opset=opset, domains=domains)


def saved(proto: Any, path: Path) -> Path:
    """Write ``proto`` and give its path."""
    onnx.save(proto, path)
    return path
