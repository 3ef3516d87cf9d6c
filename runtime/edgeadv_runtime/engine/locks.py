"""A lock between processes that is a file, and leaves no file behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StorageError


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock at ``path``; the kernel lets go of it when the process ends, however it ends.

    Args:
        path: the file to lock, in a folder that is there; removed at the end.
        waiting: called once if another process, or another thread, holds it.

    Yields:
        Whether it had to be waited for.

    Raises:
        StorageError: the file cannot be made or its file system has no locks.
    """
    descriptor, waited = _acquire(path, waiting)
    try:
        yield waited
    finally:
        # still held: whoever waits for it finds that the file is gone, and makes a new one
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, waiting: Callable[[], None] | None) -> tuple[int, bool]:
    import fcntl  # there is none on Windows, where the rest of this package loads

    waited = False
    while True:
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None and not waited:
                    waiting()
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                return descriptor, waited
        except OSError as error:
            _close(descriptor)
            raise StorageError(f"cannot lock {path}: {error.strerror}; use a folder on a local disk") from error
        except BaseException:  # Ctrl-C while waiting
            _close(descriptor)
            raise
        _close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one that ``path`` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
