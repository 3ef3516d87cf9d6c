"""Adversarial patches on each image, by gradients (Brown et al. 2017; at a place that is chosen, Karmon et al. 2018).

A patch is an attack in a box: inside it each value may be anything from 0 to 1, outside nothing moves. So the loop and
the steps are those of APGD. The worst place of a grid is found by trying one after another on the images that stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv_runtime.attacks.base import Crafted
from edgeadv_runtime.attacks.margins import LEAVE_MARGIN
from edgeadv_runtime.attacks.patches import Shape, drawn_places, patch_shape, place_words
from edgeadv_runtime.draws import image_rng
from edgeadv_runtime.records.eps import AREA, Eps
from edgeadv_runtime.records.rows import AttackParams

from ..models.modes import evaluation_mode
from .batching import device_of, in_parts, tensors
from .iterate import AutoSteps, Found, ascend, merged
from .losses import margin
from .norms import Linf


class Covered(Linf):
    """All images that differ from the original in the covered pixels only.

    The radius is 1: lengths are shares of half the range of a pixel.

    Args:
        mask: bool (1, 1, H, W), the pixels that are covered.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(1.0)
        object.__setattr__(self, "mask", mask)

    mask: Tensor

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Clip what is covered to [0, 1], and put back what is not."""
        return torch.where(self.mask, x_adv.clamp(0, 1), x)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of what is covered, times half the range of a pixel."""
        return gradient.sign() * self.mask / 2

    def starts(self, x: Tensor, *, seed: int, restart: int = 0) -> Tensor:
        """Noise in what is covered, evenly from [0, 1), each drawn by its own image."""
        images = x.cpu().contiguous().numpy()
        drawn = np.stack(
            [image_rng("patch", seed, image, restart).random(image.shape, dtype=np.float32) for image in images]
        )
        return self.project(torch.from_numpy(drawn).to(x.device), x)


@dataclass(frozen=True)
class PatchAttack:
    """A patch made for each image, as an :class:`~edgeadv_runtime.Attack`.

    Attributes:
        model: pixels to logits, on the device to attack on.
        gradients_sha256: hash of the artefact that the gradients belong to.
        eps: budgets, shares of the picture, ascending.
        steps: gradient steps at each place.
        shape: of :data:`~edgeadv_runtime.attacks.patches.SHAPES`.
        place: ``"worst"`` of a grid, or ``"random"``: one of that grid, by the image.
        suffix: of the name in rows, for a model that is not the reference.
        gradients: where they come from, in words.
        seed: of what is drawn.
    """

    model: nn.Module
    gradients_sha256: str | None
    eps: Sequence[Eps]
    steps: int = 50
    shape: str = "square"
    place: str = "worst"
    suffix: str = ""
    gradients: str = "torch fp32"
    seed: int = 0
    queried: ClassVar[None] = None
    control: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Its name in result rows."""
        return f"patch{self.suffix}"

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        return AttackParams(
            norm=AREA,
            loss="logit margin",
            steps=self.steps,
            step_size="half the range of a pixel, halved by APGD's schedule",
            seed=self.seed,
            place=place_words(self.shape, self.place),
        )

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch at every budget."""
        device = device_of(self.model)
        made = []
        for area in self.eps:
            shape = patch_shape(area, x.shape[2], x.shape[3], self.shape)
            drawn = drawn_places(x, shape.places(), seed=self.seed)
            found = in_parts(partial(self._part, shape, x, y, drawn), x, device)
            made.append(
                Crafted(
                    np.concatenate([each.x.cpu().numpy() for each in found]),
                    np.concatenate([each.zero_gradient.cpu().numpy() for each in found]),
                )
            )
        return made

    def _part(
        self,
        shape: Shape,
        images: NDArray[np.float32],
        y: NDArray[np.int64],
        drawn: NDArray[np.int64],
        part: slice,
    ) -> Found:
        """Attack a part of a batch, place by place."""
        x, labels = tensors(images[part], y[part], device_of(self.model))
        n = len(x)
        found = Found(
            x.clone(),
            torch.ones(n, dtype=torch.bool, device=x.device),
            torch.full((n,), float("-inf"), device=x.device),
            torch.zeros(n, dtype=torch.bool, device=x.device),
        )
        chosen = torch.from_numpy(drawn[part]).to(x.device)
        with evaluation_mode(self.model):
            for number, place in enumerate(shape.places()):
                here = ~found.broken if self.place == "worst" else chosen == number
                rows = torch.nonzero(here)[:, 0]
                if not len(rows):
                    continue
                ball = Covered(torch.from_numpy(shape.at(place)).to(x.device)[None, None])
                made = ascend(
                    self.model,
                    x[rows],
                    labels[rows],
                    steps=AutoSteps(ball, self.steps),
                    loss=margin,
                    start=ball.starts(x[rows], seed=self.seed, restart=number),
                    leave=LEAVE_MARGIN,
                )
                found = merged(found, made, rows)
        return found
