"""A copy of a network whose convolutions are in TF32 on a GPU, forwards and backwards, whatever the process computes
in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..models.device import arithmetic


class Tf32Copy(nn.Module):
    """``exact`` in float32 whose convolutions round their factors to TF32, as PyTorch has it by default.

    Its memory is in channels-last order: on an H100 RegNetY-400MF's gradients in TF32 came 1.12 times as fast that way
    (``benchmarks/README.md``).

    Shape:
        input float32 (n, channels, H, W) in [0, 1]; output float32 (n, num_classes), logits.
    """

    def __init__(self, exact: nn.Module) -> None:
        """Copy the network.

        Args:
            exact: in evaluation mode, its parameters without gradients, on the device to compute on.
        """
        super().__init__()
        self.net: nn.Module = copy.deepcopy(exact).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels."""
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and x.requires_grad:
            logits: Tensor = _Rounded.apply(x, self.net)
            return logits
        with arithmetic(x.device, tf32=True):
            logits = self.net(x)
        return logits


class _Rounded(torch.autograd.Function):
    """A network both of whose passes are in TF32: its graph is kept apart, and gone through where it is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, net: nn.Module) -> Tensor:
        with torch.enable_grad(), arithmetic(x.device, tf32=True):
            ctx.pixels = x.detach().requires_grad_()
            ctx.logits = net(ctx.pixels)
        logits: Tensor = ctx.logits.detach()
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not ctx.logits.requires_grad:  # no path from the logits back to the pixels
            return torch.zeros_like(ctx.pixels), None
        with arithmetic(gradient.device, tf32=True):
            (found,) = torch.autograd.grad(ctx.logits, ctx.pixels, gradient, materialize_grads=True)
        return found, None
