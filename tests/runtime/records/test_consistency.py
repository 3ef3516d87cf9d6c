"""A file that contradicts itself is refused when it is loaded, with both values, by whoever loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadv.cli import main
from edgeadv_runtime import Bench, Results
from edgeadv_runtime.errors import SchemaError

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "cifar10_exports-regnet_y_400mf-cpu.json"
JsonValue = dict[str, Any]


@pytest.fixture
def value() -> JsonValue:
    """A real file: several artefacts under a whole suite at two budgets."""
    found: JsonValue = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {**found, "examples": []}


def rows(value: JsonValue, attack: str) -> list[JsonValue]:
    return [row for row in value["rows"] if row["attack"] == attack]


def counted(row: JsonValue, **counts: int) -> None:
    """Other counts, and no shares that would contradict them."""
    for name in ("top1", "top1_ci95", "top5", "top5_ci95"):
        row.pop(name, None)
    row.update(counts)


def above_fgsm(value: JsonValue) -> None:
    counted(rows(value, "worst-case")[0], correct_top1=1000, correct_top5=None)


def above_a_smaller_budget(value: JsonValue) -> None:
    larger = {**rows(value, "worst-case")[0], "eps": "100/255", "eps_value": 100 / 255}
    counted(larger, correct_top1=larger["correct_top1"] + 1)
    value["rows"].append(larger)


def above_clean_among_five(value: JsonValue) -> None:
    worst = rows(value, "worst-case")[0]
    counted(worst, correct_top5=rows(value, "clean")[0]["correct_top5"] + 1)


def of_other_images(value: JsonValue) -> None:
    counted(value["rows"][0], n=999)


def twice(value: JsonValue) -> None:
    again = dict(value["rows"][0])
    counted(again, correct_top1=again["correct_top1"] - 1)
    value["rows"].append(again)


def another_share(value: JsonValue) -> None:
    value["rows"][0]["top1"] = 0.999


def another_interval(value: JsonValue) -> None:
    value["rows"][0]["top1_ci95"] = [0.0, 0.1]


def masked_file(value: JsonValue) -> None:
    value["masking"] = {"verdict": "MASKED", "evidence": []}
    for row in value["rows"]:
        if row["masking"] is not None:
            row["masking"] = {"verdict": "PASS", "evidence": []}


def passing_row(value: JsonValue) -> None:
    value["masking"]["verdict"] = "MASKED"
    value["masking"]["evidence"].append({"rule": "zero-gradient", "finding": "MASKED", "text": "no gradient"})
    for row in value["rows"][:-1]:
        if row["masking"] is not None:
            row["masking"]["verdict"] = "MASKED"
    value["rows"][-1]["masking"]["verdict"] = "PASS"


def passing_file(value: JsonValue) -> None:
    value["masking"]["evidence"].append({"rule": "zero-gradient", "finding": "SUSPECT", "text": "no gradient"})
    value["masking"]["verdict"] = "PASS"


def another_difference(value: JsonValue) -> None:
    entry = value["comparisons"][0]
    for name in ("drop", "drop_ci95", "mcnemar_p"):
        entry.pop(name)
    entry["lost"] += 1


def trained_on(value: JsonValue) -> None:
    value["data"]["training_images"] = 3
    value["rows"][0]["training_images"] = 2


CONTRADICTIONS: list[tuple[Callable[[JsonValue], None], str]] = [
    (above_fgsm, r"correct_top1 of .*worst-case at eps \S+ is 1000, and of .* of which it is the worst, \d+"),
    (above_a_smaller_budget, r"correct_top1 of .*worst-case at eps \S+ is \d+, and of .*worst"),
    (above_clean_among_five, r"correct_top5 of .*worst-case at eps \S+ is \d+, and of .*worst"),
    (of_other_images, r"clean is of 999 images, and the file of 1000|of 999 images"),
    (twice, r"clean is there twice, with \d+ and \d+ right"),
    (another_share, r"top1 of clean at eps 0 is 0\.999, and its counts give 0\.\d+"),
    (another_interval, r"top1_ci95 of clean at eps 0 is \[0\.0, 0\.1\], and its counts give"),
    (masked_file, r"the file's verdict is MASKED, and that of its rows at worst PASS"),
    (passing_row, r"is PASS, and a finding on it MASKED"),
    (passing_file, r"the file's verdict is PASS, and a finding on the weights SUSPECT"),
    (another_difference, r"is -?\d+ of 1000 images, and their rows are -?\d+ of 1000 apart"),
    (trained_on, r"says that 2 images were trained on, and the file 3"),
]


@pytest.mark.parametrize(("change", "says"), CONTRADICTIONS, ids=[change.__name__ for change, _ in CONTRADICTIONS])
def test_results_that_contradict_themselves(
    value: JsonValue, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[JsonValue], None], says: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(value))
    Results.load(path)  # as it is, it does not
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(SchemaError, match=says) as raised:
        Results.load(path)
    assert "contradicts itself" in str(raised.value)
    for command in (
        ["gate", str(path), "--min-clean", "0"],
        ["report", str(path), "--out", str(tmp_path / "report.html")],
    ):
        assert main(command) == 2
        assert "contradicts itself" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def bench(**changed: Any) -> JsonValue:
    row = {
        "variant": "fp32",
        "artifact_sha256": "ab" * 32,
        "backend": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "device": "a processor",
        "threads": 1,
        "batch": 4,
        "mode": "back-to-back",
        "rate_hz": None,
        "stage": "inference",
        "n": 1000,
        "warm_up": 10,
        "p50_ms": 10.0,
        "p90_ms": 11.0,
        "p99_ms": 12.0,
        "max_ms": 13.0,
        "images_per_s": 390.0,
        "late": None,
        "includes": "all",
        **changed,
    }
    about = {"bundle": {"name": "x"}, "environment": {}, "conditions": {}}
    return {"schema_version": 1, "kind": "bench", **about, "rows": [row]}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"images_per_s": 810.0}, r"images_per_s of .* is 810, and its p50_ms of 10 leaves time for 800"),
        ({"p50_ms": 12.0}, "percentiles 12, 11, 12, 13 ms do not ascend"),
        ({"p99_ms": 14.0}, "percentiles 10, 11, 14, 13 ms do not ascend"),
        ({"p50_ms": -1.0}, "p50_ms: Expected 'float' >= 0"),
        ({"images_per_s": -5.0}, "images_per_s: Expected 'float' > 0"),
        ({"n": 0}, "n: Expected 'int' >= 1"),
        ({"late": 1001, "mode": "paced", "rate_hz": 30.0}, "late 1001 is not a number of 1000 frames"),
        ({"rate_hz": 30.0}, "back-to-back series with rate_hz 30"),
    ],
)
def test_a_bench_that_contradicts_itself(changed: JsonValue, says: str) -> None:
    assert Bench.from_json(bench()).rows[0].n == 1000
    with pytest.raises(SchemaError, match=says):
        Bench.from_json(bench(**changed))
