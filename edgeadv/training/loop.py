"""The one training loop: ordinary and adversarial training and all distillations differ in their objective only."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeadv_runtime.bundle.batches import MOST_UNREADABLE
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TRAINING_FILE, TrainingImages
from edgeadv_runtime.errors import InputError, StorageError, TrainingError
from edgeadv_runtime.files import atomic_file, ensure_writable
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.statistics import wilson_interval

from ..data.augment import AUGMENTS
from ..data.datasets import ImageSet, balanced_subset
from ..data.loading import Loader, Waiting, loader, to_model_input
from ..data.training_images import fed_hashes, fed_images
from ..models.builder import PixelModel
from ..models.checks import check_input_size
from ..models.device import default_device
from ..models.modes import evaluation_mode
from . import checkpoint
from .config import OutOfTimeError, TrainConfig
from .distributed import ProcessGroup
from .objectives import Objective, scale_head
from .selection import HeldOut, collapse, hold_out, standing
from .trainer import Trainer

_CHECK_EVERY = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Attributes:
        stage: ``"train"``, ``"teacher"`` or ``"student"``.
        epoch: from 1.
        epochs: how many there will be.
        step: of this epoch, from 1.
        steps: of this epoch.
        loss: mean loss of the epoch so far.
        accuracy: share of training images classified right in the epoch so far, as the network saw them: perturbed in
            adversarial training.
        images_per_s: training images per second, in this epoch so far.
        waiting: share of the time of this epoch so far in which the device waited for images.
        lr: the largest learning rate now.
        test_accuracy: top-1 on the test images after the last whole epoch, None before.
        worst_case: share of the held-out images that stood after the last whole epoch, None before and where none are.
        measured: what the history keeps of this epoch once it is over and measured, None while it runs.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float = 0.0
    accuracy: float = 0.0
    images_per_s: float = 0.0
    waiting: float = 0.0
    lr: float = 0.0
    test_accuracy: float | None = None
    worst_case: float | None = None
    measured: Mapping[str, float] | None = None


Report = Callable[[Progress], None]


def fit(
    model: PixelModel,
    objective: Objective,
    train_images: ImageSet,
    test_images: ImageSet,
    *,
    preprocess: Preprocess,
    config: TrainConfig,
    out: Path,
    stage: str = "train",
    resume: bool = False,
    device: torch.device | None = None,
    report: Report | None = None,
    settings: Mapping[str, Any] | None = None,
    deadline: float | None = None,
    processes: ProcessGroup | None = None,
    seen_before: TrainingImages | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place; after every epoch ``out/state.bin`` holds all that ``resume`` needs.

    When it is over, ``out/training-images.npy`` lists the images that were trained on, or held out to choose the epoch.

    Where the objective has a budget the weights are those of the epoch that stood best on held-out training images, and
    a training that collapses ends there.

    On a CPU an interrupted and resumed training gives the same weights, bit for bit, as an uninterrupted one.

    Args:
        model: a network with its initial weights; the objective's ``head_scale`` is applied to it here.
        objective: what to minimise.
        train_images: images to train on.
        test_images: images whose accuracy is measured after every epoch; nothing is chosen by it.
        preprocess: how images become the model's input.
        config: hyper-parameters.
        out: folder for the state file.
        stage: name of this training in progress reports.
        resume: take up from the state in ``out`` if there is one.
        device: where to train; None takes :func:`default_device`.
        report: called every 20 steps, after the last one of an epoch, and again when the epoch is measured.
        settings: what else makes this training the one it is, such as the recipe: only the same can be resumed.
        deadline: by ``time.monotonic()``; no epoch begins that would, as long as the last one, end after it.
        processes: the processes that train together, each on every so-manieth image of a batch; None trains alone. All
            start from the same weights, and get the same figures; process 0 measures, saves, and its ``model`` has the
            weights to keep.
        seen_before: images that the first weights were trained on; a warning tells of such among those that choose the
            epoch.

    Returns:
        ``{"epochs": [{"loss", "train_accuracy", "test_accuracy", ...}], "train_images", "test_images", "unreadable",
        ...}``, with ``"kept_epoch"`` where one was chosen and ``"stopped"``, in words, where training ended early. The
        test accuracy is that of the weights that are kept.

    Raises:
        OutOfTimeError: the deadline came first.
        TrainingError: the loss is not finite.
        InputError: too many images are unreadable, the network cannot take images of this size, or the state belongs to
            other settings.
        StorageError: ``out`` cannot be written, or holds another training and ``resume`` is false.
    """
    # in one piece: what is restored, drawn, told to the other processes and saved rests on this order
    device, processes = default_device() if device is None else device, processes or ProcessGroup()
    say = report or (lambda progress: None)
    held_out, chosen = _chosen_images(train_images, config, objective.budget, processes)
    if processes.first:
        ensure_writable(out)
    steps = len(chosen) // config.batch_size
    scale_head(model, objective.head_scale)
    model.to(device, memory_format=model.memory_format)  # type: ignore[call-overload]
    check_input_size(model, preprocess.input_shape)
    about = {
        "holdout_list": held_out.record or None,
        "data": Path(train_images.spec).name,
        "class_ids": list(train_images.classes.ids),
        "preprocess": preprocess.to_json(),
    }
    trainer = Trainer(model, objective, config, device, chosen, {**about, **(settings or {})}, processes)
    if checkpoint.exists(out):
        if not resume:
            raise StorageError(
                f"{out} holds an unfinished training: continue it with `resume`, or choose another `out`"
            )
        trainer.restore(out)
    processes.wait()
    wanted = chosen if objective.budget is None else np.union1d(chosen, held_out.choosing)
    source = loader(train_images, wanted, preprocess, device, workers=config.workers)
    tests = loader(test_images, np.arange(len(test_images)), preprocess, device, workers=config.workers)
    if processes.first and seen_before is not None and len(held_out.choosing):
        _tell_known(seen_before.count(fed_hashes(source, held_out.choosing)), len(held_out.choosing))
    history, stopped = trainer.history, collapse(trainer.history)
    while len(history) < config.epochs:
        late = deadline is not None and time.monotonic() + _last_duration(history) > deadline
        if stopped or processes.tell(late):
            break
        last = history[-1] if history else {}
        progress = Progress(
            stage,
            len(history) + 1,
            config.epochs,
            0,
            steps,
            test_accuracy=last.get("test_accuracy"),
            worst_case=last.get("holdout_worst_case"),
        )
        progress = _epoch(trainer, source, chosen, processes, say, progress)
        if processes.first:
            _measure(trainer, source, held_out.choosing, tests, objective.budget)
            trainer.save(out)
        history[-1] = last = processes.tell(history[-1])
        worst_case = last.get("holdout_worst_case")
        say(replace(progress, test_accuracy=last["test_accuracy"], worst_case=worst_case, measured=last))
        stopped = collapse(history)
    if len(history) < config.epochs and not stopped:
        raise OutOfTimeError(stage, len(history), config.epochs, _last_duration(history) or None)
    kind = trainer.finalise()
    if processes.first:
        with atomic_file(out / TRAINING_FILE) as temporary:
            # in one pass at the end: a resumed training knows as much as one that was not interrupted
            fed_images(source, wanted).save(temporary)
    kept = processes.tell(len(history) if trainer.best is None else int(trainer.best["epoch"]))
    last = history[kept - 1]
    right, tested = last["test_accuracy"], int(last["test_images"])
    chose = "holdout_worst_case" in last
    return {
        "epochs": history,
        "peak_lr": trainer.peak_lr,
        "optimizer": trainer.optimizer_settings,
        "ema": trainer.decay,
        "kept_weights": processes.tell(kind),
        "train_images": len(chosen),
        "test_images": tested,
        "test_accuracy": right,
        "test_accuracy_ci95": wilson_interval(round(right * tested), tested),
        "unreadable": trainer.unreadable,
        **({"kept_epoch": kept, "holdout_images": len(held_out.choosing)} if chose else {}),
        **({"holdout_list": held_out.record} if held_out.record else {}),
        **({"processes": processes.world} if processes.world > 1 else {}),
        **({"stopped": stopped} if stopped else {}),
    }


def _tell_known(known: int, n: int) -> None:
    if known:
        _log.warning(
            "%d of %d images held out were trained on before, by the first weights: their worst case flatters, though "
            "it chooses the epoch",
            known,
            n,
        )


def _chosen_images(
    images: ImageSet, config: TrainConfig, budget: Eps | None, processes: ProcessGroup
) -> tuple[HeldOut, NDArray[np.int64]]:
    """The images held out, and the positions of those to train on, once the settings are checked."""
    if config.augment not in AUGMENTS:
        raise InputError("augment", f"is one of {', '.join(AUGMENTS)}, not {config.augment!r}")
    if config.batch_size % processes.world:
        raise InputError(
            f"`batch_size` {config.batch_size} is no multiple of the {processes.world} processes that share it"
        )
    if config.batch_size < 2 * processes.world:
        raise InputError(
            f"`batch_size` {config.batch_size} leaves each of {processes.world} processes fewer than two images of "
            "a step"
        )
    held_out = hold_out(images, config.holdout, config.holdout_list, budget=budget)
    rest = np.setdiff1d(np.arange(len(images)), held_out.all)
    chosen = rest[
        balanced_subset(
            images.labels[rest],
            config.limit,
            seed=config.seed if config.limit_seed is None else config.limit_seed,
        )
    ]
    if len(chosen) < config.batch_size:
        raise InputError(
            f"{len(chosen)} training images do not fill one batch of {config.batch_size}: lower `batch_size`"
        )
    return held_out, chosen


def _measure(trainer: Trainer, source: Loader, held_out: NDArray[np.int64], tests: Loader, budget: Eps | None) -> None:
    """Add to the last epoch of the history how the network does, and keep its weights if none did better.

    Of the last weights and their average those are measured that stand better on the images held out.
    """
    start = time.perf_counter()
    candidates, entry = trainer.candidates, trainer.history[-1]
    judged = next(iter(candidates.values()))
    if budget is not None and len(held_out):
        stands = {name: standing(model, source, held_out, budget) for name, model in candidates.items()}
        best = max(stands, key=lambda name: stands[name].rank)
        judged = candidates[best]
        entry |= stands[best].to_json()
        if len(stands) > 1:
            entry |= {f"worst_case_of_{name}": stood.worst_case for name, stood in stands.items()}
            entry["clean_of_last"] = stands["last"].clean
        trainer.keep_if_best(stands[best], best)
    correct, scored = accuracy(judged, tests)
    entry |= {"test_accuracy": correct / scored, "test_images": scored}
    entry["measured_s"] = round(time.perf_counter() - start, 3)


def _last_duration(history: list[dict[str, float]]) -> float:
    return history[-1]["duration_s"] + history[-1]["measured_s"] if history else 0.0


def _epoch(
    trainer: Trainer,
    source: Loader,
    chosen: NDArray[np.int64],
    processes: ProcessGroup,
    say: Report,
    progress: Progress,
) -> Progress:
    """Train for the epoch that ``progress`` begins, add it to the history, and return its end."""
    epoch, steps = progress.epoch - 1, progress.steps
    if processes.world > 1:
        # dropout: the one thing that is drawn by process and not by image
        torch.manual_seed(trainer.config.seed + 1_000_003 * (epoch * processes.world + processes.rank + 1))
    # in one piece: all of it counts the same images and the same seconds
    config = trainer.config
    # order and augmentation come from (seed, epoch), so that nothing but torch's state has to be saved
    order = np.random.default_rng((config.seed, epoch)).permutation(chosen)[: steps * config.batch_size]
    # every process takes its part of each batch of the one order
    own = order.reshape(steps, config.batch_size)[:, processes.rank :: processes.world].ravel()
    trainer.model.train()
    loss_sum, correct = torch.zeros((), device=trainer.device), torch.zeros((), dtype=torch.long, device=trainer.device)
    seen, start, waiting, waited = 0, time.perf_counter(), Waiting(trainer.device), 0.0
    unreadable: list[str] = []
    for step, batch in enumerate(waiting.on(source.batches(config.batch_size // processes.world, own)), 1):
        unreadable += batch.unreadable
        if unreadable and processes.world > 1:
            raise InputError(
                f"{unreadable[0]}: parts of a batch must be of one size; repair the image, or train in one process"
            )
        if len(unreadable) > MOST_UNREADABLE * len(order) + 1:
            raise InputError(
                f"{len(unreadable)} of the first {seen + len(unreadable)} training images are unreadable, e.g. "
                f"{unreadable[0]}; repair the data"
            )
        if len(batch.index) >= 2:  # BatchNorm has no statistics of one
            loss, right = trainer.step(batch, epoch)
            loss_sum += loss * len(batch.index)
            correct += right
            seen += len(batch.index)
        if seen and (step % _CHECK_EVERY == 0 or step == steps):
            total_loss, hits, images_seen = processes.sum(loss_sum, correct, torch.tensor(seen, device=trainer.device))
            if not math.isfinite(total_loss):
                raise TrainingError(
                    f"the loss is not finite at step {step} of epoch {epoch + 1}: lower `lr` (it was "
                    f"{trainer.peak_lr:g}) and choose another "
                    "`out`, for this run cannot go on"
                )
            waited += waiting.seconds()
            passed = time.perf_counter() - start
            progress = replace(
                progress,
                step=step,
                loss=total_loss / images_seen,
                accuracy=hits / images_seen,
                images_per_s=images_seen / passed,
                waiting=waited / passed,
                lr=trainer.lr,
            )
            say(progress)
    trainer.history.append(
        {
            "loss": progress.loss,
            "train_accuracy": progress.accuracy,
            "duration_s": round(time.perf_counter() - start, 3),
            "images_per_s": round(progress.images_per_s, 1),
            "waited_s": round(waited, 3),
        }
    )
    trainer.unreadable = sorted({*trainer.unreadable, *unreadable})
    return progress


def accuracy(model: PixelModel, source: Loader, *, batch_size: int = 256) -> tuple[int, int]:
    """Right answers and readable images of ``model`` in evaluation mode, of all images of ``source``.

    Raises:
        InputError: not one image is readable.
    """
    correct = scored = 0
    with evaluation_mode(model, frozen=False), torch.no_grad():
        for batch in source.batches(batch_size):
            if len(batch.index):
                correct += int((model(to_model_input(batch.pixels)).argmax(dim=1) == batch.labels).sum())
                scored += len(batch.index)
    if not scored:
        raise InputError(f"none of the {len(source.order)} test images of {source.images.spec} is readable")
    return correct, scored
