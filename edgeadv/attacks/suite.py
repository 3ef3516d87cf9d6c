"""The attacks as objects for the evaluation: NumPy in and out, on the weights of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv_runtime.attacks.base import Attack, Crafted
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams
from edgeadv_runtime.records.suites import (
    APGD_CE,
    APGD_DLR,
    APGD_TARGETED,
    CUMULATIVE,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    LARGE_EPS,
    LINEARITY,
    MI_FGSM,
    PGD_CE,
    PGD_L2,
    PGD_MARGIN,
    PGD_SMOOTHED,
    QUERY_ATTACKS,
    TARGETABLE,
    TRANSFER,
    Effort,
)

from .averaged import Averaged
from .batching import device_of, in_parts, tensors
from .functions import apgd, apgd_targeted, fgsm, mi_fgsm, pgd
from .iterate import Adversarial
from .linearity import LinearityControl
from .losses import Loss, cross_entropy, dlr, margin, rescaled_cross_entropy
from .norms import EUCLIDEAN, LINF, ball

GRADIENTS = "torch fp32"
SEED = 0
_FEWEST_FOR_DLR = 3
# an even number: noise comes in pairs of opposite sign
SMOOTHING_DRAWS = 8
_SMOOTHING = 0.5
"""Deviation of the noise that gradients are averaged over, as a share of eps."""


class _Job(NamedTuple):
    """One attack on one part of a batch at one budget."""

    model: nn.Module
    x: Tensor
    labels: Tensor
    eps: float
    effort: Effort
    loss: Loss
    start: Tensor | None


def _random_start(job: _Job) -> Adversarial:
    start = ball(LINF, job.eps / 2).starts(job.x, seed=SEED) - job.x
    return pgd(job.model, job.x, job.labels, eps=job.eps, steps=1, step_size=job.eps, loss=job.loss, start=start)


def _momentum(job: _Job) -> Adversarial:
    return mi_fgsm(job.model, job.x, job.labels, eps=job.eps, steps=job.effort.steps, loss=job.loss, start=job.start)


def _pgd(job: _Job, norm: str = LINF, start: Tensor | None = None) -> Adversarial:
    begin = ball(norm, job.eps).starts(job.x, seed=SEED) - job.x if start is None else start
    return pgd(
        job.model,
        job.x,
        job.labels,
        eps=job.eps,
        steps=job.effort.steps,
        loss=job.loss,
        norm=norm,
        seed=SEED,
        start=begin,
        restarts=job.effort.restarts,
    )


def _pgd_smoothed(job: _Job) -> Adversarial:
    smoothed = Averaged(job.model, SMOOTHING_DRAWS, _SMOOTHING * job.eps)
    # a start of its own: a point that gradients have led to may be one that they cannot leave
    start = ball(LINF, job.eps).starts(job.x, seed=SEED, restart=1) - job.x
    return _pgd(job._replace(model=smoothed), start=start)


def _pgd_l2(job: _Job) -> Adversarial:
    return _pgd(job, EUCLIDEAN)


def _apgd(job: _Job) -> Adversarial:
    return apgd(
        job.model,
        job.x,
        job.labels,
        eps=job.eps,
        steps=job.effort.steps,
        loss=job.loss,
        restarts=job.effort.restarts,
        seed=SEED,
        start=job.start,
    )


def _apgd_targeted(job: _Job) -> Adversarial:
    return apgd_targeted(
        job.model,
        job.x,
        job.labels,
        eps=job.eps,
        steps=job.effort.steps,
        targets=job.effort.targets,
        seed=SEED,
        start=job.start,
    )


@dataclass(frozen=True)
class _Recipe:
    """What is behind a name.

    Attributes:
        run: the attack at one budget; None is one step from the image, at all budgets with one gradient.
        said: its loss in words, for the result row.
        loss: what it ascends.
        step_size: in words, with ``{eps}`` and ``{steps}``.
        norm: of the budget.
        random: whether it begins at a random point.
        draws: calls that one gradient is the mean of.
    """

    run: Callable[[_Job], Adversarial] | None
    said: str
    loss: Loss
    step_size: str
    norm: str = LINF
    random: bool = True
    draws: int | None = None


_CE, _MARGIN, _DLR = "cross-entropy", "logit margin", "DLR"
_PGD_STEP, _AUTO_STEP = "2.5*{eps}/{steps}", "2*{eps}, halved by APGD's schedule"
_RECIPES: Mapping[str, _Recipe] = {
    FGSM: _Recipe(None, _CE, cross_entropy, "{eps}", random=False),
    FGSM_RESCALED: _Recipe(None, "cross-entropy of logits / max|logit|", rescaled_cross_entropy, "{eps}", random=False),
    FGSM_RANDOM_START: _Recipe(_random_start, _CE, cross_entropy, "{eps}"),
    MI_FGSM: _Recipe(_momentum, _CE, cross_entropy, "{eps}/{steps}", random=False),
    PGD_CE: _Recipe(_pgd, _CE, cross_entropy, _PGD_STEP),
    PGD_MARGIN: _Recipe(_pgd, _MARGIN, margin, _PGD_STEP),
    PGD_SMOOTHED: _Recipe(_pgd_smoothed, _MARGIN, margin, _PGD_STEP, draws=SMOOTHING_DRAWS),
    TRANSFER: _Recipe(_pgd, _MARGIN, margin, _PGD_STEP),
    PGD_L2: _Recipe(_pgd_l2, _MARGIN, margin, _PGD_STEP, norm=EUCLIDEAN),
    APGD_CE: _Recipe(_apgd, _CE, cross_entropy, _AUTO_STEP),
    APGD_DLR: _Recipe(_apgd, _DLR, dlr, _AUTO_STEP),
    APGD_TARGETED: _Recipe(_apgd_targeted, "targeted DLR", dlr, _AUTO_STEP),
    LARGE_EPS: _Recipe(_pgd, _MARGIN, margin, _PGD_STEP),
}
NAMES = tuple(_RECIPES)


@dataclass(frozen=True)
class GradientAttack:
    """An attack by name on one model, at one or more budgets.

    Attributes:
        model: pixels to logits, on the device to attack on.
        gradients_sha256: hash of the artefact that the gradients belong to.
        eps: budgets, ascending.
        method: of :data:`NAMES`.
        effort: how hard it tries.
        classes: how many logits the model has; the DLR loss needs three, below that the margin takes its place.
        target: class position to move towards; None is untargeted.
        suffix: of the name in rows, ``"@int8-u8s8"`` where the model is not the reference.
        gradients: where they come from, in words.
        draws: answers of a random network that each gradient is the mean of.
    """

    model: nn.Module
    gradients_sha256: str | None
    eps: Sequence[Eps]
    method: str
    effort: Effort
    classes: int
    target: int | None = None
    suffix: str = ""
    gradients: str = GRADIENTS
    queried: str | None = None
    draws: int = 1

    @property
    def name(self) -> str:
        """Its name in result rows."""
        return self.method + self.suffix

    @property
    def control(self) -> bool:
        """Whether it is evidence for the verdict alone."""
        return self.method == LARGE_EPS

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        recipe, targeted = _RECIPES[self.method], self.method == APGD_TARGETED
        few = self.classes < _FEWEST_FOR_DLR + targeted
        said = "logit margin" if few and recipe.loss is dlr else recipe.said
        steps = self.effort.steps if "steps" in recipe.step_size or "APGD" in recipe.step_size else 1
        return AttackParams(
            norm=recipe.norm,
            loss=said,
            steps=steps,
            step_size=recipe.step_size.format(eps=eps.text, steps=steps),
            restarts=min(self.effort.targets, self.classes - 1) if targeted else self.effort.restarts,
            seed=SEED if recipe.random else None,
            target=None if self.target is None else str(self.target),
            draws=None if recipe.draws is None and self.draws == 1 else (recipe.draws or 1) * self.draws,
        )

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch at every budget, in parts whose activations fit into memory; an image does not notice."""
        return self._in_parts(x, y, None, self.eps)

    def _in_parts(
        self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32] | None, eps: Sequence[Eps]
    ) -> list[Crafted]:
        device = device_of(self.model)

        def made(part: slice) -> list[Adversarial]:
            return self._craft(*tensors(x[part], y[part], device), None if start is None else start[part], eps)

        return [_joined(results) for results in zip(*in_parts(made, x, device), strict=True)]

    def _craft(
        self, x: Tensor, labels: Tensor, start: NDArray[np.float32] | None, eps: Sequence[Eps]
    ) -> list[Adversarial]:
        recipe = _RECIPES[self.method]
        model = Averaged(self.model, self.draws) if self.draws > 1 else self.model
        if recipe.run is None:
            return self._one_step(model, x, labels, recipe.loss)
        loss = margin if recipe.loss is dlr and self.classes < _FEWEST_FOR_DLR else recipe.loss
        moved = None if start is None else torch.from_numpy(start).to(x.device) - x
        return [recipe.run(_Job(model, x, labels, budget.value, self.effort, loss, moved)) for budget in eps]

    def _one_step(self, model: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> list[Adversarial]:
        budgets = [eps.value for eps in self.eps]
        if self.target is None:
            return fgsm(model, x, labels, eps=budgets, loss=loss)
        aims = torch.full_like(labels, self.target)
        made = fgsm(model, x, aims, eps=budgets, loss=loss, targeted=True)
        # towards its own class an image is not attacked, but confirmed
        own = labels == aims
        return [Adversarial(torch.where(own[:, None, None, None], x, m.x), m.zero_gradient | own) for m in made]


class CumulativeGradientAttack(GradientAttack):
    """A :class:`GradientAttack` that runs on what the attacks before it left standing."""

    @property
    def asked(self) -> None:
        """Images have to stand on the reference model."""
        return None

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        """Attack images that stand; MI-FGSM and targeted APGD begin at the worst versions so far."""
        (made,) = self._in_parts(x, y, start, [eps])
        return made


def _joined(parts: Sequence[Adversarial]) -> Crafted:
    x = np.concatenate([part.x.cpu().numpy() for part in parts])
    return Crafted(np.ascontiguousarray(x), np.concatenate([part.zero_gradient.cpu().numpy() for part in parts]))


def build_attacks(
    model: nn.Module,
    eps: Sequence[Eps],
    *,
    efforts: Mapping[str, Effort],
    classes: int,
    gradients_sha256: str | None,
    target: int | None = None,
    suffix: str = "",
    gradients: str = GRADIENTS,
    draws: int = 1,
) -> list[Attack]:
    """The gradient attacks among ``efforts``, e.g. ``SUITES["standard"]``; those that only ask the model are left to
    others.

    Args:
        model: pixels to logits, on the device to attack on.
        eps: budgets, ascending; the control at eps 1 has its own.
        efforts: name to effort.
        classes: how many logits the model has.
        gradients_sha256: hash of the artefact that its gradients belong to.
        target: class position to move towards, for attacks that can.
        suffix: of the names in rows, for a model that is not the reference.
        gradients: where they come from, in words.
        draws: answers that each gradient is the mean of; more than 1 for a network that answers at random.

    Raises:
        InputError: a name is unknown, or the linearity of another norm was asked for.
    """
    unknown = [name for name in efforts if name not in (*_RECIPES, *QUERY_ATTACKS, LINEARITY)]
    if unknown or not efforts:
        raise InputError(
            f"unknown attack {', '.join(unknown) or '(none)'}: choose from {', '.join((*NAMES, *QUERY_ATTACKS))}"
        )
    norms = {_RECIPES[name].norm for name in efforts if name in _RECIPES and name != LARGE_EPS}
    if LINEARITY in efforts and norms - {LINF}:
        raise InputError(
            f"{LINEARITY} is measured in {LINF}: leave it out of a run in {', '.join(sorted(norms - {LINF}))}"
        )
    attacks: list[Attack] = []
    for name, effort in efforts.items():
        if name in QUERY_ATTACKS:
            continue
        if name == LINEARITY:
            attacks.append(LinearityControl(model, eps, gradients_sha256, gradients))
            continue
        own = (Eps.parse("1"),) if name == LARGE_EPS else eps
        aim = target if name in TARGETABLE else None
        kind = CumulativeGradientAttack if name in CUMULATIVE else GradientAttack
        attacks.append(
            kind(
                model,
                gradients_sha256,
                own,
                name,
                effort,
                classes,
                target=aim,
                suffix=suffix,
                gradients=gradients,
                draws=draws,
            )
        )
    # a control looks at what the attacks have left
    return sorted(attacks, key=lambda attack: isinstance(attack, LinearityControl))
