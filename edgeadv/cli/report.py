"""``edgeadv report``: results and bench files as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows import reporting
from ._fields import say


def report(
    files: Annotated[list[Path], typer.Argument(help="Results and bench files, in the order the page shows them.")],
    out: Annotated[Path, "The page to write."] = Path("report.html"),
    bundles: Annotated[
        tuple[Path, ...], "Draw what this bundle's model sees of a frame; give it again for another."
    ] = (),
) -> None:
    """Write one self-contained HTML page: the worst case first, with its masking verdict, then all the rest."""
    say(str(reporting.report(files, out, bundles=bundles)))
