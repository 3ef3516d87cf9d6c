"""The head that results, bench and study files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from .._version import __version__
from ..decoding import decode
from ..errors import BundleError, SchemaError

SCHEMA_VERSION = 1
WRITER = __version__
"""The edgeadv that writes records."""
Kind = Literal["results", "bench", "study"]


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
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist: no {what} there") from error
    except OSError as error:
        raise BundleError(f"{path} is not a readable {what} ({error.strerror})") from error
    value = decode(data, dict[str, Any], what=what, path=Path(path), mend="measure again")
    kind, version = (
        found if isinstance(found := value.get(key), str | int) else None for key in ("kind", "schema_version")
    )
    if kind not in kinds or version != SCHEMA_VERSION:
        raise SchemaError(
            f"{path} is a {kind!r} of schema version {version!r}, not a {what} of version {SCHEMA_VERSION}"
        )
    return value
