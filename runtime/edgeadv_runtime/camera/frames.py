"""Frames, what gives them, and the memory that they are read into."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.pictures import ColorOrder


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source.

    Attributes:
        image: uint8 (height, width, 3), or else as a preprocessing takes it. It is not written to while anything refers
            to it.
        color_order: of its channels.
        timestamp: when it was captured, seconds of ``time.monotonic()``.
        index: from 0, one more for each frame of the source, over reconnections too.
    """

    image: NDArray[np.uint8] | NDArray[np.uint16]
    color_order: ColorOrder
    timestamp: float
    index: int


class Source(Protocol):
    """Where frames come from."""

    @property
    def name(self) -> str:
        """What it is, in messages."""
        ...

    @property
    def live(self) -> bool:
        """Whether its frames come by the clock and its end is a loss, as with a camera; False for a file, which is read
        to its end."""
        ...

    def frames(self) -> Iterator[Frame]:
        """Open the source and give its frames until it ends or :meth:`close` is called; may be called again after that.

        Raises:
            SourceError: it does not open, or is lost.
        """
        ...

    def close(self) -> None:
        """Let :meth:`frames` end soon, at most half a second later. From any thread; a second call does nothing."""
        ...


class Pool:
    """Arrays of one shape that are used again as soon as nothing refers to them any more.

    Who holds a frame, or a view of its pixels, keeps it: no application has to say when it is done with one. There are
    never more arrays than were held at one time, plus the one that is being filled.
    """

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.uint8]] = []
        self._shape: tuple[int, ...] = ()
        (self._unused,) = _references([np.empty(0, np.uint8)])

    def __len__(self) -> int:
        return len(self._arrays)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of ``shape`` that nobody else has."""
        if shape != self._shape:
            # the camera has changed its size: the old ones go with those who still hold them
            self._arrays, self._shape = [], shape
        for i, references in enumerate(_references(self._arrays)):
            if references == self._unused:
                return self._arrays[i]
        self._arrays.append(np.empty(shape, np.uint8))
        return self._arrays[-1]


def _references(arrays: list[NDArray[np.uint8]]) -> list[int]:
    """How many refer to each; a view counts, for it refers to the array that it shows."""
    return [sys.getrefcount(array) for array in arrays]
