"""Locks between processes, and between threads, that the kernel holds: the dead let go of theirs, and none leaves a
file behind."""

from __future__ import annotations

import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StorageError

_PATIENCE_S = 0.2
_open: set[int] = set()


def _forget() -> None:
    """In a child that was forked: the locks are its parent's, which must be free when that is dead."""
    while _open:
        with suppress(OSError):
            os.close(_open.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def mine(descriptor: int) -> bool:
    """Whether this process has the lock behind ``descriptor``, and did not inherit it."""
    return descriptor in _open


@contextmanager
def held(descriptor: int) -> Iterator[None]:
    """Keep an open file, and with it the lock on it, for the block; a child that is forked does not keep it."""
    _open.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _open:
            _open.discard(descriptor)
            os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that ``path`` names now."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    return False


def take(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file.

    Returns:
        Whether the lock is ours; always with ``wait``.

    Raises:
        OSError: the file system has no locks.
    """
    import fcntl  # of Linux and its like; elsewhere the command line should say that it is not for there

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def remove_if_abandoned(path: Path) -> None:
    """Remove ``path`` if it is a file that no process has locked, and could be locked."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        with held(descriptor):
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and take(descriptor) and is_at(descriptor, path):
                # while it is locked: who made it and waits for the lock must find that it is gone
                path.unlink()


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
    waited = False

    def busy(_: str) -> None:
        nonlocal waited
        waited = True
        if waiting is not None:
            waiting()

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = acquired(path, busy)
    except OSError as error:
        raise StorageError(f"cannot lock {path}: {error.strerror}; use a folder on a local disk") from error
    with released(descriptor, path):
        yield waited


def _lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        # another user left it; a lock needs no more than to read
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def acquired(path: Path, busy: Callable[[str], None]) -> int:
    """Make the file ``path``, lock it, and write into it whose it is.

    Args:
        path: the file.
        busy: called with whose it is, ``"process 17"``, where another has it: it raises, or the other is waited for.

    Returns:
        The open file, for :func:`released`.

    Raises:
        OSError: it cannot be made, or the file system has no locks.
    """
    while True:
        descriptor = _lock_file(path)
        try:
            if not take(descriptor):
                busy(_holder(descriptor))
                take(descriptor, wait=True)
            # who had it has removed the file: another one may be there by now
            if is_at(descriptor, path):
                with suppress(OSError):  # on a full disk it is nameless, and a lock
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {platform.node()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def released(descriptor: int, path: Path) -> Iterator[None]:
    """Let go of what :func:`acquired` gave when the block ends, and remove the file."""
    with held(descriptor):
        try:
            yield
        finally:
            # still held: whoever waits for it finds that the file is gone, and makes a new one
            if mine(descriptor):
                with suppress(OSError):
                    path.unlink()


def _holder(descriptor: int) -> str:
    """Who has locked the file, in words."""
    until = time.monotonic() + _PATIENCE_S
    while not (words := os.pread(descriptor, 300, 0).decode(errors="replace").split()):
        # it has just locked it, and is about to write
        if time.monotonic() > until:
            return "another process"
        time.sleep(0.01)
    here = words[1:] == [platform.node()]
    if here and words[0] == str(os.getpid()):
        return f"process {words[0]}, this one,"
    return f"process {words[0]}" + ("" if here or len(words) < 2 else f" on {words[1]}")
