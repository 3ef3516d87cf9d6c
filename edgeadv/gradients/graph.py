"""int8 by its own gradients: the quantised graph of an ONNX artefact, run by PyTorch with a straight-through estimator.

An attack needs gradients, ONNX Runtime has none, and the float32 weights are another network: what they are sensitive
to, int8 may round away, and the other way round. The export writes the graph of each int8 artefact a second time, as
ONNX Runtime computes it and in a form that needs no onnx to read. :class:`Surrogate` computes it node by node: it
rounds where ONNX Runtime rounds, with the same scales and on the same sums, and lets gradients through the rounding.

It is not the artefact. What ONNX Runtime sums in float32, and of ``int8-s8s8`` that is nearly everything, it sums in
another order, and now and then a value falls onto the other side of a half. Images are crafted here and scored there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError
from edgeadv_runtime.files import canonical_json, write_bytes

from ..models.device import default_device, full_precision
from .operators import OPERATORS

FORMAT = 1
_GRAPH = "graph"  # key of the metadata; one only, for safetensors writes several in any order


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        op: ONNX's name of it.
        inputs: names of tensors; empty for an optional one that is absent.
        outputs: names of tensors.
        attributes: numbers, strings, and lists of them.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class QuantisedGraph:
    """A quantised ONNX graph without ONNX: what a file ``surrogate.<variant>.safetensors`` holds.

    Attributes:
        variant: ``"int8-s8s8"`` or ``"int8-u8s8"``.
        onnx_sha256: hash of the ONNX file that it was made from.
        input: name of the images, float32 (n, 3, H, W) in [0, 1].
        output: name of the logits, float32 (n, classes).
        nodes: in an order in which they can be computed.
        tensors: what the graph holds, by name: weights in int8, scales, zero points, biases, shapes.
    """

    variant: str
    onnx_sha256: str
    input: str
    output: str
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write it as safetensors, the nodes as JSON in the metadata, atomically.

        Raises:
            StorageError: the file cannot be written.
        """
        about = {"format": FORMAT, **vars(self), "nodes": [asdict(node) for node in self.nodes]}
        tensors = dict(about.pop("tensors"))
        write_bytes(path, safetensors.torch.save(tensors, {_GRAPH: canonical_json(about).decode()}))

    @classmethod
    def load(cls, path: Path) -> QuantisedGraph:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is not such a file, or of another format.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_GRAPH])
                if about["format"] != FORMAT:
                    raise BundleError(
                        f"{path} is a surrogate of format {about['format']}, this edgeadv reads {FORMAT}: use the "
                        "edgeadv it was "
                        "made with, or export the bundle again"
                    )
                nodes = tuple(
                    Node(str(n["op"]), tuple(n["inputs"]), tuple(n["outputs"]), dict(n["attributes"]))
                    for n in about["nodes"]
                )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
                return cls(about["variant"], about["onnx_sha256"], about["input"], about["output"], nodes, tensors)
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path} is not a surrogate ({error}); export the bundle again") from error


class Graph(Protocol):
    """A graph of one input and one output, as :class:`GraphModule` computes it."""

    @property
    def input(self) -> str:
        """Name of what is given."""

    @property
    def output(self) -> str:
        """Name of what is made of it."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """In an order in which they can be computed."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What the graph holds, by name."""


class GraphModule(nn.Module):
    """An ONNX graph in PyTorch, with gradients.

    Its parameters are frozen and there is nothing to train: training and evaluation mode are the same.

    Shape:
        input and output as the graph has them.
    """

    def __init__(self, graph: Graph, title: str) -> None:
        """Prepare ``graph``, on the CPU; what depends on no image is computed here, once.

        Args:
            graph: what is computed.
            title: what messages call it.

        Raises:
            InputError: the graph has an operator, or an option of one, that is not known here.
            BundleError: it uses a tensor that it does not have.
        """
        super().__init__()
        unknown = sorted({node.op for node in graph.nodes} - set(OPERATORS))
        if unknown:
            raise InputError(f"{title} has no operator {', '.join(unknown)}")
        self._input, self._output = graph.input, graph.output
        constants, self._nodes = _folded(graph, title)
        self._last_use = _last_uses(self._nodes, graph.output)
        used = {name for node in self._nodes for name in node.inputs}
        self._shapes = {k: v for k, v in constants.items() if k in used and not v.is_floating_point()}
        self._parameter_of: dict[str, str] = {}
        for name in sorted(used & constants.keys() - self._shapes.keys()):
            # ONNX's names hold dots, which are not allowed in names of parameters
            self._parameter_of[name] = f"constant_{len(self._parameter_of)}"
            self.register_parameter(self._parameter_of[name], nn.Parameter(constants[name], requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """The graph's output."""
        values: dict[str, Tensor] = {self._input: x, **self._shapes}
        values |= {name: self.get_parameter(parameter) for name, parameter in self._parameter_of.items()}
        for node, done in zip(self._nodes, self._last_use, strict=True):
            values.update(run_node(node, values))
            for name in done:
                del values[name]
        return values[self._output]


class Surrogate(GraphModule):
    """An int8 artefact in PyTorch: pixels in, logits out, gradients through the rounding.

    Shape:
        input float32 (n, 3, H, W), RGB in [0, 1]; output float32 (n, classes), logits.

    Attributes:
        variant: the artefact that it stands for.
        sha256: hash of that artefact's ONNX file: to it the gradients belong.
        gradients: what a results row says of them.
    """

    def __init__(self, graph: QuantisedGraph) -> None:
        """Prepare ``graph``; see :class:`GraphModule`."""
        super().__init__(graph, f"the surrogate of {graph.variant}")
        self.variant: str = graph.variant
        self.sha256: str = graph.onnx_sha256
        self.gradients: str = f"surrogate {graph.variant}, straight-through"


def load_surrogate(bundle: Bundle, variant: str, *, device: torch.device | None = None) -> Surrogate:
    """The surrogate of an int8 artefact of ``bundle``, in evaluation mode and frozen, ready to be attacked.

    Args:
        bundle: an opened bundle.
        variant: ``"int8-s8s8"`` or ``"int8-u8s8"``; with ``-u8in`` it is the same one, which takes float pixels.
        device: where to run; None takes a GPU if there is one.

    Raises:
        InputError: the bundle has no surrogate of ``variant``.
        BundleError: the file is not one.
        IntegrityError: it was made from another ONNX file.
    """
    path = bundle.surrogate_path(variant)
    graph = QuantisedGraph.load(path)
    if graph.onnx_sha256 != (bundle.float_sha256(variant) or bundle.artifact_sha256(variant)):
        raise IntegrityError(
            f"{path} was made from another ONNX file than the {variant} of this bundle; export it again"
        )
    device = default_device() if device is None else device
    full_precision(device)
    return Surrogate(graph).eval().to(device)


def run_node(node: Node, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of ``node`` by name."""
    inputs = [values[name] if name else None for name in node.inputs]
    while inputs and inputs[-1] is None:
        inputs.pop()
    result = OPERATORS[node.op](node.attributes, *inputs)
    results = result if isinstance(result, tuple) else (result,)
    if len(node.outputs) > len(results):
        raise InputError(f"output {node.outputs[len(results)]!r} of {node.op} is not known here")
    # statistics that nobody asks for are left over
    return dict(zip(node.outputs, results, strict=False))


def _folded(graph: Graph, title: str) -> tuple[dict[str, Tensor], list[Node]]:
    """All tensors that depend on no image, and the nodes that remain: weights are dequantised here."""
    constants, nodes, known = dict(graph.tensors), [], {graph.input, *graph.tensors}
    with torch.no_grad():
        for node in graph.nodes:
            missing = [name for name in node.inputs if name and name not in known]
            if missing:
                raise BundleError(f"{title} lacks {missing[0]}; export the bundle again")
            known.update(node.outputs)
            if all(name in constants for name in node.inputs if name):
                constants |= run_node(node, constants)
            else:
                nodes.append(node)
    return constants, nodes


def _last_uses(nodes: list[Node], output: str) -> list[list[str]]:
    """For each node the tensors that nobody needs after it: without gradients their memory is free then."""
    seen = {output}
    uses: list[list[str]] = []
    for node in reversed(nodes):
        done = {name for name in (*node.inputs, *node.outputs) if name} - seen
        seen |= done
        uses.append(sorted(done))
    return uses[::-1]
