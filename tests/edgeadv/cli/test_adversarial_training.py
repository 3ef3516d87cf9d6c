"""``edgeadv train --recipe``: what the command trains, says and leaves, and that export takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from edgeadv.training.runs import Run
from edgeadv_runtime.bundle.bundle import Bundle
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
    told = [line.partition(":")[0] for line in outcome.err.splitlines()]
    assert told[:2] == ["train epoch 1/2", "train epoch 2/2"] and told[2] == "preprocessing" and len(told) == 3
    run = Run.open("run")
    recipe = run.info.recipe
    assert (recipe["recipe"], recipe["eps"], recipe["steps"]) == ("at-pgd", "8/255", 2)
    assert cli("train", "--data", split, *SMALL, "--out", "undefended").status == 0
    assert sha256_file(Path("run/weights.safetensors")) != sha256_file(Path("undefended/weights.safetensors"))
    before = Path("run/run.json").read_bytes()
    again = cli("train", "--data", split, *SMALL, *PGD, "--out", "run", "--resume")
    assert (
        again.status == 0
        and again.err.startswith("preprocessing: resize=")
        and Path("run/run.json").read_bytes() == before
    )
    other = cli("train", "--data", split, *SMALL, *PGD, "--at-steps", "3", "--out", "run", "--resume")
    assert other.status == 2 and "finished run with other settings" in other.err
    exported = cli("export", "run", "--precision", "fp32", "--out", "m.edgeadv")
    assert exported.status == 0, exported.err
    manifest = Bundle.open("m.edgeadv").manifest
    assert (manifest.title, manifest.provenance["recipe"]) == (run.title, recipe)


@pytest.mark.parametrize(
    ("recipe", "steps"), [("at-fgsm", 1), ("n-fgsm", 1), ("fgsm-pgi", 1), ("trades", 10), ("adr", 7), ("awp", 7)]
)
def test_the_other_recipes(cli, split, recipe, steps):
    options = (
        "--at-eps",
        "8/255",
        "--label-smoothing",
        "0.1",
        "--ema",
        "0.9",
        "--clip",
        "1",
        "--epochs",
        "1",
        "--schedule",
        "steps",
    )
    outcome = cli("train", "--data", split, *SMALL, "--recipe", recipe, *options, "--out", "run")
    assert outcome.status == 0, outcome.err
    kept = Run.open("run").info
    assert (kept.recipe["recipe"], kept.recipe["steps"], kept.recipe["label_smoothing"]) == (
        recipe,
        steps,
        0.1,
    )
    assert (kept.config["ema"], kept.config["clip"], kept.config["schedule"]) == (0.9, 1.0, "steps")
    assert kept.stage.optimizer["schedule"] == "a tenth after 1/2 and again after 3/4 of the updates"


def test_a_robust_student_from_a_folder_to_a_bundle_and_into_the_list(cli, split):
    """What a user does with images of their own: one command, then the bundle is there."""
    options = (
        "--recipe",
        "rslad",
        "--at-eps",
        "8/255",
        "--at-steps",
        "2",
        "--teacher-recipe",
        "n-fgsm",
        "--holdout",
        "10",
    )
    architecture = ("--teacher-arch", "timm/test_efficientnet")
    outcome = cli(
        "distill", "--data", split, *SMALL, *options, *architecture, "--out", "runs/r", "--export", "r.edgeadv"
    )
    assert outcome.status == 0, outcome.err
    assert "held out" in outcome.out and "hides gradients" not in outcome.err
    said = outcome.err.splitlines()
    teacher, looked, first = (
        next(i for i, line in enumerate(said) if line.startswith(start))
        for start in ("teacher epoch 2/2", "the teacher stands on ", "student epoch 1/2")
    )
    assert teacher < looked < first and "of 10 images held out" in said[looked]
    bundle = Bundle.open("r.edgeadv")
    assert bundle.manifest.title == "test_resnet, rslad T=1 eps 8/255" and set(bundle.variants) == {"fp32", "fp16"}
    assert bundle.manifest.provenance["recipe"]["teacher"] == "test_efficientnet, n-fgsm eps 8/255"
    listed = cli("runs", "runs")
    assert listed.status == 0
    rows = [line for line in listed.out.splitlines() if "%" in line]
    assert len(rows) == 2 and listed.out.count("at 8/255") == 2
    # a run that says nothing of its training does not hide the others
    damaged = Path(shutil.copytree("runs/r", "runs/damaged", ignore=shutil.ignore_patterns("teacher")))
    info = json.loads((damaged / "run.json").read_text())
    (damaged / "run.json").write_text(json.dumps({key: value for key, value in info.items() if key != "stages"}))
    listed = cli("runs", "runs")
    assert (
        listed.status == 0
        and "is not a complete training run (Object missing required field 'stages'); copy it again or train again"
        in listed.out
    )
    assert len([line for line in listed.out.splitlines() if "%" in line]) == 2
    # nothing is trained for a bundle that cannot be written
    again = cli("distill", "--data", split, *SMALL, *options, "--out", "runs/other", "--export", "r.edgeadv")
    assert again.status == 2 and not Path("runs/other").exists()


def test_a_time_limit_ends_cleanly_and_the_rest_follows(cli, split):
    command = ("train", "--data", split, *SMALL, *PGD, "--out", "run", "--resume")
    outcome = cli(*command, "--time-limit", "0.001s")
    assert outcome.status == 0, outcome.err
    assert outcome.out == "train: 0 of 2 epochs are done and saved; --resume continues\n"
    assert cli(*command, "--time-limit", "10m").status == 0
    assert Run.open("run").info.stages[0].kept_epoch in (1, 2)


def test_at_pgd_takes_seven_steps_by_itself(cli, split):
    outcome = cli("train", "--data", split, *SMALL, *PGD[:4], "--epochs", "1", "--out", "run")
    assert outcome.status == 0, outcome.err
    assert Run.open("run").info.recipe["steps"] == 7
