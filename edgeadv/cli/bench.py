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

from edgeadv_runtime.benchmark import latency
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import ensure_file_writable
from edgeadv_runtime.records.about import Skipped
from edgeadv_runtime.records.rows import engines

from ._backends import (
    BackendNames,
    EngineBatch,
    EngineChoice,
    EngineFolder,
    EngineLibrary,
    ExpectedHash,
    Precision,
    Provider,
    PublicKey,
    Tf32,
    TrustPlan,
    Workspace,
    backend_openers,
)
from ._fields import as_options, say
from ._shared import ALL, wide_console

# rich would cut figures to fit a narrower terminal, or the 80 columns that it assumes of a pipe
_WIDTH = 200


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to measure.")],
    backend: BackendNames = "onnxruntime",
    precision: Precision = ALL,
    batch: Annotated[str, typer.Option(help="Comma-separated batch sizes of the back-to-back series.")] = "1",
    rate: Annotated[float | None, typer.Option(help="Also single frames paced at this rate in Hz.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each series; p99 takes 1000.")] = 200,
    warm_up: Annotated[int, typer.Option(min=0, help="Calls before each series that are not timed.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a call; else the library decides.")] = None,
    provider: Provider = "cpu",
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
    engine_batch: EngineBatch = None,
    engine_cache: EngineFolder = None,
    trust_plan: TrustPlan = None,
    library: EngineLibrary = None,
    workspace: Workspace = None,
    tf32: Tf32 = False,
    out: Annotated[Path, typer.Option(help="The bench file; one that is there is replaced.")] = Path("bench.json"),
) -> None:
    """Measure preprocessing, inference and both together: p50, p90, p99 and the slowest call, none of them trimmed.

    Back-to-back calls at every batch size, and with --rate also paced ones, on the bundle's own frames. The file also
    holds what the machine is, and its clocks, load and temperatures before and after. Where the machine counts energy,
    each series has its own; where a backend times copies and computing apart, so does the table.
    """
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    openers, skipped = backend_openers(
        opened, backend=backend, precision=precision, provider=provider, threads=threads,
        engine=EngineChoice(engine_batch, engine_cache, trust_plan, library, workspace, tf32), for_speed=True,
    )  # fmt: skip
    left_out = tuple(Skipped(**entry) for entry in skipped)
    batches = _numbers(batch)
    ensure_file_writable(out)
    partial, kept = out.with_name(out.name + ".partial"), False

    def keep(measured: latency.Bench) -> None:
        """What there is so far, for the rest may take an hour; it says what it lacks."""
        nonlocal kept
        there = {(row.backend, row.variant) for row in measured.rows}
        missing = [
            Skipped(backend=name, variant=variant, reason="the measurement ended before it")
            for name, variant in openers
            if (name, variant) not in there
        ]
        replace(measured, skipped=(*left_out, *missing)).save(partial)
        kept = True

    try:
        with _progress() as progress:
            measured = latency.benchmark(
                opened, list(openers.values()), batches=batches, runs=runs, warm_up=warm_up, rate_hz=rate, progress=progress,
                keep=keep,
            )  # fmt: skip
    except BaseException:
        if kept:
            say(f"what was measured before is in {partial}", err=True)
        raise
    measured = replace(measured, skipped=left_out)
    measured.save(out)
    partial.unlink(missing_ok=True)
    console = wide_console(_WIDTH)
    console.print(_table(measured))
    for artefact, engine in engines(measured.rows):
        console.print(Text(f"{artefact}: {engine}"))
    for text in (*_energy(measured), *(f"warning: {text}" for text in measured.warnings)):
        console.print(Text(text))
    for entry in measured.skipped:
        console.print(Text(as_options(f"not measured: {entry.backend} {entry.variant}: {entry.reason}")))
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


def _energy(bench: latency.Bench) -> list[str]:
    """What the energies in the table are of, or why there are none."""
    lines = []
    for source in dict.fromkeys(row.energy_source for row in bench.rows if row.energy_source):
        rows = bench.select(energy_source=source)
        lacking = sum(row.energy_mj_per_image is None for row in rows)
        short = (
            f"; {lacking} of {len(rows)} series were too short for it, or too long: change --runs" if lacking else ""
        )
        lines.append(f"energy: {source}{short}")
    return lines


def _table(bench: latency.Bench) -> Table:
    """One line for each row; what all rows share is in the title."""
    shared = {f"{row.provider} on {row.device}, threads: {row.threads or 'default'}" for row in bench.rows}
    table = Table(title=Text("; ".join(sorted(shared))), title_justify="left")
    for heading in ("backend", "variant", "batch", "mode", "stage"):
        table.add_column(heading, no_wrap=True)
    energy = any(row.energy_mj_per_image is not None for row in bench.rows)
    last = ("mJ/image",) if energy else ()
    for heading in ("n", "p50 ms", "p90 ms", "p99 ms", "max ms", "images/s", "late", *last):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in bench.rows:
        mode = row.mode if row.rate_hz is None else f"{row.mode} {row.rate_hz:g} Hz"
        times = [f"{ms:.3f}" if ms is not None else "" for ms in (row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms)]
        late = "" if row.late is None else str(row.late)
        first = (row.backend, row.variant, str(row.batch), mode, row.stage, str(row.n))
        cells = [*first, *times, f"{row.images_per_s:.1f}", late]
        if energy:
            cells.append("" if row.energy_mj_per_image is None else f"{row.energy_mj_per_image:.3g}")
        table.add_row(*(Text(cell) for cell in cells))
    return table
