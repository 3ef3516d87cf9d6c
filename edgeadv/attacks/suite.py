"""The attacks as objects for the evaluation: NumPy in and out, on the weights of one model."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv_runtime.attack import Attack, Crafted
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.results import AttackParams
from edgeadv_runtime.verdict import FGSM, FGSM_RANDOM_START, FGSM_RESCALED, PGD_MARGIN

from ..models import PixelModel
from .gradients import Loss, cross_entropy, rescaled_cross_entropy
from .linf import Adversarial, fgsm, pgd

GRADIENTS = "torch fp32"
PGD_STEPS = 20
RANDOM_START_SEED = 0
# activations of 20 photographs of 224 pixels; more would take gigabytes and save no time
_PIXELS_AT_ONCE = 1_000_000
_LOSSES: dict[str, tuple[str, Loss]] = {
    FGSM: ("cross-entropy", cross_entropy),
    FGSM_RESCALED: ("cross-entropy of logits / max|logit|", rescaled_cross_entropy),
}
NAMES = (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_MARGIN)


@dataclass(frozen=True)
class _TorchAttack(ABC):
    """What the attacks share: the model, its device, its hash, and the way in and out of NumPy.

    Attributes:
        model: pixels to logits.
        gradients_sha256: hash of its weights.
        eps: budgets, ascending.
    """

    model: PixelModel
    gradients_sha256: str | None
    eps: Sequence[Eps]
    gradients: str = GRADIENTS
    queried: str | None = None
    control: bool = False

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch at every budget, in parts whose activations fit into memory; an image does not notice."""
        part = max(1, _PIXELS_AT_ONCE // (x.shape[2] * x.shape[3]))
        parts = [self._craft(*self._tensors(x[i : i + part], y[i : i + part])) for i in range(0, len(x), part)]
        return [_joined(results) for results in zip(*parts, strict=True)]

    @abstractmethod
    def _craft(self, pixels: Tensor, labels: Tensor) -> list[Adversarial]:
        """Attack what fits into memory at once, at every budget."""

    def _tensors(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        return torch.from_numpy(x).to(device).contiguous(memory_format=torch.channels_last), torch.from_numpy(y).to(
            device
        )


@dataclass(frozen=True)
class FGSMAttack(_TorchAttack):
    """:func:`edgeadv.attacks.fgsm` at several budgets with one gradient.

    Attributes:
        name: ``"fgsm"``, or ``"fgsm-rescaled"`` for the gradient of rescaled logits.
        target: class position to move towards; None is untargeted.
    """

    name: str = FGSM
    target: int | None = None

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        target = None if self.target is None else str(self.target)
        return AttackParams(
            norm="linf", loss=_LOSSES[self.name][0], steps=1, step_size=eps.text, restarts=1, target=target
        )

    def _craft(self, pixels: Tensor, labels: Tensor) -> list[Adversarial]:
        if self.target is not None:
            labels = torch.full_like(labels, self.target)
        budgets = [eps.value for eps in self.eps]
        return fgsm(
            self.model, pixels, labels, eps=budgets, loss=_LOSSES[self.name][1], targeted=self.target is not None
        )


@dataclass(frozen=True)
class RandomStartAttack(_TorchAttack):
    """:func:`edgeadv.attacks.pgd` from a random start that belongs to the image and not to the batch it is in.

    ``"pgd-margin"`` takes 20 steps on the logit margin. ``"fgsm-rs"`` takes one step of eps on the cross-entropy from
    a start within eps / 2: plain FGSM but for its start (after RAND+FGSM of Tramèr et al. 2018).

    Attributes:
        name: which of the two.
        steps: gradient steps of ``"pgd-margin"``.
        seed: of the random start.
    """

    name: str = PGD_MARGIN
    steps: int = PGD_STEPS
    seed: int = RANDOM_START_SEED

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        if self.name == FGSM_RANDOM_START:
            return AttackParams(
                norm="linf", loss="cross-entropy", steps=1, step_size=eps.text, restarts=1, seed=self.seed
            )
        step_size = f"2.5*{eps.text}/{self.steps}"
        return AttackParams(
            norm="linf", loss="logit margin", steps=self.steps, step_size=step_size, restarts=1, seed=self.seed
        )

    def _craft(self, pixels: Tensor, labels: Tensor) -> list[Adversarial]:
        images = pixels.cpu().contiguous().numpy()
        unit = torch.from_numpy(np.stack([self._start(image) for image in images])).to(pixels.device)
        return [self._run(pixels, labels, unit, eps.value) for eps in self.eps]

    def _run(self, x: Tensor, labels: Tensor, unit: Tensor, eps: float) -> Adversarial:
        if self.name == FGSM_RANDOM_START:
            return pgd(
                self.model, x, labels, eps=eps, steps=1, step_size=eps, loss=cross_entropy, start=unit * (eps / 2)
            )
        return pgd(self.model, x, labels, eps=eps, steps=self.steps, start=unit * eps)

    def _start(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Uniform in [-1, 1), seeded by the image's own bytes."""
        rng = np.random.default_rng((self.seed, zlib.crc32(image.tobytes())))
        return rng.random(image.shape, dtype=np.float32) * 2 - 1


def _joined(parts: Sequence[Adversarial]) -> Crafted:
    x = np.concatenate([part.x.cpu().numpy() for part in parts])
    return Crafted(np.ascontiguousarray(x), np.concatenate([part.zero_gradient.cpu().numpy() for part in parts]))


def standard_attacks(
    model: PixelModel,
    eps: Sequence[Eps],
    *,
    gradients_sha256: str | None,
    names: Sequence[str] = NAMES,
    target: int | None = None,
) -> list[Attack]:
    """The attacks by name; all of them together are what a verdict better than ``UNCHECKED`` needs.

    Args:
        model: pixels to logits, on the device to attack on.
        eps: budgets.
        gradients_sha256: hash of the model's weights.
        names: of :data:`NAMES`.
        target: class position for ``fgsm`` and ``fgsm-rescaled``; the others are untargeted.

    Raises:
        InputError: a name is unknown.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise InputError(f"unknown attack {', '.join(unknown) or '(none)'}: choose from {', '.join(NAMES)}")
    attacks: list[Attack] = []
    for name in names:
        if name in _LOSSES:
            attacks.append(FGSMAttack(model, gradients_sha256, eps, name=name, target=target))
        else:
            attacks.append(RandomStartAttack(model, gradients_sha256, eps, name=name))
    return attacks
