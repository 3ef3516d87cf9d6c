"""Gradients averaged over draws: of a network that answers at random, and of one whose slopes change from pixel to
pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .batching import copies_at_once
from .losses import gradient_of

_SEED = 0


class Averaged(nn.Module):
    """``model`` with the mean gradient of several calls (Athalye et al. 2018, section 4.2, expectation over
    transformation).

    With ``deviation`` 0 each call asks the same pixels again, and the logits are the mean of all answers: for a network
    that answers at random. Above 0 the logits are those of the pixels themselves, and each call of the gradient sees
    them with other
    noise: for a network whose own slope says nothing about the next pixel value. The noise is the same for every image
    and in every call, so an image's result does not depend on its batch.

    Shape:
        input float32 (n, 3, H, W) in [0, 1]; output float32 (n, classes), logits.

    Attributes:
        model: pixels in [0, 1] to logits.
        draws: calls for one gradient, at least 1.
        deviation: standard deviation of the noise, in pixels of [0, 1].
    """

    def __init__(self, model: nn.Module, draws: int, deviation: float = 0.0) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.draws: int = draws
        self.deviation: float = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Logits, with the mean gradient behind them."""
        logits: Tensor = _Mean.apply(x, self)
        return logits

    def noise(self, x: Tensor) -> Tensor:
        """Noise of each draw, (draws, C, H, W): in pairs of opposite sign, whose mean is 0."""
        generator = torch.Generator().manual_seed(_SEED)
        half = torch.randn((self.draws + 1) // 2, *x.shape[1:], generator=generator)
        return (self.deviation * torch.cat([half, -half])[: self.draws]).to(x)


class _Mean(torch.autograd.Function):
    """The answers of a network that answers at random are computed one after another; draws of noise as many at once as
    memory allows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Averaged) -> Tensor:
        ctx.network = network
        ctx.save_for_backward(x)
        calls = 1 if network.deviation else network.draws
        return torch.stack([network.model(x).float() for _ in range(calls)]).mean(dim=0)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        network: Averaged = ctx.network
        (x,) = ctx.saved_tensors
        total = torch.zeros_like(x)
        if not network.deviation:
            for _ in range(network.draws):
                total += pixel_gradient(network.model, x, given)
            return total / network.draws, None
        draws, at_once = network.noise(x), copies_at_once(x, len(x))
        for noise in (draws[i : i + at_once] for i in range(0, len(draws), at_once)):
            moved = (x + noise[:, None]).clamp(0, 1)
            gradient = pixel_gradient(network.model, moved.flatten(0, 1), given.repeat(len(noise), 1))
            total += gradient.view_as(moved).sum(dim=0)
        return total / network.draws, None


def pixel_gradient(model: nn.Module, x: Tensor, given: Tensor) -> Tensor:
    """The gradient of ``(model(x) * given).sum()`` with respect to ``x``; 0 where there is no path for one."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return gradient_of(model(x).float(), x, given)
