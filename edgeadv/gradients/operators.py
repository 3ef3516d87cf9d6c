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
    x, padding = _padded("Conv", attributes, x)
    n = weight.ndim - 2
    convolve = _of_dims("Conv", x, {1: functional.conv1d, 2: functional.conv2d})
    result: Tensor = convolve(
        x,
        weight,
        bias,
        stride=attributes.get("strides", [1] * n),
        padding=padding,
        dilation=attributes.get("dilations", [1] * n),
        groups=attributes.get("group", 1),
    )
    return result


def _ordered_conv(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None, start: Tensor | None = None
) -> Tensor:
    """A Conv onto ``start``, summed as ONNX Runtime does; not an operator of ONNX: the export says where it is
    right."""
    x, padding = _padded("Conv", attributes, x)
    result: Tensor = OrderedConv.apply(
        x,
        weight,
        start,
        attributes.get("strides", [1, 1]),
        padding,
        attributes.get("dilations", [1, 1]),
        attributes.get("group", 1),
    )
    return result if bias is None else result + bias[:, None, None]


def _fused_sum(attributes: Attributes, a: Tensor, b: Tensor, factors: Tensor, offset: Tensor) -> Tensor:
    """``a * factor + (b * factor + offset)`` by fused multiply-adds; not an operator of ONNX: the export says where it
    is right.

    What is not rounded between a product and its sum in float32 is exact in float64: these factors are whole numbers
    below 256.
    """
    inner = (b.double() * factors[1] + offset).float()
    return (a.double() * factors[0] + inner).float()


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    x, padding = _padded("MaxPool", attributes, x, value=-math.inf)
    pool = _of_dims("MaxPool", x, {1: functional.max_pool1d, 2: functional.max_pool2d})
    result: Tensor = pool(
        x,
        kernel,
        stride=attributes.get("strides", [1] * len(kernel)),
        padding=padding,
        dilation=attributes.get("dilations", [1] * len(kernel)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return result


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    _only("AveragePool", attributes, dilations=[1] * len(kernel))
    whole = bool(attributes.get("count_include_pad", 0))
    if whole:
        x, padding = _padded("AveragePool", attributes, x)
    else:
        padding = _even_pads("AveragePool", attributes, len(kernel))
    pool = _of_dims("AveragePool", x, {1: functional.avg_pool1d, 2: functional.avg_pool2d})
    result: Tensor = pool(
        x,
        kernel,
        stride=attributes.get("strides", [1] * len(kernel)),
        padding=padding,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=whole,
    )
    return result


def _padded(op: str, attributes: Attributes, x: Tensor, *, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """``x`` and the padding for PyTorch, which takes the same on both sides only; what is uneven is added here."""
    n = x.ndim - 2
    pads = attributes.get("pads", [0] * 2 * n)
    if pads[:n] == pads[n:]:
        return x, _even_pads(op, attributes, n)
    _only(op, attributes, auto_pad="NOTSET", ceil_mode=0)
    return functional.pad(x, _torch_pads(pads), value=value), [0] * n


def _even_pads(op: str, attributes: Attributes, n: int) -> list[int]:
    _only(op, {"auto_pad": attributes.get("auto_pad", "NOTSET").replace("VALID", "NOTSET")}, auto_pad="NOTSET")
    pads: list[int] = attributes.get("pads", [0] * 2 * n)
    _only(op, {"pads": pads}, pads=pads[:n] * 2)
    return pads[:n]


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
    alpha: float = attributes.get("alpha", 1.0)
    beta: float = attributes.get("beta", 1.0)
    return alpha * (a @ b) if c is None else alpha * (a @ b) + beta * c


def _clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high) if low is not None or high is not None else x


def _divide(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    alpha: float = attributes.get("alpha", 0.2)
    beta: float = attributes.get("beta", 0.5)
    return (alpha * x + beta).clamp(0, 1)


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attributes.get("approximate", "none"))


def _softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return x.softmax(attributes.get("axis", -1))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[attributes.get("axis", -1) :]
    return functional.layer_norm(x, shape, scale, bias, attributes.get("epsilon", 1e-5))


def _batch_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        if (axes is None or not axes.numel()) and attributes.get("noop_with_empty_axes", 0):
            return x
        dims = axes.tolist() if axes is not None and axes.numel() else list(range(x.ndim))
        return function(x, dim=dims, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _global_average(attributes: Attributes, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[: attributes.get("axis", 1)]), -1)


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", list(reversed(range(x.ndim)))))


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=attributes["axis"])


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split_with_sizes(x, sizes.tolist(), dim=axis)
    return torch.split_with_sizes(x, _even_sizes(x.shape[axis], attributes["num_outputs"]), dim=axis)


def _even_sizes(size: int, parts: int) -> list[int]:
    """ONNX: all as large as the first, the last takes what is left."""
    first = math.ceil(size / parts)
    return [first] * (parts - 1) + [size - first * (parts - 1)]


def _slice(
    attributes: Attributes,
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


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    dims = x.ndim + len(axes)
    for axis in sorted(a % dims for a in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = torch.broadcast_shapes(x.shape, shape.tolist())  # type: ignore[no-untyped-call]
    return x.expand(sizes)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")])


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes["to"] not in _ONNX_DTYPES:
        raise InputError(f"the surrogate has no Cast to ONNX's type {attributes['to']}")
    return x.to(_ONNX_DTYPES[attributes["to"]])


def _range(attributes: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    return torch.as_tensor(attributes.get("value", 0.0)).expand(shape.tolist())


def _einsum(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return torch.einsum(attributes["equation"], *inputs)


def _scatter_nd(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    _only("ScatterND", attributes, reduction="none")
    return x.index_put(indices.to(x.device).unbind(-1), updates.to(x.device))


def _where(attributes: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition.to(x.device), x, y)


def _plain(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""

    def run(attributes: Attributes, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    return run


def _of_dims(op: str, x: Tensor, functions: Mapping[int, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    if x.ndim - 2 not in functions:
        raise InputError(f"the surrogate has no {op} of {x.ndim - 2} dimensions")
    return functions[x.ndim - 2]


def _only(op: str, attributes: Attributes, **supported: Any) -> None:
    """Refuse a node that asks for something else than what is done here.

    Raises:
        InputError: it does.
    """
    for key, value in supported.items():
        if attributes.get(key, value) != value:
            raise InputError(f"the surrogate has no {op} with {key} {attributes[key]}")


OPERATORS: dict[str, Operator] = {
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "DequantizeLinear": _dequantise,
    "Div": _divide,
    "Erf": _plain(torch.erf),
    "Einsum": _einsum,
    "Equal": _plain(torch.eq),
    "Expand": _expand,
    "Flatten": _flatten,
    "FusedSum": _fused_sum,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LayerNormalization": _layer_norm,
    "MatMul": _plain(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "Not": _plain(torch.logical_not),
    "OrderedConv": _ordered_conv,
    "Pad": _pad,
    "QuantizeLinear": _quantise,
    "Range": _range,
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMean": _reduce(torch.mean),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""By ONNX's name, what stands for it here."""
