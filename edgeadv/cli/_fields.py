"""How the command line writes what the library calls a field: ``eps`` in backticks becomes ``--eps``."""

from __future__ import annotations

import re
import sys

from edgeadv_runtime.errors import plain

# lists in Python, comma-separated text here
_OPTIONS = {
    "precisions": "precision",
    "backends": "backend",
    "attacks": "attack",
    "batches": "batch",
    "rate_hz": "rate",
    "targets": "target",
    "variants": "variant",
    "other": "with",
    "bundles": "bundle",
    "frames": "golden",
}
_FIELD = re.compile(r"`([a-z][a-z0-9_]*)`")


def as_options(text: str) -> str:
    """``text`` with every field written as the option that sets it."""
    return _FIELD.sub(lambda found: "--" + _OPTIONS.get(found[1], found[1]).replace("_", "-"), text)


def say(text: str, *, err: bool = False) -> None:
    """Print one line, on standard error if ``err``; nothing in it moves a cursor or turns letters round."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{plain(as_options(text))}\n")
    stream.flush()
