"""Files that are either whole or not there: atomic writes, hashes, JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .decoding import read
from .errors import InputError, StorageError
from .reading import file_hash


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


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}; choose another `out` or make room there") from error


@contextmanager
def _folder_for(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Make ``folder`` for the block; what was made is removed again if the block fails, or if not ``keep``."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    done = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        done = True
    finally:
        if not (done and keep):
            for path in made:
                # not there, or somebody else has put something into it
                with suppress(OSError):
                    path.rmdir()


def ensure_writable(folder: Path) -> None:
    """Prove that ``folder`` can be made and that a file can be written there, before long work starts; leaves nothing.

    Raises:
        StorageError: it cannot.
    """
    with _storage_errors(folder), _folder_for(folder, keep=False), tempfile.TemporaryFile(dir=folder):
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
    with _storage_errors(path):
        try:
            target = path.resolve() if path.is_symlink() else path
        except RuntimeError as error:  # what Python raises of links in a circle
            raise StorageError(f"cannot write {path}: {error}") from error
        if target.exists() and not target.is_file():
            what = "a folder" if target.is_dir() else "no file but a device or a pipe"
            raise StorageError(f"{path} is {what}: name the file to write")
    return target


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` if the block succeeds, else remove it.

    A link stays, and the file that it leads to is replaced.

    Raises:
        StorageError: the folder cannot be written, the disk is full, or ``path`` is a device, a pipe or a folder.
    """
    path = _target(path)
    with _storage_errors(path), _folder_for(path.parent):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                # else a power failure could leave the name and not the content
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically, indented, keys in the order given; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read the JSON object at ``path``; ``what`` names it in errors.

    Raises:
        BundleError: the file is missing, unreadable, not JSON or not an object.
    """
    return read(path, dict[str, Any], what=what, mend="make it again or copy it again")


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path`` only if the block succeeds.

    Args:
        path: the folder to make.
        overwrite: replace a folder that is already there; without it that is an error.

    Raises:
        StorageError: ``path`` exists and ``overwrite`` is false, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists: choose another `out`, or pass `overwrite` to replace it")
    with _storage_errors(path), _folder_for(path.parent):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
                path.replace(retired / path.name)
                try:
                    temporary.replace(path)
                except BaseException:
                    (retired / path.name).replace(path)
                    retired.rmdir()
                    raise
                shutil.rmtree(retired)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


PLAN_FILE = "plan.json"
"""Where a job of many parts keeps everything that they depend on."""


def begin_partial(folder: Path, plan_file: str, plan: Mapping[str, Any], *, what: str, resume: bool) -> None:
    """Begin long work in ``folder``, or go on with it: only with the same plan.

    Args:
        folder: where the parts go until all are there.
        plan_file: name of the file that keeps the plan.
        plan: JSON value of everything that the parts depend on.
        what: the work, for messages.
        resume: go on with what is there, if anything is.

    Raises:
        StorageError: there is unfinished work and ``resume`` is false, or the folder cannot be written.
        InputError: it was begun with another plan, or with one that is lost.
    """
    if folder.exists() and not resume:
        raise StorageError(f"{folder} holds an unfinished {what}: continue it with `resume`, or delete it")
    ensure_writable(folder)
    file, wanted = folder / plan_file, json.loads(canonical_json(plan))
    if not file.exists() and folder.exists() and any(not part.name.startswith(".") for part in folder.iterdir()):
        raise InputError(
            f"{folder} holds parts of an {what} without its {plan_file}, so of which is not known: delete it"
        )
    if file.exists() and (begun := read_json(file, what=f"plan of an {what}")) != wanted:
        other = [key for key in {**wanted, **begun} if wanted.get(key) != begun.get(key)]
        raise InputError(
            f"{folder} was started with other settings ({', '.join(other)}): continue with the same ones, or delete it"
        )
    write_json(file, wanted)


def publish(partial: Path, out: Path, plan_file: str | None = None) -> None:
    """Give the finished work in ``partial`` its name; its plan goes last, so that a crash leaves no parts without one.

    Raises:
        StorageError: ``out`` is there by now, or the folder cannot be renamed.
    """
    with _storage_errors(out):
        partial.rename(out)
        if plan_file is not None:
            (out / plan_file).unlink(missing_ok=True)
