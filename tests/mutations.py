"""JSON documents with something wrong in them, for the readers of files that anybody may have written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

# as JSON text: Python's writer has no number that is too large for a float
VALUES = [
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "9" * 25,
    "9" * 5000,
    '""',
    '"a"',
    '"\\ud800"',
    '"\\n"',
    '"../x"',
    '"\\u0000"',
    f'"{"long" * 5000}"',
    "[]",
    "{}",
    "[null]",
    '{"a\\nb": 1}',
    "[[[[1]]]]",
    f"{'[' * 100_000}{']' * 100_000}",
    f"{'[' * 200}{']' * 200}",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within ``value``; of long lists, of the first two."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value[:2]):
            yield from places(child, (*path, i))


def mutated(
    document: dict[str, Any],
    rng: random.Random,
    place: tuple[Any, ...],
    *,
    id_of: Callable[[dict[str, Any]], str] | None = None,
) -> bytes:
    """``document`` as JSON with one value replaced, or its key dropped, renamed or there twice; with ``id_of`` under
    the ``bundle_id`` that fits."""
    document = json.loads(json.dumps(document))
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    how, last = rng.choice(["value"] * 5 + ["drop", "rename", "twice"]), place[-1]
    value = rng.choice(VALUES)
    if how == "drop" or isinstance(last, int):
        holder.pop(last)
        if how == "value":
            holder.append("\x00")
    elif how == "rename":
        holder[rng.choice(["x", last + "x", "", "a\nb", last.upper()])] = holder.pop(last)
    else:
        holder[last] = "\x00"

    def text(of: Any) -> str:
        return json.dumps(of).replace('"\\u0000"', value if how != "twice" else f"1, {json.dumps(last)}: {value}")

    if id_of is not None and place[0] != "bundle_id":
        # what is no JSON to Python has no id
        with suppress(ValueError, RecursionError):
            document["bundle_id"] = id_of(json.loads(text(document)))
    return text(document).encode()


def assert_one_line(error: Exception) -> None:
    message = str(error)
    assert message and message.isprintable() and len(message) < 2000, message[:3000]
