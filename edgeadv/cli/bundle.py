"""``edgeadv bundle``: look at a bundle, or copy less of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadv_runtime.bundle import MANIFEST, Bundle
from edgeadv_runtime.files import sha256_file

MIB = 1024 * 1024
# a table that goes to a file or a pipe is not to be cut at the 80 columns that rich then assumes
_PIPE_WIDTH = 200

app = typer.Typer(help="Look at a bundle, or copy less of it.", no_args_is_help=True)


@app.command()
def show(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to show.")],
) -> None:
    """Check every hash of a bundle, then show what it is, what it holds and how close its artefacts are to PyTorch."""
    opened = Bundle.open(bundle)
    architecture, preprocess = opened.manifest["architecture"], opened.preprocess
    typer.echo(f"title              {opened.manifest['title']}")
    typer.echo(
        f"architecture       {architecture['source']} {architecture['name']}, upsample {architecture['upsample']}"
    )
    typer.echo(f"classes            {len(opened.classes)}: {', '.join(opened.classes.names[:5])}, ...")
    typer.echo(f"preprocess         resize {preprocess.resize}, crop {preprocess.crop}, {preprocess.interpolation}")
    typer.echo(f"created            {opened.manifest['created']} by edgeadv {opened.manifest['edgeadv_version']}")
    print_summary(opened)


@app.command()
def slim(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to copy from; it stays as it is.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    variant: Annotated[list[str], typer.Option(help="A variant to keep; give it again for another.")],
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Keep the weights: they hand over the white box.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Copy a bundle without what a device does not need. The copy keeps the bundle id."""
    print_summary(Bundle.open(bundle).slim(out, variants=variant, weights=weights, overwrite=overwrite))


def print_summary(bundle: Bundle) -> None:
    """Print path, id and manifest hash of ``bundle``, and a table of its files with their parity."""
    typer.echo(f"bundle             {bundle.path}")
    typer.echo(f"bundle id          {bundle.id}")
    typer.echo(f"manifest sha256    {sha256_file(bundle.path / MANIFEST)}")
    if bundle.manifest["left_out"]:
        typer.echo(f"left out           {', '.join(bundle.manifest['left_out'])}")
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(_table(bundle))


def _table(bundle: Bundle) -> Table:
    columns = ("file", "MiB", "frames", "abs. error", "rel. error", "allowed", "min. cosine", "same top-1")
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for variant in bundle.variants:
        entry = bundle.manifest["variants"][variant]
        table.add_row(Text(entry["file"]), f"{entry['bytes'] / MIB:.2f}", *_parity(entry["parity"], entry["tolerance"]))
    weights = bundle.manifest["weights"]
    if weights["file"] not in bundle.manifest["left_out"]:
        table.add_row(Text(weights["file"]), f"{weights['bytes'] / MIB:.2f}")
    return table


def _parity(parity: dict[str, Any], tolerance: float) -> tuple[str, ...]:
    same = parity["frames"] - len(parity["flips"])
    return (
        str(parity["frames"]), f"{parity['max_abs_error']:.2g}", f"{parity['max_relative_error']:.2g}",
        f"{tolerance:g}", f"{parity['min_cosine']:.6f}", f"{same}/{parity['frames']}",
    )  # fmt: skip
