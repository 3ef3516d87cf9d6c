"""The attacks as objects for the evaluation: NumPy in and out, on the weights of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

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
from .losses import Loss, cross_entropy, dlr, margin, rescaled_cross_entropy, targeted_dlr
from .norms import EUCLIDEAN, LINF, ball

GRADIENTS = "torch fp32"
SEED = 0
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

    def run(self, attack: Callable[..., Adversarial], **more: Any) -> Adversarial:
        """``attack`` as hard as it is to try, from ``start``, unless ``more`` says otherwise."""
        options = {"eps": self.eps, "steps": self.effort.steps, "start": self.start}
        return attack(self.model, self.x, self.labels, **options | more)

    def random(self, eps: float, *, norm: str = LINF, restart: int = 0) -> Tensor:
        """A random perturbation within ``eps``."""
        return ball(norm, eps).starts(self.x, seed=SEED, restart=restart) - self.x


def _random_start(job: _Job) -> Adversarial:
    return job.run(pgd, steps=1, step_size=job.eps, loss=job.loss, start=job.random(job.eps / 2))


def _momentum(job: _Job) -> Adversarial:
    return job.run(mi_fgsm, loss=job.loss)


def _pgd(job: _Job, norm: str = LINF, restart: int = 0) -> Adversarial:
    start = job.random(job.eps, norm=norm, restart=restart)
    return job.run(pgd, loss=job.loss, norm=norm, seed=SEED, start=start, restarts=job.effort.restarts)


def _pgd_smoothed(job: _Job) -> Adversarial:
    smoothed = Averaged(job.model, SMOOTHING_DRAWS, _SMOOTHING * job.eps)
    # a start of its own: a point that gradients have led to may be one that they cannot leave
    return _pgd(job._replace(model=smoothed), restart=1)


def _pgd_l2(job: _Job) -> Adversarial:
    return _pgd(job, EUCLIDEAN)


def _apgd(job: _Job) -> Adversarial:
    # a random point, as the paper has it
    return job.run(apgd, loss=job.loss, restarts=job.effort.restarts, seed=SEED, start=None)


def _apgd_targeted(job: _Job) -> Adversarial:
    return job.run(apgd_targeted, targets=job.effort.targets, seed=SEED)


@dataclass(frozen=True)
class _Recipe:
    """What is behind a name.

    Attributes:
        run: the attack at one budget; None is one step from the image, at all budgets with one gradient.
        loss: what it ascends.
        step_size: in words, with ``{eps}`` and ``{steps}``.
        norm: of the budget.
        random: whether it begins at a random point.
        draws: calls that one gradient is the mean of.
    """

    run: Callable[[_Job], Adversarial] | None
    loss: Loss
    step_size: str
    norm: str = LINF
    random: bool = True
    draws: int | None = None


_SAID: Mapping[Loss, str] = {
    cross_entropy: "cross-entropy",
    rescaled_cross_entropy: "cross-entropy of logits / max|logit|",
    margin: "logit margin",
    dlr: "DLR",
    targeted_dlr: "targeted DLR",
}
"""Losses in words, for the result row."""
_FEWEST = {dlr: 3, targeted_dlr: 4}
"""Classes that a loss needs; with fewer the margin takes its place."""
_PGD_STEP, _AUTO_STEP = "2.5*{eps}/{steps}", "2*{eps}, halved by APGD's schedule"
_RECIPES: Mapping[str, _Recipe] = {
    FGSM: _Recipe(None, cross_entropy, "{eps}", random=False),
    FGSM_RESCALED: _Recipe(None, rescaled_cross_entropy, "{eps}", random=False),
    FGSM_RANDOM_START: _Recipe(_random_start, cross_entropy, "{eps}"),
    MI_FGSM: _Recipe(_momentum, cross_entropy, "{eps}/{steps}", random=False),
    PGD_CE: _Recipe(_pgd, cross_entropy, _PGD_STEP),
    PGD_MARGIN: _Recipe(_pgd, margin, _PGD_STEP),
    PGD_SMOOTHED: _Recipe(_pgd_smoothed, margin, _PGD_STEP, draws=SMOOTHING_DRAWS),
    TRANSFER: _Recipe(_pgd, margin, _PGD_STEP),
    PGD_L2: _Recipe(_pgd_l2, margin, _PGD_STEP, norm=EUCLIDEAN),
    APGD_CE: _Recipe(_apgd, cross_entropy, _AUTO_STEP),
    APGD_DLR: _Recipe(_apgd, dlr, _AUTO_STEP),
    APGD_TARGETED: _Recipe(_apgd_targeted, targeted_dlr, _AUTO_STEP),
    LARGE_EPS: _Recipe(_pgd, margin, _PGD_STEP),
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

    @property
    def _loss(self) -> Loss:
        loss = _RECIPES[self.method].loss
        return margin if self.classes < _FEWEST.get(loss, 0) else loss

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        recipe, targeted = _RECIPES[self.method], self.method == APGD_TARGETED
        steps = self.effort.steps if "steps" in recipe.step_size or "APGD" in recipe.step_size else 1
        return AttackParams(
            norm=recipe.norm,
            loss=_SAID[self._loss],
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
        run = _RECIPES[self.method].run
        model = Averaged(self.model, self.draws) if self.draws > 1 else self.model
        if run is None:
            return self._one_step(model, x, labels)
        moved = None if start is None else torch.from_numpy(start).to(x.device) - x
        return [run(_Job(model, x, labels, budget.value, self.effort, self._loss, moved)) for budget in eps]

    def _one_step(self, model: nn.Module, x: Tensor, labels: Tensor) -> list[Adversarial]:
        step = partial(fgsm, model, x, eps=[eps.value for eps in self.eps], loss=self._loss)
        if self.target is None:
            return step(labels)
        aims = torch.full_like(labels, self.target)
        made = step(aims, targeted=True)
        # towards its own class an image is not attacked, but confirmed
        own = labels == aims
        return [
            Adversarial(torch.where(own[:, None, None, None], x, m.x), m.zero_gradient | own, logits=m.logits)
            for m in made
        ]


class CumulativeGradientAttack(GradientAttack):
    """A :class:`GradientAttack` that runs on what the attacks before it left standing."""

    asked = None  # images have to stand on the reference model

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        """Attack images that stand; MI-FGSM and targeted APGD begin at the worst versions so far."""
        (made,) = self._in_parts(x, y, start, [eps])
        return made


def _joined(parts: Sequence[Adversarial]) -> Crafted:
    def of_all(tensors: Iterable[Tensor]) -> NDArray[Any]:
        return np.ascontiguousarray(np.concatenate([tensor.cpu().numpy() for tensor in tensors]))

    logits = [part.logits for part in parts if part.logits is not None]
    return Crafted(
        of_all(part.x for part in parts),
        of_all(part.zero_gradient for part in parts),
        logits=of_all(logits) if logits else None,
    )


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
    everywhere: bool = False,
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
        everywhere: run APGD on the images that PGD broke too: for artefacts whose own gradients nobody follows.

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
        # an artefact's own attacks run on all images: what fell on the reference may stand on it
        adds = name in CUMULATIVE and (not suffix or name == TRANSFER)
        if name in (APGD_CE, APGD_DLR):
            # beside PGD on both losses no rule needs them on all images
            adds = adds and not everywhere and {PGD_CE, PGD_MARGIN} <= set(efforts)
        kind = CumulativeGradientAttack if adds else GradientAttack
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
