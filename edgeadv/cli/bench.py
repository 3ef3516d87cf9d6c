"""``edgeadv bench``: latency of a bundle on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from edgeadv_runtime import latency
from edgeadv_runtime.backends.ort import PROVIDERS
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import ensure_writable

from ._shared import ALL, BACKENDS, backend_openers

# rich would cut figures to fit a narrower terminal, or the 80 columns that it assumes of a pipe
_WIDTH = 200


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to measure.")],
    backend: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(BACKENDS)}; or all.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="Comma-separated variants, or all that the bundle has.")] = ALL,
    batch: Annotated[str, typer.Option(help="Comma-separated batch sizes of the back-to-back series.")] = "1",
    rate: Annotated[float | None, typer.Option(help="Also single frames paced at this rate in Hz.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each series; p99 takes 1000.")] = 200,
    warm_up: Annotated[int, typer.Option(min=0, help="Calls before each series that are not timed.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a call; else the library decides.")] = None,
    provider: Annotated[str, typer.Option(help=f"What backends run on: {' or '.join(PROVIDERS)}.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The bench file; one that is there is replaced.")] = Path("bench.json"),
) -> None:
    """Measure preprocessing, inference and both together: p50, p90, p99 and the slowest call, none of them trimmed.

    Back-to-back calls at every batch size, and with --rate also paced ones, on the bundle's own frames. The file also
    holds what the machine is, and its clocks, load and temperatures before and after.
    """
    opened = Bundle.open(bundle)
    openers, skipped = backend_openers(opened, backend=backend, precision=precision, provider=provider, threads=threads)
    batches = _numbers(batch)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name the file to write in it")
    ensure_writable(out.parent)
    with _progress() as progress:
        measured = latency.benchmark(
            opened, openers, batches=batches, runs=runs, warm_up=warm_up, rate_hz=rate, progress=progress
        )
    measured = replace(measured, skipped=tuple(skipped))
    measured.save(out)
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(_table(measured))
    for entry in measured.skipped:
        console.print(Text(f"not measured: {entry['backend']} {entry['variant']}: {entry['reason']}"))
    console.print(Text(f"written: {out}"))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--batch {text!r} is a comma-separated list of whole numbers, such as 1,8") from error


@contextmanager
def _progress() -> Iterator[latency.Progress | None]:
    """A bar on standard error if that is a terminal, drawn between series only: no thread draws while one is timed."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("opening")

        def progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text, refresh=True)

        yield progress


def _table(bench: latency.Bench) -> Table:
    """One line for each row; what all rows share is in the title."""
    shared = {f"{row.provider} on {row.device}, threads: {row.threads or 'default'}" for row in bench.rows}
    table = Table(title=Text("; ".join(sorted(shared))), title_justify="left")
    for heading in ("backend", "variant", "batch", "mode", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("n", "p50 ms", "p90 ms", "p99 ms", "max ms", "images/s", "late"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in bench.rows:
        mode = row.mode if row.rate_hz is None else f"{row.mode} {row.rate_hz:g} Hz"
        times = [f"{ms:.3f}" if ms is not None else "" for ms in (row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms)]
        late = "" if row.late is None else str(row.late)
        first = (row.backend, row.variant, str(row.batch), mode, row.stage, str(row.n))
        table.add_row(*(Text(cell) for cell in (*first, *times, f"{row.images_per_s:.1f}", late)))
    return table
