"""Adversarial training: the images that a network is trained on are made against the network as it is at that step.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", eq. 2.1: minimise over the weights the
loss that is largest within eps of each image. The inner maximum is approached by a few sign steps from a random start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError

from .attacks.losses import cross_entropy, input_gradient
from .models import evaluation_mode

PGD_STEPS = 7
_FAST_STEP = 1.25
_PGD_REACH = 2.5


def random_start(x: Tensor, eps: float) -> Tensor:
    """``x`` plus uniform noise of [-eps, eps] per value, clipped to [0, 1].

    The noise comes from torch's own generator of ``x``'s device, whose state on a CPU is part of what ``--resume`` restores.
    """
    return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)


def ascend(
    model: nn.Module, x: Tensor, labels: Tensor, *, start: Tensor, eps: float, steps: int, step_size: float
) -> Tensor:
    """Sign steps up the cross-entropy, each projected to within eps of ``x`` and to [0, 1] (Madry et al. 2018, section 2.1).

    The last iterate is taken, as in training the papers do: a search for the best one would cost one more pass.

    The network is in evaluation mode meanwhile. Madry et al. and Wong et al. attack it in training mode, and so by the
    statistics of the batch; as in the code of Zhang et al. 2019 (TRADES) it is here the network that will be deployed: BatchNorm
    takes its running statistics, which the attack's passes leave alone, dropout is off, and an image's perturbation does
    not depend on the batch that it is in. Pang et al. 2021, "Bag of Tricks for Adversarial Training", section 3, compare
    both: as robust, and more accurate on clean images. No parameter receives a gradient; modes are as before afterwards.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: true labels, int64 (n,).
        start: like ``x``, in [0, 1], within eps of it.
        eps: budget in (0, 1].
        steps: sign steps, at least 1.
        step_size: of each, in pixels of [0, 1].

    Returns:
        Like ``x``, detached. A gradient that is zero or not a number moves nothing.
    """
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    current = start
    with evaluation_mode(model):
        for _ in range(steps):
            gradient = input_gradient(model, current, labels, cross_entropy).gradient
            current = (current + step_size * gradient.sign()).clamp(lower, upper)
    return current


@dataclass(frozen=True)
class AdversarialTraining:
    """Cross-entropy on perturbed images, with the labels at T = 1: one recipe of adversarial training.

    Attributes:
        recipe: its name, e.g. ``"at-pgd"``.
        eps: L-infinity budget.
        steps: sign steps from the random start.
        step_size: of each, in pixels of [0, 1].
    """

    recipe: str
    eps: Eps
    steps: int
    step_size: float
    head_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"adversarial training needs at least 1 step, not {self.steps}")

    @classmethod
    def fgsm(cls, eps: Eps) -> AdversarialTraining:
        """``at-fgsm``: one step of 1.25 eps from a random start (Wong, Rice and Kolter 2020, "Fast is better than free", alg. 3).

        It can collapse: within an epoch the network learns to fool this one step, accuracy under FGSM rises and that under
        PGD falls to nothing (their section 5, catastrophic overfitting). Training does not notice here; the PGD figures and
        the masking verdict of ``edgeadv evaluate`` do.
        """
        return cls("at-fgsm", eps, 1, _FAST_STEP * eps.value)

    @classmethod
    def pgd(cls, eps: Eps, steps: int = PGD_STEPS) -> AdversarialTraining:
        """``at-pgd``: ``steps`` steps of ``2.5 * eps / steps`` from a random start (Madry et al. 2018).

        7 steps are the paper's on CIFAR-10; the step size is that of its section 5 for attacks, in training an edgeadv default.

        Raises:
            InputError: ``steps`` is below 1.
        """
        return cls("at-pgd", eps, steps, _PGD_REACH * eps.value / max(steps, 1))

    @property
    def title(self) -> str:
        """The recipe in a few words, e.g. ``"at-pgd eps 8/255"``."""
        return f"{self.recipe} eps {self.eps.text}"

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {"recipe": self.recipe, "eps": self.eps.text, "steps": self.steps, "step_size": self.step_size}

    def inputs(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """The images perturbed against ``model`` as it is now."""
        start = random_start(x, self.eps.value)
        return ascend(model, x, labels, start=start, eps=self.eps.value, steps=self.steps, step_size=self.step_size)

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch."""
        return functional.cross_entropy(logits, labels)
