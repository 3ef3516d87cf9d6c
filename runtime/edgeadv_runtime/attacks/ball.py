"""The L-infinity ball around images of [0, 1], and random draws that belong to an image."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def ball(x: NDArray[np.float32], eps: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The smallest and the largest value that each pixel may take: within eps of its own, and in [0, 1].

    Args:
        x: float32 in [0, 1], of any shape.
        eps: the budget, in (0, 1].

    Returns:
        float32 arrays like ``x``. No pixel of theirs is further from ``x`` than eps, not even by the rounding to
        float32.
    """
    exact = x.astype(np.float64)
    lower = np.maximum(exact - eps, 0).astype(np.float32)
    upper = np.minimum(exact + eps, 1).astype(np.float32)
    return (
        np.where(exact - lower > eps, np.nextafter(lower, np.float32(1)), lower),
        np.where(upper - exact > eps, np.nextafter(upper, np.float32(0)), upper),
    )


def image_rng(use: str, seed: int, image: NDArray[np.float32], part: int = 0) -> np.random.Generator:
    """A generator seeded by the image's own bytes: what it draws does not depend on the batch that the image is in.

    Args:
        use: what it is for, e.g. ``"noise"``: attacks must not draw the same numbers, or one would be no evidence
            beside another.
        seed: not negative.
        image: float32 (3, H, W).
        part: not negative; tells one stream of the same use from another.
    """
    return np.random.default_rng((zlib.crc32(use.encode()), seed, zlib.crc32(image.tobytes()), part))
