"""Random numbers that belong to training images, so that it does not matter which process or batch an image is in."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# another stream than that of the augmentation, which is seeded by (seed, epoch, position) too
_USE = zlib.crc32(b"random start")


@dataclass(frozen=True)
class Draws:
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
        return self._drawn(x, lambda rng, shape: rng.random(shape, dtype=np.float32) * 2 - 1)

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers, as :meth:`uniform`."""
        return self._drawn(x, lambda rng, shape: rng.standard_normal(shape, dtype=np.float32))

    def _drawn(self, x: Tensor, draw: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]) -> Tensor:
        shape = tuple(x.shape[1:])
        drawn = np.empty((len(self.index), *shape), dtype=np.float32)
        for row, i in zip(drawn, self.index, strict=True):
            row[...] = draw(np.random.default_rng((_USE, self.seed, self.epoch, int(i))), shape)
        return torch.from_numpy(drawn).to(x.device)
