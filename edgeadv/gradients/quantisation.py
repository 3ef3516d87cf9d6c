"""Operators of quantised ONNX graphs in PyTorch, with a gradient through the rounding; see :mod:`.operators`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .movement import Operator, only
from .windows import WINDOWS

Attributes = Mapping[str, Any]


class _Round(torch.autograd.Function):
    """``round(x / scale) + zero``, clamped to ``low`` and ``high``; backwards as if nothing was rounded.

    Rounding has the derivative 0 almost everywhere. The straight-through estimator (Bengio et al. 2013, "Estimating or
    Propagating Gradients Through Stochastic Neurons", section 4; Jacob et al. 2018, "Quantization and Training of
    Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3) takes it for the identity. Clamping is
    not rounding: what is beyond the range does not change the output, so its gradient is 0. In ``int8-u8s8`` this is
    the ReLU itself, which the quantiser leaves to the range. Beyond means after rounding: the zero point is a whole
    number and moves the range by up to half a step, and a black pixel at its end must not lose its gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        """Whole numbers in float32; halves go to the even one, as in ONNX."""
        steps = (x / scale).round_().add_(zero)
        clamped = steps.clamp(low, high)
        ctx.save_for_backward(clamped == steps, scale)
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ``x / scale`` within the range."""
        inside, scale = ctx.saved_tensors
        return gradients[0] * inside / scale, None, None, None, None


def _along(value: Tensor, x: Tensor, attributes: Attributes) -> Tensor:
    """A scale or zero point in float32, shaped to meet ``x``: one number, or one for each place of an axis."""
    shape = [1] * x.ndim
    if value.numel() > 1:
        shape[attributes.get("axis", 1)] = -1
    # zero points are whole numbers, which a network does not take with it to another device
    return value.to(x.device, torch.float32).reshape(shape)


def _quantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    only("QuantizeLinear", attributes, block_size=0)
    limits = torch.iinfo(zero.dtype)
    rounded: Tensor = _Round.apply(x, _along(scale, x, attributes), _along(zero, x, attributes), limits.min, limits.max)
    return rounded


def _dequantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    only("DequantizeLinear", attributes, block_size=0)
    return _centred(attributes, x, zero) * _along(scale, x, attributes)


def _centred(attributes: Attributes, x: Tensor, zero: Tensor | None) -> Tensor:
    """Whole numbers less their zero point, in float32, which holds their sums exactly."""
    steps = x.to(torch.float32)
    return steps if zero is None else steps - _along(zero, x, attributes)


def _dynamic_quantise(attributes: Attributes, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rounded to the 256 steps between its least and its largest number, and 0; those two have no gradient."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-low / scale).round().clamp(0, 255)
    rounded: Tensor = _Round.apply(x, scale, zero, 0, 255)
    return rounded, scale, zero


def _matmul_integer(
    attributes: Attributes, a: Tensor, b: Tensor, first: Tensor | None = None, second: Tensor | None = None
) -> Tensor:
    return _centred({"axis": -2}, a, first) @ _centred({"axis": -1}, b.to(a.device), second)


def _conv_integer(
    attributes: Attributes, x: Tensor, weight: Tensor, first: Tensor | None = None, second: Tensor | None = None
) -> Tensor:
    found: Tensor = WINDOWS["Conv"](
        attributes, _centred({}, x, first), _centred({"axis": 0}, weight.to(x.device), second)
    )
    return found


QUANTISATION: dict[str, Operator] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantise,
    "DynamicQuantizeLinear": _dynamic_quantise,
    "MatMulInteger": _matmul_integer,
    "QuantizeLinear": _quantise,
}
"""By ONNX's name, what stands for it here."""
