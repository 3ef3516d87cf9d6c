"""Adversarial training: the images that a network is trained on are made against the network as it is at that step.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", eq. 2.1: minimise over the weights
the loss that is largest within eps of each image. The inner maximum is approached by a few sign steps from a random
start.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..attacks.losses import Loss, cross_entropy, input_gradient
from ..data.rng import RandomStream
from ..models.modes import evaluation_mode
from .distributed import bare
from .objectives import Outcome, logits_of

PGD_STEPS = 7
_PGD_REACH = 2.5
Own = TypeVar("Own", bound="Defence")


def random_start(x: Tensor, eps: float, stream: RandomStream) -> Tensor:
    """``x`` plus uniform noise of [-eps, eps] per value, clipped to [0, 1]."""
    return (x + eps * stream.uniform(x)).clamp(0, 1)


def ascend(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    eps: float,
    steps: int,
    step_size: float,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Sign steps up the loss, each projected to within eps of ``x`` and to [0, 1] (Madry et al. 2018, section 2.1).

    The last iterate is taken, as in training the papers do: a search for the best one would cost one more pass.

    The network is in evaluation mode meanwhile. Madry et al. and Wong et al. attack it in training mode, and so by the
    statistics of the batch; as in the code of Zhang et al. 2019 (TRADES) it is here the network that will be deployed:
    BatchNorm takes its running statistics, which the attack's passes leave alone, dropout is off, and an image's
    perturbation does not depend on the batch that it is in. Pang et al. 2021, "Bag of Tricks for Adversarial Training",
    section 3, compare both: as robust, and more accurate on clean images. No parameter receives a gradient; modes are
    as before afterwards.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: true labels, int64 (n,).
        start: like ``x``, in [0, 1]; the first step brings it to within eps of ``x``.
        eps: budget, above 0; infinity projects to [0, 1] only.
        steps: sign steps, at least 1.
        step_size: of each, in pixels of [0, 1].
        loss: what to ascend, per image.

    Returns:
        Like ``x``, detached. A gradient that is zero or not a number moves nothing.
    """
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    current = start
    with evaluation_mode(model):
        for _ in range(steps):
            gradient = input_gradient(model, current, labels, loss).gradient
            current = (current + step_size * gradient.sign()).clamp(lower, upper)
    return current


def divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softmax of ``logits`` from ``probabilities``, KL(probabilities || softmax).

    Args:
        logits: float32 (n, classes).
        probabilities: float32 (n, classes), rows sum to 1; constants, for their own gradient is NaN where one is 0.

    Returns:
        Per image, float32 (n,).
    """
    return functional.kl_div(logits.log_softmax(dim=1), probabilities, reduction="none").sum(dim=1)


@dataclass(frozen=True)
class Perturbation:
    """How training images are perturbed.

    Attributes:
        eps: L-infinity budget.
        steps: sign steps.
        step_size: of each, in pixels of [0, 1].
        noise: the start: ``"uniform"`` within ``reach`` times eps, or ``"normal"`` of deviation 0.001 as TRADES has it.
        reach: of uniform noise, in eps.
        project: keep within eps of the image; False lets noise and step add up, as N-FGSM does.
    """

    eps: Eps
    steps: int
    step_size: float
    noise: Literal["uniform", "normal"] = "uniform"
    reach: float = 1.0
    project: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"adversarial training needs at least 1 step, not {self.steps}")

    @classmethod
    def small_steps(cls, eps: Eps, steps: int) -> Perturbation:
        """``steps`` of a quarter of eps from almost the image: TRADES and RSLAD (10 steps of 2/255 at 8/255)."""
        return cls(eps, steps, eps.value / 4, noise="normal")

    @classmethod
    def pgd(cls, eps: Eps, steps: int) -> Perturbation:
        """``steps`` of ``2.5 * eps / steps`` from a random start (Madry et al. 2018)."""
        return cls(eps, steps, _PGD_REACH * eps.value / max(steps, 1))

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream, loss: Loss = cross_entropy
    ) -> Tensor:
        """Images perturbed against ``model`` as it is now: like ``x``, in [0, 1], detached."""
        if self.noise == "normal":
            start = (x + _SMALL_NOISE * stream.normal(x)).clamp(0, 1)
        else:
            start = random_start(x, self.reach * self.eps.value, stream)
        return ascend(
            bare(model),
            x,
            labels,
            start=start,
            eps=self.eps.value if self.project else float("inf"),
            steps=self.steps,
            step_size=self.step_size,
            loss=loss,
        )

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {**asdict(self), "eps": self.eps.text}


_SMALL_NOISE = 0.001


class Perturbed:
    """What objectives share that perturb the images."""

    perturbation: Perturbation
    head_scale: float = 1.0

    @property
    def budget(self) -> Eps:
        """What the network is trained to stand."""
        return self.perturbation.eps


@dataclass(frozen=True)
class Defence(Perturbed):
    """Adversarial training with the labels at T = 1.

    Attributes:
        recipe: its name, e.g. ``"at-pgd"``.
        perturbation: how the images are made.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
    """

    recipe: str
    perturbation: Perturbation
    label_smoothing: float = 0.0

    @property
    def title(self) -> str:
        """The recipe in a few words, e.g. ``"at-pgd eps 8/255"``."""
        return f"{self.recipe} eps {self.budget.text}"

    def smoothed(self: Own, label_smoothing: float) -> Own:
        """The same with labels smoothed (Szegedy et al. 2016); Pang et al. 2021 find 0.1 to 0.2 to help robustness a
        little.

        Raises:
            InputError: it is not in [0, 1).
        """
        check_label_smoothing(label_smoothing)
        return replace(self, label_smoothing=label_smoothing)

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {"recipe": self.recipe, **self.perturbation.to_json(), "label_smoothing": self.label_smoothing}

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch; see :class:`~edgeadv.training.objectives.Objective`."""


@dataclass(frozen=True)
class AdversarialTraining(Defence):
    """Cross-entropy on perturbed images."""

    @classmethod
    def fgsm(cls, eps: Eps) -> AdversarialTraining:
        """``at-fgsm``: one step of 1.25 eps from a random start (Wong, Rice and Kolter 2020, "Fast is better than
        free", alg. 3).

        It can collapse: within an epoch the network learns to fool this one step, accuracy under FGSM rises and that
        under PGD falls to nothing (their section 5, catastrophic overfitting). :mod:`edgeadv.training.selection`
        notices.
        """
        return cls("at-fgsm", Perturbation(eps, 1, 1.25 * eps.value))

    @classmethod
    def n_fgsm(cls, eps: Eps) -> AdversarialTraining:
        """``n-fgsm``: one step of eps from noise of 2 eps, not projected (de Jorge et al. 2022, "Make Some Noise", alg.
        1).

        It collapses far less readily than ``at-fgsm`` at the same price.
        """
        return cls("n-fgsm", Perturbation(eps, 1, eps.value, reach=2.0, project=False))

    @classmethod
    def pgd(cls, eps: Eps, steps: int = PGD_STEPS) -> AdversarialTraining:
        """``at-pgd``: ``steps`` steps of ``2.5 * eps / steps`` from a random start (Madry et al. 2018).

        7 steps are the paper's on CIFAR-10; the step size is that of its section 5 for attacks, in training an edgeadv
        default.

        Raises:
            InputError: ``steps`` is below 1.
        """
        return cls("at-pgd", Perturbation.pgd(eps, steps))

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch, of perturbed images only: their statistics are BatchNorm's."""
        logits = logits_of(model, self.perturbation(model, x, labels, stream))
        return Outcome(functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits)


@dataclass(frozen=True)
class Trades(Defence):
    """TRADES (Zhang et al. 2019, "Theoretically Principled Trade-off between Robustness and Accuracy", eq. 5 and alg.
    1).

    ``CE(f(x), y) + beta * KL(f(x) || f(x'))``, where ``x'`` maximises that divergence. Clean and perturbed images go
    through the network one after the other, each by BatchNorm statistics of its own, as in the authors' code; the
    running ones take both. The gradient goes through both arguments of the divergence.

    Attributes:
        beta: weight of robustness against accuracy; the paper's table 5 has 6.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_beta(self.beta, "TRADES")

    @classmethod
    def at(cls, eps: Eps, steps: int = 10, *, beta: float = 6.0) -> Trades:
        """The paper's: 10 steps (0.007 at eps 0.031 there, a quarter of eps here)."""
        return cls("trades", Perturbation.small_steps(eps, steps), beta=beta)

    @property
    def title(self) -> str:
        """The recipe in a few words."""
        return f"trades beta={self.beta:g} eps {self.budget.text}"

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {**super().to_json(), "beta": self.beta}

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch."""
        with evaluation_mode(bare(model)), torch.no_grad():
            probabilities = logits_of(bare(model), x).softmax(dim=1)
        made = self.perturbation(model, x, labels, stream, lambda logits, _: divergence(logits, probabilities))
        clean, perturbed = logits_of(model, x), logits_of(model, made)
        natural = functional.cross_entropy(clean, labels, label_smoothing=self.label_smoothing)
        # in logarithms: a probability that is 0 in float32 has a gradient of NaN where the target has one too
        apart = functional.kl_div(perturbed.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True)
        robust = apart.sum(dim=1).mean()
        return Outcome(natural + self.beta * robust, perturbed)


def check_beta(beta: float, recipe: str) -> None:
    """Refuse a weight outside [0, 1000]."""
    if not 0 <= beta <= 1000:
        raise InputError(f"beta of {recipe} must be in [0, 1000], not {beta}")


def check_label_smoothing(share: float) -> None:
    """Refuse a share of the label outside [0, 1)."""
    if not 0 <= share < 1:
        raise InputError(f"label smoothing must be in [0, 1), not {share}")
