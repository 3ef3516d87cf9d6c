"""Adversarial training on labels that the average of the weights makes of the true ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..data.rng import RandomStream
from ..models.modes import evaluation_mode
from .adversarial import PGD_STEPS, Defence, Perturbation
from .objectives import Outcome, Training, logits_of, soft_labels

_TEMPERATURE, _SHARE = (2.0, 1.0), (0.7, 0.95)


@dataclass(frozen=True)
class Adr(Defence):
    """``adr``: annealing self-distillation rectification (Wu, Wang and Chen 2024, "Annealing Self-Distillation
    Rectification Improves Adversarial Training", section 4 and alg. 1).

    The teacher is the average of the weights so far, in evaluation mode, on the images before they are perturbed. Both
    the search for the perturbation and the training take the cross-entropy to :func:`rectified`. Its temperature falls
    from 2 to 1 and its share rises from 0.7 to 0.95, each by half a cosine over the training, as in the authors' code.
    The perturbation is that of ``at-pgd`` (the paper's has 10 steps of eps / 4).

    Attributes:
        training: what the objective is part of; None before it began.
    """

    training: Training | None = field(default=None, compare=False, repr=False)
    ema: float = field(default=0.995, init=False)
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def at(cls, eps: Eps, steps: int = PGD_STEPS) -> Adr:
        """With the perturbation of ``at-pgd``.

        Raises:
            InputError: ``steps`` is below 1.
        """
        return cls("adr", Perturbation.pgd(eps, steps))

    def follow(self, training: Training) -> Adr:
        """The objective of this training.

        Raises:
            InputError: it makes no average.
        """
        if training.average is None:
            raise InputError("ema", "0 leaves adr without the average that makes its labels: leave it out")
        return replace(self, training=training)

    def labels_of(self, x: Tensor, labels: Tensor) -> Tensor:
        """The rectified labels, float32 (n, classes), of images as they are."""
        if self.training is None or self.training.average is None:
            raise TypeError("the labels of adr are those of a training: see `follow`")
        teacher, done = self.training.average, self.training.done()
        with evaluation_mode(teacher, frozen=False):
            probabilities = soft_labels(teacher, x, _annealed(*_TEMPERATURE, done))
        return rectified(probabilities, labels, _annealed(*_SHARE, done))

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch, of perturbed images only."""
        soft = self.labels_of(x, labels)

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            return functional.cross_entropy(logits, soft, reduction="none")

        logits = logits_of(model, self.perturbation(model, x, labels, stream, loss))
        return Outcome(functional.cross_entropy(logits, soft, label_smoothing=self.label_smoothing), logits)


def rectified(probabilities: Tensor, labels: Tensor, share: float) -> Tensor:
    """The teacher's probabilities mixed with the true labels, the less of them the further it is from right.

    ``w p + (1 - w) onehot(y)`` with ``w = clip(share - (max p - p[y]), 0, 1)``, image by image.

    Args:
        probabilities: float32 (n, classes), rows sum to 1.
        labels: int64 (n,).
        share: of the teacher where it is right.

    Returns:
        Like ``probabilities``.
    """
    behind = probabilities.amax(dim=1, keepdim=True) - probabilities.gather(1, labels[:, None])
    weight = (share - behind).clamp(0, 1)
    truth = functional.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    return torch.lerp(truth, probabilities, weight)


def _annealed(first: float, last: float, done: float) -> float:
    """From ``first`` to ``last`` by half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
