"""Latency of a bundle on this machine. ``docs/reference/bench.md`` says what is measured, and describes the file.

What is timed is what an application calls: :class:`~edgeadv_runtime.bundle.preprocess.Preprocess` and
``Backend.infer``, of a ``-u8in`` variant ``Backend.infer_pixels``, on the bundle's own golden frames. No run is ever
left out of a figure; warm-up runs come before, and are counted apart. Nothing but the timed calls happens between two
timed calls: progress is reported between series only, and meters of energy are read before the first timed call and
after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from math import isfinite
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..backends.base import Backend
from ..bundle.batches import Progress
from ..bundle.bundle import Bundle
from ..bundle.preprocess import Preprocess, to_tensor
from ..decoding import convert
from ..device.facts import conditions, environment
from ..errors import BundleError, InputError
from ..records.about import Subject
from ..records.bench import SPINS, SPLIT_STAGES, STAGES, Bench, BenchRow, Stage
from ..records.machine import Conditions, Environment
from ..records.measurement import WRITER
from .conditions import run_warnings
from .power import Meter, metering
from .timing import Series, back_to_back, paced, split

__all__ = ["INCLUDES", "P99_MIN_RUNS", "Opener", "Splits", "bench"]

Opener = Callable[[], Backend]
# a p99 from fewer runs would rest on fewer than ten of them
P99_MIN_RUNS = 1000
_SPLIT = "by the device's own clock, in a series apart from inference, whose time also has checks, launches and waiting"
INCLUDES: dict[Stage, str] = {
    "preprocess": "decoded RGB frames in memory to a float32 NCHW array: resize, crop, scale; no capture or decoding",
    "inference": "Backend.infer, a float32 array in memory to logits in memory: with its checks and any device copies",
    "end-to-end": "preprocess and inference in one timed call, decoded RGB frames to logits; no capture or decoding",
    "copy-in": f"the input from the backend's own buffer in host memory to the device: {_SPLIT}",
    "compute": f"the model alone, its input and its logits in memory of the device: {_SPLIT}",
    "copy-out": f"the logits from the device to the backend's own buffer in host memory: {_SPLIT}",
}
# of a variant that takes pixels
_INCLUDES_UINT8: dict[Stage, str] = {
    "preprocess": "decoded RGB frames in memory to a uint8 NHWC array: resize and crop; no capture or decoding",
    "inference": "Backend.infer_pixels, a uint8 array in memory to logits in memory: with its checks and any device "
    "copies",
}
# ONNX Runtime is opened without a device number, and then takes the first GPU
_FIRST_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_PACED = "; from when work on the frame begins: waiting behind a frame that took too long is not in it, see late"


@runtime_checkable
class Splits(Protocol):
    """A backend that can also tell the parts of a call."""

    def infer_split(self, x: NDArray[Any]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Logits, and milliseconds of each of :data:`SPLIT_STAGES` as the device's own clock has them."""


def bench(
    bundle: Bundle,
    openers: Sequence[Opener],
    *,
    batches: Sequence[int] = (1,),
    runs: int = 200,
    warm_up: int = 20,
    rate_hz: float | None = None,
    progress: Progress | None = None,
    keep: Callable[[Bench], None] | None = None,
) -> Bench:
    """Measure every stage of every backend at every batch size, on the bundle's golden frames.

    Backends are opened, measured and closed one after another, so that none shares memory or cores with the next. All
    are opened once before that: what cannot be opened shows in seconds, not after the minutes of the others, and so
    does a plan that would cut or pad a batch. Where the machine counts energy each series has its own, see
    :mod:`~edgeadv_runtime.benchmark.power`.

    ::

        measured = bench(bundle, [lambda: OnnxRuntimeBackend(bundle, variant="fp16")], batches=(1, 8), rate_hz=30)

    Args:
        bundle: an opened bundle.
        openers: functions without arguments that open a backend of ``bundle``, e.g.
            ``functools.partial(OnnxRuntimeBackend, bundle, variant="fp16")``.
        batches: batch sizes for the back-to-back series; the frames are cycled.
        runs: timed calls of each series.
        warm_up: calls before them.
        rate_hz: also a paced series of batch 1 at this rate; None for none.
        progress: called with the series done, all series and the name of the next.
        keep: given what there is as soon as a backend has been measured, for those that come after it may fail or be
            interrupted.

    Returns:
        Three rows, one for each stage, of each backend and batch, and of each backend's paced series; three more of
        each batch of a backend that can :class:`split <Splits>` a call, and of a paced series without spinning where a
        backend's threads :attr:`can do without <Backend.unspun>`.

    Raises:
        InputError: an argument is out of range, or a plan does not serve a batch size.
        BundleError: the bundle has no golden frames.
        BackendError: a backend cannot be opened, or fails.
    """
    _check(openers, batches, runs, warm_up, rate_hz)
    frames = bundle.golden().frames
    if not frames:
        raise BundleError(f"{bundle.path} has no golden frames to measure with; export the bundle again")
    sizes = sorted({*batches, *([] if rate_hz is None else [1])})
    seen = [(False, False), *(_probe(opener, sizes) for opener in openers[1:])]
    rows: list[BenchRow] = []
    notes: list[str] = []
    done = count()

    def report(text: str) -> None:
        if progress is not None:
            alike = len(openers) * (len(STAGES) * len(batches) + (rate_hz is not None))
            twice = 0 if rate_hz is None else sum(unspun for _, unspun in seen)
            progress(next(done), alike + twice + len(batches) * sum(splits for splits, _ in seen), text)

    machine = convert(environment(), Environment, what="description of this machine")
    before = _conditions()
    for i, opener in enumerate(openers):
        with opener() as backend, _meter(backend) as meter:
            _check_plan(backend, sizes)
            again = backend.unspun
            seen[i] = isinstance(backend, Splits), again is not None
            measure = _Measuring(backend, frames, bundle.preprocess, runs, warm_up, meter, report)
            own = [row for batch in batches for row in measure.of_batch(batch)]
            own += [] if rate_hz is None else measure.at_rate(rate_hz)
            # CUDA graphs are made in the calls: only now is it known whether they could be
            engine = backend.engine_info
            rows += [replace(row, engine=engine) for row in own]
            if engine is not None and engine.cuda_graph_note is not None:
                notes.append(f"{_who(backend)}: {engine.cuda_graph_note}")
            # a device that is let go of falls idle at once
            after = _conditions()
        if rate_hz is not None and again is not None:
            with again() as backend, _meter(backend) as meter:
                measure = _Measuring(backend, frames, bundle.preprocess, runs, warm_up, meter, report)
                rows += measure.at_rate(rate_hz)
                after = _conditions()
        measured = Bench(
            bundle=Subject(id=bundle.id, name=bundle.path.resolve().name, title=bundle.manifest.title),
            environment=machine,
            conditions={"before": before, "after": after},
            rows=tuple(rows),
            warnings=(*run_warnings(before, after), *notes),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            edgeadv_version=WRITER,
        )
        if keep is not None:
            keep(measured)
    report("done")
    return measured


def _conditions() -> Conditions:
    return convert(conditions(), Conditions, what="description of this machine")


def _probe(opener: Opener, sizes: Sequence[int]) -> tuple[bool, bool]:
    """Whether a backend can split a call, and whether its threads can also do without spinning."""
    with opener() as backend:
        _check_plan(backend, sizes)
        return isinstance(backend, Splits), backend.unspun is not None


def _check_plan(backend: Backend, sizes: Sequence[int]) -> None:
    """Refuse batch sizes that a plan would cut or pad: their time would be that of other ones.

    Args:
        backend: what is about to be timed.
        sizes: of all its series, ascending.
    """
    engine = backend.engine_info
    if engine is None:
        return
    least, best, most = engine.profile
    if unserved := [size for size in sizes if not least <= size <= most]:
        served = f"{most}" if least == most else f"{least},{best},{most}"
        wanted = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]},{sizes[len(sizes) // 2]},{sizes[-1]}"
        raise InputError(
            f"the plan of {_who(backend)} serves batch {served}; batch {', '.join(map(str, unserved))} would be "
            "cut or padded, and "
            f"timed as what it is not: give `engine_batch` {wanted} (`rate_hz` needs batch 1), or time what the plan "
            "serves"
        )


def _meter(backend: Backend) -> AbstractContextManager[Meter | None]:
    return metering(gpu_index=_gpu_index(backend), processor=_on_processor(backend))


def _on_processor(backend: Backend) -> bool:
    return "cpu" in backend.provider.lower()


def _gpu_index(backend: Backend) -> int | None:
    """The GPU that a backend runs on, as CUDA counts them; None for the processor, and where nobody knows which."""
    if _on_processor(backend):
        return None
    return 0 if backend.gpu_index is None and backend.provider in _FIRST_GPU else backend.gpu_index


def _who(backend: Backend) -> str:
    return f"{backend.name} {backend.variant}"


@dataclass(frozen=True)
class _Measuring:
    """All series of one backend, on the golden frames, cycled."""

    backend: Backend
    frames: list[NDArray[Any]]
    preprocess: Preprocess
    runs: int
    warm_up: int
    meter: Meter | None
    report: Callable[[str], None]

    def pixels(self, i: int, batch: int = 1) -> NDArray[np.uint8]:
        """The ``i``-th batch, preprocessed now, for an artefact that takes pixels."""
        cycle = [self.frames[(i * batch + k) % len(self.frames)] for k in range(batch)]
        return np.stack([self.preprocess(frame, color_order="rgb") for frame in cycle])

    def tensor(self, i: int, batch: int = 1) -> NDArray[np.float32]:
        """The ``i``-th batch, preprocessed now, for every other artefact."""
        return to_tensor(self.pixels(i, batch))

    @property
    def steps(self) -> tuple[Callable[..., NDArray[Any]], Callable[[Any], object]]:
        """What makes a batch as the backend takes it, and what infers that."""
        backend = self.backend
        return (self.pixels, backend.infer_pixels) if backend.takes_uint8 else (self.tensor, backend.infer)

    def of_batch(self, batch: int) -> Iterator[BenchRow]:
        """A series of each stage, back to back, and one of the parts of a call where the backend tells them."""
        prepare, infer = self.steps
        # batch i is a window of this ring: every batch of the cycle, without a copy of its own
        ring = prepare(0, len(self.frames) + batch - 1)

        def window(i: int) -> NDArray[Any]:
            first = i * batch % len(self.frames)
            return ring[first : first + batch]

        calls: dict[Stage, Callable[[int], object]] = {
            "preprocess": lambda i: prepare(i, batch),
            "inference": lambda i: infer(window(i)),
            "end-to-end": lambda i: infer(prepare(i, batch)),
        }
        for stage, call in calls.items():
            self.report(f"{_who(self.backend)}, batch {batch}, {stage}")
            # what counts a GPU's board alone would show it idle
            meter = self.meter if self.meter and (self.meter.covers_cpu or stage != "preprocess") else None
            times = back_to_back(call, runs=self.runs, warm_up=self.warm_up, meter=meter)
            yield self._row(stage, times.durations_ns, times, batch=batch, meter=meter)
        if isinstance(self.backend, Splits):
            self.report(f"{_who(self.backend)}, batch {batch}, its parts")
            parts_of = self.backend.infer_split
            times = split(lambda i: parts_of(window(i))[1], runs=self.runs, warm_up=self.warm_up)
            for stage, durations in zip(SPLIT_STAGES, times.durations_ns.T, strict=True):
                yield self._row(stage, durations, times, batch=batch)

    def at_rate(self, rate_hz: float) -> Iterator[BenchRow]:
        """One series of frames that come at a rate."""
        self.report(f"{_who(self.backend)}, paced at {rate_hz:g} Hz{SPINS[self.backend.spin]}")
        times = paced(*self.steps, rate_hz=rate_hz, runs=self.runs, warm_up=self.warm_up, meter=self.meter)
        for stage, durations in zip(STAGES, times.durations_ns.T, strict=True):
            # between frames energy goes on flowing, and threads may spin: that belongs to the whole, and to no stage
            whole = stage == "end-to-end"
            series = times if whole else times._replace(cpu_ns=None)
            yield self._row(stage, durations, series, rate_hz=rate_hz, meter=self.meter if whole else None)

    def _row(
        self,
        stage: Stage,
        durations_ns: NDArray[np.int64],
        series: Series,
        *,
        batch: int = 1,
        rate_hz: float | None = None,
        meter: Meter | None = None,
    ) -> BenchRow:
        backend, n = self.backend, len(durations_ns)
        includes = (_INCLUDES_UINT8 if backend.takes_uint8 else {}).get(stage, INCLUDES[stage])
        if stage in ("preprocess", "end-to-end"):
            # an export makes large frames smaller, and preprocessing takes the longer the larger they are
            height, width = max((frame.shape[:2] for frame in self.frames), key=lambda size: size[0] * size[1])
            includes += f"; the largest frame has {width}x{height} pixels"
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
            warm_up=self.warm_up,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99 if n >= P99_MIN_RUNS else None,
            max_ms=slowest,
            images_per_s=n * batch * 1e9 / series.wall_ns,
            late=None if rate_hz is None else series.late,
            includes=includes + ("" if rate_hz is None else _PACED),
            energy_mj_per_image=1000 * series.joules / (n * batch) if meter and series.joules is not None else None,
            energy_source=meter.source if meter else None,
            spin=backend.spin,
            cpu_ms_per_image=None if series.cpu_ns is None else series.cpu_ns / 1e6 / (n * batch),
        )


def _check(openers: Sequence[Opener], batches: Sequence[int], runs: int, warm_up: int, rate_hz: float | None) -> None:
    if not openers:
        raise InputError("nothing to measure: name at least one backend and variant")
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise InputError(f"batches are distinct whole numbers from 1, not {', '.join(map(str, batches)) or 'none'}")
    if runs < 1 or warm_up < 0:
        raise InputError(f"runs must be at least 1 and warm-up at least 0, not {runs} and {warm_up}")
    if rate_hz is not None and not (isinstance(rate_hz, Real) and isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"rate must be above 0 Hz, not {rate_hz}")
