"""Latency: what is timed, what is counted, what the file says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from msgspec import to_builtins
from msgspec.structs import replace
from typer.testing import CliRunner

from edgeadv.cli._options import with_options
from edgeadv.cli.bench import bench as bench_command
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.benchmark import latency, power
from edgeadv_runtime.benchmark.latency import Splits
from edgeadv_runtime.benchmark.latency import bench as benchmark
from edgeadv_runtime.benchmark.timing import back_to_back, paced
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.golden import Golden
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import BackendError, BundleError, InputError, SchemaError, StorageError
from edgeadv_runtime.files import read_json, write_json
from edgeadv_runtime.records.about import Skipped
from edgeadv_runtime.records.bench import SPLIT_STAGES, STAGES, Bench, BenchRow
from edgeadv_runtime.records.rows import EngineInfo

MS = 1_000_000


class Recorded(OnnxRuntimeBackend):
    """The real backend; remembers what it was given."""

    opened = 0

    def __init__(self, bundle, **options):
        super().__init__(bundle, **options)
        type(self).opened += 1
        self.batches = []

    def _infer(self, x):
        self.batches.append(x.copy())
        return super()._infer(x)

    def _close(self):
        type(self).opened -= 1
        super()._close()


class Apart(Recorded):
    """The real backend with parts of a call that it timed itself, as one on a device does by the device's clock."""

    def __init__(self, bundle, **options):
        super().__init__(bundle, **options)
        self.parts = []

    def infer_split(self, x):
        marks = [time.perf_counter_ns()]
        held = x.copy()
        marks.append(time.perf_counter_ns())
        logits = self.infer_pixels(held) if self.takes_uint8 else self.infer(held)
        marks.append(time.perf_counter_ns())
        out = logits.copy()
        marks.append(time.perf_counter_ns())
        self.parts.append(np.diff(marks).tolist())
        return out, dict(zip(SPLIT_STAGES, (ns / MS for ns in self.parts[-1]), strict=True))


PLAN = EngineInfo(
    plan_sha256="0123456789ab" + "f" * 52,
    profile=(1, 1, 1),
    precision="declared",
    library="TensorRT 10.13.3",
    compute_capability="sm_87",
    driver="540.4.0",
    tf32=False,
    cuda_graphs=True,
    cuda_graph_note=None,
)


class Planned(OnnxRuntimeBackend):
    """The real backend, telling of a plan as one of TensorRT does: whether there are CUDA graphs shows in the calls."""

    def __init__(self, bundle, *, profile=(1, 1, 1), note=None, **options):
        super().__init__(bundle, **options)
        self.profile, self.note, self.called = profile, note, 0

    @property
    def engine_info(self):
        ran = self.called > 1
        note = self.note if ran else None
        return replace(PLAN, profile=self.profile, cuda_graphs=ran and note is None, cuda_graph_note=note)

    def _infer(self, x):
        self.called += 1
        return super()._infer(x)


class Counted(OnnxRuntimeBackend):
    """The real backend on a machine whose processor package counts 4 mJ for every call."""

    def __init__(self, bundle, counter, **options):
        super().__init__(bundle, **options)
        self.counter = counter

    def _infer(self, x):
        self.counter.write_text(f"{int(self.counter.read_text()) + 4000}\n")
        return super()._infer(x)


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """The counter of this machine's processor package, which counts only what a test makes it count."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text("1000\n")
    monkeypatch.setattr(latency, "metering", partial(power.metering, powercap=zone.parent))
    monkeypatch.setattr(power.RaplMeter, "shortest_s", 0.0)
    return zone / "energy_uj"


@pytest.fixture
def series(monkeypatch):
    """Every series that benchmark times, as it was timed."""
    seen = []

    def recorded(real):
        def record(*args, **options):
            seen.append(real(*args, **options))
            return seen[-1]

        return record

    monkeypatch.setattr(latency, "back_to_back", recorded(back_to_back))
    monkeypatch.setattr(latency, "paced", recorded(paced))
    return seen


def opener(bundle, variant="fp32"):
    return partial(OnnxRuntimeBackend, bundle, variant=variant, threads=1)


def test_rows_hold_the_percentiles_of_every_timed_call(tiny_bundle, series):
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], batches=(1, 3), runs=25, warm_up=2, rate_hz=500)
    timed = [(s.durations_ns, s) for s in series[:-1]] + [(series[-1].durations_ns[:, i], series[-1]) for i in range(3)]
    assert len(bench.rows) == len(timed) == 9
    for row, (durations, one) in zip(bench.rows, timed, strict=True):
        assert row.n == len(durations) == 25
        assert row.warm_up == 2
        assert row.p50_ms == pytest.approx(np.percentile(durations, 50) / MS)
        assert row.p90_ms == pytest.approx(np.percentile(durations, 90) / MS)
        assert row.max_ms == pytest.approx(durations.max() / MS)
        assert row.images_per_s == pytest.approx(25 * row.batch / (one.wall_ns / 1e9))
        assert 0 < row.p50_ms <= row.p90_ms <= row.max_ms
    assert [row.late for row in bench.rows] == [None] * 6 + [series[-1].late] * 3


@pytest.mark.parametrize(("runs", "has_p99"), [(999, False), (1000, True)])
def test_p99_only_where_enough_calls_carry_it(tiny_bundle, series, runs, has_p99):
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=runs, warm_up=0)
    for row, one in zip(bench.rows, series, strict=True):
        assert row.p99_ms == (pytest.approx(np.percentile(one.durations_ns, 99) / MS) if has_p99 else None)


def test_rows_say_whose_figure_they_are_and_what_is_in_it(tiny_bundle):
    both = [opener(tiny_bundle, variant) for variant in ("fp32", "fp16")]
    bench = benchmark(tiny_bundle, both, batches=(2, 1), runs=3, warm_up=0, rate_hz=1000)
    back = [("back-to-back", batch, stage) for batch in (2, 1) for stage in STAGES]
    expected = back + [("paced", 1, stage) for stage in STAGES]
    for variant in ("fp32", "fp16"):
        rows = bench.select(variant=variant)
        assert [(row.mode, row.batch, row.stage) for row in rows] == expected
        with opener(tiny_bundle, variant)() as backend:
            for row in rows:
                assert row.artifact_sha256 == tiny_bundle.artifact_sha256(variant)
                assert (row.backend, row.provider, row.device, row.threads) == (
                    "onnxruntime",
                    "CPUExecutionProvider",
                    backend.device,
                    1,
                )
                assert row.includes.startswith(latency.INCLUDES[row.stage])
                assert ("see late" in row.includes) == (row.mode == "paced")
                assert ("the largest frame has " in row.includes) == (row.stage != "inference")
                assert row.rate_hz == (1000 if row.mode == "paced" else None)
    assert bench.bundle.id == tiny_bundle.id
    assert bench.bundle.name == tiny_bundle.path.name
    assert bench.environment.versions["edgeadv"] == bench.edgeadv_version
    assert {"before", "after"} == bench.conditions.keys()
    assert bench.conditions["before"].time <= bench.conditions["after"].time


def test_parts_of_a_call_are_rows_of_a_series_of_their_own(tiny_bundle):
    backends = []

    def open_apart():
        backends.append(Apart(tiny_bundle, threads=1))
        return backends[-1]

    bench = benchmark(tiny_bundle, [open_apart], batches=(1, 2), runs=4, warm_up=1, rate_hz=1000)
    (backend,) = backends
    assert isinstance(backend, Splits)
    assert [(row.batch, row.mode, row.stage) for row in bench.rows] == [
        *((batch, "back-to-back", stage) for batch in (1, 2) for stage in (*STAGES, *SPLIT_STAGES)),
        *((1, "paced", stage) for stage in STAGES),
    ]
    assert len(backend.parts) == 10
    for batch, timed in ((1, backend.parts[1:5]), (2, backend.parts[6:])):
        for stage, durations in zip(SPLIT_STAGES, np.transpose(timed), strict=True):
            (row,) = bench.select(batch=batch, stage=stage)
            assert (row.n, row.warm_up, row.energy_source) == (4, 1, None)
            assert row.p50_ms == pytest.approx(np.percentile(durations, 50) / MS)
            assert row.max_ms == pytest.approx(durations.max() / MS)
            assert row.includes == latency.INCLUDES[stage] and "in a series apart from inference" in row.includes
    # infer_split is given the golden frames in turn, and inference is timed without it
    golden = to_tensor(tiny_bundle.golden().pixels)
    assert len(backend.batches) == 2 * 3 * 5 + 5
    for i, got in enumerate(backend.batches[10:15]):
        np.testing.assert_array_equal(got, golden[[i % len(golden)]])


def test_frames_at_a_rate_are_timed_with_threads_that_spin_and_with_threads_that_sleep(tiny_bundle):
    calls = []
    openers = [partial(OnnxRuntimeBackend, tiny_bundle, threads=2, spin=spin) for spin in (None, False)]
    bench = benchmark(tiny_bundle, openers, runs=3, warm_up=0, rate_hz=500, progress=lambda *call: calls.append(call))
    back, paced_rows = ([row for row in bench.rows if row.mode == mode] for mode in ("back-to-back", "paced"))
    assert [row.spin for row in back] == [True] * 3 + [False] * 3
    assert [(row.spin, row.stage) for row in paced_rows] == [
        (spin, stage) for spin in (True, False, False) for stage in STAGES
    ]
    assert [(done, total) for done, total, _ in calls] == [(i, 9) for i in range(10)]
    assert [text for *_, text in calls if "paced" in text] == [
        f"onnxruntime fp32, paced at 500 Hz, {how}" for how in ("spinning", "sleeping", "sleeping")
    ]
    # what threads do between frames is no stage's
    assert all(row.cpu_ms_per_image > 0 for row in back)
    assert [row.cpu_ms_per_image is not None for row in paced_rows] == [False, False, True] * 3


def test_one_thread_has_nobody_to_wait_for(tiny_bundle):
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=3, warm_up=0, rate_hz=500)
    assert [(row.mode, row.spin) for row in bench.rows] == [("back-to-back", None)] * 3 + [("paced", None)] * 3


def test_progress_counts_the_series_of_parts_where_there_are_any(tiny_bundle):
    calls = []
    openers = [partial(Apart, tiny_bundle), opener(tiny_bundle, "fp16"), partial(Apart, tiny_bundle, variant="fp16")]
    benchmark(tiny_bundle, openers, batches=(1, 2), runs=1, warm_up=0, progress=lambda *call: calls.append(call))
    assert [(done, total) for done, total, _ in calls] == [(i, 22) for i in range(23)]
    assert calls[3][2] == "onnxruntime fp32, batch 1, its parts"


def test_energy_is_that_of_the_series_for_each_of_its_images(tiny_bundle, powercap):
    bench = benchmark(
        tiny_bundle, [partial(Counted, tiny_bundle, powercap)], batches=(1, 2), runs=5, warm_up=2, rate_hz=1000
    )
    energies = {(row.mode, row.batch, row.stage): row.energy_mj_per_image for row in bench.rows}
    assert energies == {
        ("back-to-back", 1, "preprocess"): None,
        ("back-to-back", 1, "inference"): pytest.approx(4.0),
        ("back-to-back", 1, "end-to-end"): pytest.approx(4.0),
        ("back-to-back", 2, "preprocess"): None,
        ("back-to-back", 2, "inference"): pytest.approx(2.0),
        ("back-to-back", 2, "end-to-end"): pytest.approx(2.0),
        ("paced", 1, "preprocess"): None,
        ("paced", 1, "inference"): None,
        ("paced", 1, "end-to-end"): pytest.approx(4.0),
    }
    sources = {row.energy_source for row in bench.rows if row.mode == "back-to-back"}
    (source,) = sources
    assert source.startswith(
        "RAPL: the processor package, without memory, board or any GPU on a card; series of at most "
    )


def test_what_counts_the_gpu_alone_is_no_energy_of_preprocessing(tiny_bundle, monkeypatch):
    asked, calls = [], []

    class Board(power.Meter):
        source, covers_cpu, shortest_s = "a meter", False, 0.0

        def read(self):
            return (len(calls),)

        def _joules(self, first, last, wall_s):
            return 0.003 * (last[0] - first[0])

    class OnGpu(OnnxRuntimeBackend):
        def __init__(self, bundle):
            super().__init__(bundle)
            self.provider, self.gpu_index = "CUDAExecutionProvider", 1

        def _infer(self, x):
            calls.append(len(x))
            return super()._infer(x)

    def metering(**options):
        asked.append(options)
        return Board()

    monkeypatch.setattr(latency, "metering", metering)
    bench = benchmark(tiny_bundle, [partial(OnGpu, tiny_bundle)], runs=2, warm_up=0)
    assert [row.energy_mj_per_image for row in bench.rows] == [None, pytest.approx(3.0), pytest.approx(3.0)]
    assert [row.energy_source for row in bench.rows] == [None, "a meter", "a meter"]
    assert asked == [{"gpu_index": 1, "processor": False}]


@pytest.mark.parametrize(
    ("provider", "index", "asked"),
    [
        ("CPUExecutionProvider", None, {"gpu_index": None, "processor": True}),
        ("cpu", None, {"gpu_index": None, "processor": True}),
        ("CUDAExecutionProvider", None, {"gpu_index": 0, "processor": False}),
        ("TensorrtExecutionProvider", None, {"gpu_index": 0, "processor": False}),
        ("TensorRT 10.13.3", 2, {"gpu_index": 2, "processor": False}),
        ("cuda", 0, {"gpu_index": 0, "processor": False}),
        ("cuda", None, {"gpu_index": None, "processor": False}),  # cuda:0 or cuda:1, nobody knows
        ("a provider of somebody else", None, {"gpu_index": None, "processor": False}),
    ],
)
def test_only_the_gpu_that_a_backend_runs_on_is_metered(tiny_bundle, monkeypatch, provider, index, asked):
    seen = []

    class Elsewhere(OnnxRuntimeBackend):
        def __init__(self, bundle):
            super().__init__(bundle)
            self.provider = provider
            if index is not None:
                self.gpu_index = index

    monkeypatch.setattr(latency, "metering", lambda **options: seen.append(options) or nullcontext())
    benchmark(tiny_bundle, [partial(Elsewhere, tiny_bundle)], runs=1, warm_up=0)
    assert seen == [asked]


def test_rows_name_the_plan_as_it_is_after_the_calls(tiny_bundle, tmp_path):
    openers = [
        partial(Planned, tiny_bundle),
        opener(tiny_bundle, "fp16"),
        partial(Planned, tiny_bundle, variant="fp16"),
    ]
    bench = benchmark(tiny_bundle, openers, runs=2, warm_up=1, rate_hz=1000)
    assert [row.engine for row in bench.rows] == [PLAN] * 6 + [None] * 6 + [PLAN] * 6
    assert bench.warnings == ()
    bench.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json") == bench
    rows = read_json(tmp_path / "bench.json", what="bench file")["rows"]
    assert rows[6]["engine"] is None and rows[0]["engine"] == {**to_builtins(PLAN), "profile": [1, 1, 1]}


def test_why_there_are_no_cuda_graphs_is_a_warning(tiny_bundle):
    openers = [partial(Planned, tiny_bundle, note="no CUDA graphs: it refuses"), partial(Planned, tiny_bundle)]
    bench = benchmark(tiny_bundle, openers, runs=2, warm_up=0)
    assert bench.warnings == ("onnxruntime fp32: no CUDA graphs: it refuses",)
    assert {row.engine.cuda_graphs for row in bench.rows[:3]} == {False}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("profile", "options", "served", "odd", "give"),
    [
        ((1, 1, 1), {"batches": (8,)}, "1", "8", "8"),
        ((32, 32, 32), {"batches": (1,)}, "32", "1", "1"),
        ((1, 1, 1), {"batches": (8, 1)}, "1", "8", "1,8,8"),
        ((2, 4, 8), {"batches": (32, 1, 8)}, "2,4,8", "1, 32", "1,8,32"),
        ((8, 8, 8), {"batches": (8,), "rate_hz": 1000}, "8", "1", "1,8,8"),
    ],
)
def test_a_batch_that_a_plan_would_cut_or_pad_is_refused_before_any_is_timed(
    tiny_bundle, series, first, profile, options, served, odd, give
):
    openers = [partial(Planned, tiny_bundle, profile=profile), opener(tiny_bundle)]
    with pytest.raises(InputError) as refused:
        benchmark(tiny_bundle, openers if first else openers[::-1], runs=2, warm_up=0, **options)
    assert f"the plan of onnxruntime fp32 serves batch {served}; batch {odd} would be" in str(refused.value)
    assert f"`engine_batch` {give} " in str(refused.value)
    assert series == []


@pytest.mark.parametrize(
    ("profile", "batches", "rate"), [((8, 8, 8), (8,), None), ((1, 8, 8), (1, 8, 3), None), ((1, 8, 8), (8,), 1000)]
)
def test_what_a_plan_serves_is_timed(tiny_bundle, profile, batches, rate):
    bench = benchmark(
        tiny_bundle, [partial(Planned, tiny_bundle, profile=profile)], batches=batches, runs=1, warm_up=0, rate_hz=rate
    )
    assert [row.engine.profile for row in bench.rows] == [profile] * len(bench.rows)


def test_what_happened_meanwhile_is_in_the_file(tiny_bundle, monkeypatch, tmp_path):
    states = iter([{"time": "t0", "power_mode": "15W"}, {"time": "t1", "power_mode": "MAXN"}])
    monkeypatch.setattr(latency, "conditions", lambda: next(states))
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=1, warm_up=0)
    assert bench.warnings == (
        "power_mode changed during the run, from 15W to MAXN: the figures mix both, measure again",
    )
    bench.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json").warnings == bench.warnings


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_inference_sees_the_golden_frames_in_turn(tiny_bundle, batch):
    backends = []

    def open_recorded():
        backends.append(Recorded(tiny_bundle))
        return backends[-1]

    benchmark(tiny_bundle, [open_recorded], batches=(batch,), runs=6, warm_up=1, rate_hz=1000)
    golden = to_tensor(tiny_bundle.golden().pixels)
    turn = [np.stack([golden[(i * batch + k) % len(golden)] for k in range(batch)]) for i in range(7)]
    single = [golden[[i % len(golden)]] for i in range(7)]
    (backend,) = backends
    assert len(backend.batches) == 21
    for got, want in zip(backend.batches, [*turn, *turn, *single], strict=True):
        np.testing.assert_array_equal(got, want)


def test_backends_are_open_one_at_a_time_and_closed_afterwards(tiny_bundle):
    assert Recorded.opened == 0
    open_while_measuring = []
    benchmark(
        tiny_bundle,
        [partial(Recorded, tiny_bundle), partial(Recorded, tiny_bundle, variant="fp16")],
        runs=2,
        warm_up=0,
        progress=lambda done, total, text: open_while_measuring.append(Recorded.opened),
    )
    assert open_while_measuring == [1] * 6 + [0]
    assert Recorded.opened == 0


def test_a_backend_that_cannot_be_opened_shows_before_any_is_measured(tiny_bundle, series):
    broken = partial(OnnxRuntimeBackend, tiny_bundle, variant="int8")
    with pytest.raises(InputError, match="int8"):
        benchmark(tiny_bundle, [opener(tiny_bundle), broken], runs=2, warm_up=0)
    assert series == []


def test_progress_counts_every_series_and_names_the_next(tiny_bundle):
    calls = []
    benchmark(
        tiny_bundle,
        [opener(tiny_bundle)],
        batches=(1, 2),
        runs=2,
        warm_up=0,
        rate_hz=1000,
        progress=lambda *call: calls.append(call),
    )
    assert [(done, total) for done, total, _ in calls] == [(i, 7) for i in range(8)]
    assert calls[0][2] == "onnxruntime fp32, batch 1, preprocess"
    assert calls[6][2] == "onnxruntime fp32, paced at 1000 Hz"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches"),
        ({"batches": (0,)}, "batches"),
        ({"batches": (2, 2)}, "batches"),
        ({"runs": 0}, "runs"),
        ({"warm_up": -1}, "warm-up"),
        ({"rate_hz": 0.0}, "rate"),
        ({"rate_hz": float("nan")}, "rate"),
        ({"rate_hz": float("inf")}, "rate"),
    ],
)
def test_arguments_out_of_range_are_refused(tiny_bundle, options, message):
    with pytest.raises(InputError, match=message):
        benchmark(tiny_bundle, [opener(tiny_bundle)], **options)


def test_no_backend_at_all_is_refused(tiny_bundle):
    with pytest.raises(InputError, match="nothing to measure"):
        benchmark(tiny_bundle, [])


def test_a_bundle_without_golden_frames_is_refused(tiny_bundle, monkeypatch):
    golden = tiny_bundle.golden()
    monkeypatch.setattr(Bundle, "golden", lambda self: Golden([], golden.pixels[:0], {}))
    with pytest.raises(BundleError, match="no golden frames"):
        benchmark(tiny_bundle, [opener(tiny_bundle)])


def test_file_reads_back_as_it_was_saved_and_ignores_keys_of_later_versions(tiny_bundle, tmp_path):
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=2, warm_up=0, rate_hz=1000)
    path = tmp_path / "bench.json"
    bench.save(path)
    assert Bench.load(path) == bench
    assert Bench.load(path).path == path
    value = read_json(path, what="bench file")
    assert (value["kind"], value["schema_version"]) == ("bench", 1)
    assert list(value["rows"][0]) == [*BenchRow.__struct_fields__]
    write_json(path, {**value, "later": 1, "rows": [{**row, "later": 1} for row in value["rows"]]})
    assert Bench.load(path) == bench


def test_files_from_before_energy_warnings_and_plans_still_load(tiny_bundle, tmp_path):
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=2, warm_up=0)
    value = bench.to_json()
    del value["warnings"]
    for row in value["rows"]:
        del row["energy_mj_per_image"], row["energy_source"], row["engine"], row["spin"], row["cpu_ms_per_image"]
    write_json(tmp_path / "old.json", value)
    old = Bench.load(tmp_path / "old.json")
    later = {"energy_mj_per_image": None, "energy_source": None, "spin": None, "cpu_ms_per_image": None}
    without = tuple(replace(row, **later) for row in bench.rows)
    assert old == dataclasses.replace(bench, rows=without, warnings=())


def test_rows_of_a_check_that_older_files_timed_are_left_out(tiny_bundle, tmp_path):
    bench = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=2, warm_up=0)
    value = bench.to_json()
    value["rows"] = [*value["rows"], {**value["rows"][-1], "stage": "guarded"}]
    write_json(tmp_path / "old.json", value)
    assert Bench.load(tmp_path / "old.json") == bench


@pytest.mark.parametrize("change", [{"kind": "results"}, {"schema_version": 2}, {"rows": [{}]}, {"rows": None}])
def test_file_of_another_kind_or_incomplete_is_refused(tiny_bundle, tmp_path, change):
    path = tmp_path / "bench.json"
    value = benchmark(tiny_bundle, [opener(tiny_bundle)], runs=2, warm_up=0).to_json()
    write_json(path, value | change)
    with pytest.raises(SchemaError):
        Bench.load(path)


def test_docs_name_every_key_and_every_stage():
    text = (Path(__file__).parents[3] / "docs" / "reference" / "bench.md").read_text(encoding="utf-8")
    names = [*(f.name for f in fields(Bench) if f.name != "path"), *BenchRow.__struct_fields__]
    assert [name for name in (*names, *STAGES, *SPLIT_STAGES) if f"`{name}`" not in text] == []


def cli(*args):
    app = typer.Typer()
    app.command()(with_options(bench_command))
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_command_measures_every_variant_and_shows_figures_uncut(tiny_bundle, tmp_path):
    out = tmp_path / "new" / "bench.json"
    run = cli(
        tiny_bundle.path, "--batch", "1,2", "--rate", 500, "--runs", 3, "--warm-up", 1, "--threads", 1, "--out", out
    )
    assert run.exit_code == 0, run.output
    bench = Bench.load(out)
    assert {row.variant for row in bench.rows} == set(tiny_bundle.variants)
    assert len(bench.rows) == 9 * len(tiny_bundle.variants)
    for row in bench.rows:
        assert f"{row.p50_ms:.3f}" in run.stdout
        assert f"{row.images_per_s:.1f}" in run.stdout
        if row.cpu_ms_per_image is not None:
            assert f"{row.cpu_ms_per_image:.2f}" in run.stdout
    assert "CPU ms" in run.stdout
    assert "…" not in run.stdout
    assert str(out) in run.stdout
    assert run.stderr == ""


def test_command_names_how_threads_wait_at_a_rate(tiny_bundle, tmp_path):
    out = tmp_path / "bench.json"
    run = cli(
        tiny_bundle.path,
        "--precision",
        "fp32",
        "--rate",
        500,
        "--runs",
        3,
        "--warm-up",
        1,
        "--threads",
        2,
        "--out",
        out,
    )
    assert run.exit_code == 0, run.output
    # folded to fit
    assert run.stdout.count("paced 500 Hz,") == 6
    assert [run.stdout.count(how) for how in ("spinning", "sleeping")] == [3, 3]
    assert "…" not in run.stdout


def test_command_shows_energy_and_what_happened_meanwhile(tiny_bundle, tmp_path, monkeypatch, powercap):
    openers = {("onnxruntime", "fp32"): partial(Counted, tiny_bundle, powercap)}
    monkeypatch.setattr("edgeadv.workflows.benchmarking.backend_openers", lambda *args, **options: (openers, []))
    counts = iter([3, 10])
    monkeypatch.setattr(latency, "conditions", lambda: {"throttle_counts": {"core": next(counts)}})
    run = cli(tiny_bundle.path, "--batch", 2, "--runs", 3, "--warm-up", 1, "--out", tmp_path / "bench.json")
    assert run.exit_code == 0, run.output
    assert "mJ/image" in run.stdout
    lines = [line.strip() for line in run.stdout.splitlines() if " inference " in line or " end-to-end " in line]
    assert len(lines) == 2 and all(line.endswith(" 2") for line in lines)
    assert "energy: RAPL: the processor package" in run.stdout
    assert "1 of 3 series were too short for it, or too long: change --runs" in run.stdout
    assert "warning: processor cores throttled for heat during the run, 7 times" in run.stdout
    assert "…" not in run.stdout


def test_command_names_the_plan_and_says_that_its_precision_is_not_proved(tiny_bundle, tmp_path, monkeypatch):
    planned = partial(Planned, tiny_bundle, profile=(1, 2, 4), note="no CUDA graphs: it refuses")
    openers = {("onnxruntime", "fp32"): planned, ("onnxruntime", "fp16"): opener(tiny_bundle, "fp16")}
    monkeypatch.setattr("edgeadv.workflows.benchmarking.backend_openers", lambda *args, **options: (openers, []))
    run = cli(tiny_bundle.path, "--batch", 2, "--runs", 2, "--warm-up", 1, "--out", tmp_path / "bench.json")
    assert run.exit_code == 0, run.output
    named = [line for line in run.stdout.splitlines() if "plan " in line]
    assert named == [
        "onnxruntime fp32: plan 0123456789ab, batch 1 to 4, best 2, precision declared, not verified",
    ]
    assert "warning: onnxruntime fp32: no CUDA graphs: it refuses" in run.stdout


def test_command_measures_torch_where_it_can_and_says_where_not(tiny_bundle, tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "bench.json"
    run = cli(
        tiny_bundle.path, "--backend", "onnxruntime,torch", "--runs", 2, "--warm-up", 1, "--threads", 1, "--out", out
    )
    assert run.exit_code == 0, run.output
    bench = Bench.load(out)
    pairs = {(row.backend, row.variant) for row in bench.rows}
    assert pairs == {("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("torch", "fp32")}
    assert {row.artifact_sha256 for row in bench.select(backend="torch")} == {tiny_bundle.artifact_sha256("fp32")}
    assert [(entry.backend, entry.variant) for entry in bench.skipped] == [("torch", "fp16")]
    assert "not measured: torch fp16" in run.stdout


def test_what_was_measured_is_kept_though_the_next_backend_fails(tiny_bundle, tmp_path, monkeypatch):
    calls = []

    class Fails(OnnxRuntimeBackend):
        def _infer(self, x):
            calls.append(self.variant)
            if self.variant == "fp16" and calls.count("fp16") > 3:
                raise BackendError("the device is gone")
            return super()._infer(x)

    monkeypatch.setattr("edgeadv.workflows.backends.OnnxRuntimeBackend", Fails)
    out = tmp_path / "bench.json"
    run = cli(tiny_bundle.path, "--runs", 5, "--warm-up", 1, "--threads", 1, "--out", out)
    assert isinstance(run.exception, BackendError) and not out.exists()
    kept = Bench.load(tmp_path / "bench.json.partial")
    assert {row.variant for row in kept.rows} == {"fp32"} and len(kept.rows) == 3
    assert kept.skipped == (Skipped(backend="onnxruntime", variant="fp16", reason="the measurement ended before it"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "torch", "--precision", "fp16"), "torch computes fp16 in float32, so its speed is not"),
        (("--backend", "tensorflow"), "tensorflow"),
        (("--backend", "onnxruntime,"), "`backends`"),
        (("--precision", "int8"), "int8"),
        (("--precision", "fp32,fp32"), "`precisions`"),
        (("--provider", "npu"), "npu"),
        (("--batch", "1,x"), "`batches`"),
        (("--out", "."), "folder"),
    ],
)
def test_command_refuses_before_it_measures(tiny_bundle, tmp_path, monkeypatch, series, arguments, message):
    monkeypatch.chdir(tmp_path)
    run = cli(tiny_bundle.path, *arguments)
    assert isinstance(run.exception, InputError | StorageError)
    assert message in str(run.exception)
    assert series == []
    assert list(tmp_path.iterdir()) == []


def test_command_runs_in_an_install_without_torch(tiny_bundle, tmp_path):
    code = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv.pop())\n"
        "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm', 'onnx', 'safetensors')))\n"
        "from edgeadv.cli import subcommand; bench = subcommand('bench')\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "bench()"
    )
    out = tmp_path / "bench.json"
    arguments = [str(tiny_bundle.path), "--runs", "2", "--warm-up", "0", "--out", str(out)]
    path = json.dumps([entry for entry in sys.path if entry])
    run = subprocess.run([sys.executable, "-c", code, *arguments, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(Bench.load(out).rows) == 3 * len(tiny_bundle.variants)


@pytest.mark.parametrize("kind", [Recorded, Apart])
def test_what_takes_pixels_is_timed_without_a_float_tensor(digits_bundle, kind):
    opened = []

    def opener():
        opened.append(kind(digits_bundle, variant="fp32-u8in", threads=1))
        return opened[-1]

    bench = benchmark(digits_bundle, [opener], batches=(1, 3), runs=4, warm_up=1, rate_hz=200.0)
    frames = digits_bundle.golden().pixels
    given = opened[-1].batches
    assert {x.dtype for x in given} == {np.dtype(np.uint8)}
    assert {x.shape for x in given} == {(1, 32, 32, 3), (3, 32, 32, 3)}
    for x in given:
        assert all(any(np.array_equal(image, frame) for frame in frames) for image in x)
    says = {row.stage: row.includes for row in bench.rows}
    assert "uint8 NHWC" in says["preprocess"] and "Backend.infer_pixels" in says["inference"]
    with_floats = benchmark(digits_bundle, [partial(kind, digits_bundle, variant="fp32", threads=1)], runs=2, warm_up=0)
    assert "float32 NCHW" in next(row for row in with_floats.rows if row.stage == "preprocess").includes
