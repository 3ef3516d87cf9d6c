"""Networks that were really trained, and what the attacks that a verdict needs make of them. ``pytest -s`` prints
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv.attacks import build_attacks
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training.objectives import Objective
from edgeadv_runtime.attacks.base import CLEAN_KEY, Attack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.noise import NoiseAttack
from edgeadv_runtime.attacks.square_attack import SquareAttack
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.evaluation.verdict import FEWEST_QUERIES, MaskingEvidence
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import Finding
from edgeadv_runtime.records.suites import (
    LARGE_EPS,
    NOISE,
    PGD_SMOOTHED,
    SUITES,
    TRANSFER,
    Effort,
)

CPU = torch.device("cpu")
EPS = Eps.parse_list("0.1,0.3")
OVERFIT_EPS = 0.3
ROBUST_EPS = Eps.parse("0.2")
N = 340
FACTOR = 1e5
SHA256 = "a" * 64


class Reference(Backend):
    """Any model of 32 x 32 pixels, under a backend's contract."""

    name, variant, provider, device, artifact_sha256 = "torch", "fp32", "cpu", "test", SHA256
    input_shape, n_classes = (3, 32, 32), 10

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = self.model(torch.from_numpy(x)).numpy()
        return logits


class Changed(nn.Module):
    """A model whose logits, or whose images, something is done to first."""

    def __init__(
        self,
        model: nn.Module,
        *,
        logits: Callable[[Tensor], Tensor] | None = None,
        images: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.logits, self.images = model, logits, images

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x if self.images is None else self.images(x))
        return logits if self.logits is None else self.logits(logits)


def louder(model: nn.Module) -> Changed:
    """A model whose logits are ``FACTOR`` times as large. It decides nothing differently."""
    return Changed(model, logits=lambda logits: logits * FACTOR)


EFFORTS = {**SUITES["fast"], PGD_SMOOTHED: Effort(steps=10)}


def attacks_on(
    model: nn.Module,
    eps: Sequence[Eps],
    reference: Backend,
    sha256: str = SHA256,
    draws: int = 1,
    efforts: Mapping[str, Effort] = EFFORTS,
) -> list[Attack]:
    """All that a verdict needs, and no more."""
    attacks = build_attacks(model, eps, efforts=efforts, classes=10, gradients_sha256=sha256, draws=draws)
    noise = NoiseAttack(eps, queries=efforts[NOISE].queries, backend=reference)
    return [*attacks, noise, SquareAttack(reference, eps, FEWEST_QUERIES)]


@dataclass(frozen=True)
class Measured:
    """What the attacks made of a model.

    Attributes:
        verdict: the masking verdict over all budgets.
        evidence: its evidence.
        clean: accuracy without an attack.
        standing: images of ``N`` that stand, by attack and eps.
        worst: images of ``N`` that stand all attacks within the budget, by eps.
        images: the adversarial images, by attack and eps.
    """

    verdict: str
    evidence: Sequence[Finding]
    clean: float
    standing: dict[tuple[str, str], int]
    worst: dict[str, int]
    images: dict[tuple[str, str], NDArray[np.float32]]

    def lower_bound(self, rule: str) -> float:
        return max(item.lower_bound or 0.0 for item in self.evidence if item.rule == rule)

    @property
    def found(self) -> set[tuple[str, str]]:
        """Rules that fired, and as what."""
        return {(item.rule, item.finding) for item in self.evidence if item.finding}


def measured(
    clean: Sequence[CleanBatch],
    model: nn.Module,
    title: str,
    *,
    eps: Sequence[Eps] = EPS,
    other: nn.Module | None = None,
    draws: int = 1,
    efforts: Mapping[str, Effort] = EFFORTS,
) -> Measured:
    """Run on a model what a verdict needs; ``other`` is one whose images are tried on it too."""
    model.eval()
    reference = Reference(model)
    attacks = attacks_on(model, eps, reference, draws=draws, efforts=efforts)
    if other is not None:
        efforts = {TRANSFER: Effort(steps=20)}
        attacks += build_attacks(other, eps, efforts=efforts, classes=10, gradients_sha256="b" * 64, suffix="@other")
    listed = infos(attacks, uint8=False)
    evidence = MaskingEvidence(listed)
    crafted = list(craft(clean, attacks, reference, uint8=False))
    for batch in crafted:
        evidence.add(batch.clean.labels, batch.evidence)
    labels = np.concatenate([b.labels for b in clean])
    right = {
        key: np.concatenate([b.evidence.answers[key] for b in crafted]) == labels
        for key in [CLEAN_KEY, *(i.key for i in listed)]
    }
    result = evidence.verdict()
    worst, standing = {}, right[CLEAN_KEY]
    for budget in eps:
        standing = np.all([standing, *(right[i.key] for i in listed if i.eps == budget)], axis=0)
        worst[budget.text] = int(standing.sum())
    found = Measured(
        verdict=result.verdict,
        evidence=result.evidence,
        clean=float(right[CLEAN_KEY].mean()),
        standing={i.key: int(right[i.key].sum()) for i in listed},
        worst=worst,
        images={i.key: np.concatenate([b.adversarial[i.key] for b in crafted]) for i in listed if not i.control},
    )
    show(title, found)
    return found


def show(title: str, measured: Measured) -> None:
    print(
        f"\n{title}: {measured.verdict}, clean {measured.clean:.3f}, at eps 1 "
        f"{measured.standing[LARGE_EPS, '1'] / N:.3f}"
    )
    for eps, worst in measured.worst.items():
        shares = "  ".join(f"{name} {n / N:.3f}" for (name, at), n in measured.standing.items() if at == eps)
        print(f"  eps {eps}: {shares}  worst {worst / N:.3f}")
    for item in measured.evidence:
        if (item.lower_bound or 0) > 0 or item.finding:
            bound = "" if item.lower_bound is None else f" lower bound {item.lower_bound:.3f}"
            print(f"  {item.rule} {item.finding}:{bound} ({item.text})")


Trainer = Callable[[Objective], PixelModel]
"""Trains a network of :func:`cnn`."""


def cnn() -> PixelModel:
    """A small network without BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    return PixelModel(net, Architecture(name="cnn", source="timm", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3))
