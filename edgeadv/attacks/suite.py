"""The attacks as objects for the evaluation: NumPy in and out, on the weights of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv_runtime.attack import Attack, Crafted
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.results import AttackParams
from edgeadv_runtime.suites import (
    APGD_CE,
    APGD_DLR,
    APGD_TARGETED,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    LARGE_EPS,
    MI_FGSM,
    PGD_CE,
    PGD_L2,
    PGD_MARGIN,
    QUERY_ATTACKS,
    TARGETABLE,
    Effort,
)

from .copies import memory_order
from .functions import apgd, apgd_targeted, fgsm, mi_fgsm, pgd
from .iterate import Adversarial
from .losses import Loss, cross_entropy, dlr, margin, rescaled_cross_entropy
from .norms import EUCLIDEAN, LINF, ball

GRADIENTS = "torch fp32"
SEED = 0
# activations of 20 photographs of 224 pixels; on a processor more would take gigabytes and save no time
_PIXELS_AT_ONCE = 1_000_000
# on a GPU of 24 GiB all 64 images of a batch: launching a kernel takes as long for few as for many
_LARGE_GPU, _PIXELS_ON_IT = 20 * 2**30, 3_300_000
_FEWEST_FOR_DLR = 3


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
    return pgd(
        job.model, job.x, job.labels, eps=job.eps, steps=1, step_size=job.eps, loss=job.loss, start=start
    )  # fmt: skip


def _momentum(job: _Job) -> Adversarial:
    return mi_fgsm(
        job.model, job.x, job.labels, eps=job.eps, steps=job.effort.steps, loss=job.loss, start=job.start
    )  # fmt: skip


def _pgd(job: _Job, norm: str = LINF) -> Adversarial:
    return pgd(
        job.model, job.x, job.labels, eps=job.eps, steps=job.effort.steps, loss=job.loss, norm=norm, seed=SEED,
        start=ball(norm, job.eps).starts(job.x, seed=SEED) - job.x, restarts=job.effort.restarts,
    )  # fmt: skip


def _pgd_l2(job: _Job) -> Adversarial:
    return _pgd(job, EUCLIDEAN)


def _apgd(job: _Job) -> Adversarial:
    return apgd(
        job.model, job.x, job.labels, eps=job.eps, steps=job.effort.steps, loss=job.loss, restarts=job.effort.restarts,
        seed=SEED, start=job.start,
    )  # fmt: skip


def _apgd_targeted(job: _Job) -> Adversarial:
    return apgd_targeted(
        job.model, job.x, job.labels, eps=job.eps, steps=job.effort.steps, targets=job.effort.targets, seed=SEED,
        start=job.start,
    )  # fmt: skip


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
        onwards: whether an image begins at the worst that was found of it within the next smaller budget. Attacks that the
            verdict compares, one with another or one budget with the next, do not: each of their figures stands for itself.
    """

    run: Callable[[_Job], Adversarial] | None
    said: str
    loss: Loss
    step_size: str
    norm: str = LINF
    random: bool = True
    onwards: bool = False


_CE, _MARGIN, _DLR = "cross-entropy", "logit margin", "DLR"
_PGD_STEP, _AUTO_STEP = "2.5*{eps}/{steps}", "2*{eps}, halved by APGD's schedule"
_RECIPES: Mapping[str, _Recipe] = {
    FGSM: _Recipe(None, _CE, cross_entropy, "{eps}", random=False),
    FGSM_RESCALED: _Recipe(
        None, "cross-entropy of logits / max|logit|", rescaled_cross_entropy, "{eps}", random=False
    ),
    FGSM_RANDOM_START: _Recipe(_random_start, _CE, cross_entropy, "{eps}"),
    MI_FGSM: _Recipe(_momentum, _CE, cross_entropy, "{eps}/{steps}", random=False, onwards=True),
    PGD_CE: _Recipe(_pgd, _CE, cross_entropy, _PGD_STEP),
    PGD_MARGIN: _Recipe(_pgd, _MARGIN, margin, _PGD_STEP),
    PGD_L2: _Recipe(_pgd_l2, _MARGIN, margin, _PGD_STEP, norm=EUCLIDEAN),
    APGD_CE: _Recipe(_apgd, _CE, cross_entropy, _AUTO_STEP),
    APGD_DLR: _Recipe(_apgd, _DLR, dlr, _AUTO_STEP),
    APGD_TARGETED: _Recipe(_apgd_targeted, "targeted DLR", dlr, _AUTO_STEP, onwards=True),
    LARGE_EPS: _Recipe(_pgd, _MARGIN, margin, _PGD_STEP),
}  # fmt: skip
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
            norm=recipe.norm, loss=said, steps=steps, step_size=recipe.step_size.format(eps=eps.text, steps=steps),
            restarts=min(self.effort.targets, self.classes - 1) if targeted else self.effort.restarts,
            seed=SEED if recipe.random else None, target=None if self.target is None else str(self.target),
        )  # fmt: skip

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch at every budget, in parts whose activations fit into memory; an image does not notice."""
        part = min(at_once(x, next(self.model.parameters()).device), len(x) or 1)
        while True:
            try:
                parts = [
                    self._craft(*self._tensors(x[i : i + part], y[i : i + part])) for i in range(0, len(x) or 1, part)
                ]
            except torch.OutOfMemoryError:
                if part == 1:
                    raise
            else:
                return [_joined(results) for results in zip(*parts, strict=True)]
            # what the failed attempt held is free only now that its frames are gone
            torch.cuda.empty_cache()
            part //= 2

    def _craft(self, x: Tensor, labels: Tensor) -> list[Adversarial]:
        recipe = _RECIPES[self.method]
        if recipe.run is None:
            budgets = [eps.value for eps in self.eps]
            if self.target is None:
                return fgsm(self.model, x, labels, eps=budgets, loss=recipe.loss)
            aims = torch.full_like(labels, self.target)
            made = fgsm(self.model, x, aims, eps=budgets, loss=recipe.loss, targeted=True)
            # towards its own class an image is not attacked, but confirmed
            own = labels == aims
            return [Adversarial(torch.where(own[:, None, None, None], x, m.x), m.zero_gradient | own) for m in made]
        loss = margin if recipe.loss is dlr and self.classes < _FEWEST_FOR_DLR else recipe.loss
        found: list[Adversarial] = []
        for eps in self.eps:
            start = found[-1].x - x if recipe.onwards and found else None
            job = _Job(self.model, x, labels, eps.value, self.effort, loss, start)
            found.append(recipe.run(job))
        return found

    def _tensors(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        images = torch.from_numpy(x).to(device).contiguous(memory_format=memory_order(device))
        return images, torch.from_numpy(y).to(device)


def at_once(x: NDArray[np.float32] | Tensor, device: torch.device) -> int:
    """How many images of ``x``, float32 (n, 3, H, W), are attacked at once, so that their activations fit into memory.

    Args:
        x: the images.
        device: where.
    """
    size = x.shape[2] * x.shape[3]
    if device.type != "cuda":
        return max(1, _PIXELS_AT_ONCE // size)
    large = torch.cuda.get_device_properties(device).total_memory >= _LARGE_GPU
    # a power of two, as batches shrink there
    return 1 << max(1, (_PIXELS_ON_IT if large else _PIXELS_AT_ONCE) // size).bit_length() - 1


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
) -> list[Attack]:
    """The gradient attacks among ``efforts``, e.g. ``SUITES["standard"]``; those that only ask the model are left to others.

    Args:
        model: pixels to logits, on the device to attack on.
        eps: budgets, ascending; the control at eps 1 has its own.
        efforts: name to effort.
        classes: how many logits the model has.
        gradients_sha256: hash of the artefact that its gradients belong to.
        target: class position to move towards, for attacks that can.
        suffix: of the names in rows, for a model that is not the reference.
        gradients: where they come from, in words.

    Raises:
        InputError: a name is unknown, or an attack that was named cannot be targeted.
    """
    unknown = [name for name in efforts if name not in _RECIPES and name not in QUERY_ATTACKS]
    if unknown or not efforts:
        raise InputError(
            f"unknown attack {', '.join(unknown) or '(none)'}: choose from {', '.join((*NAMES, *QUERY_ATTACKS))}"
        )
    attacks: list[Attack] = []
    for name, effort in efforts.items():
        if name in QUERY_ATTACKS:
            continue
        own = (Eps.parse("1"),) if name == LARGE_EPS else eps
        aim = target if name in TARGETABLE else None
        attacks.append(
            GradientAttack(model, gradients_sha256, own, name, effort, classes, target=aim, suffix=suffix, gradients=gradients)
        )  # fmt: skip
    return attacks
