"""Corruptions: the same by picture and seed, worse by severity, and as their definitions say."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.corruptions import digital, noise, sensor
from edgeadv_runtime.corruptions.kinds import CAMERA, KINDS, PUBLISHED, SEVERITIES, corrupt, kinds_of
from edgeadv_runtime.errors import InputError


def scene(side: int, channels: int = 3) -> NDArray[np.float32]:
    """A picture with edges, a gradient and some texture."""
    rows, columns = np.mgrid[:side, :side] / side
    red = 0.2 + 0.6 * columns
    green = np.where(np.hypot(rows - 0.5, columns - 0.5) < 0.3, 0.8, 0.3)
    blue = 0.5 + 0.3 * np.sin(40 * rows) * np.sin(31 * columns)
    stacked = np.stack([red, green, blue])[:channels]
    return (np.rint(stacked * 255) / 255).astype(np.float32)


def test_there_are_the_fifteen_that_were_published() -> None:
    assert len(PUBLISHED) == 15 and not set(PUBLISHED) & set(CAMERA)
    for kind in KINDS.values():
        assert len(kind.small) == SEVERITIES and (kind.large is None or len(kind.large) == SEVERITIES)
    assert all(kind.large is not None for kind in PUBLISHED.values())


@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_a_function_of_picture_and_seed(kind: str, side: int) -> None:
    image = scene(side)
    made = corrupt(image, kind, 3)
    assert made.dtype == np.float32 and made.shape == image.shape and made.min() >= 0 and made.max() <= 1
    np.testing.assert_array_equal(np.rint(made * 255).astype(np.float32) / np.float32(255), made)
    assert not np.array_equal(made, image)
    np.testing.assert_array_equal(corrupt(image.copy(), kind, 3), made)


@pytest.mark.parametrize(
    "kind", ["gaussian-noise", "fog", "snow", "frost", "glass-blur", "elastic-transform", "rain-drops"]
)
def test_what_is_drawn_follows_the_seed(kind: str) -> None:
    image = scene(32)
    assert not np.array_equal(corrupt(image, kind, 5), corrupt(image, kind, 5, seed=1))


# the published constants of the elastic transform trade its affine part for the displacements
@pytest.mark.parametrize("side", [48, 96])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "elastic-transform"])
def test_a_higher_severity_is_further_from_the_picture(kind: str, side: int) -> None:
    images = [np.roll(scene(side), shift, axis=2) for shift in (0, 5, 11, 17)]

    def distance(severity: int) -> float:
        return float(np.mean([np.abs(corrupt(image, kind, severity) - image).mean() for image in images]))

    assert distance(5) > distance(1) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gray_pictures_stay_gray(kind: str) -> None:
    made = corrupt(scene(32, channels=1), kind, 4)
    assert made.shape == (1, 32, 32) and np.isfinite(made).all()


def test_constants_are_those_of_the_size() -> None:
    assert KINDS["fog"].constants(63, 1) == ((0.2, 3), "CIFAR-10-C")
    assert KINDS["fog"].constants(64, 1) == ((1.5, 2), "ImageNet-C")
    assert KINDS["low-light"].constants(64, 1)[1] == "edgeadv"


def test_brightness_is_the_value_of_hsv() -> None:
    x = np.random.default_rng(0).random((6, 7, 3))
    x[0, 0] = 0
    made = digital.brightness(x, np.random.default_rng(0), 0.3)
    for row in range(6):
        for column in range(7):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[row, column])
            expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
            np.testing.assert_allclose(made[row, column], expected, atol=1e-12)


def test_noise_has_the_deviation_that_it_says() -> None:
    half = np.full((200, 200, 3), 0.5)
    rng = np.random.default_rng(0)
    assert (noise.gaussian_noise(half, rng, 0.1) - half).std() == pytest.approx(0.1, rel=0.02)
    # of n photons the deviation is the root of n
    assert noise.shot_noise(half, rng, 60).std() == pytest.approx(np.sqrt(0.5 / 60), rel=0.02)
    salted = noise.impulse_noise(half, rng, 0.27)
    assert (salted != half).mean() == pytest.approx(0.27, rel=0.05)
    assert (salted == 1).mean() == pytest.approx(0.135, rel=0.05)


def test_jpeg_is_pillows() -> None:
    image = scene(40)
    with io.BytesIO() as stream:
        Image.fromarray(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)).save(stream, "JPEG", quality=40)
        with Image.open(stream) as read:
            expected = np.asarray(read)
    np.testing.assert_array_equal(np.rint(corrupt(image, "jpeg-compression", 5).transpose(1, 2, 0) * 255), expected)


def test_over_exposure_cuts_off_at_white_and_keeps_black() -> None:
    x = np.array([0.0, 0.2, 0.9]).reshape(1, 3, 1)
    made = sensor.over_exposure(x, np.random.default_rng(0), 2.2)
    assert made[0, 0, 0] == 0 and made[0, 1, 0] == pytest.approx(0.2 * 2.2 ** (1 / 2.2)) and made[0, 2, 0] == 1


def test_a_rolling_shutter_moves_the_first_and_the_last_row_apart() -> None:
    x = np.zeros((21, 41, 1))
    x[:, 20] = 1
    made = sensor.rolling_shutter(x, np.random.default_rng(0), 0.25)[..., 0]
    assert abs(int(made[0].argmax()) - int(made[-1].argmax())) == 10 and made[10].argmax() == 20


def test_movement_along_a_direction_leaves_stripes_of_that_direction() -> None:
    x = np.zeros((32, 32, 1))
    x[8:16] = 1
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(sensor.motion_along(x, rng, 0.2, 0), x, atol=1e-12)
    assert not np.allclose(sensor.motion_along(x, rng, 0.2, 90), x)


def test_names_and_sets() -> None:
    assert kinds_of("fog, published") == ("fog", *(name for name in PUBLISHED if name != "fog"))
    assert kinds_of("all") == (*PUBLISHED, *CAMERA) and kinds_of("h264") == ("h264",)


@pytest.mark.parametrize(
    ("kind", "severity", "said"),
    [
        ("smog", 1, "has no 'smog'"),
        ("fog", 0, "0 is not from 1 to 5"),
        ("fog", 6, "6 is not"),
        ("published", 1, "'published'"),
    ],
)
def test_an_unknown_corruption_is_one_line(kind: str, severity: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        corrupt(scene(32), kind, severity)
