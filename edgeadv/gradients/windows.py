"""ONNX's operators of sliding windows (opset 19) in PyTorch: convolutions and pools, of one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeadv_runtime.errors import InputError

Attributes = Mapping[str, Any]
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv."""
    kernel = list(weight.shape[2:])
    convolve, strides, dilations, pads = _of(_CONV, "Conv", attributes, x, kernel)
    padding, x = _given(x, pads, 0.0, most=None)
    return convolve(x, weight, bias, strides, padding, dilations, attributes.get("group", 1))


def _conv_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose; what pads cut off is cut off here."""
    n, kernel = x.ndim - 2, list(weight.shape[2:])
    if n not in _CONV_TRANSPOSE:
        raise InputError(f"ConvTranspose of {n} dimensions is not known here")
    strides, dilations = attributes.get("strides", [1] * n), attributes.get("dilations", [1] * n)
    extra = attributes.get("output_padding", [0] * n)
    whole = [(x.shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(n)]
    pads = attributes.get("pads", [0] * 2 * n)
    auto, sizes = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    if sizes or auto.startswith("SAME"):
        wanted = sizes or [x.shape[2 + i] * strides[i] for i in range(n)]
        pads = _halves([max(whole[i] - wanted[i], 0) for i in range(n)], last=auto != "SAME_LOWER")
        whole = [max(whole[i], wanted[i]) for i in range(n)]
    y = _CONV_TRANSPOSE[n](x, weight, None, strides, 0, 0, attributes.get("group", 1), dilations)
    # at the far end there may be more than the products reach
    y = functional.pad(y, torch_pads([0] * n + [max(whole[i] - y.shape[2 + i], 0) for i in range(n)]))
    for i in range(n):
        y = y.narrow(2 + i, pads[i], whole[i] - pads[i] - pads[n + i])
    return y if bias is None else y + bias.reshape(-1, *[1] * n)


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """MaxPool, without the places of the maxima."""
    kernel = attributes["kernel_shape"]
    pool, strides, dilations, pads = _of(_MAX, "MaxPool", attributes, x, kernel)
    padding, x = _given(x, pads, -math.inf, most=kernel)
    return pool(x, kernel, strides, padding, dilations)


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """AveragePool; a window that reaches beyond the image is the mean of what it covers."""
    kernel = attributes["kernel_shape"]
    pool, strides, dilations, pads = _of(_AVERAGE, "AveragePool", attributes, x, kernel)
    n, whole = len(kernel), bool(attributes.get("count_include_pad", 0))
    if max(dilations) == 1 and pads[:n] == pads[n:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return pool(x, kernel, strides, pads[:n], count_include_pad=whole)
    covered = functional.pad(torch.ones_like(x[:1, :1]), torch_pads(pads))
    if whole:
        stated = _pads({**attributes, "ceil_mode": 0}, x, kernel, strides, dilations)
        covered = functional.pad(torch.ones_like(x[:1, :1]), torch_pads(stated), value=1.0)
        covered = functional.pad(covered, torch_pads([p - s for p, s in zip(pads, stated, strict=True)]))
    padded = functional.pad(x, torch_pads(pads))
    sums, counts = (_windows(each, kernel, strides, dilations).sum(tuple(range(-n, 0))) for each in (padded, covered))
    return sums / counts


def _lp_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """LpPool."""
    kernel, p = attributes["kernel_shape"], attributes.get("p", 2)
    _, strides, dilations, pads = _of(_AVERAGE, "LpPool", attributes, x, kernel)
    windows = _windows(functional.pad(x, torch_pads(pads)), kernel, strides, dilations)
    result: Tensor = torch.linalg.vector_norm(windows, ord=p, dim=tuple(range(-len(kernel), 0)))
    return result


def torch_pads(pads: Sequence[int]) -> list[int]:
    """From ONNX's all first sides and then all last ones to PyTorch's pairs, last axis first."""
    n = len(pads) // 2
    return [int(p) for i in reversed(range(n)) for p in (pads[i], pads[n + i])]


def _windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """(..., places, kernel): every window of ``x``."""
    n = len(kernel)
    for i in range(n):
        x = x.unfold(2 + i, dilations[i] * (kernel[i] - 1) + 1, strides[i])[..., :: dilations[i]]
    return x


def _of(
    functions: Mapping[int, Callable[..., Tensor]], op: str, attributes: Attributes, x: Tensor, kernel: Sequence[int]
) -> tuple[Callable[..., Tensor], list[int], list[int], list[int]]:
    """The function for as many dimensions, strides, dilations and pads."""
    n = x.ndim - 2
    if n not in functions:
        raise InputError(f"{op} of {n} dimensions is not known here")
    strides, dilations = attributes.get("strides", [1] * n), attributes.get("dilations", [1] * n)
    return functions[n], strides, dilations, _pads(attributes, x, kernel, strides, dilations)


def _pads(
    attributes: Attributes,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """All first sides, then all last ones; with what ``ceil_mode`` and ``auto_pad`` add."""
    n, auto = len(kernel), attributes.get("auto_pad", "NOTSET")
    spans = [dilations[i] * (kernel[i] - 1) + 1 for i in range(n)]
    sizes = list(x.shape[2:])
    if auto.startswith("SAME"):
        missing = [max((math.ceil(sizes[i] / strides[i]) - 1) * strides[i] + spans[i] - sizes[i], 0) for i in range(n)]
        return _halves(missing, last=auto == "SAME_UPPER")
    pads = list(attributes.get("pads", [0] * 2 * n))
    if attributes.get("ceil_mode", 0):
        for i in range(n):
            padded = sizes[i] + pads[i] + pads[n + i]
            places = math.ceil((padded - spans[i]) / strides[i]) + 1
            # a window begins in the image or before it
            places -= (places - 1) * strides[i] >= sizes[i] + pads[i]
            pads[n + i] += max((places - 1) * strides[i] + spans[i] - padded, 0)
    return pads


def _halves(totals: Sequence[int], *, last: bool) -> list[int]:
    """Each total on two sides; what is odd at the last one or the first."""
    first = [total // 2 if last else total - total // 2 for total in totals]
    return first + [total - part for total, part in zip(totals, first, strict=True)]


def _given(x: Tensor, pads: Sequence[int], value: float, *, most: Sequence[int] | None) -> tuple[list[int], Tensor]:
    """Padding that PyTorch takes, the same on both sides and of half a window ``most``; else ``x`` padded here."""
    n = len(pads) // 2
    even = list(pads[:n]) == list(pads[n:]) and (
        most is None or all(2 * p <= k for p, k in zip(pads, most, strict=False))
    )
    return (list(pads[:n]), x) if even else ([0] * n, functional.pad(x, torch_pads(pads), value=value))


WINDOWS: dict[str, Callable[..., Tensor]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
"""By ONNX's name, what stands for it here."""
