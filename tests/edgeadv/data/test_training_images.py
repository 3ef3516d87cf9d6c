"""What a run says that it was trained on: the pixels before augmentation, those that chose the epoch, and the
teacher's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeadv.data import loading as feeding
from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.loading import Loader, Resident
from edgeadv.data.training_images import fed_images, hashed, training_data
from edgeadv.models.builder import Architecture
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import Progress
from edgeadv.training.recipes import Task, distill, train
from edgeadv.training.runs import Run
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TRAINING_FILE, TrainingImages
from edgeadv_runtime.errors import DataError, IntegrityError
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.records.eps import Eps

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=2, batch_size=16, limit=64, augment="crop-flip")


def hashes(images: ImageSet, order: np.ndarray, preprocess: Preprocess | None = None) -> list[str]:
    found = batches(images, preprocess or images.preprocess, batch_size=100, order=order)
    return [sha256_bytes(pixels.tobytes()) for batch in found for pixels in batch.pixels]


@pytest.fixture(scope="module")
def small() -> Architecture:
    return Architecture.find("timm/test_resnet", num_classes=10)


@pytest.fixture(scope="module")
def few(digits_test: ImageSet) -> ImageSet:
    """Enough to measure on."""
    keep = balanced_subset(digits_test.labels, 20)
    return replace(
        digits_test,
        labels=digits_test.labels[keep],
        names=[digits_test.names[i] for i in keep],
        image=lambda i: digits_test.image(int(keep[i])),
    )


@pytest.fixture
def task(digits_train: ImageSet, few: ImageSet) -> Callable[..., Task]:
    def make(config: TrainConfig = CONFIG, **more: Any) -> Task:
        return Task(
            train_images=digits_train,
            test_images=few,
            preprocess=digits_train.preprocess,
            config=config,
            device=CPU,
            **more,
        )

    return make


def listed(run: Run) -> list[int]:
    assert run.training_images is not None
    return run.training_images.hashes.tolist()


def expected(images: ImageSet, order: np.ndarray) -> list[int]:
    return TrainingImages.of(hashes(images, order)).hashes.tolist()


def test_a_run_lists_what_it_was_trained_on(
    tmp_path: Path, task: Any, digits_train: ImageSet, small: Architecture
) -> None:
    run = train(task(), small, tmp_path / "run")
    chosen = balanced_subset(digits_train.labels, 64, seed=0)
    assert listed(run) == expected(digits_train, chosen)
    assert run.info.training_images.count == 64


def test_a_streamed_training_and_a_resumed_one_list_the_same(
    tmp_path: Path, task: Any, small: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(task(), small, tmp_path / "whole")
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(task(report=stop), small, tmp_path / "cut")
    assert not (tmp_path / "cut" / TRAINING_FILE).exists()
    resumed = train(task(resume=True), small, tmp_path / "cut")
    assert listed(resumed) == listed(whole)
    assert (resumed.path / TRAINING_FILE).read_bytes() == (whole.path / TRAINING_FILE).read_bytes()


def test_images_that_chose_the_epoch_are_listed(
    tmp_path: Path, task: Any, digits_train: ImageSet, small: Architecture
) -> None:
    run = train(
        task(replace(CONFIG, epochs=1, holdout=20)),
        small,
        tmp_path / "run",
        defence=AdversarialTraining.fgsm(Eps.parse("4/255")),
    )
    held_out = balanced_subset(digits_train.labels, 20)
    rest = np.setdiff1d(np.arange(len(digits_train)), held_out)
    chosen = rest[balanced_subset(digits_train.labels[rest], 64, seed=0)]
    assert listed(run) == expected(digits_train, np.union1d(chosen, held_out))


def test_the_teachers_images_are_the_students(
    tmp_path: Path, task: Any, digits_train: ImageSet, small: Architecture
) -> None:
    teacher = train(task(replace(CONFIG, seed=5, epochs=1)), small, tmp_path / "teacher")
    student = distill(
        task(replace(CONFIG, epochs=1)), small, tmp_path / "student", recipe="soft-label", teacher=teacher
    )
    own = balanced_subset(digits_train.labels, 64, seed=0)
    theirs = balanced_subset(digits_train.labels, 64, seed=5)
    assert len(np.setdiff1d(theirs, own)) > 10
    assert listed(student) == expected(digits_train, np.union1d(own, theirs))


def test_the_images_of_the_run_that_the_weights_are_from_are_listed(
    tmp_path: Path, task: Any, digits_train: ImageSet, small: Architecture
) -> None:
    first = train(task(replace(CONFIG, seed=5, epochs=1)), small, tmp_path / "first")
    config = replace(CONFIG, epochs=1)
    again = train(task(config), small, tmp_path / "again", weights=str(first.path / "weights.safetensors"))
    own, theirs = (balanced_subset(digits_train.labels, 64, seed=seed) for seed in (0, 5))
    assert listed(again) == expected(digits_train, np.union1d(own, theirs))
    # a file that went its own way has no run
    lone = shutil.copy(first.path / "weights.safetensors", tmp_path / "lone.safetensors")
    other = train(task(config), small, tmp_path / "other", weights=str(lone))
    assert listed(other) == expected(digits_train, own)


def test_a_run_without_its_list_or_with_another_is_refused(tmp_path: Path, task: Any, small: Architecture) -> None:
    run = train(task(replace(CONFIG, epochs=1)), small, tmp_path / "run")
    TrainingImages.of(["00" * 32]).save(run.path / TRAINING_FILE)
    with pytest.raises(IntegrityError, match=r"training-images\.npy is not what this run wrote"):
        Run.open(run.path)


def test_a_run_of_an_older_edgeadv_does_not_know(tmp_path: Path, task: Any, small: Architecture) -> None:
    run = train(task(replace(CONFIG, epochs=1)), small, tmp_path / "run")
    info = json.loads((run.path / "run.json").read_text())
    del info["training_images"]
    (run.path / "run.json").write_text(json.dumps(info))
    (run.path / TRAINING_FILE).unlink()
    assert Run.open(run.path).training_images is None


# what is fed, and what is named


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` and ``test/`` of two classes, of ten pictures each; one to train on cannot be read."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for i in range(5):
                frame = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(frame).save(folder / part / label / f"{i}.png")
    (folder / "train" / "a" / "3.png").write_bytes(b"no picture")
    return folder


def test_what_lives_on_the_device_and_what_is_streamed_hash_the_same(pictures: Path) -> None:
    images = open_data(str(pictures), split="train")
    order = np.arange(len(images))
    both = [
        fed_images(kind(images, order, images.preprocess, CPU), order).hashes.tolist() for kind in (Resident, Loader)
    ]
    assert both[0] == both[1] == expected(images, order) and len(both[0]) == 9


def test_a_folder_is_its_train_part_or_all_its_pictures(pictures: Path, tmp_path: Path) -> None:
    steps = Preprocess(resize=32, crop=24)
    train_part, test_part = (open_data(str(pictures), split=split) for split in ("train", "test"))  # type: ignore[arg-type]
    wanted = hashes(train_part, np.arange(len(train_part)), steps)
    told: list[tuple[int, int]] = []
    found = hashed(training_data(str(pictures)), steps, progress=lambda done, total: told.append((done, total)))
    assert len(found) == found.count(wanted) == 9 and told[-1] == (10, 10)
    assert found.count(hashes(test_part, np.arange(10), steps)) == 0
    # the same pictures in one heap, under other names
    for number, file in enumerate(sorted((pictures / "train").rglob("*.png"))):
        shutil.copy(file, tmp_path / f"{number}.png")
    heap = hashed(training_data(str(tmp_path)), steps)
    assert heap.hashes.tolist() == found.hashes.tolist()
    assert hashed(training_data(str(pictures / "train")), steps, workers=1).hashes.tolist() == found.hashes.tolist()
    # under another preprocessing they are other images
    assert hashed(training_data(str(pictures)), Preprocess(resize=32, crop=32)).count(wanted) == 0


def test_a_name_is_its_training_part(digits_train: ImageSet, digits_test: ImageSet) -> None:
    found = hashed(training_data("mnist5k"), digits_train.preprocess)
    assert len(found) == 4000
    assert found.count(hashes(digits_train, np.arange(0, 4000, 100))) == 40
    # no digit of the test part is one of the training part
    assert found.count(hashes(digits_test, np.arange(len(digits_test)))) == 0


def test_nothing_to_list(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for spec in ("nowhere", str(tmp_path / "empty")):
        with pytest.raises(DataError):
            training_data(spec)
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 1 training images of .*empty is readable"):
        hashed(training_data(str(tmp_path / "empty")), Preprocess(resize=32, crop=32))
