"""Adversarial training whose weights are perturbed as its images are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edgeadv_runtime.records.eps import Eps

from ..data.rng import RandomStream
from .adversarial import PGD_STEPS, Defence, Perturbation
from .config import EMA
from .objectives import Outcome, Training, full_precision, refuse_together

_LEAST = 1e-20  # what a gradient of nothing is divided by


@dataclass(frozen=True)
class Awp(Defence):
    """``awp``: adversarial weight perturbation (Wu, Xia and Wang 2020, "Adversarial Weight Perturbation Helps Robust
    Generalization", eq. 8 to 12).

    The images are those of ``at-pgd``. Each layer's weights are then moved up the loss of these images, one step of
    ``gamma`` times their own norm, and the gradient that trains the network is the one there. As in the authors' code
    only tensors of more than one dimension are moved (there they are called ``weight`` too), and the statistics of
    BatchNorm are those of the moved network. There weight decay is that of the moved weights, here that of the weights.

    Attributes:
        gamma: length of the step; the authors' code has 0.01.
    """

    gamma: float = 0.01
    ema: float = field(default=EMA, init=False)
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def at(cls, eps: Eps, steps: int = PGD_STEPS) -> Awp:
        """With the perturbation of ``at-pgd`` (the paper's has 10 steps of eps / 4).

        Raises:
            InputError: ``steps`` is below 1.
        """
        return cls("awp", Perturbation.pgd(eps, steps))

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {**super().to_json(), "gamma": self.gamma}

    def follow(self, training: Training) -> Awp:
        """The same.

        Raises:
            InputError: the network is shared with other processes, or compiled.
        """
        refuse_together(self.recipe, training)
        return self

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch, of perturbed images and weights."""
        made = self.perturbation(model, x, labels, stream)

        def loss(logits: Tensor) -> Tensor:
            return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

        moves = weight_perturbation(model, made, loss, self.gamma)
        weights = dict(model.named_parameters())
        logits = full_precision(functional_call(model, {name: weights[name] + by for name, by in moves.items()}, made))
        return Outcome(loss(logits), logits)


def weight_perturbation(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], gamma: float
) -> dict[str, Tensor]:
    """How each tensor of weights is moved: along the gradient of the loss, ``gamma`` times its own norm.

    The network, its statistics and gradients are left as they are; it runs in the mode that it is in.

    Args:
        model: pixels to logits.
        x: float32 (n, 3, H, W) in [0, 1].
        loss: of logits (n, classes), a number.
        gamma: at least 0.

    Returns:
        By name, of the trained parameters of more than one dimension; 0 where the gradient is.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    # BatchNorm moves these copies of its statistics
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = loss(full_precision(functional_call(model, statistics, x)))
    gradients = torch.autograd.grad(found, list(weights.values()), materialize_grads=True)
    return {
        name: gamma * weight.detach().norm() / gradient.norm().clamp_min(_LEAST) * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
