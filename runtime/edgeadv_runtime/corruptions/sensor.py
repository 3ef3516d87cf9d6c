"""What a camera does besides: light, shutter, mounting."""

from __future__ import annotations

import math

import numpy as np

from .filters import Picture, along_line, sample

GAMMA = 2.2
"""Of the transfer from light to pixel values, roughly sRGB's."""


def motion_along(x: Picture, rng: np.random.Generator, share: float, angle: float) -> Picture:
    """A camera that drives by: even blur along one direction.

    Args:
        x: the picture.
        rng: not used.
        share: how far a point moves, as a share of the longer side.
        angle: of the movement, in degrees; 0 is along the rows.
    """
    length = max(1, round(share * max(x.shape[:2])))
    # half before and half after, so that the picture stays where it is
    half = along_line(x, np.full(length // 2 + 1, 1.0), angle) + along_line(
        x, np.full(length // 2 + 1, 1.0), angle + 180
    )
    found: Picture = (half - x) / (2 * (length // 2) + 1)
    return found


def low_light(x: Picture, rng: np.random.Generator, exposure: float, white: float, read_noise: float) -> Picture:
    """Too little light, made brighter by the camera: shot noise and read noise grow with it.

    Args:
        x: the picture.
        rng: of the noise.
        exposure: share of the light that is there.
        white: electrons that make white at full light.
        read_noise: deviation of the sensor's own noise, in electrons.
    """
    electrons = x.clip(0, 1) ** GAMMA * white * exposure
    read = rng.poisson(electrons) + rng.normal(size=x.shape, scale=read_noise)
    # automatic gain stops short: a dark scene stays darker
    light = read / white * exposure**-0.7
    found: Picture = light.clip(0, 1) ** (1 / GAMMA)
    return found


def over_exposure(x: Picture, rng: np.random.Generator, exposure: float) -> Picture:
    """``exposure`` times the light: bright parts are cut off at white."""
    found: Picture = (x.clip(0, 1) ** GAMMA * exposure).clip(0, 1) ** (1 / GAMMA)
    return found


def rolling_shutter(x: Picture, rng: np.random.Generator, share: float) -> Picture:
    """A camera that turns while its rows are read: each row is shifted a little more, ``share`` of the width in all."""
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    direction = 1 if rng.random() < 0.5 else -1
    shift = direction * share * width * (rows / max(height - 1, 1) - 0.5)
    return sample(x, rows, columns + shift)


def rotation(x: Picture, rng: np.random.Generator, degrees: float) -> Picture:
    """Turned around its middle by ``degrees``, to the left or to the right; the edge is repeated."""
    angle = math.radians(degrees) * (1 if rng.random() < 0.5 else -1)
    return _about_middle(x, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def zoom(x: Picture, rng: np.random.Generator, factor: float) -> Picture:
    """Nearer or farther by ``factor``, one as often as the other; the edge is repeated."""
    scale = factor if rng.random() < 0.5 else 1 / factor
    return _about_middle(x, [[scale, 0], [0, scale]])


def _about_middle(x: Picture, matrix: list[list[float]]) -> Picture:
    """``x`` at the points that ``matrix`` makes of rows and columns counted from the middle."""
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    down, right = rows - (height - 1) / 2, columns - (width - 1) / 2
    return sample(
        x,
        matrix[0][0] * down + matrix[0][1] * right + (height - 1) / 2,
        matrix[1][0] * down + matrix[1][1] * right + (width - 1) / 2,
    )
