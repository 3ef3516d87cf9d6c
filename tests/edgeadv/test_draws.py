"""Random numbers of training images: whose they are, and that they are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeadv.draws import Draws

X = torch.zeros(6, 3, 8, 8)


def test_an_image_draws_the_same_in_any_batch() -> None:
    whole = Draws(3, 1, np.array([10, 4, 7, 0, 99, 5])).uniform(X)
    part = Draws(3, 1, np.array([7, 99])).uniform(X[:2])
    assert torch.equal(part, whole[[2, 4]])


def test_seed_epoch_position_and_kind_tell_draws_apart() -> None:
    index = np.array([1])
    first = [Draws(0, 0, index), Draws(1, 0, index), Draws(0, 1, index), Draws(0, 0, np.array([2]))]
    drawn = {tuple(d.uniform(X[:1]).flatten().tolist()) for d in first}
    assert len(drawn) == 4
    # the augmentation of the same image is seeded alike and must not be what moves it here
    theirs = np.random.default_rng((0, 0, 1)).random(8, dtype=np.float32) * 2 - 1
    assert not np.allclose(Draws(0, 0, index).uniform(X[:1]).flatten()[:8].numpy(), theirs)


def test_the_distributions() -> None:
    many = torch.zeros(50, 3, 32, 32)
    uniform, normal = (getattr(Draws(0, 0, np.arange(50)), kind)(many) for kind in ("uniform", "normal"))
    assert float(uniform.min()) >= -1 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0, abs=0.01) and float(uniform.var()) == pytest.approx(
        1 / 3, abs=0.005
    )
    assert float(normal.mean()) == pytest.approx(0, abs=0.02) and float(normal.var()) == pytest.approx(1, abs=0.02)
    assert uniform.dtype == normal.dtype == torch.float32


def test_as_many_images_as_positions() -> None:
    assert Draws(0, 0, np.empty(0, np.int64)).uniform(X[:0]).shape == (0, 3, 8, 8)
