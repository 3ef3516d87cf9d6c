"""Lengths of time as text."""

from __future__ import annotations

import re

from edgeadv_runtime import InputError

_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str | float, *, field: str) -> float:
    """Read ``90s``, ``9m`` or ``2h``; a number is seconds.

    Raises:
        InputError: it is no such time, or none at all; ``field`` names it.
    """
    if isinstance(text, int | float):
        text = f"{text}s"
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if not found or not float(found[1]):
        raise InputError(field, f"{text!r} is not a time such as 90s, 9m or 2h")
    return float(found[1]) * _UNITS[found[2]]
