"""``edgeadv bench``: latency of a bundle on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgeadv_runtime import Bench
from edgeadv_runtime.records.bench import SPINS
from edgeadv_runtime.records.rows import engines

from ..workflows.backends import TensorRTPlan
from ..workflows.benchmarking import bench as run_bench
from ..workflows.inputs import ALL
from ._arguments import Backends, BundleFile, Precisions, Provider, at_least
from ._fields import as_options
from ._shared import print_table, progress_bar


@dataclass(kw_only=True)
class _Measurement:
    backends: Backends = "onnxruntime"
    precisions: Precisions = ALL
    batches: Annotated[str, "Comma-separated batch sizes of the back-to-back series."] = "1"
    rate_hz: Annotated[float | None, "Also single frames paced at this rate in Hz."] = None
    runs: Annotated[int, at_least(1, "Timed calls of each series; p99 takes 1000.")] = 200
    warm_up: Annotated[int, at_least(0, "Calls before each series that are not timed.")] = 20
    threads: Annotated[int | None, at_least(1, "CPU threads of a call; else the library decides.")] = None
    provider: Provider = "cpu"
    tensorrt: TensorRTPlan
    out: Annotated[Path, "The bench file; one that is there is replaced."] = Path("bench.json")


def bench(bundle: BundleFile, asked: _Measurement) -> None:
    """Measure preprocessing, inference and both together: p50, p90, p99 and the slowest call, none of them trimmed.

    Back-to-back calls at every batch size, and with --rate also paced ones, on the bundle's own frames. The file also
    holds what the machine is, and its clocks, load and temperatures before and after. Where the machine counts energy,
    each series has its own; where a backend times copies and computing apart, so does the table. "CPU ms" is processor
    time of all threads for each image: with --rate and several threads it is measured with threads that spin between
    frames, and with threads that sleep.
    """
    with progress_bar(threaded=False) as progress:
        measured = run_bench(bundle.open(), **vars(asked), progress=progress)
    tell = _print_table(measured)
    for artefact, engine in engines(measured.rows):
        tell(f"{artefact}: {engine}")
    for text in (*_energy(measured), *(f"warning: {text}" for text in measured.warnings)):
        tell(text)
    for entry in measured.skipped:
        tell(as_options(f"not measured: {entry.backend} {entry.variant}: {entry.reason}"))
    tell(f"written: {asked.out}")


def _energy(bench: Bench) -> Iterator[str]:
    """What the energies in the table are of, or why there are none."""
    for source in dict.fromkeys(row.energy_source for row in bench.rows if row.energy_source):
        rows = bench.select(energy_source=source)
        lacking = sum(row.energy_mj_per_image is None for row in rows)
        short = f"; {lacking} of {len(rows)} series were too short for it, or too long: change --runs"
        yield f"energy: {source}{short if lacking else ''}"


def _print_table(bench: Bench) -> Callable[..., None]:
    """One line for each row; what all rows share is in the title."""
    shared = {f"{row.provider} on {row.device}, threads: {row.threads or 'default'}" for row in bench.rows}
    headings = ["artefact", "batch", "mode", "stage", "n", "p50 ms", "p90 ms", "p99 ms", "max ms"]
    headings += ["images/s", "late", "CPU ms"]
    energy = any(row.energy_mj_per_image is not None for row in bench.rows)
    if energy:
        headings.append("mJ/image")
    rows = []
    for row in bench.rows:
        mode = row.mode if row.rate_hz is None else f"{row.mode} {row.rate_hz:g} Hz{SPINS[row.spin]}"
        times = [f"{ms:.3f}" if ms is not None else "" for ms in (row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms)]
        late = "" if row.late is None else str(row.late)
        cpu = "" if row.cpu_ms_per_image is None else f"{row.cpu_ms_per_image:.2f}"
        cells = [f"{row.backend} {row.variant}", str(row.batch), mode, row.stage, str(row.n), *times]
        cells += [f"{row.images_per_s:.1f}", late, cpu]
        if energy:
            cells.append("" if row.energy_mj_per_image is None else f"{row.energy_mj_per_image:.3g}")
        rows.append(cells)
    return print_table(headings, rows, left=4, title="; ".join(sorted(shared)))
