"""The ball is as large as float32 allows, and no larger."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadv_runtime.attacks.ball import ball
from edgeadv_runtime.draws import image_rng


@pytest.mark.parametrize("eps", [1e-9, 1 / 255, 0.03, 8 / 255, 0.1, 0.3, 1.0])
def test_the_ball_is_the_largest_within_eps_and_the_range(eps):
    rng = np.random.default_rng(0)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    x = np.concatenate([levels, rng.random(20_000, dtype=np.float32), rng.random(2_000, dtype=np.float32) * 1e-4])
    lower, upper = ball(x, eps)
    assert lower.dtype == upper.dtype == np.float32
    exact = x.astype(np.float64)
    assert (exact - lower.astype(np.float64) <= eps).all() and (upper.astype(np.float64) - exact <= eps).all()
    assert (np.abs(lower - x) <= np.float32(eps)).all() and (np.abs(upper - x) <= np.float32(eps)).all()
    assert lower.min() >= 0 and upper.max() <= 1 and (lower <= x).all() and (x <= upper).all()
    # one float further would be too far
    further = np.nextafter(upper, np.float32(2)).astype(np.float64)
    assert ((further - exact > eps) | (further > 1)).all()
    further = np.nextafter(lower, np.float32(-1)).astype(np.float64)
    assert ((exact - further > eps) | (further < 0)).all()


def test_plain_rounding_would_leave_the_ball():
    """Why the last float is looked at: without that some pixels are too far."""
    x = np.random.default_rng(0).random(10_000, dtype=np.float32)
    plain = np.minimum(x + np.float32(8 / 255), 1)
    assert (plain.astype(np.float64) - x > 8 / 255).mean() > 0.01


def test_draws_belong_to_the_image_the_seed_and_the_part():
    a, b = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    first = image_rng("noise", 0, a).random(4)
    assert (image_rng("noise", 0, a.copy()).random(4) == first).all()
    others = [
        image_rng("noise", 0, b),
        image_rng("noise", 1, a),
        image_rng("noise", 0, a, 1),
        image_rng("noise", 0, a, 2),
        image_rng("start", 0, a),
        image_rng("start", 0, a, 1),
    ]
    drawn = [tuple(rng.random(4)) for rng in others]
    assert len({tuple(first), *drawn}) == 7
