"""Random draws that belong to an image: the same in every batch and every process."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


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
