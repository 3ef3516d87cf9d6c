"""Whether a network's gradients may be float16's: only where they come sooner and the attacks stay as strong."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeadv_runtime.eps import Eps

from ..models import PixelModel
from .functions import fgsm, pgd
from .half import HalfCopy
from .losses import cross_entropy, input_gradient
from .suite import GRADIENTS, at_once

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
_FORMATS = (torch.channels_last, torch.contiguous_format)


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

    As strong: FGSM and PGD with 10 steps on the margin leave, over all budgets, at most 0.1% more of the images standing, and it is ``reference``
    that says which stand.

    Args:
        reference: the network as it is scored, pixels to logits, in evaluation mode.
        exact: its copy in float32, for gradients.
        x: real images, float32 (n, 3, H, W) in [0, 1], on the device to compute on.
        labels: their labels, int64 (n,).
        eps: budgets in L-infinity.
        checked: float16 it is: an earlier part of the job found it to be as strong.
    """
    part = at_once(x, x.device)
    first = x[:part], labels[:part]
    try:
        halves = [HalfCopy(exact, first[0][:16], memory_format=f) for f in _FORMATS]
    except RuntimeError as error:
        if checked:
            raise
        return _exact(exact, f"in float16 it does not run, {' '.join(str(error).split())[:200]}")
    if checked:
        seconds = _race(halves, *first)
        return Gradients(halves[seconds.index(min(seconds))], HALF, "gradients are float16's, as before")
    with torch.no_grad():
        right = torch.cat([reference(images) for images in torch.split(x, part)]).argmax(dim=1) == labels
    if int(right.sum()) < _FEWEST_RIGHT:
        return _exact(
            exact, f"only {int(right.sum())} of {len(x)} images are classified right, too few to check float16 on"
        )
    fit = [half for half in halves if _agree(exact, half, first[0])]
    if not fit:
        return _exact(exact, "in float16 its logits are others")
    seconds = _race([exact, *fit], *first)
    half, gain = min(zip(fit, seconds[1:], strict=True), key=lambda entry: entry[1])
    if seconds[0] < _LEAST_GAIN * gain:
        return _exact(exact, "float16's come no sooner")
    asked = 2 * len(eps) * len(x)
    by_half, by_exact = (_left(reference, model, x, labels, eps) for model in (half, exact))
    found = f"FGSM and PGD-{_STEPS} leave {by_half} of {asked} images standing by float16's gradients, {by_exact} by float32's"
    if by_half > by_exact + _MOST_LEFT_MORE * asked:
        return _exact(exact, found)
    return Gradients(half, HALF, f"gradients are float16's, {seconds[0] / gain:.1f} times as fast: {found}")


def _exact(model: nn.Module, why: str) -> Gradients:
    return Gradients(model, GRADIENTS, f"gradients are float32's: {why}")


def _agree(exact: nn.Module, half: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        expected, found = exact(x), half(x)
    return bool((found - expected).abs().max() <= _SAME * expected.abs().max())


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


def _left(reference: nn.Module, model: nn.Module, x: Tensor, labels: Tensor, eps: Sequence[Eps]) -> int:
    """Images that stand after FGSM, and after PGD, by ``model``'s gradients, over all budgets."""
    standing, at = 0, at_once(x, x.device)
    values = [budget.value for budget in eps]
    for part, aims in zip(torch.split(x, at), torch.split(labels, at), strict=True):
        found = fgsm(model, part, aims, eps=values) + [pgd(model, part, aims, eps=v, steps=_STEPS) for v in values]
        with torch.no_grad():
            standing += sum(int((reference(each.x).argmax(dim=1) == aims).sum()) for each in found)
    return standing
