"""Corruptions by the weather (Hendrycks and Dietterich 2019, section 4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .filters import Picture, enlarged, fractal, gaussian, smeared

# of red, green and blue in brightness (ITU-R BT.601)
LUMA = (0.299, 0.587, 0.114)


def gray(x: Picture) -> Picture:
    """Brightness, float64 (height, width, 1)."""
    found: Picture = x[..., :1] if x.shape[2] == 1 else (x @ np.array(LUMA))[..., None]
    return found


def clouds(x: Picture, rng: np.random.Generator, decay: float) -> NDArray[np.float64]:
    """A fractal of the size of ``x``, float64 (height, width, 1) from 0 to 1."""
    height, width = x.shape[:2]
    found: NDArray[np.float64] = fractal(1 << (max(height, width) - 1).bit_length(), decay, rng)[:height, :width, None]
    return found


def fog(x: Picture, rng: np.random.Generator, thickness: float, decay: float) -> Picture:
    """Clouds added to the picture, which keeps its largest value."""
    most = float(x.max())
    found: Picture = (x + thickness * clouds(x, rng, decay)) * most / max(most + thickness, 1e-12)
    return found


def frost(x: Picture, rng: np.random.Generator, kept: float, strength: float) -> Picture:
    """Ice on the lens: crystals along the ridges of two fractals, on a bluish film.

    The published corruption lays photographs of frost over the picture; these crystals are drawn.
    """
    film, first, second = (clouds(x, rng, decay) for decay in (1.8, 1.5, 1.3))
    ridges = np.maximum((1 - np.abs(2 * first - 1)) ** 3, (1 - np.abs(2 * second - 1)) ** 4)
    ice = (0.25 + 0.35 * film + 0.6 * ridges).clip(0, 1)
    tint = np.array([0.84, 0.93, 1.0]) if x.shape[2] == 3 else np.ones(1)
    found: Picture = kept * x + strength * ice * tint
    return found


def snow(
    x: Picture,
    rng: np.random.Generator,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Picture:
    """Flakes that fall in one direction, and a picture that is paler for them."""
    flakes = enlarged(rng.normal(size=(*x.shape[:2], 1), loc=mean, scale=deviation), zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = smeared(flakes, 2 * radius + 1, sigma, rng.uniform(-135, -45))
    pale = kept * x + (1 - kept) * np.maximum(x, gray(x) * 1.5 + 0.5)
    turned = np.rot90(flakes, k=2)
    return pale + flakes + turned


def rain_drops(x: Picture, rng: np.random.Generator, count: int, radius: float) -> Picture:
    """Drops on the lens: each shows the scene upside down, small and soft, with a bright rim.

    Args:
        x: the picture.
        rng: where the drops are, and how large.
        count: drops.
        radius: of the largest, as a share of the shorter side.
    """
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    out, soft = x.copy(), gaussian(x, 0.01 * min(height, width))
    for _ in range(count):
        at = rng.uniform(0, (height, width))
        size = rng.uniform(0.4, 1) * radius * min(height, width)
        near = np.hypot(rows - at[0], columns - at[1]) / max(size, 1e-6)
        inside = near < 1
        if not inside.any():
            continue
        # a drop is a lens of short focal length: what is above it appears below
        seen = [
            (2 * np.round(at[axis]) - 3 * (grid - at[axis])).astype(np.int64)
            for axis, grid in enumerate((rows, columns))
        ]
        lens = soft[seen[0] % height, seen[1] % width]
        lit = lens * (0.75 + 0.45 * near[..., None] ** 4)
        cover = np.clip((1 - near) * size, 0, 1)[..., None]
        out = np.where(inside[..., None], out * (1 - cover) + lit * cover, out)
    return out


def lens_dirt(x: Picture, rng: np.random.Generator, count: int, radius: float, darkness: float) -> Picture:
    """Dirt on the lens: dark soft spots, out of focus.

    Args:
        x: the picture.
        rng: where the spots are, and how large.
        count: spots.
        radius: of the largest, as a share of the shorter side.
        darkness: what a spot takes of the light in its middle, from 0 to 1.
    """
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    through = np.ones((height, width))
    for _ in range(count):
        at = rng.uniform(0, (height, width))
        size = rng.uniform(0.4, 1) * radius * min(height, width)
        near = np.hypot(rows - at[0], columns - at[1]) / max(size, 1e-6)
        # a Gaussian to the fourth: flat in its middle, with a soft edge
        through *= 1 - darkness * np.exp(-(near**4))
    return x * through[..., None]
