"""The one door for JSON that comes from outside: it is what its record says, or one sentence tells where it is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from .errors import BundleError, SchemaError

Record = TypeVar("Record")
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A number of [0, 1]."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
"""A whole number from 0 that any reader of JSON keeps exactly."""
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A hash in hexadecimal."""
# msgspec: "Expected `int`, got `str` - at `$.rows[3].n`"
_AT = re.compile(r"(?s)(.*) - at `\$\.?(.*)`")


def decode(
    data: bytes, record: type[Record], *, what: str, path: Path | None = None, mend: str = "make it again"
) -> Record:
    """Read JSON as a record.

    Numbers are finite: JSON has no NaN, and what is too large for a float is refused.

    Args:
        data: the bytes of a file, or of a part of one.
        record: a :class:`msgspec.Struct`, or any type that msgspec knows. A struct ignores keys that it does not know
            unless it forbids them.
        what: the file in words, e.g. ``"results file"``.
        path: where the bytes are from.
        mend: what to do about it, for the message.

    Raises:
        BundleError: the bytes are not JSON.
        SchemaError: they are not such a record; the message names the value.
    """
    name = what if path is None else f"{path}"
    try:
        return msgspec.json.decode(data, type=record)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{name} is not a complete {what} ({located(error)}); {mend}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BundleError(f"{name} is not a readable {what} ({error}); {mend}") from error


def convert(
    value: Any, record: type[Record], *, what: str, path: Path | None = None, mend: str = "make it again"
) -> Record:
    """The same of a value that was read before.

    Raises:
        SchemaError: it is not such a record.
    """
    name = what if path is None else f"{path}"
    try:
        return msgspec.convert(value, type=record)
    except (msgspec.ValidationError, RecursionError) as error:
        raise SchemaError(f"{name} is not a complete {what} ({located(error)}); {mend}") from error


def located(error: Exception) -> str:
    """What msgspec says, the path of the value first."""
    found = _AT.fullmatch(str(error))
    # in backticks stand the fields that a caller sets
    return (str(error) if found is None else f"{found[2]}: {found[1]}").replace("`", "'")
