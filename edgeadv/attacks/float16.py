"""A copy of a network in float16 whose gradients are worth something: scaled image by image, and float32's where
float16 fails."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.graph import GraphModule

# the largest gradient of a logit is scaled to less than two to this power, or to the next that loses fewer images
_EXPONENTS = (15, 12, 9, 6, 3, 0, -3)
# images to come may have gradients that are this power of two times as large as those of the sample
_HEADROOM = 3
# of an image's largest gradient, below which 1/4096 of it is zero in float16
_SMALLEST = 2.0**-12


class HalfCopy(nn.Module):
    """``exact`` in float16: pixels in float32 to logits in float32, and their gradient in float32.

    In float16 a gradient below 6e-8 is zero, and a network that is sure of itself, above all a distilled one, has
    smaller ones. What goes back through the network is linear in the gradient of the logits, so each image's is
    multiplied by a power of two on its way in and divided by it on its way out: loss scaling (Micikevicius et al. 2018,
    "Mixed Precision Training", section 3.2), for each image its own. An image whose logits overflow, or whose gradient
    does, or comes out so small that parts of it are lost although that of its logits is not zero, gets float32's.

    Shape:
        input float32 (n, channels, H, W) in [0, 1]; output float32 (n, num_classes), logits.

    Attributes:
        exact: the network in float32.
        repaired: how many logits and gradients of an image were float32's so far.
    """

    def __init__(self, exact: GraphModule, sample: Tensor) -> None:
        """Copy and round the network, and see how far gradients can be scaled.

        Args:
            exact: in evaluation mode, its parameters without gradients, on the device to compute on.
            sample: images, float32 (n, 3, H, W) in [0, 1], such as are going to be attacked.
        """
        super().__init__()
        self.exact = exact
        # float16 would round the pixels to steps as wide as a small budget; normalised first they are finer where most
        # of them are
        self.prepared, net = exact.split()
        self.net = net.to(torch.float16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.repaired: int = 0
        self._exponent = self._fitting(sample)

    def _fitting(self, sample: Tensor) -> int:
        # an image whose gradient is too small at any scale must not take the others down with it
        lost: dict[int, int] = {}
        for self._exponent in _EXPONENTS:
            self.repaired = 0
            with torch.enable_grad():
                x = sample.detach().requires_grad_()
                top = self(x).topk(2, dim=1).values
                torch.autograd.grad((top[:, 1] - top[:, 0]).sum(), x)
            lost[self._exponent] = self.repaired
            if not self.repaired:
                break
        self.repaired = 0
        return min(lost, key=lambda exponent: (lost[exponent], -exponent)) - _HEADROOM

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels."""
        call = _Call(self)
        inner = self.prepared(_Entry.apply(x, call)).to(torch.float16)
        if inner.ndim == 4:
            inner = inner.contiguous(memory_format=torch.channels_last)
        logits: Tensor = _Exit.apply(self.net(inner).float(), x, call)
        return logits


class _Call:
    """What the way back of one call needs to know at its other end."""

    def __init__(self, network: HalfCopy) -> None:
        self.network = network
        self.lost: Tensor
        self.given: Tensor
        self.shift: Tensor


class _Entry(torch.autograd.Function):
    """The pixels as they are; their gradient as large as it is, float32's where there is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, scaled: Tensor) -> tuple[Tensor, None]:
        call: _Call = ctx.call
        (x,) = ctx.saved_tensors
        largest = scaled.flatten(1).abs().amax(dim=1)
        lost = call.lost | ~largest.isfinite() | ((largest < _SMALLEST) & (call.given != 0).any(dim=1))
        gradient = torch.ldexp(scaled, -call.shift[:, None, None, None])
        if bool(lost.any()):
            call.network.repaired += int(lost.sum())
            with torch.enable_grad():
                again = x[lost].detach().requires_grad_()
                (gradient[lost],) = torch.autograd.grad(call.network.exact(again), again, call.given[lost])
        return gradient, None


class _Exit(torch.autograd.Function):
    """The logits as they are, float32's where there are none; their gradient as large as float16 can take it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        call.lost = ~logits.isfinite().all(dim=1)
        logits = logits.clone()
        if bool(call.lost.any()):
            call.network.repaired += int(call.lost.sum())
            logits[call.lost] = call.network.exact(x[call.lost]).float()
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        call: _Call = ctx.call
        largest = gradient.abs().amax(dim=1)
        exponent = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent
        # powers of two that float32 has
        shift = (call.network._exponent - exponent).clamp(-126, 126)
        call.given, call.shift = gradient, shift
        return torch.ldexp(gradient, shift[:, None]), None, None
