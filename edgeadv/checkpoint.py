"""The state of an unfinished training, in files small enough to be carried anywhere.

::

    state.json            names and hashes of the parts; written last, so that it vouches for all of them
    state-<hash>-<n>.bin  the state, cut into parts of at most 16 MiB

A training that is killed at any moment leaves the state before or the state after, never a mixture: the parts of a new state
have names of their own, and the old ones go when its ``state.json`` is there.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from edgeadv_runtime.errors import BundleError, SchemaError
from edgeadv_runtime.files import read_json, sha256_bytes, write_bytes, write_json

STATE_FILE = "state.json"
PART_BYTES = 16 << 20
SCHEMA_VERSION = 2


def save(folder: Path, state: bytes) -> None:
    """Keep ``state`` in ``folder`` in place of the one before.

    Raises:
        StorageError: it cannot be written; the one before is still there.
    """
    remove_strays(folder)
    digest = sha256_bytes(state)
    parts: list[dict[str, str]] = []
    written: list[Path] = []
    try:
        for start in range(0, len(state), PART_BYTES):
            name = f"state-{digest[:16]}-{len(parts)}.bin"
            part = state[start : start + PART_BYTES]
            written.append(folder / name)
            write_bytes(folder / name, part)
            parts.append({"file": name, "sha256": sha256_bytes(part)})
        content = {"schema_version": SCHEMA_VERSION, "kind": "training state", "sha256": digest, "parts": parts}
        write_json(folder / STATE_FILE, content)
    except BaseException:
        if not _names_digest(folder, digest):
            for file in written:
                file.unlink(missing_ok=True)
        raise
    remove_strays(folder)


def load(folder: Path) -> bytes:
    """The state kept in ``folder``, whole.

    Raises:
        BundleError: a part is missing or is not what was written.
        SchemaError: it is of another version.
    """
    index = folder / STATE_FILE
    try:
        content = read_json(index, what="training state")
        if content["kind"] != "training state":
            raise ValueError(f"it is a {content['kind']!r}")
        if content["schema_version"] != SCHEMA_VERSION:
            raise SchemaError(
                f"{index} was written by another version of edgeadv and cannot be resumed: start again in another --out"
            )
        parts = []
        for entry in content["parts"]:
            part = (folder / Path(entry["file"]).name).read_bytes()
            if sha256_bytes(part) != entry["sha256"]:
                raise ValueError(f"{entry['file']} is not what was written")
            parts.append(part)
    except SchemaError:
        raise
    except (BundleError, OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{index} is damaged and cannot be resumed ({error}); copy all its parts again, or start again in another --out"
        ) from error
    return b"".join(parts)


def remove(folder: Path) -> None:
    """Remove the state in ``folder``, if any, its index first."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    remove_strays(folder)


def remove_strays(folder: Path) -> None:
    """Remove what a training that was killed has left: parts that no index names, and files half written."""
    if not folder.is_dir():
        return
    named: set[str] = set()
    if (folder / STATE_FILE).exists():
        try:
            named = {str(part["file"]) for part in read_json(folder / STATE_FILE, what="training state")["parts"]}
        except (BundleError, KeyError, TypeError):
            return  # whose parts these are is not known
    for file in (*folder.glob("state-*.bin"), *folder.glob(".state*.tmp"), *folder.glob(".weights*.tmp")):
        if file.name not in named:
            with suppress(FileNotFoundError):
                file.unlink()


def _names_digest(folder: Path, digest: str) -> bool:
    """Whether the index already speaks of this state: an interrupt may come after it was written."""
    try:
        return bool(read_json(folder / STATE_FILE, what="training state").get("sha256") == digest)
    except BundleError:
        return False
