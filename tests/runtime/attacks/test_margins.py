"""The margin is that of the gradient attacks, which is written in PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from edgeadv.attacks import margin
from edgeadv_runtime.attacks.margins import LEAVE_MARGIN, clearly_broken, margins


def test_margins_are_those_of_the_gradient_attacks():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((500, 7)) * 30).astype(np.float32)
    labels = rng.integers(7, size=500)
    kept = logits.copy()
    ours = margins(logits, labels)
    assert ours.dtype == np.float32
    assert (ours == margin(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()).all()
    assert (logits == kept).all()
    assert ((ours < 0) == (logits.argmax(axis=1) == labels)).all()


def test_broken_by_a_tenth_of_the_largest_logit():
    assert LEAVE_MARGIN == 0.1
    labels = np.zeros(6, np.int64)
    logits = np.array(
        [[9.0, 10.0, -1.0], [9.01, 10.0, -1.0], [8.0, 10.0, -20.0], [8.0, 10.0, -20.01], [10.0, 9.0, 0.0], [0, 0, 0]],
        np.float32,
    )
    assert clearly_broken(logits, labels).tolist() == [True, False, True, False, False, True]
