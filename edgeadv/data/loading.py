"""How images reach the device: a small set is decoded once and lives there, a large one is decoded by workers ahead of
time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv_runtime.bundle.preprocess import Preprocess

from .datasets import Batch, ImageSet, batches

RESIDENT_BYTES = 1 << 30
"""Sets of no more bytes than this, as uint8, live on the device: all of CIFAR-10 (184 MB), or 7,000 images of 224
pixels."""
_DECODE_BATCH = 256


@dataclass(frozen=True)
class DeviceBatch:
    """Images of one batch on the device; unreadable ones are already out.

    Attributes:
        index: int64 (n,), positions in the image set.
        pixels: uint8 (n, channels, H, W), in channels-last memory.
        labels: int64 (n,).
        unreadable: one message for each image of this batch that could not be decoded.
    """

    index: NDArray[np.int64]
    pixels: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Loader:
    """Images of a set on a device, decoded again each time, some batches ahead where there are workers.

    Attributes:
        images: what is read.
        order: int64, the positions in ``images`` that it may be asked for.
        preprocess: how.
        device: where to.
        workers: processes that decode; 0 decodes in this one. The result is the same.
    """

    images: ImageSet
    order: NDArray[np.int64]
    preprocess: Preprocess
    device: torch.device
    workers: int = 0

    def batches(self, batch_size: int, order: NDArray[np.int64] | None = None) -> Iterator[DeviceBatch]:
        """Batches in ``order``, by default all in order; ``batch_size`` counts unreadable images too."""
        for batch in self._read(batch_size, self.order if order is None else order):
            pixels = self._there(batch.pixels).permute(0, 3, 1, 2)
            yield DeviceBatch(batch.index, pixels, self._there(batch.labels), batch.unreadable)

    def _read(self, batch_size: int, order: NDArray[np.int64]) -> Iterator[Batch]:
        return batches(self.images, self.preprocess, batch_size=batch_size, order=order, workers=self.workers)

    def _there(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        # from pinned memory a copy does not hold up what the device is doing
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=self.device.type == "cuda")


class Resident(Loader):
    """Images that are decoded when the first batch is asked for, and live on the device."""

    def batches(self, batch_size: int, order: NDArray[np.int64] | None = None) -> Iterator[DeviceBatch]:
        """Batches in ``order``, by default all in order."""
        order = self.order if order is None else order
        pixels, row, unreadable = self._decoded
        for start in range(0, len(order), batch_size):
            asked = order[start : start + batch_size]
            index = asked[row[asked] >= 0]
            chosen, labels = self._there(row[index]), self._there(self.images.labels[index])
            messages = tuple(unreadable[int(i)] for i in asked if row[i] < 0)
            yield DeviceBatch(index, pixels[chosen].permute(0, 3, 1, 2), labels, messages)

    @cached_property
    def _decoded(self) -> tuple[Tensor, NDArray[np.int64], dict[int, str]]:
        """Pixels, the row of each image in them or -1, and the messages of those that are unreadable."""
        filled, shape = 0, (len(self.order), *self.preprocess.pixel_shape)
        pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)
        row = np.full(len(self.images), -1, dtype=np.int64)
        unreadable: dict[int, str] = {}
        starts = range(0, len(self.order), _DECODE_BATCH)
        for start, batch in zip(starts, self._read(_DECODE_BATCH, self.order), strict=True):
            end = filled + len(batch.index)
            pixels[filled:end] = torch.from_numpy(batch.pixels).to(self.device)
            row[batch.index] = np.arange(filled, end)
            filled = end
            asked = self.order[start : start + _DECODE_BATCH]
            missing = asked[~np.isin(asked, batch.index)]
            unreadable |= dict(zip(missing.tolist(), batch.unreadable, strict=True))
        return pixels, row, unreadable


def loader(
    images: ImageSet, order: NDArray[np.int64], preprocess: Preprocess, device: torch.device, *, workers: int = 0
) -> Loader:
    """The images at ``order`` as they fit: on the device if they take at most :data:`RESIDENT_BYTES`, else streamed.

    Arguments as of :class:`Loader`.
    """
    kind = Resident if len(order) * math.prod(preprocess.pixel_shape) <= RESIDENT_BYTES else Loader
    return kind(images, order, preprocess, device, workers)


def to_model_input(pixels: Tensor) -> Tensor:
    """uint8 (n, channels, H, W) pixels as float32 in [0, 1], in the same memory order: the numbers of the runtime's
    ``to_tensor``."""
    return pixels.float().div(255)


class Waiting:
    """How long the device waits for its next batch.

    On CUDA the time between the end of one step's work and the beginning of the next one's, by events of the device
    itself (not run here: no GPU was at hand); on a CPU the time that the loop spends on fetching a batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._gaps: list[tuple[Any, Any]] = []

    def on(self, stream: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """The same batches, watched."""
        while True:
            begin = self._mark()
            batch = next(stream, None)
            self._gaps.append((begin, self._mark()))
            if batch is None:
                return
            yield batch

    def seconds(self) -> float:
        """Since the beginning, or the last call."""
        if self._cuda:
            torch.cuda.synchronize()
        waited: float = sum(begin.elapsed_time(end) / 1000 if self._cuda else end - begin for begin, end in self._gaps)
        self._gaps.clear()
        return waited

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
