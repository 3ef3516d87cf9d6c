"""What an export needs beside a model: the names of its classes, real frames to compare on, and images that can be
read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeadv.data.datasets import ImageSet, balanced_subset
from edgeadv_runtime.bundle.batches import MOST_UNREADABLE
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.pictures import as_image, decode, load, pictures
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.reading import MOST_RECORD_BYTES, decoded, read_bytes

FRAMES = 64


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
    files = pictures(folder.rglob("*"))
    if not files:
        raise InputError(f"{folder} holds no images: give a folder of real ones, such as the model will see")
    # spread, for the first ones of class folders would all be of one class
    spread = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    if preprocess is None:
        return [np.asarray(decode(file)) for file in spread]
    return [_frame(preprocess, load(file), str(file)) for file in spread]


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
    return [_frame(preprocess, data.image(i), data.names[i]) for i in order]


def _frame(preprocess: Preprocess, image: Image.Image, name: str) -> NDArray[Any]:
    try:
        return preprocess.frame(image)
    except InputError as error:
        raise DataError(f"{name}: {error}") from error


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
