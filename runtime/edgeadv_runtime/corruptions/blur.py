"""Corruptions by blur (Hendrycks and Dietterich 2019, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .filters import Picture, convolve, enlarged, gaussian, gaussian_weights, smeared

# a disk up to this radius, in pixels, stands in a kernel of fixed size
_SMALL_DISK = 8


def disk(radius: float, sigma: float) -> NDArray[np.float64]:
    """A kernel of a disk whose edge is softened by a Gaussian.

    Args:
        radius: in pixels.
        sigma: of the Gaussian, in pixels.

    Returns:
        Weights that sum to 1.
    """
    reach = int(max(radius, _SMALL_DISK))
    at = np.arange(-reach, reach + 1)
    kernel = (at[:, None] ** 2 + at[None, :] ** 2 <= radius**2).astype(np.float64)
    soft = gaussian_weights(sigma, 1 if radius <= _SMALL_DISK else 2)
    outer = np.outer(soft, soft)
    found: NDArray[np.float64] = convolve((kernel / kernel.sum())[..., None], outer)[..., 0]
    return found


def defocus_blur(x: Picture, rng: np.random.Generator, radius: float, sigma: float) -> Picture:
    """A lens out of focus: each point becomes a soft disk."""
    return convolve(x, disk(radius, sigma))


def glass_blur(x: Picture, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> Picture:
    """Frosted glass: a blur, then each pixel becomes a near one, ``rounds`` times, then the blur again.

    The paper speaks of pixels that change places; the published code, and so its pictures, copy one of the two.
    """
    height, width = x.shape[:2]
    blurred = gaussian(x, sigma).clip(0, 1)
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    moves = rng.integers(-reach, reach, (rounds, len(rows), len(columns), 2)).tolist()
    # which pixel stands where; a list, for single numbers of an array are slow
    place = list(range(height * width))
    for of_round in moves:
        for row, of_row in zip(rows, of_round, strict=True):
            for column, (right, down) in zip(columns, of_row, strict=True):
                here, there = row * width + column, (row + down) * width + column + right
                place[here] = place[there]
    moved = blurred.reshape(height * width, -1)[place].reshape(x.shape)
    return gaussian(moved, sigma)


def motion_blur(x: Picture, rng: np.random.Generator, radius: int, sigma: float) -> Picture:
    """A shaken camera: blur along a line of a random angle within 45 degrees of the rows."""
    return smeared(x, 2 * radius + 1, sigma, rng.uniform(-45, 45))


def zoom_blur(x: Picture, rng: np.random.Generator, factors: Sequence[float]) -> Picture:
    """A camera that comes nearer: the mean of the picture and of its enlargements by ``factors``."""
    total = x.copy()
    for factor in factors:
        total += enlarged(x, factor)
    return total / (len(factors) + 1)
