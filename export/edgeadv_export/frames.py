"""What an export needs beside a model: the names of its classes, real frames to compare on, and images that can be
read."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeadv.data.datasets import ImageSet, balanced_subset
from edgeadv_runtime.bundle.batches import MOST_UNREADABLE
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.pictures import as_image, decode, load
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.walk import pictures
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.reading import MOST_RECORD_BYTES, decoded, read_bytes

FRAMES = 64
_RESIZED = 1.5
FRAME_PIXELS = 512 * 512
"""Frames of more pixels than this, and than four times the model's input, are kept at a whole fraction of their size:
some travel with the bundle, and ten photos of a telephone are 195 MB beside a network of 1.5."""
_log = logging.getLogger(__name__)


def read_classes(path: Path) -> Classes:
    """Read classes in logit order from lines of ``id<TAB>name``, or ``index<TAB>id<TAB>name`` with indices from 0.

    ::

        classes = read_classes(Path("classes.tsv"))

    Raises:
        InputError: the file cannot be read, or a line is of another form.
    """
    data = read_bytes(path, what="list of `classes`", limit=MOST_RECORD_BYTES, links=True, error=InputError)
    with decoded(path, what="not a list of `classes`", mend="give imagenet1k or a text file", error=InputError):
        lines = [line for line in data.decode().splitlines() if line.strip()]
    ids, names = [], []
    for number, line in enumerate(lines):
        *index, class_id, name = ["", *line.split("\t")]
        if not class_id or not name or index not in ([""], ["", str(number)]):
            raise InputError(
                f"{path}: class {number} is written {line!r}; one line for each class is due, in logit order: "
                "id<TAB>name or index<TAB>id<TAB>name"
            )
        ids.append(class_id)
        names.append(name)
    return Classes(tuple(ids), tuple(names))


def folder_frames(folder: Path, *, limit: int = FRAMES, preprocess: Preprocess | None = None) -> list[NDArray[Any]]:
    """At most ``limit`` image files below ``folder``, spread evenly over the paths in order, as uint8 RGB arrays, or
    as ``preprocess`` has frames of its own: turned by their EXIF orientation, or in 16 bits.

    ::

        frames = folder_frames(Path("photos/"), limit=64)

    Raises:
        InputError: there are none.
        DataError: one of them is not readable.
    """
    files = pictures(folder)
    if not files:
        raise InputError(f"{folder} holds no images: give a folder of real ones, such as the model will see")
    # spread, for the first ones of class folders would all be of one class
    spread = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    if preprocess is None:
        return [np.asarray(decode(file)) for file in spread]
    return bounded((_frame(preprocess, load(file), str(file)) for file in spread), preprocess)


def data_frames(data: ImageSet, *, limit: int = FRAMES, preprocess: Preprocess | None = None) -> list[NDArray[Any]]:
    """At most ``limit`` images of ``data`` as uint8 RGB arrays, or as ``preprocess`` has frames of its own, the same
    every time, the classes dealt out in turn.

    ::

        frames = data_frames(load_data("mnist5k").test, limit=64)

    Raises:
        DataError: one of them is not readable.
    """
    chosen = balanced_subset(data.labels, limit)
    labels = data.labels[chosen]
    # in turn, for only the first few become golden frames
    turns = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    order = map(int, chosen[np.argsort(turns, kind="stable")])
    if preprocess is None:
        return [np.asarray(as_image(data.image(i))) for i in order]
    return bounded((_frame(preprocess, data.image(i), data.names[i]) for i in order), preprocess)


def _frame(preprocess: Preprocess, image: Image.Image, name: str) -> NDArray[Any]:
    try:
        return preprocess.frame(image)
    except InputError as error:
        raise DataError(f"{name}: {error}") from error


def bounded(frames: Iterable[NDArray[Any]], preprocess: Preprocess) -> list[NDArray[Any]]:
    """``frames``, those of more than :data:`FRAME_PIXELS` as the means of squares of pixels; how many is logged.

    ::

        frames = bounded(frames, preprocess)

    Args:
        frames: uint8 of shape (height, width, 3), or uint16 of shape (height, width).
        preprocess: what must be possible with them still.
    """
    kept, smaller = [], 0
    for frame in frames:
        kept.append(_smaller(frame, preprocess))
        smaller += kept[-1] is not frame
    if smaller:
        _log.info("%d of %d frames are large and were made smaller before anything is compared", smaller, len(kept))
    return kept


def _smaller(frame: NDArray[Any], preprocess: Preprocess) -> NDArray[Any]:
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3):
        return frame  # refused where it is preprocessed
    _, height, width = preprocess.input_shape
    most = max(FRAME_PIXELS, 4 * height * width)
    for k in range(math.isqrt(frame.shape[0] * frame.shape[1] // most), 1, -1):
        rows, columns = frame.shape[0] // k, frame.shape[1] // k
        # a region in whole pixels, or a crop without resizing, may need it as it is
        with suppress(InputError, ZeroDivisionError):
            if not _still_resized(preprocess, columns, rows):
                continue
            squares = frame[: rows * k, : columns * k].reshape(rows, k, columns, k, *frame.shape[2:])
            made: NDArray[Any] = np.rint(squares.mean(axis=(1, 3), dtype=np.float32)).astype(frame.dtype)
            return made
    return frame


def _still_resized(preprocess: Preprocess, width: int, height: int) -> bool:
    """Whether a frame of this size is made much smaller by ``preprocess``, if that resizes: else it would prove
    nothing of how.

    Raises:
        InputError: it cannot be preprocessed.
    """
    plan = preprocess.geometry(width, height)
    left, top, right, bottom = plan.region
    given, made = (right - left, bottom - top), plan.size
    return given == made or all(before >= _RESIZED * after for before, after in zip(given, made, strict=True))


def preprocessed(frames: Sequence[NDArray[Any]], preprocess: Preprocess) -> NDArray[np.uint8]:
    """``frames`` as the model sees them, uint8 (n, height, width, channels).

    Raises:
        InputError: there are none, or one cannot be preprocessed.
    """
    if not len(frames):
        raise InputError("at least one real frame is needed to compare the artefacts with the model")
    pixels = []
    for number, frame in enumerate(frames):
        try:
            pixels.append(preprocess(frame, color_order="rgb"))
        except InputError as error:
            raise InputError(f"frame {number}: {error}") from error
    return np.stack(pixels)


def check_readable(unreadable: Sequence[str], total: int, purpose: str) -> None:
    """Refuse images of which more than 1% cannot be decoded.

    Args:
        unreadable: a message for each that could not.
        total: all of them.
        purpose: what they are for.

    Raises:
        DataError: it is so.
    """
    if len(unreadable) > MOST_UNREADABLE * total:
        raise DataError(
            f"{len(unreadable)} of {total} images {purpose} are unreadable, e.g. {unreadable[0]}; repair or remove them"
        )
