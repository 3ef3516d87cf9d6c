"""The attacks that need no gradients, on artefacts that are open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..backends.base import Backend
from ..records.eps import Eps
from ..records.suites import NOISE, SQUARE, Effort
from .base import Attack
from .noise import CumulativeNoise, NoiseAttack
from .square_attack import SquareAttack


def query_attacks(
    efforts: Mapping[str, Effort],
    eps: Sequence[Eps],
    reference: Backend | None,
    backends: Sequence[Backend],
    *,
    state: Path | None = None,
) -> list[Attack]:
    """Noise once, and Square on every artefact; on the reference where there is none else.

    Args:
        efforts: the attacks that run; those with gradients are not looked at.
        eps: budgets.
        reference: the model whose gradients other attacks use; None where there is none.
        backends: the artefacts to be scored, opened.
        state: where Square keeps what it has of a batch that is under way, so that an interruption costs seconds.
    """
    scored = {backend.identity: backend for backend in backends}
    if not scored and reference is not None:
        scored[reference.identity] = reference
    made: list[Attack] = []
    if NOISE in efforts:
        # several draws need somebody who tells which is the strongest
        judge = reference or next(iter(scored.values()))
        kind = CumulativeNoise if efforts[NOISE].queries > 1 else NoiseAttack
        made.append(kind(eps, queries=efforts[NOISE].queries, backend=judge))
    if SQUARE in efforts:
        made += [SquareAttack(backend, eps, efforts[SQUARE].queries, state=state) for backend in scored.values()]
    return made
