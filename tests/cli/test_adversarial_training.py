"""``edgeadv train --recipe``: what the command trains, says and leaves, and that export takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeadv.runs import Run
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.files import sha256_file

SMALL = ("--arch", "timm/test_resnet", "--epochs", "2", "--batch-size", "16")
PGD = ("--recipe", "at-pgd", "--at-eps", "8/255", "--at-steps", "2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_at_pgd_is_trained_resumed_and_exported(cli, split):
    outcome = cli("train", "--data", split, *SMALL, *PGD, "--out", "run")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("test_resnet, at-pgd eps 8/255: test accuracy ")
    assert [line.partition(":")[0] for line in outcome.err.splitlines()] == ["train epoch 1/2", "train epoch 2/2"]
    run = Run.open("run")
    recipe = run.info["recipe"]
    assert (recipe["recipe"], recipe["eps"], recipe["steps"]) == ("at-pgd", "8/255", 2)
    assert cli("train", "--data", split, *SMALL, "--out", "undefended").status == 0
    assert sha256_file(Path("run/weights.safetensors")) != sha256_file(Path("undefended/weights.safetensors"))
    before = Path("run/run.json").read_bytes()
    again = cli("train", "--data", split, *SMALL, *PGD, "--out", "run", "--resume")
    assert (again.status, again.err) == (0, "") and Path("run/run.json").read_bytes() == before
    other = cli("train", "--data", split, *SMALL, *PGD, "--at-steps", "3", "--out", "run", "--resume")
    assert other.status == 2 and "finished run with other settings" in other.err
    exported = cli("export", "run", "--precision", "fp32", "--out", "m.edgeadv")
    assert exported.status == 0, exported.err
    manifest = Bundle.open("m.edgeadv").manifest
    assert (manifest["title"], manifest["provenance"]["recipe"]) == (run.title, recipe)


def test_at_fgsm_says_that_it_can_collapse(cli, split):
    outcome = cli("train", "--data", split, *SMALL, "--recipe", "at-fgsm", "--at-eps", "8/255", "--out", "run")
    assert outcome.status == 0, outcome.err
    assert Run.open("run").title == "test_resnet, at-fgsm eps 8/255"
    assert Run.open("run").info["recipe"]["steps"] == 1
    *epochs, note = outcome.err.splitlines()
    assert len(epochs) == 2 and "can collapse" in note and "masking verdict" in note


def test_at_pgd_takes_seven_steps_by_itself(cli, split):
    outcome = cli("train", "--data", split, *SMALL, *PGD[:4], "--epochs", "1", "--out", "run")
    assert outcome.status == 0, outcome.err
    assert Run.open("run").info["recipe"]["steps"] == 7
