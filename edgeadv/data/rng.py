"""Random numbers that belong to training images, so that it does not matter which process or batch an image is in.

The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 16),
whose n-th number is a function of its seed and n: all numbers of a batch are made at once, on the device where they are
needed. It is all whole numbers, so that a CPU and a GPU draw the same.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15
_MIX = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)
_LAST_SHIFT = 31
_BITS = 24  # what float32 holds of a number in [0, 1)


@dataclass(frozen=True)
class RandomStream:
    """What the images of a batch draw: a function of seed, epoch and their positions in the data.

    Attributes:
        seed: of the training.
        epoch: from 0.
        index: int64 (n,), positions in the data.
    """

    seed: int
    epoch: int
    index: NDArray[np.int64]

    def uniform(self, x: Tensor) -> Tensor:
        """Numbers of [-1, 1), of the shape and on the device of ``x``, float32 (n, ...)."""
        return self._like(x, "uniform") * 2 - 1

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers, as :meth:`uniform` (Box and Muller 1958)."""
        radius = (-2 * (1 - self._like(x, "radius")).log()).sqrt()
        return radius * (2 * math.pi * self._like(x, "angle")).cos()

    def shares(self, use: str, count: int, device: torch.device) -> Tensor:
        """``count`` numbers of [0, 1) for each image, float32 (n, count); another ``use`` stream others."""
        return _shares(torch.from_numpy(self.keys(use)).to(device), count)

    def keys(self, use: str) -> NDArray[np.int64]:
        """A seed for each image, int64 (n,), to be used as 64 bits."""
        key = torch.zeros(len(self.index), dtype=torch.int64)
        for part in (zlib.crc32(use.encode()), self.seed, self.epoch):
            key = _mixed(key + _signed(_STEP) + part)
        return _mixed(key + _signed(_STEP) + torch.from_numpy(np.ascontiguousarray(self.index))).numpy()

    def _like(self, x: Tensor, use: str) -> Tensor:
        shape: Sequence[int] = x.shape[1:]
        return self.shares(use, math.prod(shape), x.device).reshape(len(self.index), *shape)


def _shares(keys: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers of the generator of each seed, as shares of 1: float32 (n, count)."""
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(_STEP)
    drawn = _mixed(keys[:, None] + steps)
    return (drawn >> (64 - _BITS) & (1 << _BITS) - 1).to(torch.float32) / (1 << _BITS)


def _mixed(z: Tensor) -> Tensor:
    """What SplitMix64 makes of its state; int64 wraps around as unsigned numbers do, and shifts drop the sign that they
    bring."""
    for shift, factor in _MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, _LAST_SHIFT)


def _shifted(z: Tensor, by: int) -> Tensor:
    return z >> by & (1 << 64 - by) - 1


def _signed(number: int) -> int:
    """The 64 bits of ``number`` as torch's int64 writes them."""
    return number - (1 << 64) if number >= 1 << 63 else number
