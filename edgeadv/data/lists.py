"""Lists of images: text files that name some images of a data set, so that everybody takes the same."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.reading import read_bytes

_MOST_BYTES = 64 << 20


def named_by(file: Path, names: Sequence[str], *, field: str) -> NDArray[np.int64]:
    """Positions, ascending, of the images that a list names, int64 (n,); the arguments and errors are those of
    :func:`read_list`."""
    return read_list(file, names, field=field)[0]


def read_list(file: Path, names: Sequence[str], *, field: str) -> tuple[NDArray[np.int64], str]:
    """Positions, ascending, of the images that a list names, int64 (n,), and the list's hex SHA-256.

    Args:
        file: the list, in UTF-8: a line is a name, such as ``00000/00003_00012.jpg``, or a pattern of ``fnmatch``, such
            as ``00000/00003_*``. Empty lines, and what follows a ``#`` at the beginning of a line, do not count.
        names: of all images.
        field: what errors call the list.

    Raises:
        InputError: it cannot be read, is no text, or a line of it names no image.
    """
    data = read_bytes(file, what="list of images", limit=_MOST_BYTES, error=InputError)
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(field, f"{file} is no text in UTF-8: give a name or a pattern of images a line") from error
    there = [name.replace("\\", "/") for name in names]
    place = {name: i for i, name in enumerate(there)}
    found: set[int] = set()
    for line in lines:
        if not line or line.startswith("#"):
            continue
        hits = [line] if line in place else fnmatch.filter(there, line)
        if not hits:
            raise InputError(field, f"{file}: {line[:80]!r} names none of {len(names)} images, e.g. {there[0]}")
        found.update(place[name] for name in hits)
    if not found:
        raise InputError(field, f"{file} names no image: give a name or a pattern a line")
    return np.array(sorted(found), dtype=np.int64), sha256_bytes(data)
