"""``kill -9`` at any moment of a training: no more than the running epoch is lost, and the end is the same."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeadv.data.datasets import ImageSet, open_data
from edgeadv.models.builder import Architecture
from edgeadv.models.checkpoints import read_weights
from edgeadv.training import checkpoint
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import Progress
from edgeadv.training.recipes import Task, train
from edgeadv.training.runs import Run
from edgeadv_runtime.errors import EdgeAdvError
from edgeadv_runtime.records.eps import Eps

KILLS, EPOCHS = 10, 32
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=32, limit=128, holdout=40, augment="crop-flip", ema=0.9)


def training(out: Path, log: Path) -> Run:
    """A small training, all of whose state there is: average, held-out choice, momentum. It logs each epoch that is
    saved."""
    torch.set_num_threads(1)
    images = open_data("mnist5k", split="train")

    def report(progress: Progress) -> None:
        with log.open("a") as stream:
            stream.write(f"{progress.epoch} {progress.measured is not None}\n")

    task = Task(
        train_images=images,
        test_images=small(images),
        preprocess=images.preprocess,
        config=CONFIG,
        device=torch.device("cpu"),
        resume=True,
        report=report,
    )
    architecture = Architecture.find("timm/test_resnet", num_classes=10)
    return train(task, architecture, out, defence=AdversarialTraining.fgsm(Eps.parse("0.1")))


def small(images: ImageSet) -> ImageSet:
    index = np.arange(0, len(images), 100)
    return replace(
        images,
        labels=images.labels[index],
        names=[images.names[i] for i in index],
        image=lambda i: images.image(index[i]),
    )


def lines(log: Path) -> list[tuple[int, bool]]:
    said = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(epoch), saved == "True") for epoch, saved in said]


@pytest.mark.slow
def test_kills_at_random(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole", tmp_path / "whole.log")
    # forked from a process that has torch imported: a kill hits training, and not the start of Python
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgeadv.training.recipes"])
    rng, out, survived = np.random.default_rng(), tmp_path / "run", 0
    epochs = whole.info.stages[0].epochs
    epoch_s = sum(epoch["duration_s"] + epoch["measured_s"] for epoch in epochs) / len(epochs)
    lost = []
    for kill in range(KILLS):
        log = tmp_path / f"{kill}.log"
        process = context.Process(target=training, args=(out, log))
        process.start()
        # from its first word, at the end of an epoch's steps: while it is measured or saved, or in the next epoch
        while not lines(log) and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1.2 * epoch_s))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        said = lines(log)
        assert process.exitcode == -signal.SIGKILL, "it ended by itself"
        first, saved = said[0][0], max([epoch for epoch, done in said if done], default=0)
        # it went on where the one before had been killed, and what it called saved is there
        assert first == survived + 1
        kept = epochs_kept(out)
        assert max(saved, survived) <= kept <= said[-1][0]
        survived = kept
        lost.append(said[-1][0] - survived)
        with pytest.raises(EdgeAdvError, match=r"not finished|no training run"):
            Run.open(out)
    assert len(lost) == KILLS and max(lost) <= 1
    print(f"\n{len(lost)} kills, {survived} of {EPOCHS} epochs kept at the last; epochs lost at each: {lost}")
    finished = training(out, tmp_path / "last.log")
    assert lines(tmp_path / "last.log")[0][0] == survived + 1
    assert sorted(file.name for file in out.iterdir()) == ["run.json", "training-images.npy", "weights.safetensors"]
    ours, theirs = (read_weights(run.path / "weights.safetensors") for run in (finished, whole))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def epochs_kept(out: Path) -> int:
    if not (out / checkpoint.STATE_FILE).exists():
        return 0
    return len(torch.load(io.BytesIO(checkpoint.load(out)), weights_only=True)["history"])
