"""Random numbers of training images: whose they are, and that they are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from edgeadv.data.rng import RandomStream

X = torch.zeros(6, 3, 8, 8)
CPU = torch.device("cpu")


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as its authors write it, in whole numbers of Python."""
    mask, drawn = (1 << 64) - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        drawn.append(z ^ (z >> 31))
    return drawn


def test_splitmix64_itself() -> None:
    """The first numbers of seed 1234567, as published with its C source and many ports."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_an_image_has_its_own_generator() -> None:
    stream = RandomStream(7, 2, np.array([0, 49_999, 5]))
    found = stream.shares("start", 40, CPU)
    for key, row in zip(stream.keys("start"), found, strict=True):
        expected = [number >> 40 for number in splitmix64(int(key) & (1 << 64) - 1, 40)]
        assert [int(share * (1 << 24)) for share in row.tolist()] == expected


def test_an_image_draws_the_same_in_any_batch() -> None:
    whole = RandomStream(3, 1, np.array([10, 4, 7, 0, 99, 5])).uniform(X)
    part = RandomStream(3, 1, np.array([7, 99])).uniform(X[:2])
    assert torch.equal(part, whole[[2, 4]])


def test_seed_epoch_position_and_use_tell_draws_apart() -> None:
    index = np.array([1])
    first = [
        RandomStream(0, 0, index),
        RandomStream(1, 0, index),
        RandomStream(0, 1, index),
        RandomStream(0, 0, np.array([2])),
    ]
    drawn = [d.uniform(X[:1]) for d in first]
    drawn += [first[0].shares(use, 192, CPU).reshape(1, 3, 8, 8) * 2 - 1 for use in ("crop", "flip")]
    flat = np.stack([d.flatten().numpy() for d in drawn])
    # not only different, but unrelated
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 0.25


@pytest.mark.parametrize(("kind", "law"), [("uniform", stats.uniform(-1, 2)), ("normal", stats.norm)])
def test_the_distributions(kind: str, law: stats.distributions.rv_frozen) -> None:
    """Over the numbers of an image, and over images at one place."""
    drawn = getattr(RandomStream(0, 0, np.arange(3000)), kind)(torch.zeros(3000, 2, 10, 10))
    assert drawn.dtype == torch.float32 and bool(drawn.isfinite().all())
    for sample in (drawn[0], drawn[:, 1, 3, 4], drawn[::7]):
        assert stats.kstest(sample.flatten().double().numpy(), law.cdf).pvalue > 0.01
    # neighbours within an image and between images do not follow each other
    flat = drawn.reshape(3000, -1)
    for a, b in ((flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.01


def test_uniform_numbers_stay_below_one() -> None:
    drawn = RandomStream(0, 0, np.arange(300)).uniform(torch.zeros(300, 3, 32, 32))
    assert float(drawn.min()) >= -1 and float(drawn.max()) < 1


def test_as_many_images_as_positions() -> None:
    assert RandomStream(0, 0, np.empty(0, np.int64)).uniform(X[:0]).shape == (0, 3, 8, 8)
