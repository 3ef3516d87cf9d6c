"""ONNX's Resize (opset 19) in PyTorch.

Along each axis a resized tensor is a matrix times the old one, whatever the mode: a row holds the weights of the old
places that a new place is made from (the operator's specification, ``interpolate_nd``). So one gradient serves all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv_runtime.errors import InputError

_NEAREST: Mapping[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
_POLICIES: Mapping[str, Callable[[list[float]], float]] = {"not_larger": min, "not_smaller": max}


def resize(
    attributes: Mapping[str, Any],
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """``x`` with other sizes; arguments as the operator's inputs."""
    axes = [axis % x.ndim for axis in attributes.get("axes") or range(x.ndim)]
    old = [x.shape[axis] for axis in axes]
    new, factors = _sizes(attributes, old, scales, sizes)
    crop = None if roi is None or not roi.numel() else roi.double().reshape(2, -1).T.tolist()
    for i, axis in enumerate(axes):
        if new[i] != old[i] or factors[i] != 1 or (crop is not None and _mode(attributes) == "tf_crop_and_resize"):
            rows = _rows(attributes, old[i], new[i], factors[i], None if crop is None else crop[i])
            moved = x.movedim(axis, -1)
            x = _mapped(moved, rows, float(attributes.get("extrapolation_value", 0.0))).movedim(-1, axis)
    return x


def _mapped(x: Tensor, rows: NDArray[np.float64], outside: float) -> Tensor:
    matrix = torch.from_numpy(np.nan_to_num(rows)).to(x.device, x.dtype if x.is_floating_point() else torch.float32)
    result = (x.to(matrix.dtype) @ matrix.T).to(x.dtype)
    beyond = torch.from_numpy(np.isnan(rows[:, 0])).to(x.device)
    return (
        torch.where(beyond, torch.tensor(outside, dtype=x.dtype, device=x.device), result) if beyond.any() else result
    )


def _mode(attributes: Mapping[str, Any]) -> str:
    return str(attributes.get("coordinate_transformation_mode", "half_pixel"))


def _sizes(
    attributes: Mapping[str, Any], old: list[int], scales: Tensor | None, sizes: Tensor | None
) -> tuple[list[int], list[float]]:
    """New sizes and the factors of the axes."""
    if sizes is None or not sizes.numel():
        if scales is None or not scales.numel():
            raise InputError("a Resize has neither scales nor sizes")
        factors = [float(scale) for scale in scales]
        return [math.floor(size * factor) for size, factor in zip(old, factors, strict=True)], factors
    wanted = sizes.tolist()
    policy = attributes.get("keep_aspect_ratio_policy", "stretch")
    factors = [new / size for new, size in zip(wanted, old, strict=True)]
    if policy != "stretch":
        factor = _POLICIES[policy](factors)
        return [math.floor(size * factor + 0.5) for size in old], [factor] * len(old)
    return wanted, factors


def _place(attributes: Mapping[str, Any], new: int, old: int, size: int, factor: float, crop: Any) -> float:
    """Where in the old tensor a new place lies."""
    mode = _mode(attributes)
    if mode == "asymmetric":
        return new / factor
    if mode == "align_corners":
        # the exact size counts, which the true one may be below
        return 0.0 if old * factor == 1 else new * (old - 1) / (old * factor - 1)
    if mode == "pytorch_half_pixel" and size == 1:
        return -0.5
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (new + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        # the size asked for may be smaller than the exact one: its middle stays the middle
        exact = old * factor
        return old / 2 * (1 - size / exact) + (new + 0.5) / factor - 0.5
    if mode == "tf_crop_and_resize" and crop is not None:
        first, last = (float(part) for part in crop)
        if size == 1:
            return 0.5 * (first + last) * (old - 1)
        return first * (old - 1) + new * (last - first) * (old - 1) / (size - 1)
    raise InputError(f"Resize with coordinate_transformation_mode {mode} is not known here")


def _rows(attributes: Mapping[str, Any], old: int, size: int, factor: float, crop: Any) -> NDArray[np.float64]:
    """float64 (size, old): the weights of each new place; NaN where it is the value for outside."""
    rows = np.zeros((size, old))
    mode, places = (
        attributes.get("mode", "nearest"),
        (_place(attributes, new, old, size, factor, crop) for new in range(size)),
    )
    for new, place in enumerate(places):
        if _mode(attributes) == "tf_crop_and_resize" and not 0 <= place <= old - 1:
            rows[new] = np.nan
        elif mode == "nearest":
            chosen = _NEAREST[attributes.get("nearest_mode", "round_prefer_floor")](place)
            rows[new, min(max(chosen, 0), old - 1)] = 1
        else:
            _spread(attributes, rows[new], place, factor)
    return rows


def _spread(attributes: Mapping[str, Any], row: NDArray[np.float64], place: float, factor: float) -> None:
    """Write the weights of linear or cubic interpolation around ``place`` into ``row``."""
    mode = attributes["mode"]
    reach = 1 if mode == "linear" else 2
    if mode not in ("linear", "cubic"):
        raise InputError(f"Resize with mode {mode} is not known here")
    narrow = min(factor, 1.0) if attributes.get("antialias", 0) else 1.0
    first, last = math.floor(place - reach / narrow) + 1, math.ceil(place + reach / narrow)
    near = np.arange(min(first, math.floor(place)), max(last, math.floor(place) + 1) + 1)
    distance = np.abs(near - place) * narrow
    weights = np.clip(1 - distance, 0, None) if mode == "linear" else _cubic(distance, attributes)
    if attributes.get("exclude_outside", 0):
        weights = np.where((near >= 0) & (near < len(row)), weights, 0)
    # at the border the outermost number stands for what is beyond
    np.add.at(row, np.clip(near, 0, len(row) - 1), weights / weights.sum())


def _cubic(distance: NDArray[np.float64], attributes: Mapping[str, Any]) -> NDArray[np.float64]:
    """Keys' kernel (Keys 1981, equation 15)."""
    a, d = attributes.get("cubic_coeff_a", -0.75), distance
    inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
    outer = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))
