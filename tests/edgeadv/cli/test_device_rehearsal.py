"""The device, rehearsed: an environment with the wheel and ONNX Runtime only scores what the host's own run scored."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.records.suites import PER_ARTEFACT

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[3]
EPS = "2/255,8/255"
ATTACKS = ("fgsm", "fgsm-rescaled", "fgsm-rs", "pgd-ce", "pgd-margin", "noise")


@dataclass(frozen=True)
class Device:
    """A folder as a device has it: an environment without PyTorch, a slim bundle, a pack."""

    bin: Path
    home: Path

    def __call__(self, *command: object) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        program, *arguments = map(str, command)
        return subprocess.run(
            [str(self.bin / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )


def host(*arguments: object) -> None:
    """Run a command of the host, which has everything, in a process of its own."""
    command = [sys.executable, "-m", "edgeadv", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=CHECKOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def device(passing_folder: Callable[[str], Path]) -> Device:
    """The wheel with the extra ``ort``, of the host's version of ONNX Runtime, so that only the installation
    differs."""
    home = passing_folder("device")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(home), str(CHECKOUT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = home.glob("*.whl")
    venv.create(home / "venv", with_pip=True)
    made = Device(home / "venv" / "bin", home)
    same = [f"{name}=={importlib.metadata.version(name)}" for name in ("onnxruntime", "numpy", "pillow")]
    installed = made("python", "-m", "pip", "install", "--quiet", f"{wheel}[ort]", *same)
    assert installed.returncode == 0, installed.stderr
    return made


@pytest.fixture(scope="module")
def measured(
    device: Device, tiny_bundle: Bundle, many_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of the host, which crafts the attacks again, and of the device, which has the pack."""
    work = tmp_path_factory.mktemp("host")
    crafted = ("--data", many_photos, "--eps", EPS, "--suite", "fast")
    host("attack", tiny_bundle.path, *crafted, "--out", work / "photos.pack")
    host(
        "evaluate",
        tiny_bundle.path,
        *crafted,
        "--uint8",
        "--backend",
        "onnxruntime",
        "--precision",
        "all",
        "--out",
        work / "host.json",
    )
    host("bundle", "slim", tiny_bundle.path, "--variant", "fp16", "--no-weights", "--out", work / "slim.edgeadv")
    shutil.copytree(work / "slim.edgeadv", device.home / "model.edgeadv")
    shutil.copytree(work / "photos.pack", device.home / "photos.pack")
    scored = device("edgeadv", "evaluate", "model.edgeadv", "--pack", "photos.pack", "--out", "device.json")
    assert scored.returncode == 0, scored.stderr
    return json.loads((work / "host.json").read_text()), json.loads((device.home / "device.json").read_text())


def test_the_device_has_no_pytorch(device):
    code = (
        "import importlib.util as u; print([m for m in ('torch', 'torchvision', 'timm', 'onnx', 'onnxruntime') "
        "if u.find_spec(m)])"
    )
    assert device("python", "-c", code).stdout.strip() == "['onnxruntime']"


def test_the_slim_bundle_hands_over_no_weights(device, measured, tiny_bundle):
    slim = device.home / "model.edgeadv"
    assert {file.name for file in slim.iterdir()} == {"manifest.json", "golden.npz", "model.fp16.onnx"}
    assert Bundle.open(slim).id == tiny_bundle.id


def test_verify_passes_on_the_device(device, measured):
    verified = device("edgeadv", "verify", "model.edgeadv")
    assert (verified.returncode, verified.stderr) == (0, "")
    (line,) = verified.stdout.splitlines()
    assert line.startswith("onnxruntime fp16 (CPUExecutionProvider, ") and ": ok;" in line


def test_every_count_of_the_device_is_the_host_s(measured):
    on_host, on_device = measured
    keys = (
        "attack",
        "eps",
        "n",
        "correct_top1",
        "correct_top5",
        "artifact_sha256",
        "threat",
        "params",
        "zero_gradient_share",
    )

    def rows(results: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [tuple(row[key] for key in keys) for row in results["rows"] if row["variant"] == "fp16"]

    assert rows(on_device) == rows(on_host)
    attacks = len(ATTACKS) + len(set(ATTACKS) & set(PER_ARTEFACT))
    assert len(on_device["rows"]) == len(rows(on_device)) == 1 + 2 * (attacks + 1)
    # and they are worth comparing: attacks that break a good deal and not everything
    clean, *_, worst = [row["correct_top1"] for row in on_device["rows"]]
    assert 0 < worst < clean < on_device["data"]["n"]


def test_the_verdict_travels_with_the_pack(measured):
    on_host, on_device = measured
    of_weights = [
        [item for item in results["masking"]["evidence"] if "artefact" not in item] for results in (on_device, on_host)
    ]
    assert of_weights[0] == of_weights[1] and len(of_weights[0]) > 10
    # the suite fast is an upper bound
    assert on_device["masking"]["verdict"] == on_host["masking"]["verdict"] != "PASS"
    assert on_device["data"] | {"name": ""} == on_host["data"] | {"name": ""}
    assert on_device["data"]["sha256"] == on_host["data"]["sha256"]
    assert on_device["bundle"]["id"] == on_host["bundle"]["id"]


def test_bench_measures_on_the_device(device, measured):
    done = device("edgeadv", "bench", "model.edgeadv", "--runs", "3", "--warm-up", "1", "--out", "bench.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((device.home / "bench.json").read_text())["rows"]
    assert [(row["variant"], row["stage"], row["n"]) for row in rows] == [
        ("fp16", stage, 3) for stage in ("preprocess", "inference", "end-to-end")
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["evaluate", "model.edgeadv", "--data", "photos.pack", "--eps", "8/255", "--out", "x.json"],
            'pip install "edgeadv[train]"',
        ),
        (
            ["evaluate", "model.edgeadv", "--pack", "photos.pack", "--precision", "fp32", "--out", "x.json"],
            "no variant 'fp32'",
        ),
        (["verify", "model.edgeadv", "--backend", "torch", "--precision", "fp16"], 'pip install "edgeadv[train]"'),
        (["export", "x", "--out", "y"], 'pip install "edgeadv[export]"'),
        (["verify", "model.edgeadv", "--provider", "cuda"], "CUDAExecutionProvider"),
    ],
)
def test_what_the_device_cannot_do_it_says_in_one_line(device, measured, arguments, says):
    outcome = device("edgeadv", *arguments)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("edgeadv: ") and says in line
    assert not (device.home / "x.json").exists() and not (device.home / "y").exists()
