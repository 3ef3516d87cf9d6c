"""The proof that an artefact's gradients are its own: its graph in PyTorch gives the logits that the artefact gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from edgeadv.gradients.artefact import ArtefactGraph
from edgeadv.gradients.graph import UNCOMPUTABLE
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv_runtime.bundle.entries import ParityEntry
from edgeadv_runtime.errors import EdgeAdvError, ExportError, InputError

from .parity import TOLERANCES, compare, summary, torch_logits


def own_gradients(
    proto: Any,
    variant: str,
    *,
    sha256: str,
    pixels: NDArray[np.uint8],
    logits: NDArray[np.float32],
    single: bool = False,
) -> tuple[ArtefactGraph, ParityEntry]:
    """The graph of an artefact in PyTorch, and how close it is to the artefact.

    It is one more machine that runs the same graph, so it is judged as another device is: by the largest error of a
    logit against :data:`TOLERANCES`. Labels are counted and not judged: on a few dozen frames one that is on the fence
    decides their share, and a label can change only where two logits are closer than twice the error.

    Args:
        proto: an ``onnx.ModelProto`` of a bundle, with float input.
        variant: which artefact it is.
        sha256: hash of the file that it was written to.
        pixels: preprocessed images, uint8 (n, height, width, channels).
        logits: what the artefact makes of them, float32 (n, classes).
        single: whether the graph takes one image a call only.

    Raises:
        InputError: it has no gradients here. The artefact does not depend on them: whatever kind of graph this stumbles
            over, it says so.
        ExportError: its graph in PyTorch is something else.
    """
    try:
        graph = ArtefactGraph(nodes_of(proto), variant, sha256, single=single).eval()
        found = torch_logits(graph, pixels, f"the graph of {variant}")
    except (EdgeAdvError, *UNCOMPUTABLE) as error:
        raise InputError(str(error) or type(error).__name__) from error
    runtime = f"onnxruntime {onnxruntime.__version__}"
    parity = compare(found, logits, reference=f"{graph.gradients}, torch {torch.__version__}, CPU", runtime=runtime)
    if not parity.max_relative_error <= TOLERANCES[variant]:
        raise ExportError(
            f"the graph of {variant} in PyTorch does not compute what ONNX Runtime does: {summary(parity)}; "
            f"{TOLERANCES[variant]:g} is accepted"
        )
    return graph, parity
