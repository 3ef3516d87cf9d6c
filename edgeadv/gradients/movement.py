"""ONNX's operators that move numbers, or count places (opset 20), in PyTorch; see :mod:`.operators`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeadv_runtime.errors import InputError

from .windows import torch_pads

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""By ONNX's number, the types of tensors that are known here."""
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def only(op: str, attributes: Attributes, **supported: Any) -> None:
    """Refuse a node that asks for something else than what is done here.

    Raises:
        InputError: it does.
    """
    for key, value in supported.items():
        if attributes.get(key, value) != value:
            raise InputError(f"{op} with {key} {attributes[key]} is not known here")


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    which = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes.tolist())]
    given, mode = pads.tolist(), attributes.get("mode", "constant")
    if mode == "constant":
        every = [0] * 2 * x.ndim
        for i, axis in enumerate(which):
            every[axis], every[axis + x.ndim] = given[i], given[i + len(which)]
        return functional.pad(x, torch_pads(every), value=0.0 if value is None else value.item())
    for i, axis in enumerate(which):
        places = _places(mode, x.shape[axis], given[i], given[i + len(which)])
        x = x.index_select(axis, torch.tensor(places, device=x.device))
    return x


def _places(mode: str, size: int, before: int, after: int) -> list[int]:
    """Which old place stands at each new one."""
    every = range(-before, size + after)
    if mode == "edge":
        return [min(max(i, 0), size - 1) for i in every]
    if mode == "wrap":
        return [i % size for i in every]
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        return [min(i % period, period - i % period) if size > 1 else 0 for i in every]
    raise InputError(f"Pad with mode {mode} is not known here")


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = attributes["shape"] if shape is None else shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    rows = math.prod(x.shape[: attributes.get("axis", 1)])
    return x.reshape(rows, math.prod(x.shape) // max(rows, 1))


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", list(reversed(range(x.ndim)))))


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=attributes["axis"])


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split_with_sizes(x, sizes.tolist(), dim=axis)
    # all as large as the first, the last takes what is left
    parts, size = attributes["num_outputs"], x.shape[axis]
    first = math.ceil(size / parts)
    return torch.split_with_sizes(x, [first] * (parts - 1) + [size - first * (parts - 1)], dim=axis)


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
    for axis, start, end, step in zip(which, starts.tolist(), ends.tolist(), by, strict=True):
        # ONNX writes "to the end" as the largest int64, and "to before the first" as the smallest
        places = range(x.shape[axis])[slice(start, end if abs(end) < 2**62 or (end > 0) == (step > 0) else None, step)]
        if step > 0:
            x = x.movedim(axis, 0)[places.start : places.stop : step].movedim(0, axis)
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    flat = _counted(indices, x.shape[axis]).flatten().to(x.device)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _counted(indices: Tensor, size: int) -> Tensor:
    """Places counted from the front."""
    return torch.where(indices < 0, indices + size, indices).long()


def _gather_elements(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    return x.gather(axis, _counted(indices, x.shape[axis]).to(x.device))


def _gather_nd(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    batch = attributes.get("batch_dims", 0)
    shape = indices.shape[:-1]
    rows = [
        torch.arange(size, device=x.device).reshape(-1, *[1] * (len(shape) - 1 - i))
        for i, size in enumerate(shape[:batch])
    ]
    return x[(*rows, *(part.long() for part in indices.to(x.device).unbind(-1)))]


def _scatter_nd(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    places, reduction = indices.to(x.device).unbind(-1), attributes.get("reduction", "none")
    if reduction in ("none", "add"):
        return x.index_put(places, updates.to(x.device), accumulate=reduction == "add")
    # each row of what is replaced, counted through
    depth = indices.shape[-1]
    sizes = x.shape[:depth]
    flat = sum(
        _counted(place, size) * math.prod(sizes[i + 1 :])
        for i, (place, size) in enumerate(zip(places, sizes, strict=True))
    )
    rows = x.reshape(math.prod(sizes), -1)
    index = torch.as_tensor(flat).reshape(-1, 1).expand(-1, rows.shape[1])
    given = updates.to(x.device).reshape(-1, rows.shape[1])
    return rows.scatter_reduce(0, index, given, _REDUCTIONS[reduction]).reshape(x.shape)


def _scatter_elements(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = attributes.get("axis", 0), attributes.get("reduction", "none")
    index, given = _counted(indices, x.shape[axis]).to(x.device), updates.to(x.device)
    if reduction == "none":
        return x.scatter(axis, index, given)
    return x.scatter_reduce(axis, index, given, _REDUCTIONS[reduction])


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


def _tile(attributes: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    b, (n, c, h, w) = attributes["blocksize"], x.shape
    if attributes.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    b, (n, c, h, w) = attributes["blocksize"], x.shape
    parts = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(*order).reshape(n, c * b**2, h // b, w // b)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes["to"] not in DTYPES:
        raise InputError(f"Cast to ONNX's type {attributes['to']} is not known here")
    if through := attributes.get("through"):
        # a gradient below 6e-8 would be 0 in float16
        return x + (x.detach().to(DTYPES[through]).to(x.dtype) - x.detach())
    return x.to(DTYPES[attributes["to"]])


def _range(attributes: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    return torch.as_tensor(attributes.get("value", 0.0)).reshape(()).expand(shape.tolist())


def _where(attributes: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition.to(x.device), x, y)


def _trilu(attributes: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    by = 0 if k is None else int(k)
    return torch.triu(x, by) if attributes.get("upper", 1) else torch.tril(x, by)


def _cumsum(attributes: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    dim, reverse = int(axis), attributes.get("reverse", 0)
    x = x.flip(dim) if reverse else x
    total = x.cumsum(dim) - (x if attributes.get("exclusive", 0) else 0)
    return total.flip(dim) if reverse else total


def _arg(function: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, x: Tensor) -> Tensor:
        axis, keep = attributes.get("axis", 0) % x.ndim, bool(attributes.get("keepdims", 1))
        if not attributes.get("select_last_index", 0):
            return function(x, dim=axis, keepdim=keep)
        places: Tensor = x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return places

    return run


def _top_k(attributes: Attributes, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    axis = attributes.get("axis", -1)
    # of two that are equal the first comes first, which topk does not promise
    order = x.sort(dim=axis, descending=bool(attributes.get("largest", 1)), stable=True)
    return order.values.narrow(axis, 0, int(k)), order.indices.narrow(axis, 0, int(k))


def _one_hot(attributes: Attributes, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size = int(depth.reshape(()))
    places = torch.arange(size) == torch.where(indices < 0, indices + size, indices).unsqueeze(-1)
    axis = attributes.get("axis", -1)
    return torch.where(places.movedim(-1, axis if axis >= 0 else axis + places.ndim), values[1], values[0])


MOVEMENT: dict[str, Operator] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda attributes, x: torch.tensor(x.numel()),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""By ONNX's name, what stands for it here."""
