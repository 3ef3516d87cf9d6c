"""ONNX's operators that reduce and normalise, and products (opset 20, RMSNormalization 23), in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .movement import Operator, only

Attributes = Mapping[str, Any]


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        if (axes is None or not axes.numel()) and attributes.get("noop_with_empty_axes", 0):
            return x
        dims = axes.tolist() if axes is not None and axes.numel() else list(range(x.ndim))
        return function(x, dim=dims, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _prod(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((d % x.ndim for d in dim), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _extreme(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
        # PyTorch orders no booleans
        return function(x.to(torch.uint8) if x.dtype == torch.bool else x, dim=dim, keepdim=keepdim).to(x.dtype)

    return run


def _mean(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return (
        x.mean(dim=dim, keepdim=keepdim)
        if x.is_floating_point()
        else x.double().mean(dim=dim, keepdim=keepdim).to(x.dtype)
    )


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, x: Tensor) -> Tensor:
        return function(x, attributes.get("axis", -1))

    return run


def _hardmax(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 2))


def _batch_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    only("BatchNormalization", attributes, training_mode=0)
    return functional.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = attributes["num_groups"]
    if len(scale) != x.shape[1]:  # before opset 21 there was one number for each group
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, attributes.get("epsilon", 1e-5))


def _layer_norm(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    axis = attributes.get("axis", -1) % x.ndim
    dims, epsilon = list(range(axis, x.ndim)), attributes.get("epsilon", 1e-5)
    mean = x.mean(dims, keepdim=True)
    inverse = (x.var(dims, unbiased=False, keepdim=True) + epsilon).rsqrt()
    if scale.shape == x.shape[axis:] and (bias is None or bias.shape == scale.shape):
        return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon), mean, inverse
    normalised = (x - mean) * inverse * scale
    return normalised if bias is None else normalised + bias, mean, inverse


def _rms_norm(attributes: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    dims = list(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    epsilon: float = attributes.get("epsilon", 1e-5)
    squares = wide.square().mean(dims, keepdim=True) + epsilon
    return (wide * squares.rsqrt()).to(x.dtype) * scale


def _lrn(attributes: Attributes, x: Tensor) -> Tensor:
    size, alpha, beta = attributes["size"], attributes.get("alpha", 1e-4), float(attributes.get("beta", 0.75))
    bias = float(attributes.get("bias", 1.0))
    squares = functional.pad(x.square().movedim(1, -1), ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1)
    result: Tensor = x / (bias + alpha / size * squares.movedim(-1, 1)) ** beta
    return result


def _lp_norm(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.normalize(x, p=attributes.get("p", 2), dim=attributes.get("axis", -1))


def _mean_variance(attributes: Attributes, x: Tensor) -> Tensor:
    axes = attributes.get("axes", [0, 2, 3])
    deviation = x.var(axes, unbiased=False, keepdim=True).sqrt()
    return (x - x.mean(axes, keepdim=True)) / (deviation + 1e-9)


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (m.T if attributes.get(key, 0) else m for m, key in ((a, "transA"), (b, "transB")))
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def _matmul(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _einsum(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return torch.einsum(attributes["equation"], *inputs)


def _global(function: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, x: Tensor) -> Tensor:
        return function(x, dim=list(range(2, x.ndim)), keepdim=True)

    return run


NORMALISATION: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "GroupNormalization": _group_norm,
    "Hardmax": _hardmax,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_norm,
    "MatMul": _matmul,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduce(lambda x, dim, keepdim: x.abs().sum(dim, keepdim)),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceLogSum": _reduce(lambda x, dim, keepdim: x.sum(dim, keepdim).log()),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(_extreme(torch.amax)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_extreme(torch.amin)),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(lambda x, dim, keepdim: x.sum(dim, keepdim)),
    "ReduceSumSquare": _reduce(lambda x, dim, keepdim: x.square().sum(dim, keepdim)),
    "Softmax": _softmax(torch.softmax),
}
"""By ONNX's name, what stands for it here."""
