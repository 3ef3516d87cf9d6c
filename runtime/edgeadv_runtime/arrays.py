"""Arrays that were stored, ``.npz`` and ``.npy``: each one's type and size are read off its header, and held to what is
due, before anything is unpacked."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MOST_UNPACKED = 1 << 30
"""Bytes of all arrays of a file together."""
_MOST_MEMBERS = 1 << 16
# of an array: each becomes an object of its own
_MOST_TEXTS = 1 << 16
_LONGEST_HEADER = 10_000
_PART = 1 << 20
_ENTRY = b"PK\x01\x02"
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Due:
    """What an array must be.

    Attributes:
        dtypes: names of the types that it may have, ``"uint8"``; ``"str"`` is text of any length.
        shape: its sizes; None is any size.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, dtype: str, *shape: int | None) -> Due:
        """Of one type, or of several with ``|`` between them."""
        return cls(tuple(dtype.split("|")), shape)

    def fits(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Whether an array with this header is one."""
        kind = "str" if dtype.kind == "U" else dtype.name
        sizes = len(shape) == len(self.shape) and all(
            due in (None, n) for due, n in zip(self.shape, shape, strict=True)
        )
        return kind in self.dtypes and sizes and dtype.byteorder != ">"

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{' or '.join(self.dtypes)} ({sizes})"


Dues = Due | tuple[Due, ...]
"""What an array must be, or several of which it must be one."""


def load_arrays(data: bytes, due: Mapping[str, Dues], *, most: int = MOST_UNPACKED) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` that ``due`` names; what else is in there is not unpacked. They may be written to.

    Call it inside :func:`~edgeadv_runtime.reading.decoded`.

    Args:
        data: the bytes of the file.
        due: by name, what an array must be if it is there; a name that ends in ``*`` is of all that begin so.
        most: bytes of all arrays together.

    Raises:
        Exception: it is no such file, or an array is not what is due.
    """
    if data.count(_ENTRY) > _MOST_MEMBERS:
        raise ValueError(f"it holds more than {_MOST_MEMBERS} arrays")
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if (wanted := _due(due, name)) is None:
                continue
            if name in found:
                raise ValueError(f"{name} is there twice")
            if member.compress_type not in _PACKED:
                raise ValueError(f"{name} is packed in a way that NumPy does not write")
            with archive.open(member) as stream:
                found[name] = _array(stream, member.file_size, wanted, name, most)  # type: ignore[arg-type]
            most -= found[name].nbytes
    return found


def load_array(data: bytes, due: Dues, *, most: int = MOST_UNPACKED) -> NDArray[Any]:
    """The array of an ``.npy``; the arguments and errors are those of :func:`load_arrays`."""
    return _array(io.BytesIO(data), len(data), due, "the array", most)


def _due(due: Mapping[str, Dues], name: str) -> Dues | None:
    if name in due:
        return due[name]
    return next((each for begin, each in due.items() if begin.endswith("*") and name.startswith(begin[:-1])), None)


def _array(stream: BinaryIO, size: int, due: Dues, name: str, most: int) -> NDArray[Any]:
    """The array in a stream of ``size`` bytes."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f"{name} is in version {version} of NumPy's format")
    shape, by_columns, dtype = readers[version](stream, max_header_size=_LONGEST_HEADER)
    dues = due if isinstance(due, tuple) else (due,)
    if not any(each.fits(dtype, shape) for each in dues):
        raise ValueError(f"{name} is {dtype} {shape}, and {' or '.join(map(str, dues))} is due")
    items: int = math.prod(shape)
    if dtype.kind == "U" and (items > _MOST_TEXTS or (items and not dtype.itemsize)):
        raise ValueError(f"{name} {shape} holds more than {_MOST_TEXTS} texts, or texts of no length")
    if min(shape, default=0) < 0 or items * dtype.itemsize > most:
        raise ValueError(f"{name} {shape} is larger than the {most} bytes that are left for it")
    count = items * dtype.itemsize
    if size - stream.tell() != count:
        raise ValueError(f"{name} {shape} does not have the {count} bytes of its shape")
    raw = bytearray(count)
    # in parts: read at once there would be two of it for a moment
    for at in range(0, count, _PART):
        part = stream.read(min(_PART, count - at))
        if len(part) != min(_PART, count - at):
            raise ValueError(f"{name} is cut off")
        raw[at : at + len(part)] = part
    values = np.frombuffer(raw, dtype) if count else np.empty(items, dtype)
    return values.reshape(shape, order="F" if by_columns else "C")
