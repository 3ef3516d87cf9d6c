"""What training minimises: hard labels at a temperature, and the paper's two distillations.

Objectives that perturb the images are in ``adversarial.py`` and ``robust_distillation.py``.

Temperature ``T`` divides the logits before the softmax (Hinton et al. 2015, eq. 1). Papernot et al. 2016 ("Distillation
as a Defense to Adversarial Perturbations against Deep Neural Networks", section IV) train a teacher at T, then a
student of the same architecture on the teacher's probabilities at T, and deploy the student at T = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..data.rng import RandomStream
from ..models.builder import PixelModel
from .config import TrainConfig


class Outcome(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
        loss: mean over the batch, with its gradient.
        logits: float32 (n, classes), of the images that the network is judged on: the perturbed ones, where there are
            any.
    """

    loss: Tensor
    logits: Tensor


class Objective(Protocol):
    """What a training minimises: it shows the network the images, perturbed or not, and takes the loss of the
    logits."""

    @property
    def head_scale(self) -> float:
        """Factor between the logits of this objective and those of ordinary training; see :func:`scale_head`."""
        ...

    @property
    def budget(self) -> Eps | None:
        """L-infinity budget that the network is trained to stand; None if it is trained on images as they are."""
        ...

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch; only its backward pass touches the parameters' gradients.

        Args:
            model: the network that is trained, pixels to logits, in training mode. Each pass that the loss is taken of
                moves BatchNorm's running statistics; passes that look for a perturbation do not.
            x: float32 (n, 3, H, W) in [0, 1].
            labels: int64 (n,).
            stream: the random numbers of these images.
        """
        ...


@dataclass(frozen=True)
class Training:
    """What an objective may know of the training that it is part of.

    Attributes:
        config: its hyper-parameters.
        processes: how many train together.
        images: positions of the images that are trained on, int64, ascending.
        average: the network with the average of the weights as it is now; None where none is made.
        done: the share of the updates that is over, in [0, 1].
    """

    config: TrainConfig
    processes: int
    images: NDArray[np.int64]
    average: nn.Module | None
    done: Callable[[], float]


@runtime_checkable
class Following(Objective, Protocol):
    """An objective that looks at the training that it is part of, or remembers what it did."""

    @property
    def ema(self) -> float:
        """Decay of the average of the weights where none is given."""
        ...

    @property
    def memory(self) -> dict[str, Tensor]:
        """What it remembers of the epochs before: saved with the state of the training, and put back into this."""
        ...

    def follow(self, training: Training) -> Following:
        """The objective of this training.

        Raises:
            InputError: the two do not go together.
        """
        ...


def refuse_together(recipe: str, training: Training) -> None:
    """Refuse what takes a network for itself a training that shares or compiles it.

    Raises:
        InputError: it does.
    """
    if training.processes > 1:
        raise InputError("recipe", f"{recipe} trains in one process, not in {training.processes}: use at-pgd or trades")
    if training.config.compile:
        raise InputError("compile", f"does not go with {recipe}: leave it out")


class _AtTemperature:
    """Cross-entropy at a temperature, of images as they are; a subclass says to which labels."""

    temperature: float
    budget: Eps | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def head_scale(self) -> float:
        """The logits are those of ordinary training, times T."""
        return self.temperature

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {"temperature": self.temperature}

    def targets(self, x: Tensor, labels: Tensor) -> Tensor:
        """The labels to come close to: int64 (n,), or float32 (n, classes)."""
        return labels

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch."""
        logits = logits_of(model, x)
        return Outcome(functional.cross_entropy(logits / self.temperature, self.targets(x, labels)), logits)


@dataclass(frozen=True)
class HardLabels(_AtTemperature):
    """Cross-entropy on the labels at ``temperature``; 1 is ordinary training."""

    temperature: float = 1.0


@dataclass(frozen=True)
class DefensiveDistillation(_AtTemperature):
    """Cross-entropy to the teacher's probabilities, both at ``temperature`` (Papernot et al. 2016, eq. 8)."""

    teacher: nn.Module
    temperature: float

    def targets(self, x: Tensor, labels: Tensor) -> Tensor:
        """The teacher's; the labels are not used, as in the paper."""
        return soft_labels(self.teacher, x, self.temperature)


class Mixture:
    """What the objectives share that weigh the teacher's part by ``alpha``."""

    temperature: float
    alpha: float
    head_scale: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_alpha(self.alpha)

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {"temperature": self.temperature, "alpha": self.alpha}


@dataclass(frozen=True)
class SoftLabels(Mixture):
    """Soft labels at T mixed with hard labels (Hinton et al. 2015, section 2).

    ``alpha * T**2 * CE(student / T, teacher / T) + (1 - alpha) * CE(student, labels)``. This is our reading of the
    "modified defensive distillation" of Sen, Sen and Chatterjee 2023, of which only the abstract was at hand: the
    mixture, the factor T**2 and the two defaults are edgeadv's.
    """

    teacher: nn.Module
    temperature: float
    alpha: float
    budget: Eps | None = None

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch."""
        logits = logits_of(model, x)
        soft = functional.cross_entropy(logits / self.temperature, soft_labels(self.teacher, x, self.temperature))
        hard = functional.cross_entropy(logits, labels)
        return Outcome(self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard, logits)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (n, classes), as :func:`full_precision` has them."""
    return full_precision(model(x))


def full_precision(logits: Tensor) -> Tensor:
    """Logits in float32 at least: under autocast a network gives half precision, in which no loss is taken."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_temperature(temperature: float) -> None:
    """Refuse a temperature below 1 (it would sharpen the labels) or one that float32 cannot carry."""
    if not 1 <= temperature <= 1e6:
        raise InputError(f"temperature must be from 1 to 1e6, not {temperature}")


def check_alpha(alpha: float) -> None:
    """Refuse a weight of the soft labels outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in [0, 1], not {alpha}")


def soft_labels(teacher: nn.Module, x: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities at ``temperature``: float32 (n, classes), rows sum to 1, no gradient."""
    with torch.no_grad():
        logits: Tensor = teacher(x)
        return (logits.float() / temperature).softmax(dim=1)


def scale_head(model: PixelModel, factor: float) -> None:
    """Multiply the last layer, and so the logits, by ``factor``.

    Training at temperature T divides every gradient by T and asks for logits T times as large: with the usual learning
    rate it hardly moves (T = 100 was seen at 11% on digits). Written in u = z / T, training at T *is* ordinary training
    of a network whose last layer gives u. So the last layer starts T times as large, and :func:`parameter_groups` gives
    it a step T**2 times as large and a decay T**2 times as small: step by step, u then follows exactly the path that
    ordinary training of u would take, and z = T * u is deployed. An edgeadv default; the paper does not say.

    Raises:
        InputError: the network has no one last layer, and ``factor`` is not 1.
    """
    if factor == 1:
        return
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(factor)


def parameter_groups(model: PixelModel, *, lr: float, weight_decay: float, head_scale: float) -> list[dict[str, Any]]:
    """Parameter groups for SGD in which the last layer follows :func:`scale_head`; one group without a scale."""
    if head_scale == 1:
        return [{"params": list(model.parameters()), "lr": lr, "weight_decay": weight_decay}]
    head = {id(p) for p in model.head.parameters()}
    return [
        {"params": [p for p in model.parameters() if id(p) not in head], "lr": lr, "weight_decay": weight_decay},
        {
            "params": list(model.head.parameters()),
            "lr": lr * head_scale**2,
            "weight_decay": weight_decay / head_scale**2,
        },
    ]
