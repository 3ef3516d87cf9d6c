"""The bench file: one schema for latency and energy, read by the report. ``docs/reference/bench.md`` explains it.

Readers ignore keys that they do not know; keys that came later have a default, so older files of this version load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from ..decoding import Count
from .about import Positive, Skipped, Subject
from .machine import Conditions, Environment
from .measurement import Kind, Measurement
from .rows import ArtefactRow, Size

Mode = Literal["back-to-back", "paced"]
Stage = Literal["preprocess", "inference", "end-to-end", "copy-in", "compute", "copy-out"]
STAGES: tuple[Stage, ...] = ("preprocess", "inference", "end-to-end")
SPLIT_STAGES: tuple[Stage, ...] = ("copy-in", "compute", "copy-out")
# how threads wait between the frames of a paced series, in words that follow its rate
SPINS = {None: "", True: ", spinning", False: ", sleeping"}
# a stage that only older files have, of a check that this version does not make
_IGNORED = "guarded"
# of rates and times that are written with a few digits
_ROUNDED = 0.01
# of percentiles that lie between the same two times
_ROUNDING = 1e-9
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class BenchRow(ArtefactRow, frozen=True, kw_only=True):
    """One stage of one artefact at one batch size.

    Attributes:
        threads: CPU threads a call may use; None where that is left to the library.
        batch: images in a call.
        mode: ``"back-to-back"``: the next call at once; ``"paced"``: a call at every tick of ``rate_hz``.
        rate_hz: ticks per second; None for back-to-back.
        stage: ``"preprocess"``, ``"inference"`` or ``"end-to-end"``; of a backend that times the parts of a call on the
            device also ``"copy-in"``, ``"compute"`` and ``"copy-out"``.
        n: timed calls; every one of them is in the figures.
        warm_up: calls before them that were not timed.
        p50_ms: median time of a call, of the whole batch.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; None for fewer than 1,000 calls.
        max_ms: the slowest call.
        images_per_s: images over the wall time of the whole series; for paced the rate that was kept.
        late: frames not finished when the next was due; None for back-to-back.
        includes: what is in the time and what is not.
        energy_mj_per_image: millijoules over the whole series for each of its images; None where nothing measured it,
            or the series was too short for what did.
        energy_source: what measured it and what it covers; None where nothing could.
        spin: whether threads kept their cores busy between calls; None where there are none, or the library decides.
        cpu_ms_per_image: processor time of all threads of the process over the whole series, for each of its images;
            None where a stage has no series of its own.

    Raises:
        ValueError: the times do not ascend, or more frames were late than there were.
    """

    threads: Size | None
    batch: Size
    mode: Mode
    rate_hz: Positive | None
    stage: Stage
    n: Size
    warm_up: Count
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds | None
    max_ms: Milliseconds
    images_per_s: Positive
    late: Count | None
    includes: str
    energy_mj_per_image: Positive | None = None
    energy_source: str | None = None
    spin: bool | None = None
    cpu_ms_per_image: Milliseconds | None = None

    def __post_init__(self) -> None:
        times = [self.p50_ms, self.p90_ms, *([] if self.p99_ms is None else [self.p99_ms]), self.max_ms]
        if any(high < low * (1 - _ROUNDING) for low, high in pairwise(times)):
            raise ValueError(f"the percentiles {', '.join(f'{ms:g}' for ms in times)} ms do not ascend")
        if (self.late or 0) > self.n:
            raise ValueError(f"late {self.late} is not a number of {self.n} frames")
        if (self.mode == "paced") != (self.rate_hz is not None):
            raise ValueError(f"a {self.mode} series with rate_hz {self.rate_hz}")


@dataclass(frozen=True, kw_only=True)
class Bench(Measurement):
    """A bench file.

    Attributes:
        bundle: what was measured.
        environment: device facts and versions.
        conditions: the state of the machine ``before`` and ``after`` all measurements.
        rows: what was measured.
        warnings: sentences on what happened to the machine meanwhile, such as throttling, and on CUDA graphs that
            failed.
        skipped: pairs of backend and variant that were asked for as ``all`` and cannot be, with the reason.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
    """

    kind: ClassVar[Kind] = "bench"
    bundle: Subject
    environment: Environment
    conditions: dict[str, Conditions]
    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    created: str = ""
    edgeadv_version: str = ""

    def check(self, written: dict[str, Any]) -> None:
        """Hold rates to the times of the same calls: half of them took at least the median.

        Raises:
            ValueError: more images were counted in a second than that leaves time for.
        """
        for row in self.rows:
            most = 2000 * row.batch / row.p50_ms if row.p50_ms else math.inf
            if row.images_per_s > most * (1 + _ROUNDED):
                raise ValueError(
                    f"images_per_s of {row.artefact} {row.stage} is {row.images_per_s:g}, and its p50_ms of "
                    f"{row.p50_ms:g} leaves time for {most:g}"
                )

    def select(self, **wanted: Any) -> list[BenchRow]:
        """Rows whose attributes equal ``wanted``, e.g. ``select(stage="end-to-end", batch=1)``."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in wanted.items())]

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.path) if self.path is not None else f"the bench of {self.bundle.name}"

    @classmethod
    def from_json(cls, value: dict[str, Any], *, path: Path | None = None) -> Bench:
        """Read what :meth:`to_json` wrote. Rows of the stage ``guarded``, which older files may have, are left out.

        Raises:
            SchemaError: it is something else.
        """
        if isinstance(rows := value.get("rows"), list):
            kept = [row for row in rows if not (isinstance(row, dict) and row.get("stage") == _IGNORED)]
            value = {**value, "rows": kept}
        return super().from_json(value, path=path)
