"""Files that are either whole or not there: atomic writes, one at a time; hashes, JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .decoding import read
from .errors import StorageError
from .locks import acquired, held, is_at, released, remove_if_abandoned, take
from .reading import file_hash
from .storage import LACKING, exchange, folder_for, rename_new, storage_errors, sync, sync_all

_PARTIAL = ".partial"
_NEW, _OLD = "tmp", "old"
# .NAME.XXXXXXXX.tmp: what becomes NAME; .NAME.XXXXXXXX.old holds what NAME was
_HIDDEN = re.compile(rf"\.(.+)\.[0-9a-z_]{{8}}\.({_NEW}|{_OLD})", re.DOTALL)
_working: dict[Path, tuple[int, int]] = {}
_log = logging.getLogger(__name__)


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the file at ``path``, read in chunks.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    # whoever hashes a file names it: what lies in a bundle or pack is read with its hash, and no link
    return file_hash(path, links=True)


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no white space, no NaN. What ids are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def ensure_writable(folder: Path) -> None:
    """Prove that ``folder`` can be made and that a file can be written there, before long work starts; leaves nothing.

    Raises:
        StorageError: it cannot.
    """
    with storage_errors(folder), folder_for(folder), tempfile.TemporaryFile(dir=folder):
        pass


def ensure_file_writable(path: Path) -> None:
    """The same of the file ``path``, before the work whose result goes there.

    Raises:
        StorageError: it cannot be written, or is a device, a pipe or a folder.
    """
    ensure_writable(_target(path).parent)


def _target(path: Path) -> Path:
    """Where writing ``path`` makes a file or replaces one, which links lead to; root could rename a file over
    ``/dev/null``."""
    with storage_errors(path):
        try:
            target = path.resolve() if path.is_symlink() else path
        except RuntimeError as error:  # what Python raises of links in a circle
            raise StorageError(f"cannot write {path}: {error}") from error
        if target.exists() and not target.is_file():
            what = "a folder" if target.is_dir() else "no file but a device or a pipe"
            raise StorageError(f"{path} is {what}: name the file to write")
    return target


@contextmanager
def working_on(out: str | Path, *, file: bool = False) -> Iterator[None]:
    """Have ``out``, a file or a folder that is made, to oneself for the block; what the dead left of it is removed.

    The lock is a file beside ``out``, or in it where nobody may write beside it, and is gone at the end. What is begun
    inside the block, in the same thread, has ``out`` as well.

    Args:
        out: what is made.
        file: it is a file, and nothing else may be there.

    Raises:
        StorageError: another process, or another thread, works on it; or it cannot be written.
    """
    place = Path(os.path.realpath(_target(Path(out)) if file else out))
    if not place.name:
        raise StorageError(f"{out} cannot be replaced: name a file or folder to make")
    if _working.get(place) == (me := (os.getpid(), threading.get_ident())):
        yield
        return

    def busy(who: str) -> None:
        raise StorageError(f"{who} works on {out}: wait until it is done, or choose another `out`")

    with ExitStack() as stack:
        with storage_errors(Path(out)):
            inside = place.is_dir() and not _may_write(place.parent)
            lock = place / ".lock" if inside else place.with_name(f".{place.name}.lock")
            stack.enter_context(folder_for(lock.parent))
            try:
                stack.enter_context(released(acquired(lock, busy), lock))
            except OSError as error:
                if error.errno not in (errno.ENOLCK, *LACKING):
                    raise
                lock.unlink(missing_ok=True)
                _log.warning("%s has no locks: see to it that nothing else writes %s", lock.parent, out)
            else:
                for name in (place.name, partial_of(place).name):
                    _clear(place.parent, name)
        _working[place] = me
        try:
            yield
        finally:
            _working.pop(place, None)


def partial_of(out: Path) -> Path:
    """Where the parts of ``out`` are until all are there."""
    named = out if out.name else Path(os.path.realpath(out))
    return named.with_name(named.name + _PARTIAL)


def _may_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove the files that processes which are dead have left half written in ``folder``, of ``name`` or of all."""
    for path, of, _ in _hidden(folder):
        if name is None or of == name:
            remove_if_abandoned(path)


def _hidden(folder: Path) -> list[tuple[Path, str, str]]:
    """What :func:`atomic_file` and :func:`atomic_folder` have in ``folder``: path, name that it is to have, kind."""
    found = [(entry, _HIDDEN.fullmatch(entry.name)) for entry in folder.iterdir()] if folder.is_dir() else []
    return [(path, match[1], match[2]) for path, match in found if match is not None]


def _clear(folder: Path, name: str) -> None:
    """Remove what is left of ``name``, which nobody else works on; a folder that was to be replaced comes back."""
    for path, of, kind in _hidden(folder):
        if of != name or path.is_symlink():
            continue
        if not path.is_dir():
            remove_if_abandoned(path)
        elif kind == _OLD and (path / name).exists() and not os.path.lexists(folder / name):
            rename_new(path / name, folder / name)
            path.rmdir()
        else:
            shutil.rmtree(path, ignore_errors=True)


def hidden_name(path: Path, kind: str = _NEW) -> Path:
    """A name beside ``path`` that :func:`working_on` takes for a leftover of it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


@contextmanager
def atomic_file(path: Path, *, inside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` if the block succeeds, else remove it.

    A link stays, and the file that it leads to is replaced. The new file has the rights that the umask leaves. The
    temporary one is locked as long as it is written, so that what a dead process left can be told, and is removed.

    Args:
        path: the file to write, or to replace.
        inside: a folder above it of which others take every file for part of it: the temporary one lies beside that,
            where it can.

    Raises:
        StorageError: the folder cannot be written, the disk is full, or ``path`` is a device, a pipe or a folder.
    """
    path = _target(path)
    with storage_errors(path), folder_for(path.parent):
        beside = path if inside is None else _outside(inside, path)
        remove_abandoned(beside.parent, beside.name)
        with _temporary(beside) as temporary:
            try:
                yield temporary
                # else a power failure could leave the name and not the content
                sync(temporary)
                try:
                    temporary.replace(_target(path))
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    # only what comes from outside comes from another file system
                    with atomic_file(path) as within:
                        shutil.copyfile(temporary, within)
                sync(path.parent)
            finally:
                temporary.unlink(missing_ok=True)


def _outside(folder: Path, path: Path) -> Path:
    """``folder`` if what lies beside it can be renamed into it, else ``path``."""
    folder = folder.resolve()
    return folder if _may_write(folder.parent) and not folder.is_mount() else path


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file that is to become ``path``, locked for the block."""
    while True:
        temporary = hidden_name(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with held(descriptor):
            # a file system without locks keeps what is left
            with suppress(OSError):
                take(descriptor, wait=True)
            # somebody took it for abandoned before it was locked
            if is_at(descriptor, temporary):
                yield temporary
                return


def write_bytes(path: Path, data: bytes, *, inside: Path | None = None) -> None:
    """Write ``data`` to ``path`` atomically; ``inside`` as for :func:`atomic_file`."""
    with atomic_file(path, inside=inside) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, inside: Path | None = None) -> None:
    """Write ``value`` to ``path`` atomically, indented, keys in the order given; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), inside=inside)


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read the JSON object at ``path``; ``what`` names it in errors.

    Raises:
        BundleError: the file is missing, unreadable, not JSON or not an object.
    """
    return read(path, dict[str, Any], what=what, mend="make it again or copy it again")


@contextmanager
def atomic_folder(path: Path, *, replaceable: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path`` only if the block succeeds.

    Nothing that is at ``path`` at the end is lost, and where there was a folder there is one at any moment, but for
    file systems that cannot exchange two names. A link stays, and the folder that it leads to is made.

    Args:
        path: the folder to make.
        replaceable: raises unless what it is given, which is at ``path``, may be replaced; asked at the beginning and
            at the end. None replaces nothing.

    Raises:
        StorageError: something is at ``path`` that is not replaced, another process works there, or it cannot be
            written.
    """
    given, path = path, Path(os.path.realpath(path))
    with working_on(given), storage_errors(given):
        check_free(given, replaceable)
        temporary = hidden_name(path)
        temporary.mkdir()
        try:
            yield temporary
            sync_all(temporary)
            while not _put(temporary, path, replaceable):
                pass
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path, replaceable: Callable[[Path], None] | None = None) -> None:
    """Refuse what is at ``path``, unless ``replaceable`` accepts it.

    Raises:
        StorageError: something is there; or what ``replaceable`` raises.
    """
    with storage_errors(path):
        there = os.path.lexists(path)
    if there and replaceable is None:
        raise StorageError(f"{path} exists: choose another `out`, or pass `overwrite` to replace it")
    if there and replaceable is not None:
        replaceable(path)


def _put(new: Path, path: Path, replaceable: Callable[[Path], None] | None) -> bool:
    """Give ``new`` the name ``path``, and ``new`` the name of what was there; False where that has just changed."""
    try:
        there = path.lstat() if os.path.lexists(path) else None
        if there is not None and stat.S_ISLNK(there.st_mode):
            replaceable = None
        check_free(path, replaceable)
        if there is None:
            rename_new(new, path)
        elif not exchange(new, path):
            return _put_in_two(new, path, there)
        elif not os.path.samestat(new.lstat(), there):
            exchange(new, path)  # it is not what was asked about
            return False
    except (FileExistsError, FileNotFoundError):
        if not new.exists():
            raise
        return False
    return True


def _put_in_two(new: Path, path: Path, there: os.stat_result) -> bool:
    """Do so without an exchange: what was there is beside for a moment, and comes back if anything fails."""
    retired = hidden_name(path, _OLD)
    retired.mkdir()
    old = retired / path.name
    path.rename(old)
    same = False
    try:
        if same := os.path.samestat(old.lstat(), there):
            rename_new(new, path)
    except BaseException:
        same = False
        raise
    finally:
        if same:
            shutil.rmtree(retired, ignore_errors=True)
        else:
            rename_new(old, path)
            retired.rmdir()
    return same
