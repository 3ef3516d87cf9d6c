"""The one training loop: ordinary and adversarial training and both distillations differ in their objective only."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgeadv_runtime.errors import BundleError, InputError, StorageError, TrainingError
from edgeadv_runtime.evaluate import MOST_UNREADABLE
from edgeadv_runtime.files import ensure_writable, write_bytes
from edgeadv_runtime.preprocess import Preprocess
from edgeadv_runtime.stats import wilson_interval

from .data import Batch, ImageSet, balanced_subset, batches, crop_flip
from .models import PixelModel, check_input_size, evaluation_mode
from .objectives import Objective, parameter_groups, scale_head
from .runs import STATE_FILE

_CHECK_EVERY = 20
OPTIMIZER = {
    "name": "SGD",
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "one-cycle, cosine, without cycling the momentum",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyper-parameters of one training; all of them are kept in ``run.json``.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate of the one-cycle schedule (SGD, Nesterov momentum 0.9); None takes 0.02, or 0.01 for a
            network without BatchNorm.
        weight_decay: L2 penalty.
        seed: of initialisation, order, augmentation and dropout.
        augment: ``"none"``, or ``"crop-flip"``: shifts by up to an eighth of the side, and mirroring.
        limit: train on at most this many images, as many of each class; None takes all.
        workers: processes that decode images; 0 decodes in this one.
    """

    epochs: int = 8
    batch_size: int = 64
    lr: float | None = None
    weight_decay: float = 5e-4
    seed: int = 0
    augment: Literal["none", "crop-flip"] = "none"
    limit: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if self.lr is not None and not 0 < self.lr <= 100:
            raise InputError(f"lr must be in (0, 100], not {self.lr}")
        if not 0 <= self.weight_decay <= 1:
            raise InputError(f"weight decay must be in [0, 1], not {self.weight_decay}")
        if self.augment not in ("none", "crop-flip"):
            raise InputError(f"augment is none or crop-flip, not {self.augment!r}")


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
        test_accuracy: top-1 on the test images after the last whole epoch, None before.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_s: float
    test_accuracy: float | None


Report = Callable[[Progress], None]


def default_device() -> torch.device:
    """A CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_model_input(pixels: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """uint8 NHWC pixels as the float32 NCHW tensor in [0, 1], in channels-last memory: the same numbers as ``to_tensor``."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)


class _Trainer:
    """The state of one training, which can be saved after any epoch and taken up again."""

    def __init__(
        self,
        model: PixelModel,
        objective: Objective,
        config: TrainConfig,
        device: torch.device,
        steps: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.config = config
        self.device = device
        batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        lr = config.lr if config.lr is not None else 0.02 if batch_norm else 0.01
        self.peak_lr = lr
        groups = parameter_groups(model, lr=lr, weight_decay=config.weight_decay, head_scale=objective.head_scale)
        self.optimizer = torch.optim.SGD(
            groups, momentum=float(str(OPTIMIZER["momentum"])), nesterov=bool(OPTIMIZER["nesterov"])
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=config.epochs * steps,
            cycle_momentum=False,
        )
        self.history: list[dict[str, float]] = []
        # the schedule depends on the number of steps: another amount of data is another run
        settled = {key: value for key, value in asdict(config).items() if key != "workers"}  # they change nothing
        self.fingerprint = {**settled, "steps": steps, "architecture": model.architecture.to_json(), **settings}

    def save(self, path: Path) -> None:
        """Write all that :meth:`restore` needs, atomically."""
        state = {
            "fingerprint": self.fingerprint, "history": self.history, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(), "rng": torch.get_rng_state(),
        }  # fmt: skip
        # torch's own writing hides a full disk behind an error of its own
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Continue from a saved state, torch's random state included."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            changed = sorted(k for k, v in self.fingerprint.items() if _plain(state["fingerprint"].get(k)) != _plain(v))
        except Exception as error:  # torch.load has no common base error for damaged files
            raise BundleError(
                f"{path} is damaged and cannot be resumed ({error}); start again in another --out"
            ) from error
        if changed:
            raise InputError(
                f"{path.parent} was started with other settings ({', '.join(changed)}): resume with the same ones"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self.history = state["history"]

    def step(self, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor]:
        """One update; returns the loss and the number of right answers, on the device."""
        x = to_model_input(batch.pixels, self.device)
        labels = torch.from_numpy(batch.labels).to(self.device)
        # half precision pays where tensor cores do; a CPU here would only lose digits
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(objective.inputs(self.model, x, labels))
        loss = objective(x, logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach(), (logits.argmax(dim=1) == labels).sum()


def _plain(value: Any) -> Any:
    """Tuples as lists: what survives a file, so that equal settings compare equal."""
    return (
        {k: _plain(v) for k, v in value.items()}
        if isinstance(value, dict)
        else list(value)
        if isinstance(value, tuple)
        else value
    )


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
) -> dict[str, Any]:
    """Train ``model`` in place; after every epoch ``out/state.pt`` holds all that ``resume`` needs.

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
        resume: take up from ``out/state.pt`` if it is there.
        device: where to train; None takes :func:`default_device`.
        report: called every 20 steps and after the last one of an epoch.
        settings: what else makes this training the one it is, such as the recipe: only the same can be resumed.

    Returns:
        ``{"epochs": [{"loss", "train_accuracy", "test_accuracy", ...}], "train_images", "test_images", "unreadable", ...}``.

    Raises:
        TrainingError: the loss is not finite.
        InputError: too many images are unreadable, the network cannot take images of this size, or the state belongs to
            other settings.
        StorageError: ``out`` cannot be written, or holds another training and ``resume`` is false.
    """
    device = default_device() if device is None else device
    chosen = balanced_subset(train_images.labels, config.limit, seed=config.seed)
    if len(chosen) < config.batch_size:
        raise InputError(
            f"{len(chosen)} training images do not fill one batch of {config.batch_size}: lower --batch-size"
        )
    ensure_writable(out)
    steps = len(chosen) // config.batch_size
    scale_head(model, objective.head_scale)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_input_size(model, preprocess.crop)
    about = {
        "data": Path(train_images.spec).name,
        "class_ids": list(train_images.classes.ids),
        "preprocess": preprocess.to_json(),
    }
    trainer = _Trainer(model, objective, config, device, steps, {**about, **(settings or {})})
    state_file = out / STATE_FILE
    if state_file.exists():
        if not resume:
            raise StorageError(
                f"{out} holds an unfinished training: continue it with --resume, or choose another --out"
            )
        trainer.restore(state_file)
    unreadable: list[str] = []
    for epoch in range(len(trainer.history), config.epochs):
        unreadable = _epoch(trainer, objective, train_images, chosen, preprocess, epoch, steps, stage, report)
        correct, scored = accuracy(model, test_images, preprocess, workers=config.workers)
        trainer.history[-1] |= {"test_accuracy": correct / scored, "test_images": scored}
        trainer.save(state_file)
    last = trainer.history[-1]
    interval = wilson_interval(round(last["test_accuracy"] * last["test_images"]), int(last["test_images"]))
    return {
        "epochs": trainer.history, "peak_lr": trainer.peak_lr, "optimizer": OPTIMIZER, "train_images": len(chosen), "test_images": int(last["test_images"]),
        "test_accuracy": last["test_accuracy"], "test_accuracy_ci95": interval, "unreadable": unreadable,
    }  # fmt: skip


def _epoch(
    trainer: _Trainer, objective: Objective, images: ImageSet, chosen: np.ndarray[Any, Any], preprocess: Preprocess,
    epoch: int, steps: int, stage: str, report: Report | None,
) -> list[str]:  # fmt: skip
    config = trainer.config
    # order and augmentation come from (seed, epoch), so that nothing but torch's state has to be saved
    order = np.random.default_rng((config.seed, epoch)).permutation(chosen)[: steps * config.batch_size]
    loader = batches(
        images, preprocess, batch_size=config.batch_size, order=order, seed=(config.seed, epoch), workers=config.workers,
        augment=crop_flip if config.augment == "crop-flip" else None,
    )  # fmt: skip
    trainer.model.train()
    loss_sum, correct = torch.zeros((), device=trainer.device), torch.zeros((), dtype=torch.long, device=trainer.device)
    seen, start = 0, time.perf_counter()
    unreadable: list[str] = []
    previous = trainer.history[-1]["test_accuracy"] if trainer.history else None
    for step, batch in enumerate(loader, 1):
        unreadable += batch.unreadable
        if len(unreadable) > MOST_UNREADABLE * len(order) + 1:
            raise InputError(
                f"{len(unreadable)} of the first {seen + len(unreadable)} training images are unreadable, e.g. {unreadable[0]}; repair the data"
            )
        if len(batch.index) < 2:
            continue
        loss, right = trainer.step(batch, objective)
        loss_sum += loss * len(batch.index)
        correct += right
        seen += len(batch.index)
        if step % _CHECK_EVERY == 0 or step == steps:
            if not torch.isfinite(loss_sum):
                raise TrainingError(
                    f"the loss is not finite at step {step} of epoch {epoch + 1}: lower --lr (now {max(trainer.scheduler.get_last_lr()):.3g})"
                )
            if report is not None:
                rate = seen / (time.perf_counter() - start)
                mean, share = float(loss_sum) / seen, int(correct) / seen
                report(Progress(stage, epoch + 1, config.epochs, step, steps, mean, share, rate, previous))
    trainer.history.append({
        "loss": float(loss_sum) / seen, "train_accuracy": int(correct) / seen,
        "duration_s": round(time.perf_counter() - start, 3),
    })  # fmt: skip
    return unreadable


def accuracy(
    model: PixelModel, images: ImageSet, preprocess: Preprocess, *, workers: int = 0, batch_size: int = 256
) -> tuple[int, int]:
    """Right answers and readable images of ``model`` in evaluation mode.

    Raises:
        InputError: not one image is readable.
    """
    device = next(model.parameters()).device
    correct = scored = 0
    with evaluation_mode(model, frozen=False), torch.no_grad():
        for batch in batches(images, preprocess, batch_size=batch_size, workers=workers):
            if len(batch.index):
                predicted = model(to_model_input(batch.pixels, device)).argmax(dim=1).cpu().numpy()
                correct += int((predicted == batch.labels).sum())
                scored += len(batch.index)
    if not scored:
        raise InputError(f"none of the {len(images)} test images of {images.spec} is readable")
    return correct, scored


def with_seed(config: TrainConfig, offset: int) -> TrainConfig:
    """The same settings under another seed, so that teacher and student do not start from the same weights."""
    return replace(config, seed=config.seed + offset)
