"""Where an adversarial patch lies and how large it is: geometry, without a network.

A patch replaces a part of the picture; its budget is the share of the picture that it covers (Brown et al. 2017,
"Adversarial Patch"). No pixel outside it changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..draws import image_rng
from ..errors import InputError
from ..records.eps import Eps

SHAPES = ("square", "round")
PLACES = ("worst", "random")
GRID = 3
"""Places a side that are tried: the patch lies at one of as many squared, from edge to edge."""


@dataclass(frozen=True)
class Shape:
    """A patch for pictures of one size.

    Attributes:
        mask: bool (h, w): the pixels that it covers.
        height: of the picture.
        width: of the picture.
    """

    mask: NDArray[np.bool_]
    height: int
    width: int

    def places(self, grid: int = GRID) -> list[tuple[int, int]]:
        """First row and column of the patch at each place of a grid."""
        h, w = self.mask.shape
        rows, columns = (
            sorted({round(float(at)) for at in np.linspace(0, most, grid)})
            for most in (self.height - h, self.width - w)
        )
        return [(row, column) for row in rows for column in columns]

    def at(self, place: tuple[int, int]) -> NDArray[np.bool_]:
        """The pixels of the picture that it covers there, bool (height, width)."""
        covered = np.zeros((self.height, self.width), np.bool_)
        row, column = place
        covered[row : row + self.mask.shape[0], column : column + self.mask.shape[1]] = self.mask
        return covered


def patch_shape(area: Eps, height: int, width: int, kind: str = "square") -> Shape:
    """The largest patch that covers no more than ``area`` of a picture.

    Args:
        area: the budget, a share of the picture.
        height: of the picture, in pixels.
        width: likewise.
        kind: of :data:`SHAPES`.

    Raises:
        InputError: it would be larger than the picture or smaller than a pixel, or there is no such shape.
    """
    if kind not in SHAPES:
        raise InputError("patch_shape", f"{kind!r} is not one of {', '.join(SHAPES)}")
    most = area.value * height * width
    if most < 1:
        raise InputError("patch", f"{area.text} of {width}x{height} pixels is less than one pixel: use a larger area")
    side = math.isqrt(int(most))
    if kind != "square":
        # a disk of diameter d covers about 0.785 d²
        side = max(d for d in range(1, 2 * side + 2) if patch_mask(kind, d).sum() <= most)
    mask = patch_mask(kind, side)
    if side > min(height, width):
        raise InputError(
            "patch",
            f"{area.text} is a {kind} patch of {side} pixels, larger than the picture of {width}x{height}: use less",
        )
    return Shape(mask, height, width)


def patch_mask(kind: str, side: int) -> NDArray[np.bool_]:
    """The pixels that a patch of ``side`` pixels covers, bool (side, side)."""
    if kind == "square":
        return np.ones((side, side), np.bool_)
    at = np.arange(side) - (side - 1) / 2
    covered: NDArray[np.bool_] = at[:, None] ** 2 + at[None, :] ** 2 <= (side / 2) ** 2
    return covered


def place_words(kind: str, place: str) -> str:
    """Shape and place of a patch for the result row; ``place`` is of :data:`PLACES`."""
    where = "the worst place of a grid" if place == "worst" else "a random place of a grid"
    return f"{kind}, at {where}"


def drawn_places(x: NDArray[np.float32], places: Sequence[tuple[int, int]], *, seed: int = 0) -> NDArray[np.int64]:
    """Which of ``places`` chance gives each image of ``x``, float32 (n, 3, H, W): int64 (n,), by its own pixels."""
    drawn = [int(image_rng("patch place", seed, image).integers(len(places))) for image in x]
    return np.array(drawn, dtype=np.int64)


def check_covered(changed: NDArray[np.bool_], name: str, area: Eps) -> None:
    """Hold a patch to its budget.

    Args:
        changed: bool (n, H, W): pixels that the attack changed.
        name: of the attack, for messages.
        area: the budget.

    Raises:
        InputError: more of an image is changed than it allows.
    """
    largest = float(changed.mean(axis=(1, 2)).max(initial=0.0))
    if largest > area.value * (1 + 1e-9):
        raise InputError(f"attack {name} changed {largest:.2%} of an image, more than an area of {area.text}")
