"""How far the tensors of a float32 graph reach on real images."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeadv_runtime.backends.first_run import open_graph, try_graph

from .onnx_form import INPUT


def extremes(
    fp32: Any, images: Iterable[NDArray[np.float32]], *, name: str, optimised: bool = False
) -> tuple[Any, list[str], NDArray[np.float32]]:
    """The least and the greatest value of every float tensor of ``fp32`` on each of ``images`` alone.

    Args:
        fp32: an ``onnx.ModelProto`` of :func:`to_onnx`; not changed.
        images: float32 of shape (channels, height, width).
        name: what to call the network in errors.
        optimised: let ONNX Runtime choose its kernels as it does where it serves a graph.

    Returns:
        ``fp32`` with its shapes, the names of the tensors, and float32 (images, tensors, 2).

    Raises:
        ExportError: the graph that measures them does not run.
    """
    shaped = onnx.shape_inference.infer_shapes(fp32)
    values = (*shaped.graph.value_info, *shaped.graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    names = [INPUT, *(out for node in fp32.graph.node for out in node.output if out in floats)]
    probe = onnx.ModelProto()
    probe.CopyFrom(shaped)
    del probe.graph.output[:]
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            found = f"edgeadv_{op}_{name}"
            probe.graph.node.append(onnx.helper.make_node(op, [name], [found], keepdims=0))
            probe.graph.output.append(onnx.helper.make_tensor_value_info(found, onnx.TensorProto.FLOAT, []))
    graph, waiting = probe.SerializeToString(), iter(images)
    first = list(islice(waiting, 1))
    for image in first:
        try_graph(graph, {INPUT: image[None]}, what=f"measuring the ranges of {name}", optimised=optimised)
    session = open_graph(graph, optimised=optimised)
    seen = [session.run(None, {INPUT: image[None]}) for image in chain(first, waiting)]
    return shaped, names, np.array(seen, dtype=np.float32).reshape(len(seen), len(names), 2)
