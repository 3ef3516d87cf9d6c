"""Filters and resampling that several corruptions share. Pictures are float64 (height, width, channels), channels
being three or one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float64]


def gaussian_weights(sigma: float, radius: int) -> NDArray[np.float64]:
    """Weights of a Gaussian at ``-radius`` to ``radius``, which sum to 1; ``sigma`` in pixels, above 0."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    found: NDArray[np.float64] = weights / weights.sum()
    return found


def gaussian(x: Picture, sigma: float, *, truncate: float = 4.0, mode: str = "edge") -> Picture:
    """``x`` blurred by a Gaussian.

    Args:
        x: any number of channels.
        sigma: in pixels; 0 changes nothing.
        truncate: deviations after which the filter ends.
        mode: how :func:`numpy.pad` goes on beyond the edge.
    """
    radius = int(truncate * sigma + 0.5)
    if sigma <= 0 or radius == 0:
        return x
    weights = gaussian_weights(sigma, radius)
    for axis in (0, 1):
        x = _along(x, weights, axis, mode)
    return x


def _along(x: Picture, weights: NDArray[np.float64], axis: int, mode: str) -> Picture:
    radius, size = len(weights) // 2, x.shape[axis]
    width = [(0, 0)] * x.ndim
    width[axis] = (radius, radius)
    # numpy's reflect needs the picture to be larger than the filter; a filter that wide has seen all of it
    padded = np.pad(x, width, mode=mode)  # type: ignore[call-overload]
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=axis)
    assert windows.shape[axis] == size
    found: Picture = windows @ weights
    return found


def convolve(x: Picture, kernel: NDArray[np.float64]) -> Picture:
    """``x`` under a square kernel of odd size, mirrored at the edge."""
    radius = kernel.shape[0] // 2
    padded = np.pad(x, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    out = np.zeros_like(x)
    height, width = x.shape[:2]
    for row, column in zip(*np.nonzero(kernel), strict=True):
        out += kernel[row, column] * padded[row : row + height, column : column + width]
    return out


def sample(x: Picture, rows: NDArray[np.float64], columns: NDArray[np.float64], *, mode: str = "edge") -> Picture:
    """``x`` at points between pixels, bilinear.

    Args:
        x: float64 (height, width, channels).
        rows: float64 (h, w), in pixels from the centre of the first.
        columns: likewise.
        mode: beyond the edge ``"edge"`` repeats the last pixel, ``"mirror"`` reflects at its centre, ``"symmetric"`` at
            its outer side.
    """
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    r0, r1 = (_inside(top + i, x.shape[0], mode) for i in (0, 1))
    c0, c1 = (_inside(left + i, x.shape[1], mode) for i in (0, 1))
    above = x[r0, c0] * (1 - right) + x[r0, c1] * right
    below = x[r1, c0] * (1 - right) + x[r1, c1] * right
    found: Picture = above * (1 - down) + below * down
    return found


def _inside(index: NDArray[np.int64], size: int, mode: str) -> NDArray[np.int64]:
    if mode == "edge" or size == 1:
        return index.clip(0, size - 1)
    if mode == "mirror":
        turned = np.abs(index) % (2 * size - 2)
        mirrored: NDArray[np.int64] = np.minimum(turned, 2 * size - 2 - turned)
        return mirrored
    turned = index % (2 * size)
    found: NDArray[np.int64] = np.minimum(turned, 2 * size - 1 - turned)
    return found


def enlarged(x: Picture, factor: float) -> Picture:
    """The middle of ``x``, enlarged by ``factor`` (at least 1) to the size of ``x``, bilinear, corners upon corners."""
    parts = []
    for size in x.shape[:2]:
        # as many pixels as are needed, enlarged, and of these the middle ones
        part = math.ceil(size / factor)
        begin = (size - part) // 2
        whole = max(round(part * factor), size)
        at = np.linspace(0, part - 1, whole) if whole > 1 else np.zeros(1)
        cut = (whole - size) // 2
        parts.append(begin + at[cut : cut + size])
    return sample(x, *np.meshgrid(*parts, indexing="ij"))


def smeared(x: Picture, length: int, sigma: float, angle: float) -> Picture:
    """Motion blur: ``x`` and its copies along a line, one pixel apart, weighted by half a Gaussian.

    Args:
        x: any number of channels.
        length: copies.
        sigma: deviation of the weights, in pixels.
        angle: of the line, in degrees.
    """
    weights = np.exp(-0.5 * (np.arange(length) / sigma) ** 2)
    return along_line(x, weights / weights.sum(), angle)


def along_line(x: Picture, weights: NDArray[np.float64], angle: float) -> Picture:
    """The sum of ``x`` and of its copies along a line, one pixel apart, the edge repeated."""
    height, width = x.shape[:2]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    out = np.zeros_like(x)
    for i, weight in enumerate(weights):
        down, right = -math.ceil(i * sine - 0.5), -math.ceil(i * cosine - 0.5)
        if abs(down) >= height or abs(right) >= width:
            break
        rows = (np.arange(height) - down).clip(0, height - 1)
        columns = (np.arange(width) - right).clip(0, width - 1)
        out += weight * x[rows][:, columns]
    return out


def fractal(size: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Clouds by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982), which wrap around.

    Args:
        size: of both sides, a power of 2.
        decay: the root of what the noise shrinks by with each halving, as the published corruption has it: the larger,
            the smoother.
        rng: what is drawn from.

    Returns:
        float64 (size, size) from 0 to 1.
    """
    map_ = np.zeros((size, size))
    step, roughness = size, 1.0
    while step >= 2:
        half = step // 2
        corners = map_[::step, ::step]
        total = corners + np.roll(corners, -1, 0)
        squares = total + np.roll(total, -1, 1)
        map_[half::step, half::step] = squares / 4 + roughness * rng.uniform(-1, 1, squares.shape)
        centres = map_[half::step, half::step]
        across = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        map_[::step, half::step] = across / 4 + roughness * rng.uniform(-1, 1, across.shape)
        down = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        map_[half::step, ::step] = down / 4 + roughness * rng.uniform(-1, 1, down.shape)
        step, roughness = half, roughness / decay**2
    map_ -= map_.min()
    found: NDArray[np.float64] = map_ / max(map_.max(), 1e-12)
    return found
