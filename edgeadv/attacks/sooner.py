"""Whether a network's gradients may be float16's: only where they come sooner and the attacks stay as strong."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError

from ..models import PixelModel
from .copies import same_logits
from .functions import fgsm, pgd
from .half import HalfCopy
from .losses import cross_entropy, input_gradient
from .parts import at_once
from .suite import GRADIENTS

HALF = "torch fp16"
"""Where gradients come from, in words, if they are float16's."""
CHECKED = 256
"""So many images are enough for the check, and it is worth its time where there are four times as many."""
_FEWEST_RIGHT = 100
_LEAST_GAIN = 1.1
# of the largest logit, as for an artefact in float16
_SAME = 0.01
_MOST_LEFT_MORE = 0.001
_STEPS = 10
_FGSM, _PGD, _WORST = "FGSM", f"PGD-{_STEPS}", "the worse of FGSM and PGD"


@dataclass(frozen=True)
class Gradients:
    """The network that attacks follow.

    Attributes:
        model: pixels in [0, 1] to logits.
        words: where its gradients come from, for result rows.
        said: why it was chosen, a line.
    """

    model: nn.Module
    words: str
    said: str


def soonest(
    reference: nn.Module, exact: PixelModel, x: Tensor, labels: Tensor, eps: Sequence[Eps], *, checked: bool = False
) -> Gradients:
    """float16's gradients where they come sooner on these images and make attacks as strong as float32's do; else float32's.

    As strong: at every budget FGSM, PGD with 10 steps on the margin, and the worse of the two for each image leave at most 0.1% more of the
    images standing, and it is ``reference`` that says which stand.

    Args:
        reference: the network as it is scored, pixels to logits, in evaluation mode.
        exact: its copy in float32, for gradients.
        x: real images, float32 (n, 3, H, W) in [0, 1], on the device to compute on.
        labels: their labels, int64 (n,).
        eps: budgets in L-infinity.
        checked: float16 it is: an earlier part of the job found it to be as strong.
    """
    part = at_once(x, x.device)
    try:
        half = HalfCopy(exact, x[:16])
        if checked:
            return Gradients(half, HALF, "gradients are float16's, as before")
        return _checked(reference, exact, half, x, labels, eps, part)
    except torch.OutOfMemoryError:
        why = "there is not the memory for a check of float16's"
    except RuntimeError as error:
        why = f"in float16 it does not run, {' '.join(str(error).split())[:200]}"
    if checked:
        raise InputError(f"{why}, which is what this job has followed so far: begin another with --gradients float32")
    return _exact(exact, why)


def _checked(
    reference: nn.Module, exact: nn.Module, half: nn.Module, x: Tensor, labels: Tensor, eps: Sequence[Eps], part: int
) -> Gradients:
    with torch.no_grad():
        right = torch.cat([reference(images) for images in torch.split(x, part)]).argmax(dim=1) == labels
    if int(right.sum()) < _FEWEST_RIGHT:
        return _exact(
            exact, f"only {int(right.sum())} of {len(x)} images are classified right, too few to check float16's on"
        )
    if not same_logits(exact, half, x[:part], _SAME):
        return _exact(exact, "in float16 its logits are others")
    slow, fast = _race([exact, half], x[:part], labels[:part])
    if slow < _LEAST_GAIN * fast:
        return _exact(exact, "float16's come no sooner")
    for budget in eps:
        by_half, by_exact = (_left(reference, model, x, labels, budget.value, part) for model in (half, exact))
        for name, few in by_exact.items():
            if by_half[name] > few + _MOST_LEFT_MORE * len(x):
                return _exact(
                    exact,
                    f"at eps {budget.text} {name} leaves {by_half[name]} of {len(x)} images standing by float16's, {few} by float32's",
                )
    return Gradients(
        half,
        HALF,
        f"gradients are float16's, {slow / fast:.1f} times as soon and as strong as float32's on {len(x)} images",
    )


def _exact(model: nn.Module, why: str) -> Gradients:
    return Gradients(model, GRADIENTS, f"gradients are float32's: {why}")


def _race(models: Sequence[nn.Module], x: Tensor, labels: Tensor, rounds: int = 5) -> list[float]:
    """Median seconds of a gradient of each, in turns, after two that warm up."""
    taken: list[list[float]] = [[] for _ in models]
    for i in range(-2, rounds):
        for model, seconds in zip(models, taken, strict=True):
            start = time.perf_counter()
            input_gradient(model, x, labels, cross_entropy)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if i >= 0:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def _left(reference: nn.Module, model: nn.Module, x: Tensor, labels: Tensor, eps: float, part: int) -> dict[str, int]:
    """Images that stand after FGSM, after PGD, and after both, by ``model``'s gradients."""
    left = dict.fromkeys((_FGSM, _PGD, _WORST), 0)
    for images, aims in zip(torch.split(x, part), torch.split(labels, part), strict=True):
        found = {
            _FGSM: fgsm(model, images, aims, eps=eps)[0].x,
            _PGD: pgd(model, images, aims, eps=eps, steps=_STEPS).x,
        }
        with torch.no_grad():
            stands = {name: reference(made).argmax(dim=1) == aims for name, made in found.items()}
        stands[_WORST] = stands[_FGSM] & stands[_PGD]
        for name, flags in stands.items():
            left[name] += int(flags.sum())
    return left
