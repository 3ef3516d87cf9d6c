"""What the writing of files rests on: renames that replace nothing, or exchange two names, and a disk that has it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StorageError

LACKING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What a file system answers that cannot do what is asked of it."""
_NOREPLACE, _EXCHANGE = 1, 2
_HERE = -100


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What the system refuses in the block is a :class:`StorageError` that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}; choose another `out` or make room there") from error


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Make ``folder`` for the block; of what was made, what is empty at the end is removed again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in made:
            # not there, or something is in it
            with suppress(OSError):
                path.rmdir()
        for path in made:
            if path.exists():
                sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk take ``path``, a file or the names in a folder: else the power may leave a name and no content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in LACKING:
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """The same of every file below ``folder``, and of every folder."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(where, name))
        sync(Path(where))


def rename_new(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, which nothing has.

    Where the file system cannot ask and rename in one, a folder that comes in between is lost if it is empty.

    Raises:
        FileExistsError: something has it.
        OSError: the system refuses.
    """
    if not _renamed(source, target, _NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step.

    Returns:
        Whether it was done: the file system may not be able to.

    Raises:
        OSError: one of them is not there, or the system refuses.
    """
    return _renamed(one, other, _EXCHANGE)


def _renamed(source: Path, target: Path, flag: int) -> bool:
    """Whether ``renameat2`` did it; False where the file system, the kernel or the C library lacks it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    number = ctypes.get_errno()
    if number in LACKING:
        return False
    raise OSError(number, os.strerror(number), str(source))
