"""The state of an unfinished training, in one file.

The first line of ``state.bin`` is a JSON object with the schema version and the hash of the state, which follows it.
The file is written under another name and renamed, so a training that is killed at any moment leaves the state before
or the state after.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeadv_runtime.decoding import decode
from edgeadv_runtime.errors import BundleError, SchemaError
from edgeadv_runtime.files import atomic_file, canonical_json, sha256_bytes
from edgeadv_runtime.reading import read_bytes

STATE_FILE = "state.bin"
KIND, SCHEMA_VERSION = "training state", 3
_IN_PARTS = "state.json"
"""The index of a state of version 2, whose parts are files of their own."""
_LONGEST_HEADER = 500


class _Header(msgspec.Struct):
    kind: str
    schema_version: int
    sha256: str


def exists(folder: Path) -> bool:
    """Whether ``folder`` holds a state.

    Raises:
        SchemaError: it holds one of version 2.
    """
    if (folder / STATE_FILE).exists():
        return True
    if (folder / _IN_PARTS).exists():
        raise _of_another_version(folder / _IN_PARTS)
    return False


def save(folder: Path, state: bytes) -> None:
    """Keep ``state`` in ``folder`` in place of the one before.

    Raises:
        StorageError: it cannot be written; the one before is still there.
    """
    remove_strays(folder)
    header = {"schema_version": SCHEMA_VERSION, "kind": KIND, "sha256": sha256_bytes(state)}
    with atomic_file(folder / STATE_FILE) as temporary, temporary.open("wb") as stream:
        stream.write(canonical_json(header) + b"\n")
        stream.write(state)


def load(folder: Path) -> bytes:
    """The state kept in ``folder``, whole.

    Raises:
        BundleError: it is missing or is not what was written.
        SchemaError: it is of another version.
    """
    file = folder / STATE_FILE
    try:
        data = read_bytes(file, what=KIND)
        end = data.find(b"\n", 0, _LONGEST_HEADER)
        header = decode(data[: max(end, 0)], _Header, what=KIND)
        state = data[end + 1 :]
    except BundleError as error:
        raise _damaged(file, str(error)) from error
    if header.kind != KIND:
        raise _damaged(file, f"it is a {header.kind!r}")
    if header.schema_version != SCHEMA_VERSION:
        raise _of_another_version(file)
    if sha256_bytes(state) != header.sha256:
        raise _damaged(file, "it is not what was written")
    return state


def remove(folder: Path) -> None:
    """Remove the state in ``folder``, if any."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    remove_strays(folder)


def remove_strays(folder: Path) -> None:
    """Remove files that a training which was killed has left half written."""
    for pattern in (f".{STATE_FILE}.*.tmp", ".weights*.tmp"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def _damaged(file: Path, reason: str) -> BundleError:
    return BundleError(
        f"{file} is damaged and cannot be resumed ({reason}); copy it again, or start again in another `out`"
    )


def _of_another_version(file: Path) -> SchemaError:
    return SchemaError(
        f"{file} was written by another version of edgeadv and cannot be resumed: start again in another `out`"
    )
