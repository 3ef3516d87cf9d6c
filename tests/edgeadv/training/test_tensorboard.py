"""Scalars for TensorBoard, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgeadv.training.loop import Progress
from edgeadv.training.tensorboard import Scalars
from edgeadv_runtime.errors import StorageError

MEASURED = {
    "test_accuracy": 0.5,
    "holdout_clean": 0.4,
    "holdout_fgsm": 0.3,
    "holdout_worst_case": 0.2,
    "duration_s": 1.0,
}


def progress(epoch: int, step: int, loss: float, **more: object) -> Progress:
    return Progress("teacher", epoch, 3, step, 40, loss, 0.25, 100.0, 0.125, 0.5, **more)  # type: ignore[arg-type]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_what_is_told_is_written(tmp_path: Path) -> None:
    with Scalars(tmp_path / "events") as report:
        report(progress(1, 20, 3.0))
        report(progress(1, 40, 2.0))
        report(progress(1, 40, 2.0, measured=MEASURED))
        report(progress(2, 20, 1.0))
    found = curves(tmp_path / "events" / "teacher")
    assert found == {
        "loss": [(20, 3.0), (40, 2.0), (60, 1.0)],
        "accuracy/train": [(20, 0.25), (40, 0.25), (60, 0.25)],
        "learning rate": [(20, 0.5), (40, 0.5), (60, 0.5)],
        "speed/images per second": [(20, 100.0), (40, 100.0), (60, 100.0)],
        "speed/share of waiting": [(20, 0.125), (40, 0.125), (60, 0.125)],
        "accuracy/test": [(40, 0.5)],
        "held out/clean": [(40, 0.4)],
        "held out/fgsm": [(40, 0.3)],
        "held out/worst case": [(40, 0.2)],
    }


def test_a_resumed_training_replaces_what_was_lost(tmp_path: Path) -> None:
    with Scalars(tmp_path) as report:
        for step in (20, 40):
            report(progress(1, step, 3.0))
        report(progress(2, 20, 9.0))  # of an epoch that is killed
        report(progress(2, 40, 9.0))
    with Scalars(tmp_path) as report:
        report(progress(2, 20, 1.0))
    assert curves(tmp_path / "teacher")["loss"] == [(20, 3.0), (40, 3.0), (60, 1.0)]


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        Scalars(tmp_path / "file" / "events")
