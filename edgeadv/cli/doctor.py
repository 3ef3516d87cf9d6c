"""``edgeadv doctor``: what works here and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edgeadv_runtime.doctor import diagnose

from ._arguments import PublicKey
from ._fields import as_options
from ._shared import cell, wide_console

_STYLES = {"ok": "green", "untried": "cyan", "missing": "yellow", "problem": "bold red"}


def doctor(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE", help="Bundles to open and try as well.")
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Show the machine, what is installed and what it can do; for each bundle what would run here, and why the rest
    not.

    ONNX Runtime is opened and runs a golden frame of every variant. Whatever is missing, the exit status is 0.
    """
    table = Table.grid(padding=(0, 2))
    for check in diagnose(bundles or [], public_key=public_key):
        # cells, for in a string rich takes the brackets of edgeadv[train] for a style
        table.add_row(cell(check.status, _STYLES[check.status]), cell(check.name), cell(check.detail))
        if check.hint is not None:
            table.add_row("", "", cell(as_options(check.hint), "italic"))
    console = wide_console()
    console.print(table)
