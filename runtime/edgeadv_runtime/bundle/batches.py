"""Clean images in batches, what they are called in results, and how many of them may be unreadable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..decoding import Count
from ..errors import DataError
from ..files import sha256_bytes

MOST_UNREADABLE = 0.01
Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is, and what is being done; what it raises ends the work."""


@dataclass(frozen=True)
class CleanBatch:
    """Preprocessed images and labels, in the order they are scored.

    Attributes:
        index: int64 (n,), positions in the data set.
        pixels: uint8 (n, height, width, channels).
        labels: int64 (n,), positions among the bundle's classes.
    """

    index: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Hex SHA-256 of each image's pixels."""
        return tuple(sha256_bytes(pixels.tobytes()) for pixels in self.pixels)

    def select(self, chosen: NDArray[np.bool_]) -> CleanBatch:
        """The images whose flag in ``chosen``, bool (n,), is set."""
        return CleanBatch(self.index[chosen], self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True)
class DataInfo:
    """What is scored, as the results file names it.

    Attributes:
        name: the ``--data`` that was given.
        split: which part.
        total: images asked for, unreadable ones included.
        allow_unreadable: accept more than 1% of unreadable images.
        allow_training_images: accept more than 1% of images that the network was trained on.
        training_images: how many of them are, as who made a pack of them counted; None where nobody did.
    """

    name: str
    split: str
    total: Count
    allow_unreadable: bool = False
    allow_training_images: bool = False
    training_images: Count | None = None

    def binding(self) -> dict[str, Any]:
        """What outcomes depend on: what was wrong with the images may be allowed when it turns up, to go on from
        there."""
        return {"name": self.name, "split": self.split, "total": self.total}


class _Labelled(Protocol):
    """Images of which the pixels may be gone: :class:`CleanBatch` and :class:`BatchOutcome`."""

    @property
    def index(self) -> NDArray[np.int64]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def hashes(self) -> tuple[str, ...]: ...


class DataDigest:
    """SHA-256 over every scored image and label, in order: the same for a pack and for the run that made it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, batch: _Labelled) -> None:
        """Add one batch."""
        for index, image, label in zip(batch.index, batch.hashes, batch.labels, strict=True):
            self._digest.update(f"{index} {label} {image}\n".encode())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._digest.hexdigest()


def check_readable(unreadable: Sequence[str], data: DataInfo) -> None:
    """Refuse data of which more than :data:`MOST_UNREADABLE` cannot be decoded, unless that was allowed.

    Raises:
        DataError: it is so.
    """
    if len(unreadable) > MOST_UNREADABLE * data.total and not data.allow_unreadable:
        raise DataError(
            f"{data.name}: {len(unreadable)} of {data.total} images are unreadable, e.g. {unreadable[0]}; repair "
            "them or pass `allow_unreadable`"
        )


def readable(batches: Iterable[CleanBatch], unreadable: Sequence[str], data: DataInfo) -> Iterator[CleanBatch]:
    """``batches``, up to where more images are unreadable than may be: before the hours that their attacks take.

    Args:
        batches: images that are decoded as they are asked for.
        unreadable: messages of those that could not be, filled by ``batches``.
        data: what the images are.

    Raises:
        DataError: as :func:`check_readable`.
    """
    for batch in batches:
        check_readable(unreadable, data)
        yield batch
