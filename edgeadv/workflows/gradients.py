"""In which arithmetic attacks follow gradients, ``--gradients``, and whether that is compiled first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgeadv_runtime.attacks.pack import SHARD_SIZE
from edgeadv_runtime.bundle.variants import INT8, precision_of
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.suites import APGD_TARGETED, LARGE_EPS, LINEARITY, PGD_SMOOTHED, QUERY_ATTACKS, Effort

from .attack_plan import FLOAT16, FLOAT32, PRECISIONS, TF32

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgeadv.attacks.float16 import HalfCopy
    from edgeadv.gradients.artefact import ArtefactGraph

_log = logging.getLogger(__name__)


def check_gradients(asked: str | None, provider: str) -> None:
    """Make sure that gradients can be had as they are asked for where attacks run."""
    if asked is not None and asked not in PRECISIONS:
        raise InputError("gradients", f"{asked!r} is not one of {', '.join(PRECISIONS)}")
    if asked in (TF32, FLOAT16) and provider == "cpu":
        raise InputError(f"`gradients` {asked} needs a GPU: add `provider` cuda, or leave it out")


def gradients_of(efforts: Mapping[str, Effort], budgets: int, classes: int) -> int:
    """How many gradients of the reference the attacks of ``efforts`` take for an image at ``budgets``, at the most: an
    image that breaks takes fewer."""
    from edgeadv.attacks.suite import SMOOTHING_DRAWS

    total = 0
    for name, effort in efforts.items():
        if name in QUERY_ATTACKS or name == LINEARITY:
            continue
        times = min(effort.targets, classes - 1) if name == APGD_TARGETED else effort.restarts
        draws = SMOOTHING_DRAWS if name == PGD_SMOOTHED else 1
        total += effort.steps * times * draws * (1 if name == LARGE_EPS else budgets)
    return total


def network_to_follow(
    graph: ArtefactGraph, asked: str | None, sample: Callable[[], NDArray[np.float32]], *, gradients: int = 0
) -> tuple[nn.Module, str]:
    """The network whose gradients the suite follows, and where these come from, in words for result rows.

    Args:
        graph: of the reference.
        asked: the arithmetic; None is what PyTorch has where ``graph`` is.
        sample: reads some images.
        gradients: how many of an image the job takes, at the most.
    """
    if asked == FLOAT16:
        return _half(graph, sample, gradients)
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


def _half(graph: ArtefactGraph, sample: Callable[[], NDArray[np.float32]], gradients: int) -> tuple[nn.Module, str]:
    """``graph`` in float16, compiled where that pays, with words for rows."""
    import torch

    from edgeadv.attacks.batching import device_of
    from edgeadv.attacks.float16 import HalfCopy

    if precision_of(graph.variant) == INT8 or graph.single:
        raise InputError(
            "gradients",
            f"{FLOAT16} follows graphs of float weights that take batches, which that of {graph.variant} is not: "
            "leave it out",
        )
    images = torch.from_numpy(sample()).to(device_of(graph))
    try:
        half = HalfCopy(graph, images)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"this network does not run in {FLOAT16} ({reason}): leave `gradients` {FLOAT16} out"
        ) from error
    if _compiles(images.device):
        # the arithmetic is the same, and so are the rows: a run may go on where the compiler does not work
        _compile(half, images, gradients)
    return half, _words(graph, FLOAT16)


def _compiles(device: torch.device) -> bool:
    """Whether what compiling takes, and what it gives, was measured on such a device."""
    return device.type == "cuda"


def _compile(half: HalfCopy, images: Tensor, gradients: int) -> None:
    """Compile ``half`` if a job of so many gradients pays for it; whether it is, is logged with the reason."""
    from edgeadv.attacks.batching import at_once
    from edgeadv.attacks.compiled import PAYS_AFTER, compile_for, sizes_that_pay
    from edgeadv.models.compiling import why_not

    sizes = sizes_that_pay(gradients, min(at_once(images, images.device), SHARD_SIZE))
    counted = (
        f"at most {gradients:,} gradients of an image, and compiling for a size of batch pays after {PAYS_AFTER:,}"
    )
    if not sizes or not len(images):
        _log.info("gradients in float16 are not compiled: %s", counted)
        return
    said = " and ".join(map(str, sizes))
    _log.info("compiling gradients in float16 for batches of %s: %s", said, counted)
    reason = why_not(images.device) or compile_for(half, sizes, images)
    if reason is not None:
        _log.info("gradients in float16 are not compiled: %s", reason)
