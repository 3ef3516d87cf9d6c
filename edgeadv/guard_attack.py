"""An attack by somebody who knows the guard: wrong label **and** not flagged.

What feature squeezing catches says nothing about this attacker (Athalye, Carlini and Wagner 2018; Tramèr et al. 2020, "On
Adaptive Attacks to Adversarial Example Defenses"). So wherever a rate of detection is shown, what this attack achieves
stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.attack import Crafted
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.guard import NETWORKS, Guard, parameters
from edgeadv_runtime.results import AttackParams

from .attacks import Steps, ascend, ball, margin
from .attacks.iterate import Found, again
from .models import evaluation_mode

ADAPTIVE = "adaptive"
"""Its name in rows."""
STEPS, RESTARTS, SEED = 100, 10, 0
# how much a unit of score weighs against a unit of margin: a heavy guard first, then a light one, with both kinds of gradient
_WEIGHTS = (10.0, 1.0)
# an image leaves once it is this clear of the boundary and of the threshold, as shares: rounding and other backends cost a little
_LEAVE = 0.1
# logits beyond this lead change no probability that float32 could tell
_ENOUGH = 10.0
_GREY = 255.0
_SMALLEST = 1e-6
_PIXELS_AT_ONCE = 500_000


class _Straight(torch.autograd.Function):
    """``round(x * levels) / levels``; backwards the identity.

    The straight-through estimator as backward pass differentiable approximation (BPDA; Athalye et al. 2018, "Obfuscated Gradients
    Give a False Sense of Security", section 4.1): rounding has the derivative 0 almost everywhere, and is close to the identity.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: float) -> Tensor:
        """Halves go to the even number, as in NumPy."""
        return (x * levels).round_().div_(levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """As if nothing was rounded."""
        return gradients[0], None


def squeeze(x: Tensor, name: str, *, straight: bool = False) -> Tensor:
    """:func:`edgeadv_runtime.guard.squeeze` in PyTorch, the same values to the bit, with a gradient.

    Args:
        x: float32 (n, 3, H, W) in [0, 1].
        name: of the squeezer.
        straight: take the median backwards for the identity (BPDA); otherwise its gradient is that of the pixel that it
            chose. That of fewer bits is always taken for the identity.
    """
    bits, side = parameters(name)
    if bits is not None:
        rounded: Tensor = _Straight.apply(x, float(2**bits - 1))
        return rounded
    assert side is not None
    height, width = x.shape[2:]
    padded = functional.pad(x, (side // 2, (side - 1) // 2, side // 2, (side - 1) // 2), mode="replicate")
    window = [padded[:, :, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    exchanges, middle = NETWORKS[side]
    for a, b in exchanges:
        window[a], window[b] = torch.minimum(window[a], window[b]), torch.maximum(window[a], window[b])
    chosen = window[middle]
    return x + (chosen - x).detach() if straight else chosen


class _Views(nn.Module):
    """The model on a frame in 8 bits and on its squeezed versions, logits over the temperature: (n, (1 + k) * classes)."""

    def __init__(self, model: nn.Module, guard: Guard, *, straight: bool) -> None:
        super().__init__()
        self.model = model
        self.guard = guard
        self.straight = straight

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, float32 (n, 3, H, W) in [0, 1], to the logits of all views."""
        # what a camera gives, and what is scored, is in whole grey levels
        x = _Straight.apply(x, _GREY)
        views = [x, *(squeeze(x, name, straight=self.straight) for name in self.guard.squeezers)]
        logits: Tensor = self.model(torch.cat(views)).float() / self.guard.temperature
        return logits.view(len(views), len(x), -1).transpose(0, 1).flatten(1)


def wrong_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """All classes but the label, the likeliest first: int64 (n, classes - 1), of logits (n, classes)."""
    return _without_label(logits, labels).argsort(dim=1, descending=True)[:, :-1]


def _without_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.masked_fill(functional.one_hot(labels, logits.shape[1]).bool(), float("-inf"))


@dataclass(frozen=True)
class _Aim:
    """Loss and rank on what :class:`_Views` gives."""

    guard: Guard
    weight: float

    def _split(self, out: Tensor) -> Tensor:
        return out.view(len(out), len(self.guard.squeezers) + 1, -1)

    def scores(self, out: Tensor) -> Tensor:
        """The guard's score, (n,)."""
        p = self._split(out).softmax(dim=2)
        return (p[:, 1:] - p[:, :1]).abs().sum(dim=2).amax(dim=1)

    def loss(self, out: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Margins of all views towards one wrong class, minus the score above the threshold.

        The score alone has no gradient where the frame and its squeezed version are sure of different classes; the margin of
        the squeezed version has.

        Args:
            out: what the views give.
            labels: int64 (n,).
            targets: int64 (n,), the wrong class; None takes the one that leads on the frame now.
        """
        views = self._split(out)
        frame = views[:, 0]
        target = _without_label(frame.detach(), labels).argmax(dim=1) if targets is None else targets
        # minus the margin of the target is by how much it leads a view
        lead = (margin(frame, labels) if targets is None else -margin(frame, target)).clamp_max(_ENOUGH)
        for k in range(1, views.shape[1]):
            lead = lead - margin(views[:, k], target).clamp_min(-_ENOUGH) / (views.shape[1] - 1)
        return lead - self.weight * (self.scores(out) - self.guard.threshold * (1 - _LEAVE)).clamp_min(0)

    def rank(self, out: Tensor, labels: Tensor) -> Tensor:
        """Above 0 only where the label is wrong and the frame is not flagged; in units of the largest logit."""
        views = self._split(out)
        largest = out.abs().amax(dim=1).clamp_min(_SMALLEST)
        wrong = margin(views[:, 0], labels) / largest
        threshold = max(self.guard.threshold, _SMALLEST)
        unseen = 1 - self.scores(out) / threshold
        return largest * torch.minimum(wrong, unseen)


@dataclass(frozen=True)
class AdaptiveAttack:
    """Projected gradient ascent (Madry et al. 2018) on the margin of a frame and of its squeezed versions, less the guard's score.

    An :class:`~edgeadv_runtime.Attack`. Every restart begins at another random point, on the images that still stand. The first
    climbs towards whatever wrong class leads; the others towards one wrong class each, the likeliest of the clean frame first (as
    the targeted APGD of Croce and Hein 2020), and differ in the weight of the score and in whether the median is taken for the
    identity backwards. Frames are rounded to 8 bits within the loop, so that what it finds is there in what a camera would give.

    Attributes:
        model: pixels to logits, on the device to attack on.
        guard: the guard that it knows.
        gradients_sha256: hash of the weights.
        eps: budgets in L-infinity, ascending, each at least one grey level.
        steps: of a restart.
        restarts: how often it begins.
    """

    model: nn.Module
    guard: Guard
    gradients_sha256: str | None
    eps: Sequence[Eps]
    steps: int = STEPS
    restarts: int = RESTARTS
    gradients: str = "torch fp32"
    queried: str | None = None
    control: bool = False
    name: str = ADAPTIVE

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError(f"an attack needs at least 1 step and restart, not {self.steps} and {self.restarts}")
        for eps in self.eps:
            eps.check_8_bits()

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        return AttackParams(
            norm="linf", loss="margin of all views, less the guard's score", steps=self.steps,
            step_size=f"2.5*{eps.text}/{self.steps}", restarts=self.restarts, seed=SEED,
        )  # fmt: skip

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch at every budget; no image depends on the batch it is in."""
        device = next(self.model.parameters()).device
        part = max(1, _PIXELS_AT_ONCE // ((len(self.guard.squeezers) + 1) * x.shape[2] * x.shape[3]))
        made: list[Crafted] = []
        with evaluation_mode(self.model):
            for eps in self.eps:
                found = []
                for i in range(0, len(x), part):
                    images = torch.from_numpy(x[i : i + part]).to(device)
                    labels = torch.from_numpy(y[i : i + part]).to(device)
                    start = None if not made else torch.from_numpy(made[-1].x[i : i + part]).to(device)
                    found.append(self._attack(images, labels, eps, start))
                made.append(
                    Crafted(
                        np.concatenate([each.x.cpu().numpy() for each in found]),
                        np.concatenate([each.zero_gradient.cpu().numpy() for each in found]),
                    )
                )
        return made

    def _attack(self, x: Tensor, labels: Tensor, eps: Eps, smaller: Tensor | None) -> Found:
        """At one budget, from what was found at a smaller one if there is any."""
        # whole levels: then the nearest level of a point of the ball lies in the ball
        radius = eps.grey_levels / _GREY
        around = ball("linf", radius)

        with torch.no_grad():
            others = wrong_classes(self.model(x).float(), labels)

        def attempt(number: int, rows: Tensor) -> Found:
            aim = _Aim(self.guard, _WEIGHTS[number % len(_WEIGHTS)])
            views = _Views(self.model, self.guard, straight=number // len(_WEIGHTS) % 2 == 1).eval()
            start = around.starts(x[rows], seed=SEED, restart=number)
            if number == 0 and smaller is not None:
                start = smaller[rows]
            steps = Steps(around, self.steps, 2.5 * radius / self.steps)
            targets = others[rows, (number - 1) % others.shape[1]] if number else None
            return ascend(
                views,
                x[rows],
                labels[rows],
                steps=steps,
                loss=aim.loss,
                start=start,
                rank=aim.rank,
                targets=targets,
                leave=_LEAVE,
            )

        return again(attempt(0, torch.arange(len(x), device=x.device)), attempt, self.restarts - 1)
