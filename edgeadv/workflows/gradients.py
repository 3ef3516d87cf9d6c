"""In which arithmetic attacks follow gradients: ``--gradients``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeadv_runtime.bundle.variants import INT8, precision_of
from edgeadv_runtime.errors import InputError

from .attack_plan import FLOAT16, FLOAT32, PRECISIONS, TF32

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgeadv.gradients.artefact import ArtefactGraph


def check_gradients(asked: str | None, provider: str) -> None:
    """Make sure that gradients can be had as they are asked for where attacks run."""
    if asked is not None and asked not in PRECISIONS:
        raise InputError("gradients", f"{asked!r} is not one of {', '.join(PRECISIONS)}")
    if asked in (TF32, FLOAT16) and provider == "cpu":
        raise InputError(f"`gradients` {asked} needs a GPU: add `provider` cuda, or leave it out")


def network_to_follow(
    graph: ArtefactGraph, asked: str | None, sample: Callable[[], NDArray[np.float32]]
) -> tuple[nn.Module, str]:
    """The network whose gradients the suite follows, and where these come from, in words for result rows."""
    if asked == FLOAT16:
        return _half(graph, sample)
    if asked == TF32 and (why := _no_tf32(graph)) is not None:
        raise InputError("gradients", f"{TF32} {why}: leave it out")
    return as_pytorch(graph, asked)


def as_pytorch(graph: ArtefactGraph, asked: str | None) -> tuple[nn.Module, str]:
    """``graph`` in TF32 where PyTorch would compute it so, unless ``asked`` says otherwise; with words for rows."""
    from edgeadv.attacks.tf32 import Tf32Copy

    if asked in (None, TF32) and _no_tf32(graph) is None:
        return Tf32Copy(graph), _words(graph, "TF32")
    return graph, graph.gradients


def _words(graph: ArtefactGraph, arithmetic: str) -> str:
    # the graph of fp16 is float16's by its weights alone
    return f"{graph.gradients.removesuffix(f', in {FLOAT32}')}, in {arithmetic}"


def _no_tf32(graph: ArtefactGraph) -> str | None:
    """What keeps ``graph`` from TF32, or None."""
    from edgeadv.attacks.batching import device_of
    from edgeadv.models.device import has_tf32

    if not has_tf32(device_of(graph)):
        return "needs a GPU of compute capability 8.0 or above, which this is not"
    # its sums are of whole numbers, and are exact in float32
    return f"is for float weights, which {graph.variant} has none of" if precision_of(graph.variant) == INT8 else None


def _half(graph: ArtefactGraph, sample: Callable[[], NDArray[np.float32]]) -> tuple[nn.Module, str]:
    """``graph`` in float16, with words for rows."""
    import torch

    from edgeadv.attacks.batching import device_of
    from edgeadv.attacks.float16 import HalfCopy

    if precision_of(graph.variant) == INT8 or graph.single:
        raise InputError(
            "gradients",
            f"{FLOAT16} follows graphs of float weights that take batches, which that of {graph.variant} is not: "
            "leave it out",
        )
    try:
        return HalfCopy(graph, torch.from_numpy(sample()).to(device_of(graph))), _words(graph, FLOAT16)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"this network does not run in {FLOAT16} ({reason}): leave `gradients` {FLOAT16} out"
        ) from error
