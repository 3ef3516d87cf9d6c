"""Batches in parts whose activations fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.device import memory_order

T = TypeVar("T")
# images that a network is given at once, where more did not fit into memory
_FITTED: ContextVar[int] = ContextVar("fitted", default=sys.maxsize)
# activations of 20 photographs of 224 pixels; on a processor more would take gigabytes and save no time
_PIXELS_AT_ONCE = 1_000_000
# on a processor an image of a larger batch takes no less time
_FEW = 64
# on a GPU of 24 GiB all 64 images of a batch: launching a kernel takes as long for few as for many
_LARGE_GPU, _PIXELS_ON_LARGE_GPU = 20 * 2**30, 3_300_000


def device_of(model: nn.Module) -> torch.device:
    """Where a network is; the processor, if it has no parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def at_once(x: NDArray[np.float32] | Tensor, device: torch.device) -> int:
    """How many images of ``x``, float32 (n, 3, H, W), are attacked at once, so that their activations fit into memory.

    Args:
        x: the images.
        device: where.
    """
    size = x.shape[2] * x.shape[3]
    if device.type != "cuda":
        return max(1, _PIXELS_AT_ONCE // size)
    large = torch.cuda.get_device_properties(device).total_memory >= _LARGE_GPU
    # a power of two, as batches shrink there
    return 1 << max(1, (_PIXELS_ON_LARGE_GPU if large else _PIXELS_AT_ONCE) // size).bit_length() - 1


def copies_at_once(x: Tensor, count: int) -> int:
    """How many times some images of a batch can be in the network at once, at least 1: of few images many.

    Args:
        x: the batch, float32 (n, 3, H, W), on its device.
        count: how many of its images.
    """
    most = min(at_once(x, x.device), _FITTED.get())
    return max(1, (most if x.is_cuda else min(most, _FEW)) // (count or 1))


def tensors(x: NDArray[np.float32], y: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels on a device, in its order of memory."""
    images = torch.from_numpy(x).to(device).contiguous(memory_format=memory_order(device))
    return images, torch.from_numpy(y).to(device)


def in_parts(function: Callable[[slice], T], x: NDArray[np.float32], device: torch.device) -> list[T]:
    """What ``function`` makes of each part of a batch; the parts are halved where memory runs out.

    Args:
        function: positions of a part to whatever is made of it.
        x: the images, float32 (n, 3, H, W).
        device: where they are attacked.
    """
    part = min(at_once(x, device), len(x) or 1)
    before = _FITTED.set(_FITTED.get())
    try:
        while True:
            try:
                return [function(slice(i, i + part)) for i in range(0, len(x) or 1, part)]
            except torch.OutOfMemoryError:
                if part == 1 and _FITTED.get() == 1:
                    raise
            # what the failed attempt held is free only now that its frames are gone
            torch.cuda.empty_cache()
            part = max(1, part // 2)
            _FITTED.set(part)
    finally:
        _FITTED.reset(before)
