"""Does the margin do what its gradient predicts: against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import build_attacks
from edgeadv.attacks.linearity import AT_IMAGE, AT_WORST, LinearityControl, linearity
from edgeadv_runtime.attacks.base import CumulativeAttack, infos
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import LINEARITY, SUITES


class Curve(nn.Module):
    """Two logits, whose difference is a function of the sum of the pixels."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        value = self.function(x.flatten(1).sum(dim=1))
        return torch.stack([torch.zeros_like(value), value], dim=1)


X = torch.full((2, 1, 2, 2), 0.25)
LABELS = torch.tensor([0, 0])
EPS = Eps.parse("0.2")


def ratio(function, length: float) -> float:  # type: ignore[no-untyped-def]
    found = linearity(Curve(function), X, LABELS, length=length)
    assert found.shape == (2,) and found[0] == found[1]
    return float(found[0])


def test_a_linear_margin_does_what_is_predicted() -> None:
    assert ratio(lambda s: 3 * s + 1, 0.1) == pytest.approx(1, rel=1e-5)
    assert ratio(lambda s: -1e-9 * s, 0.1) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("length", [0.01, 0.1])
def test_a_curved_margin_differs_by_what_its_curve_says(length: float) -> None:
    # of s squared at s = 1, by four pixels: (2 * 4 h + 16 h h) / (2 * 4 h)
    assert ratio(lambda s: s**2, length) == pytest.approx(1 + 2 * length, rel=1e-4)
    # of a wave whose half length is the step: it comes back where it was
    assert ratio(lambda s: torch.sin(torch.pi / (4 * length) * (s - 1)), length) == pytest.approx(0, abs=1e-4)


def test_a_gradient_of_zero_or_of_another_function_keeps_nothing() -> None:
    assert ratio(lambda s: torch.round(s), 0.1) == 0
    # the gradient of s behind an answer that falls with it
    assert ratio(lambda s: s - s.detach() - s.detach(), 0.1) == pytest.approx(-1, rel=1e-4)


def test_pixels_stay_in_their_range() -> None:
    """A pixel at its end moves no further, and the prediction knows it."""
    white = torch.ones(1, 1, 2, 2)
    found = linearity(Curve(lambda s: s), white, LABELS[:1], length=0.1)
    assert float(found) == 0
    half = white.clone()
    half[..., 0] = 0.5
    assert float(linearity(Curve(lambda s: s), half, LABELS[:1], length=0.1)) == pytest.approx(1, rel=1e-5)


def test_the_control_measures_at_the_image_and_at_its_worst_version() -> None:
    control = LinearityControl(Curve(lambda s: s**2), [EPS], "a" * 64, "torch fp32")
    assert isinstance(control, CumulativeAttack) and control.control and control.params(EPS).norm == "linf"
    start = X + 0.1
    made = control.craft_from(X.numpy(), LABELS.numpy(), start.numpy(), EPS)
    assert made.linearity is not None and made.linearity.shape == (2, 4) and made.linearity.dtype == np.float32
    points = [*((fraction, 1.0) for fraction in AT_IMAGE), *((fraction, 1.4) for fraction in AT_WORST)]
    for found, (fraction, s) in zip(made.linearity[0], points, strict=True):
        assert found == pytest.approx(1 + 2 * fraction * EPS.value / s, rel=1e-3)


def test_it_is_the_last_of_a_suite_and_no_row() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    attacks = build_attacks(model, [EPS], efforts=SUITES["standard"], classes=3, gradients_sha256="a" * 64)
    assert attacks[-1].name == LINEARITY
    (info,) = [info for info in infos(attacks, uint8=False) if info.name == LINEARITY]
    assert info.control and info.cumulative and info.eps == EPS and info.params.cumulative is None
