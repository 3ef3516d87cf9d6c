"""One perturbation, or one patch, for all frames of a track: who attacks a camera cannot aim at each frame by itself.

Sign steps on what they share up the mean margin of the frames, as universal perturbations are made
(Moosavi-Dezfooli et al. 2017; Shafahi et al. 2020), with one track in the place of a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv_runtime.attacks.base import Crafted
from edgeadv_runtime.attacks.margins import LEAVE_MARGIN
from edgeadv_runtime.attacks.patches import Shape, patch_shape, place_words
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.records.eps import AREA, Eps
from edgeadv_runtime.records.rows import AttackParams
from edgeadv_runtime.records.tracks import PATCH_TRACK, PGD_TRACK

from ..models.modes import evaluation_mode
from .batching import device_of, tensors
from .losses import input_gradient, margin

STEPS = 50
_TRIED = 5
"""Steps at each place of a grid, before one is chosen."""
_FIRST_STEP, _LAST_STEP = 0.25, 0.02
"""Of the budget; each step is smaller than the one before."""


def shared_perturbation(model: nn.Module, x: Tensor, labels: Tensor, *, eps: float, steps: int = STEPS) -> Tensor:
    """The perturbation that breaks most frames of one track.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, channels, H, W) in [0, 1], the frames.
        labels: int64 (n,), their true labels.
        eps: budget, in (0, 1].
        steps: gradient steps.

    Returns:
        float32 (1, channels, H, W), within eps. Of all that were met it breaks the most frames; of equals it has the
        largest mean margin.
    """

    def put(moved: Tensor) -> Tensor:
        return (x + moved).clamp(0, 1)

    return _ascend(model, put, labels, torch.zeros_like(x[:1]), low=-eps, high=eps, steps=steps)[1]


def shared_patch(model: nn.Module, x: Tensor, labels: Tensor, shape: Shape, *, steps: int = STEPS) -> Tensor:
    """The patch that breaks most frames of one track, at one place in all of them.

    A few steps at each place of a grid choose the place; the others are made there.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, channels, H, W) in [0, 1], the frames.
        labels: int64 (n,), their true labels.
        shape: of the patch.
        steps: gradient steps at the place that is chosen.

    Returns:
        float32 (1, channels, H, W): the patch in [0, 1], and NaN around it.
    """
    found = []
    for place in shape.places():
        covered = torch.from_numpy(shape.at(place)).to(x.device)
        put = partial(_covered, x, covered)
        start = torch.full_like(x[:1], 0.5)
        found.append((*_ascend(model, put, labels, start, low=0, high=1, steps=_TRIED), covered))
    _, begun, covered = max(found, key=lambda each: each[0])
    _, made = _ascend(model, partial(_covered, x, covered), labels, begun, low=0, high=1, steps=steps)
    return made.masked_fill(~covered, float("nan"))


def _covered(x: Tensor, covered: Tensor, content: Tensor) -> Tensor:
    return torch.where(covered, content, x)


def _ascend(
    model: nn.Module,
    put: Callable[[Tensor], Tensor],
    labels: Tensor,
    start: Tensor,
    *,
    low: float,
    high: float,
    steps: int,
) -> tuple[tuple[int, float], Tensor]:
    """Sign steps of what all frames share, from ``start``: the best that was met, and how many frames it breaks with
    which mean margin.

    ``put`` makes the frames, float32 (n, channels, H, W), of what is shared, float32 (1, channels, H, W) in
    [low, high].
    """
    moved = best = start
    most = (-1, float("-inf"))

    def standing(logits: Tensor, of: Tensor) -> Tensor:
        # what is clearly broken pulls no more
        clear = LEAVE_MARGIN * logits.detach().abs().amax(dim=1)
        return torch.minimum(margin(logits, of), clear)

    with evaluation_mode(model):
        for i in range(steps + 1):
            # where the frames are clipped, the gradient passes: one frame's pixel at its end is no end for the others
            slope = input_gradient(model, put(moved), labels, standing)
            reached = margin(slope.logits, labels)
            if (rank := (int((reached > 0).sum()), float(reached.mean()))) > most:
                most, best = rank, moved
            if i < steps:
                step = (high - low) / 2 * _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (i / steps)
                moved = (moved + step * slope.gradient.sum(dim=0, keepdim=True).sign()).clamp(low, high)
    return most, best


@dataclass(frozen=True)
class TrackAttack:
    """What the frames of a track share, made beforehand, as an :class:`~edgeadv_runtime.Attack`.

    Attributes:
        name: :data:`~edgeadv_runtime.records.tracks.PGD_TRACK` or ``PATCH_TRACK``.
        gradients_sha256: hash of the artefact that the gradients belong to.
        eps: budgets, ascending.
        described: how it is run, by the budget's text.
        track: of each frame, by the SHA-256 of its float32 pixels, the number of its track.
        shared: of each budget's text and track what is added, or of a patch what is laid over where it is no NaN;
            float32 (channels, H, W).
        gradients: where they come from, in words.
    """

    name: str
    gradients_sha256: str | None
    eps: Sequence[Eps]
    described: Mapping[str, AttackParams]
    track: Mapping[str, int]
    shared: Mapping[tuple[str, int], NDArray[np.float32]]
    gradients: str = "torch fp32"
    queried: ClassVar[None] = None
    control: ClassVar[bool] = False

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        return self.described[eps.text]

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Put on each frame what its track shares."""
        tracks = [self.track[sha256_bytes(image.tobytes())] for image in x]
        made = []
        for budget in self.eps:
            shared = np.stack([self.shared[budget.text, track] for track in tracks]) if tracks else np.zeros_like(x)
            moved = np.where(np.isnan(shared), x, shared) if self.name == PATCH_TRACK else np.clip(x + shared, 0, 1)
            made.append(Crafted(moved.astype(np.float32), None))
        return made


def track_attack(
    model: nn.Module,
    tracks: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    eps: Sequence[Eps],
    *,
    gradients_sha256: str | None,
    gradients: str,
    patch: str | None = None,
) -> TrackAttack:
    """Make what each track shares at every budget.

    Args:
        model: pixels to logits, on the device to attack on.
        tracks: of each its frames, float32 (n, channels, H, W), and labels, int64 (n,).
        eps: budgets, ascending.
        gradients_sha256: hash of the artefact that the gradients belong to.
        gradients: where they come from, in words.
        patch: the shape of a patch, of :data:`~edgeadv_runtime.attacks.patches.SHAPES`, with areas as budgets; None for
            a perturbation.
    """
    device = device_of(model)
    track: dict[str, int] = {}
    shared: dict[tuple[str, int], NDArray[np.float32]] = {}
    for number, (frames, labels) in enumerate(tracks):
        for image in frames:
            track[sha256_bytes(image.tobytes())] = number
        x, y = tensors(frames, labels, device)
        for budget in eps:
            if patch is None:
                made = shared_perturbation(model, x, y, eps=budget.value)
            else:
                made = shared_patch(model, x, y, patch_shape(budget, x.shape[2], x.shape[3], patch))
            shared[budget.text, number] = made[0].cpu().numpy()
    described = {budget.text: _described(budget, patch) for budget in eps}
    return TrackAttack(
        PGD_TRACK if patch is None else PATCH_TRACK, gradients_sha256, eps, described, track, shared, gradients
    )


def _described(budget: Eps, patch: str | None) -> AttackParams:
    sizes = f"{_FIRST_STEP:g} to {_LAST_STEP:g} of {budget.text if patch is None else 'half the range of a pixel'}"
    return AttackParams(
        norm="linf" if patch is None else AREA,
        loss="mean logit margin",
        steps=STEPS,
        step_size=f"{sizes}, shared by the frames of a track",
        place=None if patch is None else place_words(patch, "worst"),
    )
