"""What results, bench, study and card files share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from .._version import __version__
from ..decoding import convert, read
from ..errors import SchemaError, one_line
from ..files import write_json

SCHEMA_VERSION = 1
WRITER: str = __version__
"""The edgeadv that writes records."""
Kind = Literal["results", "bench", "study", "card"]
_WORDS = 200
_M = TypeVar("_M", bound="Measurement")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A file of figures.

    Attributes:
        path: the file that it was read from; None for what was just measured.
    """

    kind: ClassVar[Kind]
    path: Path | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        found: dict[str, Any] = msgspec.to_builtins(replace(self, path=None), enc_hook=_path)
        del found["path"]
        return {"schema_version": SCHEMA_VERSION, "kind": self.kind, **found}

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls: type[_M], path: str | Path) -> _M:
        """Read such a file.

        Raises:
            SchemaError: another kind or version, a key is missing, or a value is none that could have been measured.
            BundleError: not readable.
        """
        return cls.from_json(read_measurement(path, cls.kind), path=Path(path))

    @classmethod
    def from_json(cls: type[_M], value: dict[str, Any], *, path: Path | None = None) -> _M:
        """Read what :meth:`to_json` wrote; what follows from the counts is derived again.

        Raises:
            SchemaError: it is something else, or contradicts itself.
        """
        found = convert({**value, "path": None}, cls, what=f"{cls.kind} file", path=path, mend="measure again")
        try:
            found.check(value)
        except ValueError as error:
            name = path or f"this {cls.kind} file"
            raise SchemaError(
                f"{name} contradicts itself ({one_line(str(error), most=_WORDS)}); measure again"
            ) from error
        return replace(found, path=path)

    def check(self, written: dict[str, Any]) -> None:
        """Hold what a file says to what else it says; ``written`` is the JSON value that this was read from.

        Raises:
            ValueError: it contradicts itself; the message names both values.
        """


def read_measurement(path: str | Path, *kinds: Kind) -> dict[str, Any]:
    """Read a file of figures, checking its kind and schema version, and nothing else.

    Args:
        path: the file.
        kinds: those that it may be of.

    Raises:
        SchemaError: another kind or version.
        BundleError: not readable.
    """
    what = f"{' or '.join(kinds)} file"
    value = read(Path(path), dict[str, Any], what=what, mend="measure again", links=True)
    kind, version = (
        found if isinstance(found := value.get(key), str | int) else None for key in ("kind", "schema_version")
    )
    if kind not in kinds or version != SCHEMA_VERSION:
        raise SchemaError(
            f"{path} is a {kind!r} of schema version {version!r}, not a {what} of version {SCHEMA_VERSION}"
        )
    return value


def _path(value: object) -> str:
    """A path as JSON has it; no other type is let through, for what it became no reader would take back."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a file of figures holds no {type(value).__name__}")
