"""The ONNX operators (opset 20) of exported classifiers in PyTorch, with a gradient through the rounding.

An operator takes a node's attributes and its inputs, None where an optional one is absent, and gives its output, or a
tuple where there are several. Two conventions make a graph with Q/DQ nodes differentiable and its shapes cheap:

- what ``QuantizeLinear`` gives is float32 that holds whole numbers, so that a gradient can pass;
- shapes and indices are int64 on the CPU, wherever the images are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeadv_runtime.errors import InputError

from .ordered_conv import OrderedConv

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
Attributes = Mapping[str, Any]
_ONNX_DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}


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
    _only("QuantizeLinear", attributes, block_size=0)
    limits = torch.iinfo(zero.dtype)
    rounded: Tensor = _Round.apply(x, _along(scale, x, attributes), _along(zero, x, attributes), limits.min, limits.max)
    return rounded


def _dequantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    _only("DequantizeLinear", attributes, block_size=0)
    steps = x.to(torch.float32)
    if zero is not None:
        steps = steps - _along(zero, x, attributes)
    return steps * _along(scale, x, attributes)


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, window = _window("Conv", attributes, x)
    convolve = functional.conv1d if x.ndim == 3 else functional.conv2d
    result: Tensor = convolve(x, weight, bias, groups=attributes.get("group", 1), **window)
    return result


def _ordered_conv(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None, start: Tensor | None = None
) -> Tensor:
    """A Conv onto ``start``, summed as ONNX Runtime does; not an operator of ONNX: the export says where it is
    right."""
    x, window = _window("Conv", attributes, x)
    result: Tensor = OrderedConv.apply(
        x, weight, start, window["stride"], window["padding"], window["dilation"], attributes.get("group", 1)
    )
    return result if bias is None else result + bias[:, None, None]


def _fused_sum(a: Tensor, b: Tensor, factors: Tensor, offset: Tensor) -> Tensor:
    """``a * factor + (b * factor + offset)`` by fused multiply-adds; not an operator of ONNX: the export says where it
    is right.

    What is not rounded between a product and its sum in float32 is exact in float64: these factors are whole numbers
    below 256.
    """
    inner = (b.double() * factors[1] + offset).float()
    return (a.double() * factors[0] + inner).float()


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    x, window = _window("MaxPool", attributes, x, value=-math.inf)
    pool = functional.max_pool1d if x.ndim == 3 else functional.max_pool2d
    result: Tensor = pool(x, attributes["kernel_shape"], ceil_mode=bool(attributes.get("ceil_mode", 0)), **window)
    return result


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    _only("AveragePool", attributes, dilations=[1] * len(kernel))
    whole = bool(attributes.get("count_include_pad", 0))
    x, window = _window("AveragePool", attributes, x, even=not whole)
    del window["dilation"]
    pool = functional.avg_pool1d if x.ndim == 3 else functional.avg_pool2d
    result: Tensor = pool(x, kernel, ceil_mode=bool(attributes.get("ceil_mode", 0)), count_include_pad=whole, **window)
    return result


def _window(
    op: str, attributes: Attributes, x: Tensor, *, value: float = 0.0, even: bool = False
) -> tuple[Tensor, dict[str, Any]]:
    """``x``, and how a window moves over it, for PyTorch, which takes the same padding on both sides only; what is
    uneven is added here, unless it has to be ``even``."""
    n = x.ndim - 2
    if n not in (1, 2):
        raise InputError(f"the surrogate has no {op} of {n} dimensions")
    pads = attributes.get("pads", [0] * 2 * n)
    if attributes.get("auto_pad") != "VALID":
        _only(op, attributes, auto_pad="NOTSET")
    padding = pads[:n]
    if even:
        _only(op, attributes, pads=padding * 2)
    if padding != pads[n:]:
        _only(op, attributes, auto_pad="NOTSET", ceil_mode=0)
        x, padding = functional.pad(x, _torch_pads(pads), value=value), [0] * n
    one = [1] * n
    return x, {
        "stride": attributes.get("strides", one),
        "padding": padding,
        "dilation": attributes.get("dilations", one),
    }


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """From ONNX's all first sides and then all last ones to PyTorch's pairs, last axis first."""
    n = len(pads) // 2
    return [int(p) for i in reversed(range(n)) for p in (pads[i], pads[n + i])]


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    _only("Pad", attributes, mode="constant")
    which = list(range(x.ndim)) if axes is None else axes.tolist()
    given, every = pads.tolist(), [0] * 2 * x.ndim
    for i, axis in enumerate(which):
        every[axis % x.ndim], every[axis % x.ndim + x.ndim] = given[i], given[i + len(which)]
    return functional.pad(x, _torch_pads(every), value=0.0 if value is None else float(value))


def _resize(
    attributes: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    del roi  # of another coordinate transformation
    _only("Resize", attributes, antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch", axes=None)
    mode = attributes.get("mode", "nearest")
    if mode == "linear" and x.ndim == 4:
        _only("Resize", attributes, coordinate_transformation_mode="half_pixel")
        options: dict[str, Any] = {"mode": "bilinear", "align_corners": False}
    else:
        _only("Resize", attributes, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        options = {"mode": "nearest"}
    if sizes is not None and sizes.numel():
        return functional.interpolate(x, size=sizes.tolist()[2:], **options)
    assert scales is not None  # ONNX wants one of the two
    larger: Tensor = functional.interpolate(x, scale_factor=scales.tolist()[2:], **options)
    return larger


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (m.T if attributes.get(key, 0) else m for m, key in ((a, "transA"), (b, "transB")))
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high) if low is not None or high is not None else x


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[attributes.get("axis", -1) :]
    return functional.layer_norm(x, shape, scale, bias, attributes.get("epsilon", 1e-5))


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = [] if axes is None else axes.tolist()
        if not dims and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, dim=dims or list(range(x.ndim)), keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    # without sizes all are as large as the first, and the last takes what is left
    size = math.ceil(x.shape[axis] / attributes["num_outputs"]) if sizes is None else sizes.tolist()
    return torch.split(x, size, dim=axis)


def _slice(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    which = range(len(starts)) if axes is None else axes.tolist()
    by = [1] * len(starts) if steps is None else steps.tolist()
    if min(by) < 1:
        raise InputError("the surrogate has no Slice with negative steps")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(which, starts.tolist(), ends.tolist(), by, strict=True):
        index[axis] = slice(start, min(end, x.shape[axis]), step)  # ONNX writes "to the end" as the largest int64
    return x[tuple(index)]


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).flatten().to(x.device)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    _only("GatherND", attributes, batch_dims=0)
    return x[indices.to(x.device).unbind(-1)]


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    dims = x.ndim + len(axes)
    for axis in sorted(a % dims for a in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes["to"] not in _ONNX_DTYPES:
        raise InputError(f"the surrogate has no Cast to ONNX's type {attributes['to']}")
    return x.to(_ONNX_DTYPES[attributes["to"]])


def _scatter_nd(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    _only("ScatterND", attributes, reduction="none")
    return x.index_put(indices.to(x.device).unbind(-1), updates.to(x.device))


def _plain(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""

    def run(attributes: Attributes, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    return run


def _only(op: str, attributes: Attributes, **supported: Any) -> None:
    """Refuse a node that asks for something else than what is done here.

    Raises:
        InputError: it does.
    """
    for key, value in supported.items():
        if attributes.get(key, value) != value:
            raise InputError(f"the surrogate has no {op} with {key} {attributes[key]}")


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Clip": _clip,
    "Div": _divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, shape.tolist())),  # type: ignore[no-untyped-call]
    "FusedSum": _fused_sum,
    "GlobalAveragePool": lambda x: x.mean(dim=list(range(2, x.ndim)), keepdim=True),
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Not": torch.logical_not,
    "Range": lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Unsqueeze": _unsqueeze,
    "Where": lambda condition, x, y: torch.where(condition.to(x.device), x, y),
}
"""Operators without attributes."""
OPERATORS: dict[str, Operator] = {
    **{name: _plain(function) for name, function in _PLAIN.items()},
    "AveragePool": _average_pool,
    "BatchNormalization": lambda attributes, x, scale, bias, mean, var: functional.batch_norm(
        x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5)
    ),
    "Cast": _cast,
    "Concat": lambda attributes, *parts: torch.cat(parts, dim=attributes["axis"]),
    "ConstantOfShape": lambda attributes, shape: torch.as_tensor(attributes.get("value", 0.0)).expand(shape.tolist()),
    "Conv": _conv,
    "DequantizeLinear": _dequantise,
    "Einsum": lambda attributes, *inputs: torch.einsum(attributes["equation"], *inputs),
    "Flatten": lambda attributes, x: x.reshape(math.prod(x.shape[: attributes.get("axis", 1)]), -1),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": lambda attributes, x: functional.gelu(x, approximate=attributes.get("approximate", "none")),
    "Gemm": _gemm,
    "HardSigmoid": lambda attributes, x: (attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)).clamp(0, 1),
    "LayerNormalization": _layer_norm,
    "MaxPool": _max_pool,
    "OrderedConv": _ordered_conv,
    "Pad": _pad,
    "QuantizeLinear": _quantise,
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMean": _reduce(torch.mean),
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterND": _scatter_nd,
    "Shape": lambda attributes, x: torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")]),
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
    "Split": _split,
    "Transpose": lambda attributes, x: x.permute(attributes.get("perm", list(reversed(range(x.ndim))))),
}
"""By ONNX's name, what stands for it here."""
