"""Augmentations: what they do to pixels, and that they belong to images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeadv.data.augment import AUGMENTS, augmentation, crop_flip, crop_flip_back
from edgeadv.data.rng import RandomStream

USED = [name for name in AUGMENTS if name != "none"]


def pictures(n: int, side: int = 16) -> Tensor:
    """Smooth ones, so that a change of colour or shape shows."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (n, 3, 4, 4)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").byte()


def applied(name: str, pixels: Tensor, index: list[int], seed: int = 0, epoch: int = 0) -> Tensor:
    augment = augmentation(name)
    assert augment is not None
    return augment(pixels, RandomStream(seed, epoch, np.array(index, dtype=np.int64)))


@pytest.mark.parametrize("name", USED)
def test_an_augmentation_belongs_to_seed_epoch_and_image(name: str) -> None:
    pixels = pictures(4)
    whole = applied(name, pixels, [3, 8, 5, 1])
    assert whole.dtype == torch.uint8 and whole.shape == pixels.shape
    assert torch.equal(applied(name, pixels[2:3], [5])[0], whole[2])
    one = pixels[:1]
    assert len({applied(name, one, [5], epoch=epoch).numpy().tobytes() for epoch in range(12)}) > 6
    assert len({applied(name, one, [5], seed=seed).numpy().tobytes() for seed in range(12)}) > 6
    assert (
        len({picture.numpy().tobytes() for picture in applied(name, one.expand(12, -1, -1, -1), list(range(12)))}) > 6
    )


@pytest.mark.parametrize("name", USED)
def test_torchs_random_state_and_the_pictures_are_left_alone(name: str) -> None:
    pixels = pictures(4)
    copy, before = pixels.clone(), torch.get_rng_state()
    applied(name, pixels, [0, 1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(pixels, copy)
    assert applied(name, pixels[:0], []).shape == (0, 3, 16, 16)


def test_crop_flip_shifts_by_an_eighth_and_mirrors() -> None:
    """Every outcome is one of the 50 that numpy makes, each about as often."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    possible = {}
    for top in range(5):
        for left in range(5):
            cut = padded[top : top + 16, left : left + 16]
            possible[cut.tobytes()] = (top, left, False)
            possible[np.ascontiguousarray(cut[:, ::-1]).tobytes()] = (top, left, True)
    copies = torch.from_numpy(picture).permute(2, 0, 1).expand(2000, -1, -1, -1)
    made = crop_flip(copies, RandomStream(0, 0, np.arange(2000))).permute(0, 2, 3, 1).numpy()
    seen = Counter(possible[np.ascontiguousarray(one).tobytes()] for one in made)
    assert len(seen) == 50 and min(seen.values()) > 15 and max(seen.values()) < 75
    assert 900 < sum(n for (_, _, mirrored), n in seen.items() if mirrored) < 1100


@pytest.mark.parametrize("name", ["crop-flip", "resized-crop", "affine", "trivial"])
def test_nothing_is_mirrored_where_it_must_not_be(name: str) -> None:
    """A picture that is dark on its left stays so, in all but what turns it by more than a right angle."""
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
    picture[:, :, 8:] = 200
    copies = picture.expand(200, -1, -1, -1)
    stream = RandomStream(0, 0, np.arange(200))

    def mirrored(mirror: bool) -> int:
        augment = augmentation(name, mirror=mirror)
        assert augment is not None
        made = augment(copies, stream).float()
        return int((made[..., :8].mean(dim=(1, 2, 3)) > made[..., 8:].mean(dim=(1, 2, 3)) + 5).sum())

    assert mirrored(True) > 50
    assert mirrored(False) < 20


@pytest.mark.parametrize("mirror", [True, False])
def test_what_lies_over_moved_images_goes_back_where_it_belongs(mirror: bool) -> None:
    """Each place that was to be seen gets back the number that it had; the hidden ones are a strip at the border."""
    n, height, width = 300, 16, 8
    places = torch.arange(height * width).view(1, 1, height, width).expand(n, 2, -1, -1)
    stream = RandomStream(0, 0, np.arange(n))
    back, seen = crop_flip_back(crop_flip(places, stream, mirror=mirror), stream, mirror=mirror)
    assert seen.shape == (n, 1, height, width) and seen.dtype == torch.bool
    assert torch.equal(torch.where(seen, back, places), places)
    hidden_rows, hidden_columns = (~seen.any(dim=3)).sum(dim=2), (~seen.any(dim=2)).sum(dim=2)
    assert set(hidden_rows.flatten().tolist()) == {0, 1, 2} and set(hidden_columns.flatten().tolist()) == {0, 1}
    whole = (hidden_rows == 0) & (hidden_columns == 0)
    assert bool(seen[whole.flatten()].all()) and int(whole.sum()) > 10


def test_crop_flip_of_pictures_that_are_not_square() -> None:
    pixels = pictures(1, 16)[:, :, :8].expand(500, -1, -1, -1)
    made = crop_flip(pixels, RandomStream(0, 0, np.arange(500)))
    assert made.shape == (500, 3, 8, 16)
    # 3 rows by 5 columns by mirroring
    assert len({one.numpy().tobytes() for one in made}) == 30


def test_channels_last_memory_stays() -> None:
    pixels = pictures(4).contiguous(memory_format=torch.channels_last)
    assert crop_flip(pixels, RandomStream(0, 0, np.arange(4))).is_contiguous(memory_format=torch.channels_last)


def test_resized_crop_enlarges_a_quarter_at_least() -> None:
    """Of a ramp the slope tells how much was enlarged, and its sign whether it was mirrored."""
    ramp = torch.arange(64, dtype=torch.uint8).mul(3).expand(400, 3, 64, 64)
    made = applied("resized-crop", ramp, list(range(400))).float()
    slopes = (made[:, 0, 32, 48] - made[:, 0, 32, 16]) / 32
    assert 150 < int((slopes < 0).sum()) < 250
    # a part of area 1/4 and aspect 3/4 is sqrt(3/16) = 0.43 of the side wide
    assert float(slopes.abs().min()) > 3 * 0.42 and float(slopes.abs().max()) <= 3.1
