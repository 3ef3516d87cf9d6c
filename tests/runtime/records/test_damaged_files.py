"""Files of figures with one value changed: each is read as what it says, or refused in one line, whoever reads it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from edgeadv.cli._table import print_results
from edgeadv.reporting import build_report
from edgeadv_runtime.errors import EdgeAdvError
from edgeadv_runtime.records.about import Subject
from edgeadv_runtime.records.bench import Bench, BenchRow
from edgeadv_runtime.records.machine import Conditions, Environment, Gpu
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import EngineInfo
from edgeadv_runtime.records.study import Study

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "cifar10_exports-regnet_y_400mf-cpu.json"
SHA = "ab" * 32
# JSON texts, for Python's own writer makes no number that is too large
WRONG = ("null", "-1", "1e400", '"x"', "[]", "{}", "NaN", "Infinity", "true", "1.5", "9" * 30, "[" * 5000 + "]" * 5000)
MARK = "@@"


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value; of a list only the last element."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value[-1:]:
            yield from places(inner, (*path, len(value) - 1))


def damaged(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was done, and the text of the file: every value replaced by each of the wrong ones, and every key
    dropped."""
    for path in places(value):
        changed = copy.deepcopy(value)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = MARK
        text = json.dumps(changed)
        for wrong in WRONG:
            yield f"{path} = {wrong[:12]}", text.replace(json.dumps(MARK), wrong)
        if isinstance(path[-1], str):
            del parent[path[-1]]
            yield f"without {path}", json.dumps(changed)


def check(value: dict[str, Any], tmp_path: Path, read: Callable[[Path], Any], *, least: int) -> None:
    """Read every damaged version of ``value``; at least ``least`` of them are refused."""
    file, refused = tmp_path / "file.json", 0
    for done, text in damaged(value):
        file.write_text(text)
        try:
            read(file)
        except EdgeAdvError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, done
            assert str(error).startswith(str(file)), f"{done}: {error}"
            refused += 1
        except Exception as error:
            raise AssertionError(done) from error
    assert refused >= least


@pytest.fixture
def measured() -> dict[str, Any]:
    """A real results file with two rows of each of two artefacts, one example and one plan."""
    value: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    kept = [
        row for row in value["rows"] if row["variant"] in ("fp32", "fp16") and row["attack"] in ("clean", "worst-case")
    ]
    plan = EngineInfo(plan_sha256=SHA, profile=(1, 2, 4), precision="declared")
    kept[-1]["engine"] = {name: getattr(plan, name) for name in plan.__struct_fields__}
    value |= {
        "rows": kept,
        "examples": value["examples"][:1],
        "comparisons": value["comparisons"][:2],
        "skipped": [{"backend": "torch", "variant": "fp16", "reason": "no"}],
    }
    value["masking"]["evidence"] = value["masking"]["evidence"][:2]
    value["bundle"]["provenance"] = {"recipe": {"eps": "8/255"}}
    value["data"] |= {"training_images": 0, "allow_training_images": False}
    value["bundle"]["confidence"] = {
        "temperature": 1.8,
        "n": 500,
        "n_held_out": 4,
        "nll_before": 0.62,
        "nll_after": 0.51,
        "rejection": {"coverage": 0.95, "threshold": 0.41, "answered": 3, "wrong": 2, "wrong_answered": 1},
        "data": {"name": "photos", "split": "test"},
        "reliability": {when: [{"n": 4, "confidence": 0.9, "accuracy": 0.5}] for when in ("before", "after")},
    }
    return value


def use(results: Results) -> None:
    """All that a reader asks of results."""
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results
    for row in results.rows:
        assert 0 <= row.top1 <= 1 and 0 <= row.top1_ci95[0] <= row.top1_ci95[1] <= 1
    assert results.overall_verdict in ("PASS", "UNCHECKED", "SUSPECT", "MASKED")
    results.gate(min_clean=0.1, max_drop_clean=0.9, verdict="MASKED")
    results.gate(min_robust=0.0, verdict="MASKED", suite="fast", variants=["fp32"])


def test_results(measured: dict[str, Any], tmp_path: Path) -> None:
    seen = count()

    def read(path: Path) -> None:
        results = Results.load(path)
        use(results)
        # every page takes a tenth of a second
        if next(seen) % 15 == 0:
            build_report([path], tmp_path / "report.html")
            print_results(results)

    (tmp_path / "whole.json").write_text(json.dumps(measured))
    whole = Results.load(tmp_path / "whole.json")
    assert len(whole.rows) == 4 and whole.bundle.confidence is not None and whole.rows[-1].engine is not None
    assert whole.gate(min_clean=0.1, max_drop_clean=0.9).passed
    check(measured, tmp_path, read, least=900)


@pytest.mark.parametrize(
    ("path", "wrong", "says"),
    [
        (("rows", 0, "correct_top1"), 1700, "rows[0]: correct_top1 1700 of clean is not a number of its 1000 images"),
        (("rows", 0, "n"), -1, "rows[0].n: Expected 'int' >= 1"),
        (("rows", 1, "eps_value"), 0.1, "rows[1]: eps_value 0.1 of worst-case contradicts eps 8/255"),
        (("rows", 1, "eps"), "8", "rows[1]: eps '8' is not in (0, 1]"),
        (("rows", 1, "threat"), "friendly", "rows[1].threat: Invalid enum value 'friendly'"),
        (("comparisons", 0, "lost"), 1001, "comparisons[0]: 1001 and"),
        (
            ("bundle", "confidence", "rejection", "wrong"),
            5,
            "bundle.confidence: 3 answered and 1 of 5 wrong do not fit 4",
        ),
        (("data", "training_images"), 1001, "data: training_images 1001 is not a number of the 1000 images"),
    ],
)
def test_the_place_of_what_cannot_be_is_named(
    measured: dict[str, Any], tmp_path: Path, path: tuple[Any, ...], wrong: Any, says: str
) -> None:
    parent = measured
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = wrong
    (tmp_path / "r.json").write_text(json.dumps(measured))
    with pytest.raises(EdgeAdvError) as error:
        Results.load(tmp_path / "r.json")
    assert says in str(error.value)


def make_bench() -> Bench:
    gpu = Gpu(
        index=0,
        name="a GPU",
        sm_mhz=1980.0,
        power_limit_w=70.0,
        throttle_reasons=("GpuIdle",),
        throttled_us={"SwPowerCap": 7},
    )
    state = Conditions(time="t", load_average=(0.1,), cpu_mhz=(1500.0,), temperatures_c={"cpu": 40.0}, gpus=(gpu,))
    row = BenchRow(
        variant="fp16",
        artifact_sha256=SHA,
        backend="tensorrt",
        provider="TensorRT",
        device="a GPU",
        threads=2,
        batch=1,
        mode="paced",
        rate_hz=30.0,
        stage="inference",
        n=1000,
        warm_up=5,
        p50_ms=1.0,
        p90_ms=1.2,
        p99_ms=1.3,
        max_ms=9.0,
        images_per_s=30.0,
        late=2,
        includes="all",
        energy_mj_per_image=3.0,
        energy_source="a meter",
        engine=EngineInfo(plan_sha256=SHA, profile=(1, 2, 4), precision="verified"),
    )
    return Bench(
        bundle=Subject(id="b", name="x"),
        environment=Environment(processor="p", cores=2, versions={"numpy": "2"}),
        conditions={"before": state, "after": state},
        rows=(row,),
        warnings=("hot",),
    )


def test_bench(tmp_path: Path) -> None:
    bench = make_bench()

    def read(path: Path) -> None:
        found = Bench.load(path)
        found.save(tmp_path / "again.json")
        assert Bench.load(tmp_path / "again.json") == found
        assert all(0 <= row.p50_ms <= row.p90_ms <= row.max_ms for row in found.rows)

    bench.save(tmp_path / "whole.json")
    assert Bench.load(tmp_path / "whole.json") == bench
    check(json.loads((tmp_path / "whole.json").read_text()), tmp_path, read, least=300)


def test_study(measured: dict[str, Any], tmp_path: Path) -> None:
    steps = {"resize": 256, "crop": 224, "interpolation": "bilinear"}
    architecture = {
        "name": "a",
        "source": "torchvision",
        "weights": {"file": "a.pth", "sha256": SHA, "map": "by-name"},
        "preprocess": steps,
        "preprocess_published": True,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    settings = {
        "architectures": [architecture],
        "data": {"name": "d", "split": "all", "n": 1000, "images_sha256": SHA},
        "seed": 0,
        "attack": "fgsm",
        "eps": ["8/255"],
        "libraries": {"timm": "1"},
    }
    measured["rows"], measured["examples"] = measured["rows"][:1], []
    value = {
        "kind": "study",
        "schema_version": 1,
        "edgeadv_version": "0",
        "created": "t",
        "settings": settings,
        "results": [measured],
    }

    def read(path: Path) -> None:
        found = Study.load(path)
        found.save(tmp_path / "again.json")
        assert Study.load(tmp_path / "again.json") == found

    (tmp_path / "whole.json").write_text(json.dumps(value))
    assert Study.load(tmp_path / "whole.json").results[0].path == tmp_path / "whole.json"
    check(value, tmp_path, read, least=700)
