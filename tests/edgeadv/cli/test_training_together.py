"""Two processes that train one network: the same losses as one, from a state that either may have written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from edgeadv.models.checkpoints import read_weights
from edgeadv.training import checkpoint
from tests.forking import Job, run

# without BatchNorm, whose statistics would be those of a half of the batch, and without dropout
NETWORK = ("--arch", "timm/test_vit", "--batch-size", "16", "--lr", "0.05", "--augment", "crop-flip")
RECIPE = ("--recipe", "trades", "--at-eps", "8/255", "--at-steps", "2", "--holdout", "20")


def environment() -> dict[str, str]:
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: object) -> list[str]:
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgeadv"]
    return [sys.executable, *started, *map(str, arguments)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one a little lighter, 48 to train and 16 to test each, of 48 pixels."""
    import numpy as np
    from PIL import Image

    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 48), ("test", 16)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(120 + 6 * label, 60, (48, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def training(pictures: Path, out: str, *more: object, epochs: int = 3) -> tuple[object, ...]:
    return ("train", "--data", pictures, *NETWORK, *RECIPE, "--epochs", epochs, "--out", out, *more)


def curve(folder: Path) -> list[dict[str, Any]]:
    stage = json.loads((folder / "run.json").read_text())["stages"][0]
    keys = ("loss", "train_accuracy", "test_accuracy", "holdout_worst_case")
    return [{key: epoch[key] for key in keys} for epoch in stage["epochs"]]


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains that nobody stops."""
    folder = tmp_path_factory.mktemp("alone")
    outcome = run(*training(pictures, "run"), cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    return folder / "run"


def assert_close(ours: Path, theirs: Path) -> None:
    """Within what another order of sums does to float32 in a few steps."""
    for a, b in zip(curve(ours), curve(theirs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=5e-3)
        for key in ("train_accuracy", "test_accuracy", "holdout_worst_case"):
            assert a[key] == pytest.approx(b[key], abs=0.051)
    one, other = (read_weights(folder / "weights.safetensors") for folder in (ours, theirs))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-2, atol=1e-3)


def test_two_processes_train_as_one(pictures: Path, alone: Path, tmp_path: Path) -> None:
    outcome = subprocess.run(
        torchrun(*training(pictures, "run")),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert_close(tmp_path / "run", alone)
    # one of them speaks
    assert outcome.stdout.count("test accuracy") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stages"][0]["processes"] == 2
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "run.json",
        "training-images.npy",
        "weights.safetensors",
    ]


def wait_for_epoch(running: Callable[[], bool], state: Path) -> None:
    for _ in range(1200):
        if state.exists() or not running():
            break
        time.sleep(0.05)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_state_of_another_number_of_processes_goes_on(
    pictures: Path, alone: Path, tmp_path: Path, before: int, after: int
) -> None:
    """Killed after its first epoch."""
    job = Job(*training(pictures, "run"), cwd=tmp_path, processes=before)
    wait_for_epoch(job.running[0].is_alive, tmp_path / "run" / "state.bin")
    job.kill()
    assert (tmp_path / "run" / "state.bin").exists(), job.wait()
    outcome = run(*training(pictures, "run", "--resume"), cwd=tmp_path, processes=after)
    assert outcome.returncode == 0, outcome.stderr
    assert_close(tmp_path / "run", alone)


def test_a_batch_that_cannot_be_shared_is_refused(pictures: Path, tmp_path: Path) -> None:
    for size, why in (
        ("15", "is no multiple of the 2 processes"),
        ("2", "leaves each of 2 processes fewer than two images of a step"),
    ):
        outcome = run(*training(pictures, "run", "--batch-size", size), cwd=tmp_path, processes=2)
        assert outcome.returncode != 0
        assert f"--batch-size {size} {why}" in outcome.stderr
        assert not (tmp_path / "run").exists()


def rank(pid: int) -> str | None:
    """Which of torchrun's processes this is."""
    with suppress(psutil.NoSuchProcess):
        value: str | None = psutil.Process(pid).environ().get("RANK")
        return value
    return None


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["0", "1"])
def test_a_lost_process_ends_the_run_which_goes_on_afterwards(pictures: Path, tmp_path: Path, lost: str) -> None:
    process = subprocess.Popen(
        torchrun(*training(pictures, "run", epochs=300)),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_epoch(lambda: process.poll() is None, tmp_path / "run" / "state.bin")
    assert (tmp_path / "run" / "state.bin").exists(), process.communicate()[1]
    ranks = {rank(child): child for child in children(process.pid)}
    os.kill(ranks[lost], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "SIGKILL" in err
    assert not any(map(psutil.pid_exists, ranks.values()))
    assert checkpoint.load(tmp_path / "run")
    # to another number of epochs it does not go on: that would be another schedule
    other = run(*training(pictures, "run", "--resume"), cwd=tmp_path)
    assert other.returncode == 2 and "started with other settings (epochs)" in other.stderr
    more = run(*training(pictures, "run", "--resume", "--time-limit", "1s", epochs=300), cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "of 300 epochs are done and saved; an epoch takes " in more.stdout
