"""Corruptions by noise (Hendrycks and Dietterich 2019, section 4.1)."""

from __future__ import annotations

import numpy as np

from .filters import Picture


def gaussian_noise(x: Picture, rng: np.random.Generator, scale: float) -> Picture:
    """Normal noise on each value; ``scale`` is its deviation."""
    return x + rng.normal(size=x.shape, scale=scale)


def shot_noise(x: Picture, rng: np.random.Generator, photons: float) -> Picture:
    """Poisson noise of light; ``photons`` make white."""
    found: Picture = rng.poisson(x * photons) / photons
    return found


def impulse_noise(x: Picture, rng: np.random.Generator, share: float) -> Picture:
    """Salt and pepper in equal parts on a ``share`` of the values."""
    drawn, salt = rng.random(x.shape), rng.random(x.shape) < 0.5
    return np.where(drawn < share, salt.astype(np.float64), x)
