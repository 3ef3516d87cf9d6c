"""The L-infinity ball around images of [0, 1]."""

from __future__ import annotations

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
