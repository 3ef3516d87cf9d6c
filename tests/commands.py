"""Every subcommand of the command line, found from its registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeadv.cli import _SUMMARIES, subcommand


def leaves() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Name and typer's command of all that can be called, groups left out."""
    for name in _SUMMARIES:
        command = subcommand(name)
        if below := getattr(command, "commands", None):
            yield from (((name, each), below[each]) for each in below)
        else:
            yield (name,), command
