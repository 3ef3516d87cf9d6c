"""The state of a training: network, average, optimiser, schedule and the best epoch, saved and taken up again as
one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from edgeadv_runtime.errors import BundleError, InputError

from ..data.augment import augmentation
from ..data.loading import DeviceBatch, to_model_input
from ..data.rng import RandomStream
from ..models import compiling
from ..models.builder import PixelModel
from ..models.torch_files import torch_content
from . import checkpoint
from .config import EMA, SCHEDULES, TrainConfig
from .distributed import ProcessGroup, together
from .objectives import Following, Objective, Training, parameter_groups
from .selection import Standing

_SGD: dict[str, Any] = {"momentum": 0.9, "nesterov": True}


class Trainer:
    """The state of one training, which can be saved after any epoch and taken up again.

    Attributes:
        model: the network that is trained.
        shared: the same, its gradients averaged over all processes.
        average: of the weights and of BatchNorm's statistics, where one is made.
        decay: of the average, 0 where none is made.
        objective: what is minimised.
        optimizer_settings: what ``run.json`` says of the optimiser.
        history: what was measured, an entry per epoch.
        best: the epoch that is kept so far, its weights, and what they stood; None where nothing is chosen.
        unreadable: messages of training images that could not be read, in any epoch.
    """

    def __init__(
        self,
        model: PixelModel,
        objective: Objective,
        config: TrainConfig,
        device: torch.device,
        images: NDArray[np.int64],
        settings: Mapping[str, Any],
        processes: ProcessGroup,
    ) -> None:
        self.model = model
        self.augment = augmentation(config.augment, mirror=not config.no_mirror)
        self.shared = processes.wrap(model)
        self.config = config
        self.device = device
        batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        lr = config.lr if config.lr is not None else 0.02 if batch_norm else 0.01
        self.peak_lr = lr
        groups = parameter_groups(model, lr=lr, weight_decay=config.weight_decay, head_scale=objective.head_scale)
        self.optimizer = torch.optim.SGD(groups, **_SGD)
        steps = len(images) // config.batch_size
        self.updates = config.epochs * steps
        self.scheduler = scheduler(config.schedule, self.optimizer, self.updates)
        self.optimizer_settings = {"name": "SGD", **_SGD, "schedule": SCHEDULES[config.schedule]}
        usual = objective.ema if isinstance(objective, Following) else 0.0 if objective.budget is None else EMA
        self.decay = usual if config.ema is None else config.ema
        self.average: AveragedModel | None = None
        if self.decay:
            self.average = AveragedModel(model, multi_avg_fn=partial(_average, self.decay), use_buffers=True)
        self.objective = objective
        if isinstance(objective, Following):
            average = None if self.average is None else self.average.module
            self.objective = objective.follow(
                Training(config, processes.world, images, average, lambda: self.scheduler.last_epoch / self.updates)
            )
        if config.compile:
            if (reason := compiling.why_not(device)) is not None:
                raise InputError("compile", f"is not possible: {reason}; or leave it out")
            model.compile()  # in place: weights keep their names, and a copy is not compiled
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.unreadable: list[str] = []
        # the schedule depends on the number of steps: another amount of data is another run
        self.fingerprint = {
            **config.resume_settings(),
            "ema": self.decay,
            "steps": steps,
            "architecture": model.architecture.to_json(),
            **settings,
        }

    @property
    def lr(self) -> float:
        """The largest learning rate of a parameter group now."""
        return float(max(self.scheduler.get_last_lr()))

    def save(self, folder: Path) -> None:
        """Write all that :meth:`restore` needs into ``folder``, atomically."""
        state = {
            "fingerprint": self.fingerprint,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "average": None if self.average is None else self.average.state_dict(),
            "memory": self.objective.memory if isinstance(self.objective, Following) else {},
            "best": self.best,
            "unreadable": self.unreadable,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        checkpoint.save(folder, buffer.getvalue())

    def restore(self, folder: Path) -> None:
        """Continue from a saved state, torch's random state included."""
        saved = checkpoint.load(folder)
        try:
            state = torch_content(saved)
            then = state["fingerprint"]
            changed = sorted(
                k for k, v in self.fingerprint.items() if _plain(then.get(k, TrainConfig.before(k))) != _plain(v)
            )
        except Exception as error:  # torch has no common base error for damaged files
            raise _of_another_version(folder, error) from error
        if changed:
            raise InputError(
                f"{folder} was started with other settings ({', '.join(changed)}): resume with the same ones"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["rng"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if isinstance(self.objective, Following):
                self.objective.memory.update(state["memory"])
            self.history, self.best, self.unreadable = state["history"], state["best"], state["unreadable"]
        except Exception as error:  # optimisers and schedulers take their states apart without a look
            raise _of_another_version(folder, error) from error

    def step(self, batch: DeviceBatch, epoch: int) -> tuple[Tensor, Tensor]:
        """One update; returns the loss and the number of right answers, on the device."""
        stream = RandomStream(self.config.seed, epoch, batch.index)
        x = to_model_input(batch.pixels if self.augment is None else self.augment(batch.pixels, stream))
        self.optimizer.zero_grad()
        loss, right = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.long, device=self.device)
        # two images at least in each part: BatchNorm has no statistics of one
        parts = np.array_split(np.arange(len(x)), min(self.config.accumulate, len(x) // 2))
        for part in (slice(int(places[0]), int(places[-1]) + 1) for places in parts):
            # the gradients of the processes meet once, with the last part
            alone = part.stop < len(x) and isinstance(self.shared, DistributedDataParallel)
            with self.shared.no_sync() if alone else nullcontext():  # type: ignore[operator]
                found, hits = self._pass(x[part], batch.labels[part], replace(stream, index=stream.index[part]), len(x))
            loss, right = loss + found, right + hits
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss, right

    def _pass(self, x: Tensor, labels: Tensor, stream: RandomStream, of: int) -> tuple[Tensor, Tensor]:
        """Add to the gradients those of these images, a part of ``of``; returns their share of the loss, and how many
        are right."""
        # half precision pays where tensor cores do; a CPU here would only lose digits
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss, logits = self.objective(self.shared, x, labels, stream)
        share = loss * (len(x) / of)
        together(share.backward)
        return share.detach(), (logits.argmax(dim=1) == labels).sum()

    @property
    def candidates(self) -> dict[str, PixelModel]:
        """The networks that may be kept: the ``"average"`` of the weights, where there is one, and the ``"last"``."""
        average = {} if self.average is None else {"average": self.average.module}
        return {**average, "last": self.model}  # type: ignore[dict-item]

    def keep_if_best(self, standing: Standing, kind: str) -> None:
        """Keep the weights of one of the :attr:`candidates`, of this epoch, if none before stood better; of equals the
        later one."""
        if self.best is None or standing.rank >= self.best["rank"]:
            state = self.candidates[kind].state_dict()
            weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
            self.best = {"epoch": len(self.history), "rank": standing.rank, "kind": kind, "model": weights}

    def finalise(self) -> str:
        """Give ``model`` the weights that are kept; returns which of the :attr:`candidates` they are of."""
        kind, candidate = next(iter(self.candidates.items()))
        self.model.load_state_dict(candidate.state_dict() if self.best is None else self.best["model"])
        # the best of a training that an edgeadv before began is of the network that it measured, the first of them
        return kind if self.best is None else str(self.best.get("kind", kind))


def scheduler(name: str, optimizer: torch.optim.Optimizer, updates: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of that name, which begins with the learning rates that the optimiser has."""
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    if name == "steps":
        return torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [max(1, updates // 2), max(1, updates * 3 // 4)], gamma=0.1
        )
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=updates, cycle_momentum=False)


@torch.no_grad()
def _average(decay: float, averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
    """One step of the moving average, in place, after ``count`` others.

    The decay begins at 0.18 and rises as ``(1 + n) / (10 + n)``, so that the average covers the last ninth of the
    training until it reaches ``decay``: one of 0.9995 alone would be the random start for thousands of steps.
    """
    n = float(count)
    weight = 1 - min(decay, (1 + n) / (10 + n))
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, values, weight)
    else:
        for average, value in zip(averages, values, strict=True):
            average.copy_(value)


def _of_another_version(folder: Path, error: Exception) -> BundleError:
    return BundleError(
        f"{folder / checkpoint.STATE_FILE} is of another version of edgeadv or torch ({error}); start again in "
        "another `out`"
    )


def _plain(value: Any) -> Any:
    """Tuples as lists: what survives a file, so that equal settings compare equal."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
