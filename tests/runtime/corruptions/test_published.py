"""The published corruptions, pixel by pixel, against the library imagecorruptions, which draws the same numbers here.

Two have no counterpart there: frost lays photographs over the picture, and its elastic transform is another one.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.corruptions import digital
from edgeadv_runtime.corruptions.kinds import PUBLISHED

ALIKE = {"frost", "elastic-transform", "impulse-noise"}


class Replayed:
    """NumPy's old generator, which the library uses, as the new one."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def integers(self, low: int, high: int, size: Any) -> Any:
        return self._state.randint(low, high, size=size)

    def random(self, size: Any) -> Any:
        return self._state.random_sample(size)


@pytest.fixture(scope="module")
def theirs() -> Callable[[NDArray[np.uint8], str, int], NDArray[np.float64]]:
    """The library, with what it needs of versions of its time: a module, a name of NumPy, an argument of
    scikit-image."""
    spec = importlib.util.find_spec("imagecorruptions")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    with pytest.MonkeyPatch.context() as patch:
        resources = types.ModuleType("pkg_resources")
        resources.resource_filename = lambda package, name: str(folder / name)  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setattr(np, "float_", np.float64, raising=False)
        from imagecorruptions import corruptions

        blurred = corruptions.gaussian
        patch.setattr(
            corruptions,
            "gaussian",
            lambda x, multichannel=False, **more: blurred(x, channel_axis=2 if multichannel else None, **more),
        )

        def made(image: NDArray[np.uint8], kind: str, severity: int) -> NDArray[np.float64]:
            given = Image.fromarray(image) if kind in ("pixelate", "jpeg-compression") else image
            return np.asarray(getattr(corruptions, kind.replace("-", "_"))(given, severity), dtype=np.float64) / 255

        yield made


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    from sklearn.datasets import load_sample_images

    photograph = Image.fromarray(load_sample_images().images[0]).resize((96, 80))
    return np.asarray(photograph)


# what theirs rounds on the way, or adds up in float32; and half a level where it cuts levels off
ROUNDED = {"glass-blur": 1.6 / 255, "snow": 0.6 / 255, "brightness": 1e-6}


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("kind", [kind for kind in PUBLISHED if kind not in ALIKE])
def test_a_corruption_is_the_published_one(theirs: Any, picture: NDArray[np.uint8], kind: str, severity: int) -> None:
    large = PUBLISHED[kind].large
    assert large is not None
    ours = PUBLISHED[kind].apply(picture / 255, Replayed(7), *large[severity - 1]).clip(0, 1)
    np.random.seed(7)  # noqa: NPY002 - the library draws from it
    expected = theirs(picture.copy(), kind, severity)
    if kind in ("zoom-blur", "snow"):
        # theirs takes the upper left of an enlargement, as the published code does not
        assert np.abs(ours - expected).mean() < 0.03
        return
    np.testing.assert_allclose(ours, expected, atol=ROUNDED.get(kind, 1e-5))


def test_salt_and_pepper_are_as_many(theirs: Any, picture: NDArray[np.uint8]) -> None:
    x = picture / 255
    ours = PUBLISHED["impulse-noise"].apply(x, np.random.default_rng(0), 0.17)
    np.random.seed(0)  # noqa: NPY002
    expected = theirs(picture, "impulse-noise", 4)
    for value in (0, 1):
        added = [((each == value) & (x != value)).mean() for each in (ours, expected)]
        assert added[0] == pytest.approx(added[1], rel=0.05)


def test_frost_covers_about_as_much(theirs: Any, picture: NDArray[np.uint8]) -> None:
    x = picture / 255
    for severity in (1, 5):
        constants = PUBLISHED["frost"].large[severity - 1]  # type: ignore[index]
        drawn = [PUBLISHED["frost"].apply(x, np.random.default_rng(i), *constants).clip(0, 1) for i in range(12)]
        np.random.seed(0)  # noqa: NPY002
        expected = [theirs(picture, "frost", severity) for _ in range(12)]
        ours, other = (np.abs(np.stack(each) - x).mean() for each in (drawn, expected))
        assert ours == pytest.approx(other, rel=0.5)


def test_pixels_are_rounded_to_the_nearest() -> None:
    assert digital.pixels(np.array([[[0.0, 1.0, 0.499 / 255, 0.501 / 255, 1.2]]])).tolist() == [[[0, 255, 0, 1, 255]]]


def test_enlargements_are_those_of_the_published_ranges() -> None:
    small = [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)]
    large = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)]
    for side, ranges in ((32, small), (224, large)):
        found = [PUBLISHED["zoom-blur"].constants(side, severity)[0][0] for severity in range(1, 6)]
        assert [len(each) for each in found] == [len(np.arange(1, *each)) for each in ranges]
        for each, (last, step) in zip(found, ranges, strict=True):
            np.testing.assert_array_equal(each, np.arange(1, last, step))
