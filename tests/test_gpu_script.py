"""The script that waits for a GPU, rehearsed on the processor: every row runs to its end and leaves its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if name not in ("OUT", "BUDGET")}
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), *options],
        env={**without, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "tpu"), "--device is cuda or cpu, not 'tpu'"),
        (("--fast",), "--fast is not an option"),
        (("--device", "cpu", "--tiny"), "a rehearsal measures nothing: name a folder for it, OUT=FOLDER"),
        (("--bundle", "net.edgeadv"), "--bundle and --data go together"),
        (("--cifar", "nowhere"), "--cifar is a folder with train and test, not 'nowhere'"),
    ],
)
def test_what_it_cannot_do_is_one_line(options: tuple[str, ...], says: str) -> None:
    done = run(*options)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu.sh: ") and says in line


def test_without_time_every_row_says_so(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", OUT=str(tmp_path), BUDGET="0")
    assert done.returncode == 1, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert len(rows) == 10 and all(line.endswith("not begun, the time is over") for line in rows[:-1])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal_leaves_the_json_of_every_row(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(found) == {
        f"{name}-cpu"
        for name in (
            "gpu_arithmetic",
            "crafting",
            "crafting-strength",
            "gpu_evaluate",
            "crafting-compiled",
            "torch_latency-regnet_y_400mf",
            "gpu_profile",
            "training_throughput",
        )
    }
    assert all(content["environment"]["versions"]["torch"] for content in found.values())
    exact, _ = found["gpu_arithmetic-cpu"]["rows"]
    assert exact["as_expected"] and exact["gradient_error"] < 1e-5
    (crafting,) = found["crafting-cpu"]["rows"]
    by = {entry["library"]: entry for entry in crafting["libraries"]}
    assert set(by) == {"edgeadv", "torchattacks", "foolbox", "art", "float32", "float16"}
    assert by["float16"]["over_torchattacks"]["median"] > 0 and "a GPU's" in crafting["not_measured"]["tf32"]
    # one attack in one arithmetic makes the same images
    assert by["float32"]["same_pixels_1e-4"] > 0.99
    (strength,) = found["crafting-strength-cpu"]["rows"]
    assert strength["n"] == 24 and strength["images"] == "images"
    assert abs(strength["fgsm"]["points_over_float32_float16"]) <= 100 * 2 / 24
    (evaluated,) = found["gpu_evaluate-cpu"]["rows"]
    assert evaluated["status"] == 0 and evaluated["n"] == 24 and evaluated["gradients"] == ["graph of fp32"]
    (compiled,) = found["crafting-compiled-cpu"]["rows"]
    assert "paid_after_gradients" in next(each for each in compiled["libraries"] if each["library"] == "job")
    ways = {row["way"] for row in found["torch_latency-regnet_y_400mf-cpu"]["rows"]}
    assert ways == {"eager", "compiled", "infer", "onnxruntime"}
    apart = found["gpu_profile-cpu"]["rows"]
    assert {(row["precision"], row["order"]) for row in apart} == {
        (precision, order) for precision in ("float32", "float16") for order in ("contiguous", "channels_last")
    }
    for row in apart:
        assert any("conv" in each["operation"] for each in row["operations"])
        assert 0 < sum(each["share"] for each in row["operations"]) <= 1.001
        assert set(row["first_convolution_ms"]) == {"3", "4", "8"}
    assert {row["recipe"] for row in found["training_throughput-cpu"]["rows"]} == {"undefended", "n-fgsm"}


@pytest.mark.slow
def test_the_network_on_cifar_is_rehearsed_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 550), ("test", 8)):
        for class_id in "ab":
            (tmp_path / "data" / part / class_id).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / "data" / part / class_id / f"{i}.png")
    options = ("--device", "cpu", "--tiny", "--cifar", str(tmp_path / "data"))
    done = run(*options, OUT=str(tmp_path / "out"), BUDGET="400")
    assert done.returncode == 0, done.stderr
    assert "== cifar10: done in " in done.stdout
    (row,) = json.loads((tmp_path / "out" / "cifar10_grid-cpu.json").read_text())["rows"]
    assert row["architecture"] == "regnet_y_400mf" and row["verdict"] != "PASS"
