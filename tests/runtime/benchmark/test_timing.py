"""One series of calls, on a clock that passes only when told to: what is timed, what is counted, when meters are
read."""

from __future__ import annotations

import threading
import time

import pytest

from edgeadv_runtime.benchmark import power
from edgeadv_runtime.benchmark.timing import back_to_back, paced, split
from edgeadv_runtime.errors import BackendError
from edgeadv_runtime.records.bench import SPLIT_STAGES

MS = 1_000_000


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 7 * MS

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)

    def work(self, ms):
        self.now += round(ms * MS)


def test_back_to_back_times_every_call_but_the_warm_up():
    clock, took = Clock(), [500, 600, 3, 1, 80, 2]
    times = back_to_back(lambda i: clock.work(took[i]), runs=4, warm_up=2, clock=clock)
    assert times.durations_ns.tolist() == [3 * MS, 1 * MS, 80 * MS, 2 * MS]
    assert times.wall_ns == 86 * MS
    assert times.late == 0


def run_paced(took, *, warm_up=0, rate_hz=100.0):
    """A paced series whose i-th frame takes ``took[i]`` ms, 1 ms of it for preprocessing; and when each began."""
    clock, began = Clock(), []
    start = clock.now

    def preprocess(i):
        began.append((clock.now - start) / MS)
        clock.work(1)
        return i

    times = paced(
        preprocess,
        lambda i: clock.work(took[i] - 1),
        rate_hz=rate_hz,
        runs=len(took) - warm_up,
        warm_up=warm_up,
        clock=clock,
        sleep=clock.sleep,
    )
    return times, began


def test_paced_keeps_a_schedule_that_work_does_not_shift():
    times, began = run_paced([5, 9, 10, 2])
    assert began == [0, 10, 20, 30]
    assert times.late == 0
    assert times.wall_ns == 40 * MS
    assert times.durations_ns.tolist() == [[1 * MS, (t - 1) * MS, t * MS] for t in (5, 9, 10, 2)]


def test_paced_catches_up_with_missed_ticks_and_counts_every_late_frame():
    times, began = run_paced([5, 25, 5, 5, 5, 5])
    # the second is due at 10 and done at 35; the next two begin late, the one of tick 40 is done when 50 begins
    assert began == [0, 10, 35, 40, 45, 50]
    assert times.late == 3
    assert times.durations_ns[:, 2].max() == 25 * MS


def test_paced_slower_than_the_rate_is_late_every_time_and_keeps_no_false_rate():
    times, _ = run_paced([12] * 10)
    assert times.late == 10
    assert times.wall_ns == 120 * MS


def test_paced_warm_up_makes_no_timed_frame_late():
    times, began = run_paced([2000, 5, 5, 5], warm_up=1)
    assert times.late == 0
    assert len(times.durations_ns) == 3
    assert began == [0, 2000, 2010, 2020]


def test_split_keeps_the_parts_as_they_were_told():
    clock = Clock()

    def call(i):
        clock.work(10)
        return {"copy-out": 0.25, "copy-in": 0.5 + i, "compute": 3.0, "more": 7.0}

    times = split(call, runs=3, warm_up=2, clock=clock)
    assert times.durations_ns.tolist() == [[round(ms * MS) for ms in (0.5 + i, 3.0, 0.25)] for i in (2, 3, 4)]
    assert times.wall_ns == 30 * MS


@pytest.mark.parametrize("parts", [{"compute": 1.0}, dict.fromkeys(SPLIT_STAGES, "fast"), None])
def test_split_without_a_part_is_an_error(parts):
    with pytest.raises(BackendError, match="copy-in, compute, copy-out"):
        split(lambda i: parts, runs=2, warm_up=0)


@pytest.mark.parametrize("ms", [-0.1, float("nan"), float("inf")])
def test_split_with_a_time_that_is_none_is_an_error(ms):
    with pytest.raises(BackendError, match="clock cannot be trusted"):
        split(lambda i: dict.fromkeys(SPLIT_STAGES, 1.0) | {"compute": ms}, runs=2, warm_up=0)


class Meter(power.Meter):
    """Counts a millijoule for every millisecond of a clock, and remembers when it was read."""

    source = "a meter"
    covers_cpu = True
    shortest_s = 0.0

    def __init__(self, clock):
        self.clock = clock
        self.read_at = []

    def read(self):
        self.read_at.append(self.clock.now)
        return (self.clock.now,)

    def _joules(self, first, last, wall_s):
        return (last[0] - first[0]) / 1e9


def test_meters_are_read_around_the_timed_calls_and_never_between_them():
    clock = Clock()
    meter, start = Meter(clock), clock.now
    times = back_to_back(lambda i: clock.work(10), runs=4, warm_up=2, clock=clock, meter=meter)
    assert [(at - start) / MS for at in meter.read_at] == [20, 60]
    assert times.joules == pytest.approx(0.040)
    meter.read_at.clear()
    start = clock.now
    times = paced(
        lambda i: i,
        lambda i: clock.work(5),
        rate_hz=100,
        runs=3,
        warm_up=1,
        clock=clock,
        sleep=clock.sleep,
        meter=meter,
    )
    assert [(at - start) / MS for at in meter.read_at] == [5, 30]
    assert times.joules == pytest.approx(0.025)


def test_processor_time_is_that_of_the_timed_calls_and_of_what_threads_do_between_them():
    clock, spent = Clock(), Clock()

    def work(i):
        clock.work(5)
        spent.work(3)

    def sleep(seconds):
        clock.sleep(seconds)
        spent.work(1)  # of threads that spin meanwhile

    assert back_to_back(work, runs=4, warm_up=2, clock=clock, cpu_clock=spent).cpu_ns == 12 * MS
    times = paced(lambda i: i, work, rate_hz=100, runs=3, warm_up=2, clock=clock, sleep=sleep, cpu_clock=spent)
    assert times.cpu_ns == 11 * MS
    assert split(lambda i: dict.fromkeys(SPLIT_STAGES, 1.0), runs=2, warm_up=0).cpu_ns is None


def test_processor_time_counts_every_thread_of_the_process():
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [hash(i) for i in iter(stop.is_set, True)])
    busy.start()
    try:
        before = time.thread_time_ns()
        times = back_to_back(lambda i: time.sleep(0.02), runs=10, warm_up=0)
        own = time.thread_time_ns() - before
    finally:
        stop.set()
        busy.join()
    assert times.cpu_ns is not None and times.cpu_ns > 2 * own
