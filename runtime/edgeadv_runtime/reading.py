"""The one place where a file is opened to be read, and the one place where what a decoder raises becomes our error.

A file that a user names himself may be a link: weights, a results file, a key, a picture. What lies in a folder that is
named as one thing, a bundle, a pack, a run, a cache of engines, may not: a link there leads out of what was copied,
hashed or signed. Neither may be a pipe or a device, which would hang or never end. A file is read once, in whole, and
what is checked are the bytes that are used.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import BundleError, EdgeAdvError, IntegrityError, one_line

MIB = 1 << 20
MOST_RECORD_BYTES = 64 * MIB
"""Of JSON, keys and signatures."""
MOST_MODEL_BYTES = (1 << 31) - 1
"""Of an ONNX file: a protocol buffer holds no more."""
MOST_BYTES = 64 << 30
"""Of any other file: more than the memory of most machines, so that it is no device in disguise."""
_CHUNK = MIB
_LARGE = 1 << 30
_WORDS = 160


def available() -> int:
    """Bytes of memory that a process can have now."""
    import psutil

    return int(psutil.virtual_memory().available)


@contextmanager
def usable(path: Path, *, what: str, error: type[EdgeAdvError] = BundleError) -> Iterator[None]:
    """Ask about files below ``path``: what the system answers of names, rights and disks becomes ``error``.

    Args:
        path: the file or folder.
        what: it is.
        error: what is raised, a class of our errors.

    Raises:
        EdgeAdvError: ``error``: a name is too long, or a folder may not be entered.
    """
    try:
        yield
    except OSError as found:
        raise error(
            f"{path} is not a readable {what} ({found.strerror}): check its name and its permissions"
        ) from found


@contextmanager
def opened(
    path: Path, *, what: str, limit: int = MOST_BYTES, links: bool = False, error: type[EdgeAdvError] = BundleError
) -> Iterator[BinaryIO]:
    """The file at ``path``, to be read, while the block runs.

    Args:
        path: the file.
        what: it is, for messages: ``"results file"``.
        limit: largest size in bytes.
        links: whether ``path`` itself may be a link: only where a user names the file.
        error: what is raised, a class of our errors.

    Raises:
        EdgeAdvError: ``error``: there is none, it cannot be opened or read, is larger, or is a folder, a link, a pipe
            or a device.
    """
    try:
        # a device may act when it is opened, so it is looked at before; and what was opened is looked at again
        _check_kind(path, path.stat(follow_symlinks=links), what, limit, error)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
        handle = os.open(path, flags)
        with os.fdopen(handle, "rb") as stream:
            _check_kind(path, os.fstat(handle), what, limit, error)
            yield stream
    except FileNotFoundError as found:
        raise error(f"{path} does not exist: no {what} there") from found
    except NotADirectoryError as found:
        raise error(f"{path.parent} is a file: no {what} there") from found
    except (OSError, ValueError) as found:  # ValueError: a name with a zero byte
        reason = getattr(found, "strerror", None) or str(found)
        raise error(f"{path} is not a readable {what} ({reason}): check its permissions and its disk") from found


def read_bytes(
    path: Path, *, what: str, limit: int = MOST_BYTES, links: bool = False, error: type[EdgeAdvError] = BundleError
) -> bytes:
    """All of the file at ``path``; the arguments and errors are those of :func:`opened`."""
    with opened(path, what=what, limit=limit, links=links, error=error) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _LARGE and size > (free := available()):
            raise error(f"{path} is not a readable {what}: it has {size} bytes, and {free} of memory are free")
        data = stream.read(size + 1)
    if len(data) != size:
        raise error(f"{path} is not a readable {what}: it changed while it was read; wait until it is written")
    return data


def read_checked(path: Path, sha256: str, *, what: str, limit: int = MOST_BYTES, mend: str = "copy it again") -> bytes:
    """All of the file at ``path``, no link, whose hash is known.

    Raises:
        BundleError: as :func:`read_bytes`.
        IntegrityError: it has another hash.
    """
    data = read_bytes(path, what=what, limit=limit)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path} is damaged: its SHA-256 is not the one that was recorded; {mend}")
    return data


def file_hash(path: Path, *, what: str = "file", links: bool = False) -> str:
    """Hex SHA-256 of the file at ``path``, read in chunks; the arguments and errors are those of :func:`opened`."""
    digest = hashlib.sha256()
    with opened(path, what=what, links=links) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def decoded(
    name: object, *, what: str, mend: str = "make it again", error: type[EdgeAdvError] = BundleError
) -> Iterator[None]:
    """Decode bytes of others: whatever the block raises becomes ``error``, in one line.

    Args:
        name: of the file.
        what: it is, if that fails: ``"not a golden file"``.
        mend: what to do about it.
        error: what is raised, a class of our errors.

    Raises:
        EdgeAdvError: ``error``; those that the block raises itself pass.
    """
    try:
        yield
    except EdgeAdvError:
        raise
    except Exception as found:  # decoders have no common base: zipfile, zlib, NumPy, torch, protobuf, recursion, memory
        reason = one_line(str(found), most=_WORDS) or type(found).__name__
        raise error(f"{name} is {what} ({reason}); {mend}") from found


def _check_kind(path: Path, found: os.stat_result, what: str, limit: int, error: type[EdgeAdvError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise error(f"{path} is not a readable {what}: it is {kind}, and no plain file")
    if found.st_size > limit:
        raise error(f"{path} is not a readable {what}: it has {found.st_size} bytes, and at most {limit} are read")
