"""Sources without a library: frames of an application, and pictures of a folder."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.pictures import ColorOrder, decode, load
from ..bundle.preprocess import Preprocess
from ..bundle.walk import pictures, shown
from ..errors import DataError, InputError, SourceError
from .frames import Frame, Source
from .video import Camera, Pipeline, Url, VideoFile

_GSTREAMER = "!"
_TICK_S = 0.1


def open_source(
    text: str, *, fps: float | None = None, loop: bool = False, preprocess: Preprocess | None = None
) -> Source:
    """The source that ``text`` names; nothing is opened yet.

    Args:
        text: ``/dev/video0`` or its number, a GStreamer pipeline (with ``!`` between its elements), a URL (``rtsp://``,
            ``http://``, ...), a video file, or a folder of pictures.
        fps: pace of a file or folder in frames per second; None plays a file at its own, and shows pictures as fast as
            they are taken.
        loop: begin a file or folder again at its end.
        preprocess: what the frames are for: a folder's pictures are turned by their EXIF orientation and keep 16 bits
            where it says so.

    Raises:
        InputError: it is none of these, or ``fps`` or ``loop`` do not belong to it.
        MissingDependencyError: OpenCV is needed for it.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"fps must be above 0 and at most 1000, not {fps}")
    path = Path(text)
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError:  # a long pipeline is no path at all
        folder = file = False
    if folder:
        return Folder(path, fps=fps, loop=loop, preprocess=preprocess)
    if file:
        return VideoFile(path, fps=fps, loop=loop)
    if fps is not None or loop:
        raise InputError(f"`fps` and `loop` are for a video file or a folder, which {text!r} is not: leave them out")
    if _GSTREAMER in text:
        return Pipeline(text)
    if "://" in text:
        return Url(text)
    if text.isdecimal() or text.startswith("/dev/"):
        return Camera(text)
    raise InputError(
        f"source {text!r} is no device (/dev/video0 or 0), no GStreamer pipeline, no URL, no video file and no "
        "folder of pictures here"
    )


class Memory:
    """Frames that an application already has; also what tests use.

    :meth:`put` waits while ``depth`` frames are not taken yet. A stream takes them at once, and drops or keeps them by
    its policy; when it has stopped, or its classifier has failed, :meth:`put` waits no more.
    """

    name = "memory"

    def __init__(self, *, live: bool = True, depth: int = 4) -> None:
        """Make an empty source.

        Args:
            live: whether to end is to be lost; see :class:`Source`.
            depth: how many frames may wait to be taken.
        """
        self.live = live
        self._queue: queue.Queue[Frame | None] = queue.Queue(depth)
        self._closed = threading.Event()
        self._count = 0

    def put(
        self, image: NDArray[np.uint8] | NDArray[np.uint16], *, color_order: ColorOrder, timestamp: float | None = None
    ) -> bool:
        """Give the next frame; it is not copied, and must not be written to while it is in use.

        Args:
            image: uint8 (height, width, 3), or else as a preprocessing takes it.
            color_order: of its channels.
            timestamp: when it was captured, by ``time.monotonic()``; None is now.

        Returns:
            Whether there was room for it. Once nobody takes frames any more there soon is none.
        """
        frame = Frame(image, color_order, time.monotonic() if timestamp is None else timestamp, self._count)
        self._count += 1
        return self._put(frame)

    def end(self) -> None:
        """There are no more frames."""
        self._put(None)

    def _put(self, frame: Frame | None) -> bool:
        while True:
            try:
                self._queue.put(frame, timeout=_TICK_S)
                return True
            except queue.Full:
                if self._closed.is_set():
                    return False

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they were put."""
        self._closed.clear()
        while not self._closed.is_set():
            try:
                frame = self._queue.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """Let :meth:`frames` end."""
        self._closed.set()


class Folder:
    """The pictures below a folder in the order of their paths, decoded by Pillow."""

    live = False

    def __init__(
        self, path: Path, *, fps: float | None = None, loop: bool = False, preprocess: Preprocess | None = None
    ) -> None:
        """Use the pictures at ``path``.

        Args:
            path: the folder.
            fps: pace in frames per second; None gives them as fast as they are taken.
            loop: begin again at the end.
            preprocess: what the frames are for, see :func:`open_source`.

        Raises:
            DataError: it holds no pictures, or cannot be read.
        """
        self.name: str = str(path)
        self._files = pictures(path)
        if not self._files:
            raise DataError(f"{shown(path)} holds no pictures")
        self._fps, self._loop, self._preprocess = fps, loop, preprocess
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """The pictures, RGB, or what the preprocessing makes of them as frames.

        Raises:
            SourceError: one of them is not readable.
        """
        self._closed.clear()
        start, index = time.monotonic(), 0
        while True:
            for file in self._files:
                if wait_until(start + index / self._fps if self._fps else None, self._closed):
                    return
                try:
                    known = self._preprocess
                    image = np.asarray(decode(file)) if known is None else known.frame(load(file))
                except InputError as error:
                    raise SourceError(str(error)) from error
                yield Frame(image, "rgb", time.monotonic(), index)
                index += 1
            if not self._loop:
                return

    def close(self) -> None:
        """Let :meth:`frames` end."""
        self._closed.set()


def wait_until(due: float | None, closed: threading.Event) -> bool:
    """Wait for a point of ``time.monotonic()``, None is now; returns whether ``closed`` came first."""
    if due is None:
        return closed.is_set()
    return closed.wait(max(0.0, due - time.monotonic()))
