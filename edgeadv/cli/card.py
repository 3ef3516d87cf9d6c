"""``edgeadv card``: one page about a bundle, of what was measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows import reporting
from ._arguments import PublicKey
from ._fields import say


def card(
    files: Annotated[list[Path], typer.Argument(help="What evaluate and bench wrote of the bundle.")],
    bundle: Annotated[Path, "The bundle that all of them are of."],
    out: Annotated[Path, "The card: a page card.html, the record card.json, or card.md with front matter."] = Path(
        "card.html"
    ),
    public_key: PublicKey = None,
) -> None:
    """Write the card of a bundle: what it is, what it withstands with the verdict beside it, how fast it is, where that
    ends, and which file says so."""
    reporting.card(files, bundle, out, public_key=public_key)
    say(str(out))
