"""Gradients averaged over draws, against the mean of gradients taken one by one, and networks without a path for
any."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import build_attacks, fgsm, input_gradient, margin, pgd
from edgeadv.attacks.averaged import Averaged, pixel_gradient
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import LARGE_EPS, LINEARITY, SUITES


class Waves(nn.Module):
    """Two logits that are waves of the sum of an image's pixels."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(dim=1)
        return torch.stack([torch.sin(3 * total), torch.cos(2 * total)], dim=1)


class Dice(nn.Module):
    """Logits that are another multiple of the pixels at every call; the mean multiple is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        factor = 0.5 if self.calls % 2 else 1.5
        total = factor * x.flatten(1).sum(dim=1)
        return torch.stack([total, -total], dim=1)


class Steps(nn.Module):
    """Comparisons only: no logit depends on a pixel in a way that could be differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        on = (x > 0.5).float().flatten(1).mean(dim=1)
        return torch.stack([on, 1 - on], dim=1)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


LABELS = torch.tensor([0, 1, 0, 1])


def test_the_gradient_is_the_mean_over_the_noise_and_the_logits_are_those_of_the_pixels(x: Tensor) -> None:
    smoothed = Averaged(Waves(), 6, 0.01)
    slope = input_gradient(smoothed, x, LABELS, margin)
    assert torch.allclose(slope.logits, Waves()(x))
    # two logits: the margin is their difference wherever it is taken
    expected = torch.zeros_like(x)
    for noise in smoothed.noise(x):
        at = (x + noise).requires_grad_()
        own = margin(Waves()(at), LABELS).sum()
        (gradient,) = torch.autograd.grad(own, at)
        expected += gradient / 6
    assert torch.allclose(slope.gradient, expected, atol=1e-6)


def test_noise_comes_in_pairs_and_is_the_same_for_every_batch(x: Tensor) -> None:
    smoothed = Averaged(Waves(), 8, 0.1)
    noise = smoothed.noise(x)
    assert noise.shape == (8, 3, 5, 5) and torch.allclose(noise.sum(dim=0), torch.zeros(3, 5, 5), atol=1e-6)
    assert abs(float(noise.std()) - 0.1) < 0.02
    whole, part = (
        input_gradient(smoothed, images, labels, margin) for images, labels in ((x, LABELS), (x[1:2], LABELS[1:2]))
    )
    # as many draws at once as fit: only the order of the sum differs
    torch.testing.assert_close(whole.gradient[1:2], part.gradient, rtol=0, atol=1e-6 * float(part.gradient.abs().max()))


def test_a_network_that_throws_dice_has_its_mean_answer_and_gradient(x: Tensor) -> None:
    slope = input_gradient(Averaged(Dice(), 10), x, LABELS, margin)
    total = x.flatten(1).sum(dim=1)
    assert torch.allclose(slope.logits, torch.stack([total, -total], dim=1))
    sign = torch.where(LABELS == 0, -1.0, 1.0)[:, None, None, None]
    assert torch.allclose(slope.gradient, 2 * sign.expand_as(x))


def test_without_a_path_the_gradient_is_zero_and_no_attack_fails(x: Tensor) -> None:
    assert torch.equal(input_gradient(Steps(), x, LABELS, margin).gradient, torch.zeros_like(x))
    assert torch.equal(pixel_gradient(Steps(), x, torch.ones(4, 2)), torch.zeros_like(x))
    (made,) = fgsm(Steps(), x, LABELS, eps=0.1)
    assert made.zero_gradient.all() and torch.equal(made.x, x)
    assert pgd(Steps(), x, LABELS, eps=0.1).zero_gradient.any()


def test_every_attack_of_every_suite_runs_on_a_network_without_a_path(x: Tensor) -> None:
    for efforts in SUITES.values():
        for attack in build_attacks(Steps(), [Eps.parse("0.1")], efforts=efforts, classes=2, gradients_sha256="a" * 64):
            (made,) = attack.craft(x.numpy(), LABELS.numpy())
            assert made.x.shape == x.shape
            if attack.name not in (LARGE_EPS, LINEARITY):
                assert made.zero_gradient is not None
