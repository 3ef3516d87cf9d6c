"""Timing one series of calls. Nothing but the calls happens between two of them; meters are read before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from ..records.bench import SPLIT_STAGES, STAGES
from .power import Meter, Reading


class Series(NamedTuple):
    """Timed calls, in the order in which they ran.

    Attributes:
        durations_ns: int64 of shape (runs,), or (runs, 3) for the stages of a paced or a split series, in the order of
            ``STAGES`` or ``SPLIT_STAGES``.
        wall_ns: from the start of the first to the end of the last; for paced to its next tick, if that is later.
        late: ticks that came before the work on the frame of the tick before was done; 0 for back-to-back.
        joules: energy of the series; None where nothing measured it.
        cpu_ns: processor time of all threads of the process, from the first to the end of the last; None for a split
            series.
    """

    durations_ns: NDArray[np.int64]
    wall_ns: int
    late: int
    joules: float | None = None
    cpu_ns: int | None = None


def back_to_back(
    call: Callable[[int], object],
    *,
    runs: int,
    warm_up: int,
    clock: Callable[[], int] = time.perf_counter_ns,
    cpu_clock: Callable[[], int] = time.process_time_ns,
    meter: Meter | None = None,
) -> Series:
    """Time ``call(i)`` with nothing in between.

    Args:
        call: what to time; ``i`` counts from 0, warm-up included.
        runs: timed calls, at least 1.
        warm_up: calls before them.
        clock: nanoseconds, monotonic.
        cpu_clock: nanoseconds of processor time, of all threads.
        meter: what measures energy, read before the first timed call and after the last.
    """
    for i in range(warm_up):
        call(i)
    durations = np.empty(runs, dtype=np.int64)
    first = meter.read() if meter else None
    cpu_before = cpu_clock()
    begin = clock()
    for i in range(runs):
        start = clock()
        call(warm_up + i)
        durations[i] = clock() - start
    wall_ns = clock() - begin
    cpu_ns = cpu_clock() - cpu_before
    return Series(durations, wall_ns, 0, _joules(meter, first, wall_ns), cpu_ns)


def split(
    call: Callable[[int], Mapping[str, float]],
    *,
    runs: int,
    warm_up: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Series:
    """Have ``call(i)`` tell the milliseconds of its own parts, one call after the other.

    Args:
        call: gives milliseconds of each of ``SPLIT_STAGES``; ``i`` counts from 0, warm-up included.
        runs: calls that count, at least 1.
        warm_up: calls before them.
        clock: nanoseconds, monotonic: for the wall time of the whole series.

    Raises:
        BackendError: a part is missing, or no time.
    """
    for i in range(warm_up):
        call(i)
    parts = []
    begin = clock()
    for i in range(runs):
        parts.append(call(warm_up + i))
    wall_ns = clock() - begin
    try:
        durations = np.array([[part[stage] for stage in SPLIT_STAGES] for part in parts], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"infer_split must give milliseconds of {', '.join(SPLIT_STAGES)}: {error!r}") from error
    if not (durations >= 0).all() or not np.isfinite(durations).all():
        raise BackendError("infer_split gave a time below 0 or no number: the device's clock cannot be trusted here")
    return Series(np.rint(durations * 1e6).astype(np.int64), wall_ns, 0)


def _joules(meter: Meter | None, first: Reading | None, wall_ns: int) -> float | None:
    return meter.joules(first, meter.read(), wall_s=wall_ns / 1e9) if meter else None


def paced(
    preprocess: Callable[[int], NDArray[Any]],
    infer: Callable[[NDArray[Any]], object],
    *,
    rate_hz: float,
    runs: int,
    warm_up: int,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    cpu_clock: Callable[[], int] = time.process_time_ns,
    meter: Meter | None = None,
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
        cpu_clock: nanoseconds of processor time, of all threads: what they do between frames is in it.
        meter: what measures energy, read before the first timed tick and after the last frame.
    """

    def tick_ns(i: int) -> int:
        return round(i * 1e9 / rate_hz)

    def series(first: int, count: int, meter: Meter | None = None) -> Series:
        durations = np.empty((count, len(STAGES)), dtype=np.int64)
        late = 0
        energy_before = meter.read() if meter else None
        cpu_before = cpu_clock()
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
        cpu_ns = cpu_clock() - cpu_before
        joules = _joules(meter, energy_before, end - begin)
        return Series(durations, max(end - begin, tick_ns(count)), late, joules, cpu_ns)

    series(0, warm_up)
    return series(warm_up, runs, meter)
