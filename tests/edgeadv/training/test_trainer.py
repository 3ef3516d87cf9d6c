"""The schedules of the learning rate, in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgeadv.training.trainer import scheduler


@pytest.mark.parametrize("updates", [1, 2, 3, 20])
def test_the_schedules_by_hand(updates: int) -> None:
    """Of two groups, each from its own rate."""

    def rates(name: str) -> list[list[float]]:
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 4.0)]
        optimizer = torch.optim.SGD(groups)
        schedule, seen = scheduler(name, optimizer, updates), []
        for _ in range(updates):
            seen.append([group["lr"] / lr for group, lr in zip(optimizer.param_groups, (0.1, 4.0), strict=True)])
            optimizer.step()
            schedule.step()
        return seen

    cosine = [(1 + math.cos(math.pi * i / updates)) / 2 for i in range(updates)]
    steps = [1.0, 0.1, 0.01]
    rice = [steps[(i >= max(1, updates // 2)) + (i >= max(1, updates * 3 // 4))] for i in range(updates)]
    for name, expected in (("cosine", cosine), ("steps", rice)):
        np.testing.assert_allclose(rates(name), [[rate, rate] for rate in expected])
    if updates == 20:
        once = np.array(rates("one-cycle"))
        assert once[0] == pytest.approx([0.04, 0.04]) and once.max() == 1 and int(once[:, 0].argmax()) == 5
        assert once[-1, 0] < 1e-4
