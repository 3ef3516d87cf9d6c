"""What may be done to an image: how far it may be moved, and what is left of that in 8 bits."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ..bundle.preprocess import to_pixels
from ..errors import InputError
from ..records.eps import AREA, SEVERITY, Eps
from .patches import check_covered

# rounding of float32 sums near 1, far below one grey level; of each pixel where it is a length that is limited
_EPS_SLACK, _EPS_SLACK_OF_A_PIXEL = 1e-6, 1e-7
# what float32 makes of k levels, in levels
_LEVEL_SLACK = 1e-5


def check_crafted(
    x_adv: NDArray[np.float32], x: NDArray[np.float32], name: str, eps: Eps, *, norm: str | None = None
) -> None:
    """Hold an attack to its contract: shape, dtype, range, and no image moved by more than eps.

    Args:
        x_adv: what the attack made of ``x``.
        x: float32 (n, 3, H, W) in [0, 1].
        name: of the attack, for messages.
        eps: the budget.
        norm: what the budget limits: ``"linf"`` or None, each pixel; ``"l2"``, the Euclidean length over an image;
            ``"area"``, the share of pixels that changed; ``"severity"``, no distance.

    Raises:
        InputError: it is broken.
    """
    if x_adv.shape != x.shape or x_adv.dtype != np.float32:
        raise InputError(f"attack {name} returned {x_adv.dtype} {x_adv.shape} for float32 {x.shape}")
    if not len(x):
        return
    if not np.isfinite(x_adv).all():
        raise InputError(f"attack {name} returned values that are not finite")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise InputError(f"attack {name} left the range [0, 1]: it must work on pixels, not on normalised tensors")
    if norm == SEVERITY:
        return
    if norm == AREA:
        check_covered((x_adv != x).any(axis=1), name, eps)
        return
    if norm == "l2":
        what, largest = "an image", float(_lengths(x_adv - x).max())
        slack = _EPS_SLACK + _EPS_SLACK_OF_A_PIXEL * sqrt(x[0].size)
    else:
        what, largest, slack = "a pixel", float(np.abs(x_adv - x).max()), _EPS_SLACK
    if largest > eps.value + slack:
        raise InputError(f"attack {name} moved {what} by {largest:.6f}, more than eps {eps.text} = {eps.value:.6f}")


def round_to_uint8(
    x_adv: NDArray[np.float32], pixels: NDArray[np.uint8], eps: Eps, *, norm: str | None = None
) -> NDArray[np.uint8]:
    """Adversarial images as 8-bit pixels within eps of the originals.

    A patch and a corruption keep to no distance, and are rounded. In the maximum norm each pixel takes the nearest grey
    level that is still within eps. In the Euclidean norm all are cut to whole levels towards the original, and then
    those are raised to the next level, one after another, that follow the perturbation most for the length that they
    cost, until the length is used up: taking the nearest would undo a perturbation most of whose values are below half
    a level.

    Args:
        x_adv: float32 (n, 3, H, W) in [0, 1], within eps.
        pixels: the originals, uint8 (n, H, W, 3).
        eps: the budget.
        norm: one of :data:`~edgeadv_runtime.records.rows.NORMS`; None is the first.

    Returns:
        uint8 (n, H, W, 3).
    """
    if norm in (AREA, SEVERITY):
        return to_pixels(x_adv)
    original = pixels.astype(np.int16)
    if norm == "l2":
        moved = x_adv.transpose(0, 2, 3, 1).astype(np.float64) * 255 - original
        for one in moved:
            one[...] = _whole_levels(one, 255 * eps.value)
        return (original + moved).astype(np.uint8)
    levels = eps.grey_levels
    nearest = np.rint(x_adv.transpose(0, 2, 3, 1) * np.float32(255)).astype(np.int16)
    within = np.clip(nearest, np.maximum(original - levels, 0), np.minimum(original + levels, 255))
    rounded: NDArray[np.uint8] = within.astype(np.uint8)
    return rounded


def _whole_levels(moved: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """``moved`` in whole levels, of Euclidean length at most ``length``, as near to its direction as a greedy choice
    comes.

    Raising a value of size a from floor(a) to the next level adds a to the product with ``moved`` and 2 floor(a) + 1 to
    the square of the length.
    """
    size = np.abs(moved).ravel()
    whole = np.floor(size + _LEVEL_SLACK)
    between = size - whole > _LEVEL_SLACK
    cost = np.where(between, 2 * whole + 1, 0)
    best = np.argsort(np.where(between, -size / (2 * whole + 1), 0), kind="stable")[: int(between.sum())]
    spent = float((whole**2).sum()) + np.cumsum(cost[best])
    whole[best[spent <= length**2 * (1 + _EPS_SLACK)]] += 1
    return np.copysign(whole.reshape(moved.shape), moved)


def _lengths(moved: NDArray[np.floating]) -> NDArray[np.float64]:
    """Euclidean length of each image's perturbation."""
    flat = moved.reshape(len(moved), -1).astype(np.float64)
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", flat, flat))
    return lengths
