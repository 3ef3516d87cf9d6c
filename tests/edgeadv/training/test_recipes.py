"""Both distillations as runs: what is trained, in which order, and what is taken up after an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.loading import to_model_input
from edgeadv.models.builder import Architecture, build
from edgeadv.models.checkpoints import read_weights
from edgeadv.training import recipes as distilling
from edgeadv.training.checkpoint import STATE_FILE
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import Progress
from edgeadv.training.objectives import parameter_groups, scale_head
from edgeadv.training.recipes import Task, distill, train
from edgeadv.training.runs import TEACHER_FOLDER, Run, write_run
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import EdgeAdvError, InputError, StorageError
from edgeadv_runtime.files import sha256_file

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=2, batch_size=64, limit=256)
Digits = tuple[ImageSet, ImageSet]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """All digits to train on (a limit takes 256 of them), 100 to test."""
    torch.set_num_threads(1)
    test = open_data("mnist5k", split="test")
    index = list(range(0, 1000, 10))
    some = replace(
        test, labels=test.labels[index], names=[test.names[i] for i in index], image=lambda i: test.image(index[i])
    )
    return open_data("mnist5k", split="train"), some


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return Architecture.find("timm/test_vit2", num_classes=10)


def task(digits: Digits, config: TrainConfig = CONFIG, **more: Any) -> Task:
    return Task(
        train_images=digits[0],
        test_images=digits[1],
        preprocess=digits[0].preprocess,
        config=config,
        device=CPU,
        **more,
    )


def weights(path: Path) -> dict[str, Tensor]:
    return read_weights(path / "weights.safetensors")


def assert_same(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def stop_in(stage: str, epoch: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.stage, progress.epoch) == (stage, epoch):
            raise KeyboardInterrupt

    return report


def never(progress: Progress) -> None:
    raise AssertionError(f"{progress.stage} was trained")


OPTIONS: dict[str, dict[str, Any]] = {
    "papernot": {"recipe": "papernot", "temperature": 40.0},
    "soft-label": {"recipe": "soft-label", "temperature": 4.0, "alpha": 0.7},
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Digits, architecture: Architecture
) -> Run:
    """An uninterrupted distillation of each recipe. Shared: tests must not change it."""
    return distill(
        task(digits), architecture, tmp_path_factory.mktemp("runs") / request.param, **OPTIONS[request.param]
    )


@pytest.fixture(scope="module")
def papernot(tmp_path_factory: pytest.TempPathFactory, digits: Digits, architecture: Architecture) -> Run:
    return distill(task(digits), architecture, tmp_path_factory.mktemp("runs") / "papernot", **OPTIONS["papernot"])


def options(run: Run) -> dict[str, Any]:
    return OPTIONS[run.info.recipe["recipe"]]


# A whole distillation


def test_a_run_says_how_it_was_distilled(finished: Run, architecture: Architecture) -> None:
    expected, recipe = options(finished), finished.info.recipe
    teacher = Run.open(finished.path / TEACHER_FOLDER)
    assert {k: recipe[k] for k in expected} == expected
    assert ("alpha" in recipe) == (expected["recipe"] == "soft-label")
    assert recipe["teacher"] == teacher.title
    assert recipe["teacher_weights_sha256"] == teacher.info.weights_sha256
    assert recipe["teacher_test_accuracy"] == teacher.info.stages[-1].test_accuracy
    assert teacher.info.recipe["temperature"] == (40.0 if expected["recipe"] == "papernot" else 1.0)
    assert finished.architecture == teacher.architecture == architecture
    # teacher and student start from different weights
    assert teacher.info.config["seed"] != finished.info.config["seed"]
    assert sorted(f.name for f in finished.path.iterdir()) == [
        "run.json",
        TEACHER_FOLDER,
        "training-images.npy",
        "weights.safetensors",
    ]
    assert sorted(f.name for f in teacher.path.iterdir()) == ["run.json", "training-images.npy", "weights.safetensors"]


def test_the_student_is_what_the_paper_says(tmp_path: Path, digits: Digits) -> None:
    """One epoch, written out: SGD on the cross-entropy to the teacher's probabilities, both at T; no label is used."""
    config = TrainConfig(epochs=1, batch_size=64, limit=256, lr=0.01)
    # with BatchNorm, so that a teacher in training mode would say something else
    architecture = Architecture.find("timm/test_resnet", num_classes=10)
    run = distill(task(digits, config), architecture, tmp_path / "run", recipe="papernot", temperature=40.0)
    teacher = Run.open(run.path / TEACHER_FOLDER)

    temperature, images = 40.0, digits[0]
    torch.manual_seed(config.seed)
    student, guide = build(architecture), teacher.load_model().eval()
    scale_head(student, temperature)
    groups = parameter_groups(student, lr=0.01, weight_decay=config.weight_decay, head_scale=temperature)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in groups], total_steps=4, cycle_momentum=False
    )
    chosen = balanced_subset(images.labels, 256, seed=config.seed)
    order = np.random.default_rng((config.seed, 0)).permutation(chosen)
    for batch in batches(images, images.preprocess, batch_size=64, order=order):
        x = to_model_input(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2))
        with torch.no_grad():
            soft = functional.softmax(guide(x) / temperature, dim=1)
        loss = -(soft * functional.log_softmax(student(x) / temperature, dim=1)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        z, expected = run.load_model().eval()(x), student.eval()(x)
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_teacher_is_left_as_it_was(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    teacher = Run.open(papernot.path / TEACHER_FOLDER)
    before = (teacher.path / "weights.safetensors").read_bytes(), (teacher.path / "run.json").read_bytes()
    run = distill(task(digits), architecture, tmp_path / "run", recipe="papernot", temperature=40.0, teacher=teacher)
    assert ((teacher.path / "weights.safetensors").read_bytes(), (teacher.path / "run.json").read_bytes()) == before
    # a teacher that is given is as good as one that is trained on the way
    assert_same(run.path, papernot.path)
    assert not (run.path / TEACHER_FOLDER).exists()


def test_a_larger_teacher(tmp_path: Path, digits: Digits, architecture: Architecture) -> None:
    larger = Architecture.find("timm/test_resnet", num_classes=10)
    one = replace(CONFIG, epochs=1)
    run = distill(
        task(digits, one),
        architecture,
        tmp_path / "run",
        recipe="soft-label",
        temperature=4.0,
        teacher_architecture=larger,
    )
    assert run.architecture == architecture and Run.open(run.path / TEACHER_FOLDER).architecture == larger
    assert run.info.recipe["alpha"] == 0.9


# Interrupted


@pytest.mark.parametrize(("stage", "epoch"), [("teacher", 1), ("teacher", 2), ("student", 1), ("student", 2)])
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, finished: Run, digits: Digits, architecture: Architecture, stage: str, epoch: int
) -> None:
    out, chosen = tmp_path / "run", options(finished)
    with pytest.raises(KeyboardInterrupt):
        distill(task(digits, report=stop_in(stage, epoch)), architecture, out, **chosen)
    with pytest.raises(EdgeAdvError):
        Run.open(out)
    seen: list[Progress] = []
    run = distill(task(digits, resume=True, report=seen.append), architecture, out, **chosen)
    assert_same(run.path, finished.path)
    assert_same(run.path / TEACHER_FOLDER, finished.path / TEACHER_FOLDER)
    assert (seen[0].stage, seen[0].epoch) == (stage, epoch)
    assert run.info.recipe == finished.info.recipe
    assert not (out / STATE_FILE).exists() and not (out / TEACHER_FOLDER / STATE_FILE).exists()


@pytest.fixture(params=["teacher", "student"])
def cut(request: pytest.FixtureRequest, tmp_path: Path, digits: Digits, architecture: Architecture) -> Path:
    """A soft-label distillation interrupted in the second epoch of each stage."""
    with pytest.raises(KeyboardInterrupt):
        distill(task(digits, report=stop_in(request.param, 2)), architecture, tmp_path / "cut", **OPTIONS["soft-label"])
    return tmp_path / "cut"


@pytest.mark.parametrize("change", [{"epochs": 3}, {"lr": 0.5}, {"seed": 1}, {"limit": 128}])
def test_it_cannot_go_on_with_other_settings(
    cut: Path, digits: Digits, architecture: Architecture, change: dict[str, Any]
) -> None:
    """Not even where the teacher is finished and the student has not begun to differ."""
    (cut / STATE_FILE).unlink(missing_ok=True)
    with pytest.raises(InputError, match="other settings"):
        distill(task(digits, replace(CONFIG, **change), resume=True), architecture, cut, **OPTIONS["soft-label"])


@pytest.mark.parametrize("change", [{"temperature": 5.0}, {"alpha": 0.8}])
def test_a_student_cannot_go_on_with_another_recipe(
    tmp_path: Path, digits: Digits, architecture: Architecture, change: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distill(task(digits, report=stop_in("student", 2)), architecture, out, **OPTIONS["soft-label"])
    with pytest.raises(InputError, match=r"other settings \(recipe\)"):
        distill(task(digits, resume=True), architecture, out, **{**OPTIONS["soft-label"], **change})


def test_a_teacher_cannot_go_on_at_another_temperature(
    tmp_path: Path, digits: Digits, architecture: Architecture
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distill(task(digits, report=stop_in("teacher", 2)), architecture, out, **OPTIONS["papernot"])
    with pytest.raises(InputError, match="other settings"):
        distill(task(digits, resume=True), architecture, out, recipe="papernot", temperature=30.0)


def test_a_training_is_not_continued_as_a_distillation(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(task(digits, report=stop_in("train", 2)), architecture, out)
    teacher = Run.open(papernot.path / TEACHER_FOLDER)
    with pytest.raises(InputError, match="other settings"):
        distill(task(digits, resume=True), architecture, out, recipe="papernot", temperature=40.0, teacher=teacher)


# Finished runs


def test_a_finished_distillation_is_reopened(finished: Run, digits: Digits, architecture: Architecture) -> None:
    chosen = options(finished)
    assert distill(task(digits, resume=True, report=never), architecture, finished.path, **chosen) == finished
    with pytest.raises(InputError, match="holds a finished run"):
        distill(task(digits, report=never), architecture, finished.path, **chosen)
    other = "soft-label" if chosen["recipe"] == "papernot" else "papernot"
    for change in ({"temperature": 41.0}, {"recipe": other, "alpha": None}):
        with pytest.raises(InputError, match="other settings"):
            distill(task(digits, resume=True, report=never), architecture, finished.path, **{**chosen, **change})


def test_a_refused_distillation_trains_no_teacher_first(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    """A finished run whose teacher is gone, under other settings: nothing is trained before that is said."""
    out = tmp_path / "run"
    shutil.copytree(papernot.path, out, ignore=shutil.ignore_patterns(TEACHER_FOLDER))
    with pytest.raises(InputError, match="other settings"):
        distill(task(digits, resume=True, report=never), architecture, out, recipe="papernot", temperature=41.0)
    with pytest.raises(InputError, match="holds a finished run"):
        distill(task(digits, report=never), architecture, out, recipe="papernot", temperature=40.0)
    assert not (out / TEACHER_FOLDER).exists()


# What does not fit


def test_papernot_needs_one_architecture(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    other = Architecture.find("timm/test_resnet", num_classes=10)
    with pytest.raises(InputError, match="papernot distils into the same architecture"):
        distill(
            task(digits, report=never),
            architecture,
            tmp_path / "a",
            recipe="papernot",
            temperature=40.0,
            teacher_architecture=other,
        )
    teacher = Run.open(papernot.path / TEACHER_FOLDER)
    with pytest.raises(InputError, match="papernot needs test_resnet at T = 40"):
        distill(task(digits, report=never), other, tmp_path / "b", recipe="papernot", temperature=40.0, teacher=teacher)
    assert list(tmp_path.iterdir()) == []


def test_papernot_needs_a_teacher_of_the_same_temperature(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    teacher = Run.open(papernot.path / TEACHER_FOLDER)
    with pytest.raises(InputError, match="trained at T = 40; papernot needs test_vit2 at T = 20"):
        distill(
            task(digits, report=never),
            architecture,
            tmp_path / "a",
            recipe="papernot",
            temperature=20.0,
            teacher=teacher,
        )


def test_a_teacher_of_other_data_is_refused(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    teacher = Run.open(papernot.path / TEACHER_FOLDER)
    turned = replace(digits[0].classes, ids=tuple("9876543210"))
    other = replace(digits[0], classes=turned, labels=9 - digits[0].labels)
    with pytest.raises(InputError, match="was trained on other classes"):
        distill(task((other, digits[1])), architecture, tmp_path / "a", **OPTIONS["papernot"], teacher=teacher)
    coarse = replace(task(digits), preprocess=Preprocess(resize=32, crop=32, interpolation="nearest"))
    with pytest.raises(InputError, match="was trained with other preprocessing"):
        distill(coarse, architecture, tmp_path / "b", **OPTIONS["papernot"], teacher=teacher)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"temperature": 0.5}, "temperature must be from 1"), ({"alpha": 1.5}, "alpha must be in")],
)
def test_unusable_options_are_refused_before_a_teacher_is_trained(
    tmp_path: Path, digits: Digits, architecture: Architecture, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distill(task(digits, report=never), architecture, tmp_path / "a", **{**OPTIONS["soft-label"], **change})
    assert list(tmp_path.iterdir()) == []


def test_teacher_and_student_see_the_same_images_of_a_limit(
    tmp_path: Path, digits: Digits, architecture: Architecture
) -> None:
    """Labels of images that the teacher never saw would be knowledge of more images than the limit."""
    seen: dict[str, set[int]] = {"teacher": set(), "student": set()}
    stage = ["teacher"]

    def image(i: int) -> Image.Image:
        seen[stage[0]].add(i)
        return digits[0].image(i)

    def report(progress: Progress) -> None:
        stage[0] = progress.stage

    watched = (replace(digits[0], image=image), digits[1])

    def finished(folder: Path, *args: Any) -> Run:
        stage[0] = "student"
        return write_run(folder, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distilling, "write_run", finished)
        run = distill(task(watched, report=report), architecture, tmp_path / "run", recipe="papernot", temperature=40.0)
    assert len(seen["teacher"]) == len(seen["student"]) == CONFIG.limit
    assert seen["teacher"] == seen["student"]
    teacher = Run.open(run.path / TEACHER_FOLDER)
    assert teacher.info.config["seed"] != run.info.config["seed"]


def test_other_workers_reopen_a_finished_teacher(papernot: Run, digits: Digits, architecture: Architecture) -> None:
    other = replace(CONFIG, workers=1)
    again = distill(task(digits, other, resume=True, report=never), architecture, papernot.path, **OPTIONS["papernot"])
    assert again.path == papernot.path


def test_papernot_needs_a_teacher_that_was_trained_at_its_temperature(
    tmp_path: Path, digits: Digits, architecture: Architecture
) -> None:
    """A soft-label student's T is that of the labels it was given: its logits are no T times as large."""
    hot = distill(task(digits), architecture, tmp_path / "a", recipe="soft-label", temperature=40.0, alpha=0.9)
    with pytest.raises(InputError, match="trained at T = 1; papernot needs test_vit2 at T = 40"):
        distill(task(digits), architecture, tmp_path / "b", recipe="papernot", temperature=40.0, teacher=hot)


def test_a_run_from_other_weights_is_another_run(
    tmp_path: Path, papernot: Run, digits: Digits, architecture: Architecture
) -> None:
    """All runs' weights have one file name."""
    first, second = papernot.path / "weights.safetensors", papernot.path / TEACHER_FOLDER / "weights.safetensors"
    run = train(task(digits), architecture, tmp_path / "run", weights=str(first))
    assert run.info.recipe["start_weights_sha256"] == sha256_file(first)
    with pytest.raises(InputError, match="other settings"):
        train(task(digits, resume=True, report=never), architecture, tmp_path / "run", weights=str(second))


def test_the_seeds_of_teacher_and_student_differ_in_their_weights(papernot: Run) -> None:
    assert not same(papernot.path, papernot.path / TEACHER_FOLDER)


@pytest.mark.parametrize("name", ["weights.safetensors", "training-images.npy"])
def test_files_of_something_else_are_not_replaced(
    tmp_path: Path, digits: Digits, architecture: Architecture, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match=f"holds a {name} of something else"):
        train(task(digits), architecture, tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]
