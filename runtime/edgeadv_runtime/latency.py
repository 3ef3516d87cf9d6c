"""Latency of a bundle on this machine, and the bench file that says it. ``docs/bench.md`` describes every key.

What is timed is what an application calls: :class:`~edgeadv_runtime.preprocess.Preprocess` and ``Backend.infer``, on
the bundle's own golden frames. No run is ever left out of a figure; warm-up runs come before, and are counted apart.
Nothing but the timed calls happens between two timed calls: progress is reported between series only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._version import __version__
from .backends.base import Backend
from .bundle import Bundle
from .device import conditions, environment
from .errors import BundleError, InputError, SchemaError
from .files import write_json
from .preprocess import Preprocess, to_tensor
from .results import SCHEMA_VERSION, read_measurement

Mode = Literal["back-to-back", "paced"]
Stage = Literal["preprocess", "inference", "end-to-end"]
Opener = Callable[[], Backend]
Progress = Callable[[int, int, str], None]
# a p99 from fewer runs would rest on fewer than ten of them
P99_MIN_RUNS = 1000
STAGES: tuple[Stage, ...] = ("preprocess", "inference", "end-to-end")
INCLUDES: dict[Stage, str] = {
    "preprocess": "decoded RGB frames in memory to a float32 NCHW array: resize, crop, scale; no capture or decoding",
    "inference": "Backend.infer, a float32 array in memory to logits in memory: with its checks and any device copies",
    "end-to-end": "preprocess and inference in one timed call, decoded RGB frames to logits; no capture or decoding",
}
_PACED = "; from when work on the frame begins: waiting behind a frame that took too long is not in it, see late"


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One stage of one artefact at one batch size.

    Attributes:
        variant: the artefact's name in the bundle.
        artifact_sha256: hash of the file that was run.
        backend: what ran it; with ``provider`` and ``device`` this says whose figure it is.
        provider: what executed it inside the backend.
        device: the device in words.
        threads: CPU threads a call may use; None where that is left to the library.
        batch: images in a call.
        mode: ``"back-to-back"``: the next call at once; ``"paced"``: a call at every tick of ``rate_hz``.
        rate_hz: ticks per second; None for back-to-back.
        stage: ``"preprocess"``, ``"inference"`` or ``"end-to-end"``.
        n: timed calls; every one of them is in the figures.
        warm_up: calls before them that were not timed.
        p50_ms: median time of a call, of the whole batch.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; None for fewer than 1,000 calls.
        max_ms: the slowest call.
        images_per_s: images over the wall time of the whole series; for paced the rate that was kept.
        late: frames not finished when the next was due; None for back-to-back.
        includes: what is in the time and what is not.
    """

    variant: str
    artifact_sha256: str
    backend: str
    provider: str
    device: str
    threads: int | None
    batch: int
    mode: Mode
    rate_hz: float | None
    stage: Stage
    n: int
    warm_up: int
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    max_ms: float
    images_per_s: float
    late: int | None
    includes: str

    def to_json(self) -> dict[str, Any]:
        """The row as the file holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BenchRow:
        """Read what :meth:`to_json` wrote."""
        return cls(**{f.name: value[f.name] for f in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A bench file.

    Attributes:
        bundle: id, name and title of what was measured.
        environment: what :func:`~edgeadv_runtime.device.environment` told.
        conditions: what :func:`~edgeadv_runtime.device.conditions` told ``before`` and ``after`` all measurements.
        rows: what was measured.
        skipped: pairs of backend and variant that were asked for as ``all`` and cannot be, with the reason.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
    """

    bundle: dict[str, Any]
    environment: dict[str, Any]
    conditions: dict[str, dict[str, Any]]
    rows: tuple[BenchRow, ...]
    skipped: tuple[dict[str, str], ...] = ()
    created: str = ""
    edgeadv_version: str = ""
    path: Path | None = field(default=None, compare=False)

    def select(self, **wanted: Any) -> list[BenchRow]:
        """Rows whose attributes equal ``wanted``, e.g. ``select(stage="end-to-end", batch=1)``."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in wanted.items())]

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        return {
            "schema_version": SCHEMA_VERSION, "kind": "bench", "edgeadv_version": self.edgeadv_version,
            "created": self.created, "bundle": self.bundle, "environment": self.environment,
            "conditions": self.conditions, "rows": [row.to_json() for row in self.rows], "skipped": list(self.skipped),
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Bench:
        """Read a bench file.

        Raises:
            SchemaError: another kind or version, or a key is missing.
            BundleError: not readable.
        """
        value = read_measurement(path, kind="bench")
        try:
            return cls(
                bundle=value["bundle"], environment=value["environment"], conditions=value["conditions"],
                rows=tuple(BenchRow.from_json(row) for row in value["rows"]), skipped=tuple(value["skipped"]),
                created=value["created"], edgeadv_version=value["edgeadv_version"], path=Path(path),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise SchemaError(f"{path} is not a complete bench file ({error!r}); measure again") from error


class Series(NamedTuple):
    """Timed calls, in the order in which they ran.

    Attributes:
        durations_ns: int64 of shape (runs,), or (runs, 3) for the stages of a paced series, in the order of ``STAGES``.
        wall_ns: from the start of the first to the end of the last; for paced to its next tick, if that is later.
        late: ticks that came before the work on the frame of the tick before was done; 0 for back-to-back.
    """

    durations_ns: NDArray[np.int64]
    wall_ns: int
    late: int


def back_to_back(
    call: Callable[[int], object], *, runs: int, warm_up: int, clock: Callable[[], int] = time.perf_counter_ns
) -> Series:
    """Time ``call(i)`` with nothing in between.

    Args:
        call: what to time; ``i`` counts from 0, warm-up included.
        runs: timed calls, at least 1.
        warm_up: calls before them.
        clock: nanoseconds, monotonic.
    """
    for i in range(warm_up):
        call(i)
    durations = np.empty(runs, dtype=np.int64)
    begin = clock()
    for i in range(runs):
        start = clock()
        call(warm_up + i)
        durations[i] = clock() - start
    return Series(durations, clock() - begin, 0)


def paced(
    preprocess: Callable[[int], NDArray[np.float32]],
    infer: Callable[[NDArray[np.float32]], object],
    *,
    rate_hz: float,
    runs: int,
    warm_up: int,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Series:
    """Time ``infer(preprocess(i))`` at every tick of a fixed schedule, sleeping in between, as with a camera.

    The processor is left to idle and to lower its clocks between frames, as it would in the application: figures are
    often slower than back-to-back ones. A tick that is missed is not moved; the work that was due begins at once.

    Args:
        preprocess: first part of the work; ``i`` counts from 0, warm-up included.
        infer: second part.
        rate_hz: ticks per second, above 0.
        runs: timed ticks, at least 1.
        warm_up: ticks before them, on a schedule of their own, so that a slow first call delays no timed one.
        clock: nanoseconds, monotonic.
        sleep: seconds.
    """

    def tick_ns(i: int) -> int:
        return round(i * 1e9 / rate_hz)

    def series(first: int, count: int) -> Series:
        durations = np.empty((count, len(STAGES)), dtype=np.int64)
        late = 0
        begin = end = clock()
        for i in range(count):
            if (wait := begin + tick_ns(i) - clock()) > 0:
                sleep(wait / 1e9)
            start = clock()
            tensor = preprocess(first + i)
            middle = clock()
            infer(tensor)
            end = clock()
            durations[i] = middle - start, end - middle, end - start
            late += end > begin + tick_ns(i + 1)
        return Series(durations, max(end - begin, tick_ns(count)), late)

    series(0, warm_up)
    return series(warm_up, runs)


def benchmark(
    bundle: Bundle,
    openers: Sequence[Opener],
    *,
    batches: Sequence[int] = (1,),
    runs: int = 200,
    warm_up: int = 20,
    rate_hz: float | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Measure every stage of every backend at every batch size, on the bundle's golden frames.

    Backends are opened, measured and closed one after another, so that none shares memory or cores with the next. All
    are opened once before that: what cannot be opened shows in seconds, not after the minutes of the others.

    Args:
        bundle: an opened bundle.
        openers: functions without arguments that open a backend of ``bundle``, e.g.
            ``functools.partial(OnnxRuntimeBackend, bundle, variant="fp16")``.
        batches: batch sizes for the back-to-back series; the frames are cycled.
        runs: timed calls of each series.
        warm_up: calls before them.
        rate_hz: also a paced series of batch 1 at this rate; None for none.
        progress: called with the series done, all series and the name of the next.

    Returns:
        Three rows, one for each stage, of each backend and batch, and of each backend's paced series.

    Raises:
        InputError: an argument is out of range.
        BundleError: the bundle has no golden frames.
        BackendError: a backend cannot be opened, or fails.
    """
    _check(openers, batches, runs, warm_up, rate_hz)
    frames = _Frames.of(bundle)
    for opener in openers[1:]:
        opener().close()
    total = len(openers) * (len(STAGES) * len(batches) + (rate_hz is not None))
    rows: list[BenchRow] = []
    done = 0

    def report(text: str) -> None:
        if progress is not None:
            progress(done, total, text)

    before = conditions()
    for opener in openers:
        with opener() as backend:
            who = f"{backend.name} {backend.variant}"
            for batch in batches:
                for stage, call in frames.calls(backend, batch).items():
                    report(f"{who}, batch {batch}, {stage}")
                    times = back_to_back(call, runs=runs, warm_up=warm_up)
                    rows.append(_row(backend, stage, times.durations_ns, times, batch=batch, warm_up=warm_up))
                    done += 1
            if rate_hz is not None:
                report(f"{who}, paced at {rate_hz:g} Hz")
                times = paced(frames.tensor, backend.infer, rate_hz=rate_hz, runs=runs, warm_up=warm_up)
                for i, stage in enumerate(STAGES):
                    rows.append(_row(backend, stage, times.durations_ns[:, i], times, warm_up=warm_up, rate_hz=rate_hz))
                done += 1
    report("done")
    title = {"title": bundle.manifest["title"]} if "title" in bundle.manifest else {}
    return Bench(
        bundle={"id": bundle.id, "name": bundle.path.resolve().name, **title},
        environment=environment(),
        conditions={"before": before, "after": conditions()},
        rows=tuple(rows),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        edgeadv_version=__version__,
    )


@dataclass(frozen=True)
class _Frames:
    """The golden frames, cycled."""

    frames: list[NDArray[np.uint8]]
    preprocess: Preprocess

    @classmethod
    def of(cls, bundle: Bundle) -> _Frames:
        """The frames of ``bundle``, as they are in its file."""
        frames = bundle.golden().frames
        if not frames:
            raise BundleError(f"{bundle.path} has no golden frames to measure with; export the bundle again")
        return cls(frames, bundle.preprocess)

    def tensor(self, i: int, batch: int = 1) -> NDArray[np.float32]:
        """The ``i``-th batch, preprocessed now."""
        cycle = [self.frames[(i * batch + k) % len(self.frames)] for k in range(batch)]
        return to_tensor(np.stack([self.preprocess(frame, color_order="rgb") for frame in cycle]))

    def calls(self, backend: Backend, batch: int) -> dict[Stage, Callable[[int], object]]:
        """What is timed, by stage."""
        # batch i is a window of this ring: every batch of the cycle, without a copy of its own or any work when timed
        ring = self.tensor(0, len(self.frames) + batch - 1)

        def window(i: int) -> NDArray[np.float32]:
            first = i * batch % len(self.frames)
            return ring[first : first + batch]

        return {
            "preprocess": lambda i: self.tensor(i, batch),
            "inference": lambda i: backend.infer(window(i)),
            "end-to-end": lambda i: backend.infer(self.tensor(i, batch)),
        }


def _check(openers: Sequence[Opener], batches: Sequence[int], runs: int, warm_up: int, rate_hz: float | None) -> None:
    if not openers:
        raise InputError("nothing to measure: name at least one backend and variant")
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise InputError(f"batches are distinct whole numbers from 1, not {', '.join(map(str, batches)) or 'none'}")
    if runs < 1 or warm_up < 0:
        raise InputError(f"runs must be at least 1 and warm-up at least 0, not {runs} and {warm_up}")
    if rate_hz is not None and not (isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"rate must be above 0 Hz, not {rate_hz:g}")


def _row(
    backend: Backend,
    stage: Stage,
    durations_ns: NDArray[np.int64],
    series: Series,
    *,
    warm_up: int,
    batch: int = 1,
    rate_hz: float | None = None,
) -> BenchRow:
    n = len(durations_ns)
    p50, p90, p99, slowest = (float(ms) for ms in np.percentile(durations_ns / 1e6, [50, 90, 99, 100]))
    return BenchRow(
        variant=backend.variant,
        artifact_sha256=backend.artifact_sha256,
        backend=backend.name,
        provider=backend.provider,
        device=backend.device,
        threads=backend.threads,
        batch=batch,
        mode="back-to-back" if rate_hz is None else "paced",
        rate_hz=rate_hz,
        stage=stage,
        n=n,
        warm_up=warm_up,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if n >= P99_MIN_RUNS else None,
        max_ms=slowest,
        images_per_s=n * batch * 1e9 / series.wall_ns,
        late=None if rate_hz is None else series.late,
        includes=INCLUDES[stage] + ("" if rate_hz is None else _PACED),
    )
