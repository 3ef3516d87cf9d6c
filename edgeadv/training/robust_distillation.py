"""Distillation that defends: a small student learns from a robust teacher on images that are perturbed against the
student.

Unlike defensive distillation it does not rest on hidden gradients: the student is trained on adversarial images, and
what the teacher adds are better labels for them than one class each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.records.eps import Eps

from ..data.rng import RandomStream
from .adversarial import Perturbation, Perturbed, divergence
from .objectives import Mixture, Outcome, logits_of, soft_labels

STEPS = 10


class RobustDistillation(Mixture, Perturbed):
    """What both share but for their losses and defaults."""

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {**super().to_json(), **self.perturbation.to_json()}


@dataclass(frozen=True)
class Ard(RobustDistillation):
    """Adversarially robust distillation (Goldblum et al. 2020, "Adversarially Robust Distillation", eq. 3 and alg. 1).

    ``alpha * T**2 * KL(teacher(x) || student(x')) / classes + (1 - alpha) * CE(student(x), y)``, both softmaxes of the
    first term at T, where ``x'`` maximises the student's cross-entropy within eps. The teacher sees clean images. The
    paper's equation does not divide by the number of classes; the authors' code does, for PyTorch's ``KLDivLoss()`` is
    a mean over images and classes.

    Attributes:
        teacher: frozen, in evaluation mode.
        perturbation: how ``x'`` is made: the paper's 10 steps of 2/255 at eps 8/255.
        temperature: T; the authors' code has 30.
        alpha: weight of the first term, in [0, 1]; the authors' code has 1, which leaves the labels out of the loss.
    """

    teacher: nn.Module
    perturbation: Perturbation
    temperature: float = 30.0
    alpha: float = 1.0

    @classmethod
    def at(
        cls, eps: Eps, teacher: nn.Module, *, temperature: float = 30.0, alpha: float = 1.0, steps: int = STEPS
    ) -> Ard:
        """The paper's at ``eps``: steps of a quarter of it from a random start."""
        return cls(teacher, Perturbation(eps, steps, eps.value / 4), temperature, alpha)

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch; BatchNorm sees perturbed images, and clean ones only where their loss counts."""
        soft = soft_labels(self.teacher, x, self.temperature)
        perturbed = logits_of(model, self.perturbation(model, x, labels, stream))
        apart = divergence(perturbed / self.temperature, soft).mean() / soft.shape[1]
        loss = self.alpha * self.temperature**2 * apart
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * functional.cross_entropy(logits_of(model, x), labels)
        return Outcome(loss, perturbed)


@dataclass(frozen=True)
class Rslad(RobustDistillation):
    """Robust soft label adversarial distillation (Zi et al. 2021, "Revisiting Adversarial Robustness Distillation", eq.
    5).

    ``alpha * KL(teacher(x) || student(x')) + (1 - alpha) * KL(teacher(x) || student(x))``, where ``x'`` maximises the
    first
    divergence: no hard label anywhere, all at T = 1 unless said.

    Attributes:
        teacher: frozen, in evaluation mode.
        perturbation: how ``x'`` is made: the paper's 10 steps of 2/255 at eps 8/255, from almost the image.
        temperature: T of both softmaxes, 1 in the paper.
        alpha: weight of the perturbed images; 5/6 in the paper.
    """

    teacher: nn.Module
    perturbation: Perturbation
    temperature: float = 1.0
    alpha: float = 5 / 6

    @classmethod
    def at(
        cls, eps: Eps, teacher: nn.Module, *, temperature: float = 1.0, alpha: float = 5 / 6, steps: int = STEPS
    ) -> Rslad:
        """The paper's at ``eps``."""
        return cls(teacher, Perturbation.small_steps(eps, steps), temperature, alpha)

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch; the labels are not used."""
        soft = soft_labels(self.teacher, x, self.temperature)

        def away(logits: Tensor, _: Tensor) -> Tensor:
            return divergence(logits / self.temperature, soft)

        perturbed, clean = logits_of(model, self.perturbation(model, x, labels, stream, away)), logits_of(model, x)
        scale = self.temperature**2
        losses = self.alpha * away(perturbed, labels) + (1 - self.alpha) * away(clean, labels)
        return Outcome(scale * losses.mean(), perturbed)
