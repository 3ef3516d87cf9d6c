"""Filters against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from edgeadv_runtime.corruptions import filters


@pytest.fixture
def picture() -> NDArray[np.float64]:
    return np.random.default_rng(0).random((17, 23, 3))


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.3, 4.0])
@pytest.mark.parametrize(("ours", "theirs"), [("edge", "nearest"), ("symmetric", "reflect")])
def test_a_gaussian(picture: NDArray[np.float64], sigma: float, ours: str, theirs: str) -> None:
    expected = scipy.ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode=theirs, truncate=3)
    np.testing.assert_allclose(filters.gaussian(picture, sigma, truncate=3, mode=ours), expected, atol=1e-12)


def test_a_kernel(picture: NDArray[np.float64]) -> None:
    kernel = np.random.default_rng(1).random((5, 5))
    expected = scipy.ndimage.correlate(picture, kernel[..., None], mode="mirror")
    np.testing.assert_allclose(filters.convolve(picture, kernel), expected, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [("edge", "nearest"), ("mirror", "mirror"), ("symmetric", "reflect")])
def test_points_between_pixels(picture: NDArray[np.float64], ours: str, theirs: str) -> None:
    rng = np.random.default_rng(2)
    rows, columns = rng.uniform(-9, 26, (2, 11, 7))
    expected = np.stack(
        [scipy.ndimage.map_coordinates(picture[..., k], [rows, columns], order=1, mode=theirs) for k in range(3)], -1
    )
    np.testing.assert_allclose(filters.sample(picture, rows, columns, mode=ours), expected, atol=1e-12)


@pytest.mark.parametrize("factor", [1, 1.03, 1.5, 2.5, 4])
def test_the_middle_enlarged(factor: float) -> None:
    picture = np.random.default_rng(3).random((32, 32, 3))
    part = int(np.ceil(32 / factor))
    begin = (32 - part) // 2
    whole = scipy.ndimage.zoom(picture[begin : begin + part, begin : begin + part], (factor, factor, 1), order=1)
    cut = (whole.shape[0] - 32) // 2
    np.testing.assert_allclose(filters.enlarged(picture, factor), whole[cut : cut + 32, cut : cut + 32], atol=1e-12)


def test_a_line_of_copies() -> None:
    point = np.zeros((9, 9, 1))
    point[4, 4] = 1
    along = filters.along_line(point, np.array([0.5, 0.3, 0.2]), 0)[..., 0]
    assert along.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.sort(along[4][along[4] > 0]), [0.2, 0.3, 0.5])


def test_clouds_wrap_around_and_fill_their_range() -> None:
    clouds = filters.fractal(64, 2.0, np.random.default_rng(0))
    assert clouds.shape == (64, 64) and clouds.min() == 0 and clouds.max() == 1
    inside = np.abs(np.diff(clouds, axis=0)).mean()
    # across the edge it is as smooth as anywhere
    assert np.abs(clouds[0] - clouds[-1]).mean() < 2 * inside
    rough = filters.fractal(64, 1.2, np.random.default_rng(0))
    assert np.abs(np.diff(rough, axis=0)).mean() > 2 * inside
