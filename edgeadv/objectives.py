"""What training minimises: hard labels at a temperature, and the two distillations.

Temperature ``T`` divides the logits before the softmax (Hinton et al. 2015, eq. 1). Papernot et al. 2016 ("Distillation
as a Defense to Adversarial Perturbations against Deep Neural Networks", section IV) train a teacher at T, then a student
of the same architecture on the teacher's probabilities at T, and deploy the student at T = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.errors import InputError

from .models import PixelModel


class Objective(Protocol):
    """A loss of logits, with what it needs of the images, and the images that it is a loss of."""

    @property
    def head_scale(self) -> float:
        """Factor between the logits of this objective and those of ordinary training; see :func:`scale_head`."""
        ...

    def inputs(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """The images that the network is shown for this update, of the shape and range of ``x``, without a gradient.

        Args:
            model: the network that is trained, in training mode; its parameters, gradients and buffers stay as they are.
            x: float32 (n, 3, H, W) in [0, 1], the images of the batch.
            labels: int64 (n,).
        """
        ...

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch.

        Args:
            x: float32 (n, 3, H, W) in [0, 1], the images of the batch, before :meth:`inputs`.
            logits: float32 (n, classes), of what :meth:`inputs` gave, not divided by any temperature.
            labels: int64 (n,).
        """
        ...


class Unperturbed:
    """What objectives share that show the network the images as they are."""

    def inputs(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """The images themselves."""
        return x


@dataclass(frozen=True)
class HardLabels(Unperturbed):
    """Cross-entropy on the labels at ``temperature``; 1 is ordinary training."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def head_scale(self) -> float:
        """The logits of ordinary training, times T."""
        return self.temperature

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch."""
        return functional.cross_entropy(logits / self.temperature, labels)


@dataclass(frozen=True)
class DefensiveDistillation(Unperturbed):
    """Cross-entropy to the teacher's probabilities, both at ``temperature`` (Papernot et al. 2016, eq. 8)."""

    teacher: nn.Module
    temperature: float

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def head_scale(self) -> float:
        """The student's logits are those of ordinary training, times T."""
        return self.temperature

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch; the labels are not used, as in the paper."""
        return functional.cross_entropy(logits / self.temperature, soft_labels(self.teacher, x, self.temperature))


@dataclass(frozen=True)
class SoftLabels(Unperturbed):
    """Soft labels at T mixed with hard labels (Hinton et al. 2015, section 2).

    ``alpha * T**2 * CE(student / T, teacher / T) + (1 - alpha) * CE(student, labels)``. This is our reading of the
    "modified defensive distillation" of Sen, Sen and Chatterjee 2023, of which only the abstract was at hand: the mixture,
    the factor T**2 and the two defaults are edgeadv's.
    """

    teacher: nn.Module
    temperature: float
    alpha: float
    head_scale: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_alpha(self.alpha)

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch."""
        soft = functional.cross_entropy(logits / self.temperature, soft_labels(self.teacher, x, self.temperature))
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * functional.cross_entropy(logits, labels)


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
    """
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(factor)


def parameter_groups(model: PixelModel, *, lr: float, weight_decay: float, head_scale: float) -> list[dict[str, Any]]:
    """Parameter groups for SGD in which the last layer follows :func:`scale_head`."""
    head = {id(p) for p in model.head.parameters()}
    return [
        {"params": [p for p in model.parameters() if id(p) not in head], "lr": lr, "weight_decay": weight_decay},
        {
            "params": list(model.head.parameters()),
            "lr": lr * head_scale**2,
            "weight_decay": weight_decay / head_scale**2,
        },
    ]
