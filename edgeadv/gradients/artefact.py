"""The gradient side of an artefact: its own ONNX graph in PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.variants import INT8, base_of, precision_of, takes_uint8
from edgeadv_runtime.errors import InputError

from ..models.device import default_device, full_precision, memory_order
from .graph import UNCOMPUTABLE, Graph, GraphModule, Node
from .integer_sums import with_integer_sums
from .read_onnx import read_graph

_FLOAT, _FLOAT16 = 1, 10
"""ONNX's numbers of float32 and float16."""
_LONGEST = 240
_HOW = {"fp16": ", in float32", INT8: ", straight-through"}


class ArtefactGraph(GraphModule):
    """An artefact in PyTorch: pixels in, logits out, with the gradients of its own graph.

    It is not the artefact: every library adds up in an order of its own, and now and then a value of an int8 graph
    falls onto the other side of a half. Images are crafted here and scored there.

    - fp16: the weights are those of float16, the arithmetic is float32's, as ONNX Runtime has it on processors.
    - int8: it rounds where the artefact rounds, and lets gradients through the rounding (straight-through).
    - ``-u8in``: pixels are float32 all the same, so that they can be moved.

    Shape:
        input float32 (n, channels, H, W) in [0, 1]; output float32 (n, classes), logits.

    Attributes:
        variant: the artefact that it stands for, always one with float input.
        sha256: hash of that artefact's file: to it the gradients belong.
        gradients: what a results row says of them.
        single: whether it takes one image a call, and is asked once for each.
    """

    def __init__(self, graph: Graph, variant: str, sha256: str, *, single: bool = False) -> None:
        """Prepare ``graph``, as the file of ``variant`` holds it.

        Args:
            graph: what is computed.
            variant: the artefact.
            sha256: as :attr:`sha256`.
            single: whether it takes one image a call, and no more: it is then asked once for each.

        Raises:
            InputError: as :class:`GraphModule`.
        """
        super().__init__(_float_graph(graph, variant), f"the graph of {variant}")
        self.variant: str = base_of(variant)
        self.sha256: str = sha256
        self.single = single
        self.gradients: str = f"graph of {self.variant}{_HOW.get(precision_of(variant), '')}"

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels."""
        if not self.single:
            return super().forward(x)
        return torch.cat([super(ArtefactGraph, self).forward(image) for image in torch.split(x, 1)])


def open_graph(bundle: Bundle, variant: str, *, device: torch.device | None = None) -> ArtefactGraph:
    """The graph of an artefact of ``bundle``, in evaluation mode and frozen, ready to be attacked.

    Args:
        bundle: an opened bundle.
        variant: one that it carries; with ``-u8in`` the one with float input that it was made from, where that is
            carried too, for both are one function of the pixels.
        device: where to run; None takes a GPU if there is one.

    Raises:
        InputError: the bundle does not carry ``variant``, or the graph has no gradients here, or had none where the
            bundle was made.
        BundleError: the file is no ONNX model.
        MissingDependencyError: onnx is not installed.
    """
    device = default_device() if device is None else device
    full_precision(device)
    carried = base_of(variant) if base_of(variant) in bundle.variants else variant
    path = bundle.onnx_path(carried)
    if (why := bundle.no_gradients(carried)) is not None:
        raise InputError(f"{bundle.path} was made with no gradients of {carried}: {why}")
    sha256 = bundle.float_sha256(carried) or bundle.artifact_sha256(carried)
    graph = ArtefactGraph(
        read_graph(bundle.onnx(carried), path), carried, sha256, single=bundle.fixed_batch(carried)
    ).eval()
    grey = torch.full((1, *bundle.preprocess.input_shape), 0.5, requires_grad=True)
    try:
        logits = graph(grey)
        if logits.requires_grad:  # else it rounds everything, which the verdict tells
            torch.autograd.grad(logits.sum(), grey)
    except UNCOMPUTABLE as error:
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise InputError(f"the graph of {carried} has no gradients here: {reason}") from error
    return graph.to(device, memory_format=memory_order(device))  # type: ignore[call-overload, no-any-return]


def _float_graph(graph: Graph, variant: str) -> Graph:
    """``graph`` in float32 throughout, from float pixels on."""
    nodes = [_in_float32(node) for node in graph.nodes]
    tensors = {name: _widened(tensor) for name, tensor in graph.tensors.items()}
    given = graph.input
    if takes_uint8(variant):
        given, largest = "pixels in [0, 1]", "largest pixel"
        tensors[largest] = torch.tensor(255.0)
        scaled = Node("Mul", (given, largest), ("pixels",), {})
        nodes = [scaled, Node("Transpose", ("pixels",), (graph.input,), {"perm": [0, 2, 3, 1]}), *nodes]
    made = Graph((given,), (graph.output,), tuple(nodes), tensors)
    return with_integer_sums(made) if precision_of(variant) == INT8 else made


def _in_float32(node: Node) -> Node:
    """``node`` with no float16 among its attributes: constants, and what it is cast to, which rounds it all the
    same."""
    attributes = {name: _widened(value) for name, value in node.attributes.items()}
    cast = {"to": _FLOAT, "through": _FLOAT16} if attributes.get("to") == _FLOAT16 else {}
    return replace(node, attributes={**attributes, **cast})


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
