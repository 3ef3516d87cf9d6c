"""A lock between processes that is a file, and leaves no file behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StorageError


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock at ``path``; the kernel lets go of it when the process ends, however it ends.

    Args:
        path: the file to lock, removed at the end; its folder is made if it is not there, and stays.
        waiting: called once if another process, or another thread, holds it.

    Yields:
        Whether it had to be waited for.

    Raises:
        StorageError: the file cannot be made or locked.
    """
    from filelock import FileLock, Timeout

    lock, waited = FileLock(path), False
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting is not None:
                waiting()
            waited = True
            lock.acquire()
    except OSError as error:
        raise StorageError(f"cannot lock {path}: {error.strerror}; use a folder on a local disk") from error
    try:
        yield waited
    finally:
        # still held: whoever waits for it finds that the file is gone, and makes a new one
        with suppress(OSError):
            path.unlink()
        lock.release()
