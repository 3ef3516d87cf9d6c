"""The one door for what comes from outside: it is what its record says, or one sentence tells where it is not."""

from __future__ import annotations

import math
import numbers
import re
import types
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from .errors import BundleError, InputError, SchemaError, one_line
from .reading import MOST_RECORD_BYTES, read_bytes

Record = TypeVar("Record")
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A number of [0, 1]."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
"""A whole number from 0 that any reader of JSON keeps exactly."""
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A hash in hexadecimal."""
# msgspec: "Expected `int`, got `str` - at `$.rows[3].n`"
_AT = re.compile(r"(.*) - at (?:`key` in )?`\$\.?(.*)`")
_MOST_WORDS = 160
DEEPEST = 64
"""Levels of JSON of a file."""
# objects and lists of a file: each takes sixty bytes of memory for the one or two that it takes there
_MOST_NESTS = 1 << 22


def decode(
    data: bytes,
    record: type[Record],
    *,
    what: str,
    path: Path | None = None,
    mend: str = "make it again",
    deepest: int = DEEPEST,
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
        deepest: levels of nesting that it may have.

    Raises:
        BundleError: the bytes are not JSON.
        SchemaError: they are not such a record, or nested too deeply; the message names the value.
    """
    name = what if path is None else f"{path}"
    if data.count(b"[") + data.count(b"{") > _MOST_NESTS:
        raise SchemaError(f"{name} holds more objects and lists than any {what}; {mend}")
    try:
        found = msgspec.json.decode(data, type=record)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{name} is not a complete {what} ({located(error)}); {mend}") from error
    except Exception as error:  # no JSON, no UTF-8, nested beyond what Python bears, a number beyond what it converts
        raise BundleError(
            f"{name} is not a readable {what} ({one_line(str(error), most=_MOST_WORDS)}); {mend}"
        ) from error
    if _depth(found, deepest) > deepest:
        raise SchemaError(f"{name} is nested too deeply for a {what}; {mend}")
    return found


def _depth(value: Any, most: int) -> int:
    """Levels of plain JSON within ``value``; no more are counted than one above ``most``."""
    level, depth = [value], 0
    while depth <= most and (level := [each for each in level if isinstance(each, dict | list | tuple)]):
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def read(path: Path, record: type[Record], *, what: str, mend: str = "make it again", links: bool = False) -> Record:
    """The same of the file at ``path``, which may be a link only if ``links``: where a user names it.

    Raises:
        BundleError: there is none, it cannot be read, or it is not JSON.
        SchemaError: it is not such a record; the message names the value.
    """
    data = read_bytes(path, what=what, limit=MOST_RECORD_BYTES, links=links)
    return decode(data, record, what=what, path=path, mend=mend)


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
    except Exception as error:  # of our own checks too, which count with numbers of the file
        raise SchemaError(f"{name} is not a complete {what} ({located(error)}); {mend}") from error


def located(error: Exception) -> str:
    """What msgspec says, the path of the value first, in one line: it quotes keys that may hold anything."""
    text = str(error) or type(error).__name__
    found = _AT.fullmatch(text)
    # in backticks stand the fields that a caller sets
    return one_line((text if found is None else f"{found[2]}: {found[1]}").replace("`", "'"), most=_MOST_WORDS)


class Options:
    """A dataclass of options: whoever makes one gets a field of the wrong type named, before hours are spent on it.

    A path may be given as text and text as a path, NumPy's numbers are numbers, and a list is a tuple.

    Raises:
        InputError: a field is of another type.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, each.name), hints[each.name]
            taken = _taken(value, hint)
            if taken is _NOT:
                raise InputError(each.name, f"must be {_in_words(hint)}, not {value!r}")
            object.__setattr__(self, each.name, taken)


_NOT = object()
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "True or False",
    Path: "a path",
}


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _taken(value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` has it, or ``_NOT``."""
    for kind in _kinds(hint):
        if get_origin(kind) is tuple and isinstance(value, tuple | list):
            parts = tuple(_taken(part, get_args(kind)[0]) for part in value)
            if not any(part is _NOT for part in parts):
                return parts
        elif kind in (int, float):
            number = _number(value, kind)
            if number is not None:
                return number
        elif kind in (str, Path) and isinstance(value, str | Path):
            return kind(value)
        elif get_origin(kind) is Literal or (get_origin(kind) is None and isinstance(value, kind)):
            # which words there are the options say themselves
            return value
    return _NOT


def _number(value: Any, kind: type[int] | type[float]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        return None
    try:
        number: float = kind(value)  # type: ignore[call-overload]
    except OverflowError:  # a whole number that no float holds
        return None
    return number if kind is int or math.isfinite(number) else None


def _in_words(hint: Any) -> str:
    return " or ".join(
        f"several, each {_in_words(get_args(kind)[0])}"
        if get_origin(kind) is tuple
        else _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
        for kind in _kinds(hint)
        if kind is not type(None)
    )
