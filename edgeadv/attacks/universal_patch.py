"""One patch for all pictures, to print and to stick on things (Brown et al. 2017, "Adversarial Patch").

Sign steps on one shared patch up the mean margin of one batch after another, over random places, turns, sizes and
brightness: expectation over transformations (Athalye et al. 2018, "Synthesizing Robust Adversarial Examples").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from edgeadv_runtime.attacks.base import Crafted
from edgeadv_runtime.attacks.patch_controls import MOVED
from edgeadv_runtime.attacks.patches import Shape, patch_shape
from edgeadv_runtime.draws import image_rng
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.records.eps import AREA, Eps
from edgeadv_runtime.records.rows import AttackParams

from ..models.modes import evaluation_mode
from .losses import margin

DEGREES, SMALLEST, LARGEST, DARKEST, BRIGHTEST = 20.0, 0.7, 0.95, 0.75, 1.25
"""What a patch is trained to bear: turns either way, sizes as shares of its own, and factors of its brightness."""
_FIRST_STEP, _LAST_STEP = 0.1, 0.01
_DECAY = 0.9
_BATCH = 64


class Transforms(NamedTuple):
    """How a patch lies in each of n pictures; all float32 (n,).

    ``row`` and ``column`` are those of its middle, in pixels; ``angle`` is in radians.
    """

    row: Tensor
    column: Tensor
    angle: Tensor
    scale: Tensor
    brightness: Tensor


def drawn(count: int, shape: Shape, rng: np.random.Generator) -> Transforms:
    """Random transforms of ``count`` pictures: the patch lies inside before it is turned."""
    h, w = shape.mask.shape

    def even(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    turn = math.radians(DEGREES)
    return Transforms(
        even((h - 1) / 2, shape.height - (h + 1) / 2),
        even((w - 1) / 2, shape.width - (w + 1) / 2),
        even(-turn, turn),
        even(SMALLEST, LARGEST),
        even(DARKEST, BRIGHTEST),
    )


def placed(x: Tensor, patch: Tensor, mask: Tensor, how: Transforms) -> Tensor:
    """Pictures with the patch on them, differentiable in the patch.

    Args:
        x: float32 (n, channels, H, W) in [0, 1].
        patch: float32 (channels, h, w) in [0, 1].
        mask: bool (h, w), what of it is there.
        how: where and how it lies in each.
    """
    n, _, height, width = x.shape
    h, w = mask.shape
    cosine, sine = torch.cos(how.angle) / how.scale, torch.sin(how.angle) / how.scale
    # from the picture's coordinates in [-1, 1] to the patch's, around its middle
    down, right = (2 * how.row + 1) / height - 1, (2 * how.column + 1) / width - 1
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * (width / w), sine * (height / w)
    theta[:, 1, 0], theta[:, 1, 1] = -sine * (width / h), cosine * (height / h)
    theta[:, 0, 2] = -(theta[:, 0, 0] * right + theta[:, 0, 1] * down)
    theta[:, 1, 2] = -(theta[:, 1, 0] * right + theta[:, 1, 1] * down)
    grid = affine_grid(theta, [n, 1, height, width], align_corners=False)
    content = grid_sample(patch.expand(n, *patch.shape), grid, padding_mode="border", align_corners=False)
    there = grid_sample(mask.float().expand(n, 1, h, w), grid, mode="nearest", align_corners=False) > 0.5
    return torch.where(there, (content * how.brightness[:, None, None, None]).clamp(0, 1), x)


def universal_patch(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    shape: Shape,
    *,
    target: int | None = None,
    passes: int = 20,
    seed: int = 0,
) -> Tensor:
    """The content of one patch that turns as many pictures as it can.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, channels, H, W) in [0, 1].
        labels: int64 (n,), the true labels.
        shape: of the patch.
        target: class position that all are to become; None is any wrong one.
        passes: over the pictures.
        seed: of what is drawn.

    Returns:
        float32 (channels, h, w) in [0, 1].

    Raises:
        InputError: there are no pictures, or no passes.
    """
    if passes < 1 or not len(x):
        raise InputError("a patch for all pictures needs pictures, and at least 1 pass")
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(shape.mask).to(x.device)
    start = rng.uniform(0.25, 0.75, (x.shape[1], *shape.mask.shape)).astype(np.float32)
    patch = torch.from_numpy(start).to(x.device)
    along = torch.zeros_like(patch)
    total, taken = passes * -(-len(x) // _BATCH), 0
    with evaluation_mode(model):
        for _ in range(passes):
            for rows in torch.split(torch.from_numpy(rng.permutation(len(x))).to(x.device), _BATCH):
                how = Transforms(*(each.to(x.device) for each in drawn(len(rows), shape, rng)))
                moved = patch.clone().requires_grad_()
                logits = model(placed(x[rows], moved, mask, how)).float()
                if target is None:
                    loss = margin(logits, labels[rows]).mean()
                else:
                    loss = -margin(logits, torch.full_like(rows, target)).mean()
                (gradient,) = torch.autograd.grad(loss, moved)
                # of many places and turns one batch shows a few: the gradients before it count too (Dong et al. 2018)
                along = _DECAY * along + gradient / gradient.abs().sum().clamp_min(1e-30)
                # smaller and smaller, so that the last steps settle what the first ones found
                step = _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (taken / total)
                patch = (patch + step * along.sign()).clamp(0, 1)
                taken += 1
    return patch


@dataclass(frozen=True)
class MovedPatch:
    """One patch for all pictures as a camera sees it, as an :class:`~edgeadv_runtime.Attack`: each picture draws its
    place, turn, size and brightness, as in the training of the patch.

    Attributes:
        eps: the one budget, a share of the picture.
        content: uint8 (h, w, channels).
        shape: of :data:`~edgeadv_runtime.attacks.patches.SHAPES`.
        about: more of it, in words.
        seed: of what is drawn.
    """

    eps: Sequence[Eps]
    content: NDArray[np.uint8]
    shape: str = "square"
    about: str = ""
    seed: int = 0
    name: ClassVar[str] = MOVED
    gradients: ClassVar[None] = None
    gradients_sha256: ClassVar[None] = None
    queried: ClassVar[None] = None
    control: ClassVar[bool] = False

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        words = (
            f"{self.shape}, drawn for each picture: place, turn up to {DEGREES:g} degrees, {SMALLEST:.0%} to "
            f"{LARGEST:.0%} of its side, brightness {DARKEST:.0%} to {BRIGHTEST:.0%}{self.about}"
        )
        return AttackParams(norm=AREA, seed=self.seed, place=words, patch_sha256=sha256_bytes(self.content.tobytes()))

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Lay it on each picture."""
        patch = torch.from_numpy(self.content.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        made = []
        for area in self.eps:
            shape = patch_shape(area, x.shape[2], x.shape[3], self.shape)
            mask = torch.from_numpy(shape.mask)
            images = [
                placed(torch.from_numpy(image[None]), patch, mask, drawn(1, shape, image_rng(MOVED, self.seed, image)))
                for image in x
            ]
            made.append(Crafted(torch.cat(images).numpy() if images else x, None))
        return made
