"""The quantised graph once more, for the side that needs gradients and has no onnx; and the proof that it computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeadv.surrogate import Node, QuantisedGraph, Surrogate
from edgeadv_runtime.errors import ExportError

from .parity import TOLERANCES, Parity, compare, torch_logits

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def neutral(proto: Any, variant: str, *, onnx_sha256: str) -> QuantisedGraph:
    """``proto`` without ONNX: its tensors as they are, and its nodes.

    Args:
        proto: an ``onnx.ModelProto`` of a bundle.
        variant: which artefact it is.
        onnx_sha256: hash of the file that it was written to.

    Raises:
        ExportError: a node holds a graph of its own, or comes from another library of operators.
    """
    graph = proto.graph
    tensors = {i.name: _tensor(i) for i in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.domain or any(attribute.type in _GRAPHS for attribute in node.attribute):
            raise ExportError(f"no surrogate can be made of {node.domain or 'ONNX'}'s operator {node.op_type}")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            tensors[node.output[0]] = _constant(attributes)
            continue
        nodes.append(
            Node(node.op_type, tuple(node.input), tuple(node.output), {k: _plain(v) for k, v in attributes.items()})
        )
    return QuantisedGraph(variant, onnx_sha256, graph.input[0].name, graph.output[0].name, tuple(nodes), tensors)


def prove(graph: QuantisedGraph, pixels: NDArray[np.uint8], logits: NDArray[np.float32], *, runtime: str) -> Parity:
    """Compare the surrogate of ``graph`` with the artefact that it stands for.

    The surrogate is one more machine that runs the same int8 graph, so it is judged as another device is: by the largest error
    of a logit, of which :data:`TOLERANCES` allows 10%. Labels are counted and not judged: on a few dozen frames one that is on
    the fence decides their share, and a label can change only where two logits are closer than twice the error.

    Args:
        graph: of an int8 artefact.
        pixels: preprocessed images, uint8 (n, crop, crop, 3).
        logits: what ONNX Runtime makes of them, float32 (n, classes).
        runtime: what computed these.

    Raises:
        InputError: the surrogate does not know an operator.
        ExportError: it is not the artefact.
    """
    name = f"the surrogate of {graph.variant}"
    found = torch_logits(Surrogate(graph), pixels, name)
    parity = compare(found, logits, reference=f"surrogate, torch {torch.__version__}, CPU", runtime=runtime)
    if not parity.max_relative_error <= TOLERANCES[graph.variant]:
        raise ExportError(
            f"{name} does not compute what ONNX Runtime does: {parity}; {TOLERANCES[graph.variant]:g} is accepted"
        )
    return parity


def _constant(attributes: dict[str, Any]) -> torch.Tensor:
    (value,) = attributes.values()
    return _tensor(value) if isinstance(value, onnx.TensorProto) else torch.tensor(value)


def _tensor(proto: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(proto)))


def _plain(value: Any) -> Any:
    """An attribute as JSON can hold it."""
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
