"""The attacks of int8's gate, and what each artefact makes of them: as an evaluation counts it, verdict included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgeadv.attacks import build_attacks
from edgeadv.gradients.graph import Surrogate
from edgeadv_runtime.attacks.base import CLEAN_KEY, Attack, AttackInfo, CraftedBatch
from edgeadv_runtime.attacks.noise import NoiseAttack
from edgeadv_runtime.attacks.square_attack import SquareAttack
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.evaluation.outcomes import Artefact
from edgeadv_runtime.evaluation.scoring import score_batches
from edgeadv_runtime.evaluation.verdict import verdict_of
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import RowMasking
from edgeadv_runtime.records.suites import NOISE, ON_SURROGATE, SQUARE, SUITES, SuiteName

GATE_SUITE: SuiteName = "standard"
"""What attacks before a worst case is judged: less would be an upper bound."""


@dataclass(frozen=True)
class Attacked:
    """What one artefact makes of the attacks.

    Attributes:
        right: bool (n,): the label came first without an attack and under every one.
        masking: that of its rows, as :func:`~edgeadv_runtime.evaluation.verdict.verdict_of` has it.
    """

    right: NDArray[np.bool_]
    masking: RowMasking


def attacks_for_gate(
    backend: Backend, model: nn.Module | Surrogate | None, eps: Eps, *, classes: int, gradients_sha256: str | None
) -> list[Attack]:
    """What attacks ``backend`` in the gate: the suite's attacks by the gradients of ``model``, and Square on ``backend`` itself.

    Args:
        backend: the artefact, opened.
        model: the float32 network in PyTorch, which all of the suite attacks; or the surrogate of an int8 artefact, which meets
            those that a surrogate's gradients are good for, beside what was made on float32; None where it has no surrogate.
        eps: the budget.
        classes: of the model.
        gradients_sha256: hash of what the gradients of ``model`` belong to.
    """
    efforts = SUITES[GATE_SUITE]
    made: list[Attack] = []
    if isinstance(model, Surrogate):
        own = {name: effort for name, effort in efforts.items() if name in ON_SURROGATE}
        made += build_attacks(
            model,
            [eps],
            efforts=own,
            classes=classes,
            gradients_sha256=gradients_sha256,
            suffix=f"@{backend.variant}",
            gradients=model.gradients,
        )
    elif model is not None:
        made += build_attacks(model, [eps], efforts=efforts, classes=classes, gradients_sha256=gradients_sha256)
        if NOISE in efforts:
            made.append(NoiseAttack([eps], queries=efforts[NOISE].queries, backend=backend))
    if SQUARE in efforts:
        made.append(SquareAttack(backend, [eps], efforts[SQUARE].queries))
    return made


def score_attacked(
    batches: Iterable[CraftedBatch], infos: Sequence[AttackInfo], *, bundle: Bundle, backends: Sequence[Backend]
) -> list[Attacked]:
    """Score every artefact on every image, as ``edgeadv evaluate`` does.

    Args:
        batches: crafted images.
        infos: what each of their keys is, and which controls ran.
        bundle: what is scored.
        backends: the artefacts, opened.

    Returns:
        One for each of ``backends``.
    """
    outcomes = list(score_batches(batches, infos, bundle=bundle, backends=backends, unreadable=[], examples=0))
    _, masking = verdict_of(infos, outcomes, [Artefact.of(backend) for backend in backends])
    keys = [CLEAN_KEY, *(info.key for info in infos if not info.control)]
    found = []
    for k, about in enumerate(masking):
        hits = [np.concatenate([outcome.top1[k][key] for outcome in outcomes]) for key in keys]
        found.append(Attacked(np.logical_and.reduce(hits), about))
    return found
