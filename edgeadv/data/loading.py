"""How images reach the device: a small set is decoded once and lives there, a large one is decoded by workers ahead of
time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv_runtime.bundle.preprocess import Preprocess

from .datasets import ImageSet, batches

RESIDENT_BYTES = 1 << 30
"""Sets of no more bytes than this, as uint8, live on the device: all of CIFAR-10 (184 MB), or 7,000 images of 224
pixels."""
_DECODE_BATCH = 256


@dataclass(frozen=True)
class DeviceBatch:
    """Images of one batch on the device; unreadable ones are already out.

    Attributes:
        index: int64 (n,), positions in the image set.
        pixels: uint8 (n, 3, H, W), in channels-last memory.
        labels: int64 (n,).
        unreadable: one message for each image of this batch that could not be decoded.
    """

    index: NDArray[np.int64]
    pixels: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


class Loader(Protocol):
    """Batches of an image set on a device."""

    @property
    def images(self) -> ImageSet:
        """What is read."""
        ...

    @property
    def order(self) -> NDArray[np.int64]:
        """The positions that it may be asked for."""
        ...

    def batches(self, batch_size: int, order: NDArray[np.int64] | None = None) -> Iterator[DeviceBatch]:
        """Batches in ``order``, by default all in order; ``batch_size`` counts unreadable images too."""
        ...


def loader(
    images: ImageSet, order: NDArray[np.int64], preprocess: Preprocess, device: torch.device, *, workers: int = 0
) -> Loader:
    """The images at ``order`` as they fit: on the device if they take at most :data:`RESIDENT_BYTES`, else streamed.

    Args:
        images: what to read.
        order: int64, positions in ``images``.
        preprocess: how.
        device: where to.
        workers: processes that decode; 0 decodes in this one. The result is the same.
    """
    if len(order) * preprocess.crop**2 * 3 <= RESIDENT_BYTES:
        return Resident(images, order, preprocess, device, workers)
    return Streamed(images, order, preprocess, device, workers)


@dataclass(frozen=True)
class Streamed:
    """Images that are decoded again each time, some batches ahead where there are workers."""

    images: ImageSet
    order: NDArray[np.int64]
    preprocess: Preprocess
    device: torch.device
    workers: int = 0

    def batches(self, batch_size: int, order: NDArray[np.int64] | None = None) -> Iterator[DeviceBatch]:
        """Batches in ``order``, by default all in order."""
        order = self.order if order is None else order
        for batch in batches(self.images, self.preprocess, batch_size=batch_size, order=order, workers=self.workers):
            pixels = _to_device(torch.from_numpy(batch.pixels), self.device).permute(0, 3, 1, 2)
            yield DeviceBatch(
                batch.index, pixels, _to_device(torch.from_numpy(batch.labels), self.device), batch.unreadable
            )


@dataclass
class Resident:
    """Images that are decoded when the first batch is asked for, and live on the device."""

    images: ImageSet
    order: NDArray[np.int64]
    preprocess: Preprocess
    device: torch.device
    workers: int = 0
    _pixels: Tensor | None = field(default=None, init=False, repr=False)
    _row: NDArray[np.int64] = field(init=False, repr=False)
    _unreadable: dict[int, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._row = np.full(len(self.images), -1, dtype=np.int64)

    def batches(self, batch_size: int, order: NDArray[np.int64] | None = None) -> Iterator[DeviceBatch]:
        """Batches in ``order``, by default all in order."""
        order = self.order if order is None else order
        pixels = self._decoded()
        for start in range(0, len(order), batch_size):
            asked = order[start : start + batch_size]
            index = asked[self._row[asked] >= 0]
            rows = _to_device(torch.from_numpy(self._row[index]), self.device)
            labels = _to_device(torch.from_numpy(self.images.labels[index]), self.device)
            unreadable = tuple(self._unreadable[int(i)] for i in asked if self._row[i] < 0)
            yield DeviceBatch(index, pixels[rows].permute(0, 3, 1, 2), labels, unreadable)

    def _decoded(self) -> Tensor:
        if self._pixels is not None:
            return self._pixels
        side, filled = self.preprocess.crop, 0
        pixels = torch.empty((len(self.order), side, side, 3), dtype=torch.uint8, device=self.device)
        streamed = Streamed(self.images, self.order, self.preprocess, torch.device("cpu"), self.workers)
        for start, batch in zip(range(0, len(self.order), _DECODE_BATCH), streamed.batches(_DECODE_BATCH), strict=True):
            pixels[filled : filled + len(batch.index)] = batch.pixels.permute(0, 2, 3, 1).to(self.device)
            self._row[batch.index] = np.arange(filled, filled + len(batch.index))
            filled += len(batch.index)
            asked = self.order[start : start + _DECODE_BATCH]
            missing = asked[~np.isin(asked, batch.index)]
            self._unreadable |= dict(zip(missing.tolist(), batch.unreadable, strict=True))
        self._pixels = pixels
        return pixels


def to_model_input(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) pixels as float32 in [0, 1], in the same memory order: the numbers of the runtime's
    ``to_tensor``."""
    return pixels.float().div(255)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # from pinned memory a copy does not hold up what the device is doing
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Waiting:
    """How long the device waits for its next batch.

    On CUDA the time between the end of one step's work and the beginning of the next one's, by events of the device
    itself (not run here: no GPU was at hand); on a CPU the time that the loop spends on fetching a batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._clock = 0.0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def on(self, stream: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """The same batches, watched."""
        while True:
            begin = self._mark()
            batch = next(stream, None)
            self._add(begin)
            if batch is None:
                return
            yield batch

    def seconds(self) -> float:
        """Since the beginning, or the last call."""
        if self._cuda:
            torch.cuda.synchronize()
            self._clock = sum(begin.elapsed_time(end) for begin, end in self._gaps) / 1000
            self._gaps.clear()
        waited, self._clock = self._clock, 0.0
        return waited

    def _mark(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _add(self, begin: float | torch.cuda.Event) -> None:
        end = self._mark()
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            self._gaps.append((begin, end))
        elif isinstance(begin, float) and isinstance(end, float):
            self._clock += end - begin
