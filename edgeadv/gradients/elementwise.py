"""ONNX operators (opset 20) that work number by number, in PyTorch; see :mod:`.operators` for the conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator without attributes."""

    def run(attributes: Attributes, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    return run


def _with(function: Callable[..., Tensor], **defaults: Any) -> Callable[..., Tensor]:
    """An operator whose attributes are numbers, given in this order."""

    def run(attributes: Attributes, *inputs: Tensor) -> Tensor:
        return function(*inputs, *(attributes.get(name, default) for name, default in defaults.items()))

    return run


def _over(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operator of any number of inputs."""

    def run(attributes: Attributes, *inputs: Tensor) -> Tensor:
        return reduce(function, inputs)

    return run


def _clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low.to(x.device))
    return x if high is None else torch.minimum(x, high.to(x.device))


def _divide(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mean(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _mod(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if attributes.get("fmod", 0) else torch.remainder(a, b)


def _pow(attributes: Attributes, x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, exponent.to(x.device)).to(x.dtype)


def _prelu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * functional.elu(x, alpha)


ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Ceil": _plain(torch.ceil),
    "Celu": _with(functional.celu, alpha=1.0),
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "Div": _divide,
    "Elu": _with(functional.elu, alpha=1.0),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": lambda attributes, x: functional.gelu(x, approximate=attributes.get("approximate", "none")),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _with(lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), alpha=0.2, beta=0.5),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LeakyRelu": _with(functional.leaky_relu, alpha=0.01),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "Max": _over(torch.maximum),
    "Mean": _mean,
    "Min": _over(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mod": _mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(torch.relu),
    "Round": _plain(torch.round),
    "Selu": _with(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub),
    "Sum": _over(torch.add),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _with(lambda x, alpha: torch.where(x > alpha, x, 0.0), alpha=1.0),
    "Xor": _plain(torch.logical_xor),
}
"""By ONNX's name, what stands for it here."""
