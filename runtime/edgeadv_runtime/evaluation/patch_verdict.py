"""What may be believed of a figure under a patch: whether training the patch found anything at all.

A patch whose training saturated breaks no more images than a grey one or one of noise. Then the figure is one of
occlusion, and a better trained patch may well break more. There is no ``PASS``: nothing searches without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..attacks.base import CLEAN_KEY, AttackInfo, Key
from ..attacks.patch_controls import CONTROLS
from ..records.evidence import COVERAGE, Finding, Masking, RowMasking
from ..records.statistics import mcnemar_p
from ..records.suites import base_name
from .outcomes import Artefact, BatchOutcome
from .verdict import FEWEST_IMAGES, verdict_on

PATCH = "patch"
RULE = "patch"
_LEAST = 0.01
"""Share of the images that a control has to break before a patch that does no better is suspect."""
_CHANCE = 0.05
"""Of McNemar's test, below which a patch is better than a control."""
_FLAT = 0.1
"""Share of the images without a gradient from which on a patch was not trained."""
_BOUND = "a patch's figure is an upper bound: nothing without gradients looked for a better one"


def patch_verdict(
    infos: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome], artefacts: Sequence[Artefact]
) -> tuple[Masking, list[RowMasking]]:
    """The verdict on all figures under patches, and on each artefact's rows; the arguments are those of
    :func:`~edgeadv_runtime.evaluation.verdict.verdict_of`."""
    found = [_on_artefact(k, artefact, infos, outcomes) for k, artefact in enumerate(artefacts)]
    every = [item for items in found for item in items]
    rows = [
        RowMasking(verdict=verdict_on(items), evidence=tuple(item.text for item in items if item.matters))
        for items in found
    ]
    return Masking(verdict=verdict_on(every), evidence=tuple(every)), rows


def _on_artefact(
    k: int, artefact: Artefact, infos: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome]
) -> list[Finding]:
    whose = f"{artefact.backend} {artefact.variant}"
    stands = {
        key: np.concatenate([each.top1[k][key] for each in outcomes])
        for key in (CLEAN_KEY, *(info.key for info in infos if not info.control))
        if outcomes
    }
    right = stands.get(CLEAN_KEY, np.zeros(0, np.bool_))
    n = int(right.sum())
    items: list[Finding] = []
    for info in infos if n else ():
        # by its own gradients where there are such, else by the reference's
        if base_name(info.name) != PATCH or not _is_closest(info, artefact, infos):
            continue
        items += _saturated(info, infos, {key: flags[right] for key, flags in stands.items()}, n, whose)
        items += _flat(info, outcomes, whose)
    return [*items, Finding(rule=COVERAGE, n=n, finding=None, text=_bound(n, whose), artefact=whose)]


def _is_closest(info: AttackInfo, artefact: Artefact, infos: Sequence[AttackInfo]) -> bool:
    alike = [other for other in infos if base_name(other.name) == PATCH and other.eps == info.eps]
    own = [other for other in alike if artefact.has_gradients(other.gradients_sha256)]
    return info in (own or [other for other in alike if "@" not in other.name])


def _saturated(
    info: AttackInfo, infos: Sequence[AttackInfo], stands: dict[Key, NDArray[np.bool_]], n: int, whose: str
) -> list[Finding]:
    left, found = stands[info.key], []
    for control in _controls_of(info, infos):
        there = stands[control.key]
        gained, lost = int((there & ~left).sum()), int((left & ~there).sum())
        broken, by_control = n - int(left.sum()), n - int(there.sum())
        if not left.any() or (gained > lost and mcnemar_p(lost, gained) < _CHANCE):
            continue
        tells = by_control >= _LEAST * n
        then = "its training found nothing, so more may break" if tells else "too few to tell what its training found"
        found.append(
            Finding(
                rule=RULE,
                attack=info.name,
                eps=info.eps.text,
                n=n,
                value=(gained - lost) / n,
                finding="SUSPECT" if tells else None,
                text=f"{info.name} of {info.eps.text} broke {broken} of {n} images of {whose}, and {control.name} "
                f"{by_control}: {then}",
                gained=gained,
                lost=lost,
                artefact=whose,
            )
        )
    # one that tells is enough
    return sorted(found, key=lambda each: each.finding is None)[:1]


def _controls_of(info: AttackInfo, infos: Sequence[AttackInfo]) -> list[AttackInfo]:
    """The controls that asked whom the patch was trained on; those that asked the reference where there are none."""
    beside = [each for each in infos if each.eps == info.eps]
    own = {f"{name}{info.name.removeprefix(PATCH)}" for name in CONTROLS}
    return [each for each in beside if each.name in own] or [each for each in beside if each.name in CONTROLS]


def _flat(info: AttackInfo, outcomes: Sequence[BatchOutcome], whose: str) -> list[Finding]:
    flags = [each.evidence.zero_gradient[info.key] for each in outcomes if info.key in each.evidence.zero_gradient]
    share = float(np.concatenate(flags).mean()) if flags else 0.0
    if share < _FLAT:
        return []
    text = f"{info.name} of {info.eps.text} had no gradient to follow on {share:.0%} of the images: it was not trained"
    return [
        Finding(
            rule=RULE, attack=info.name, eps=info.eps.text, value=share, finding="SUSPECT", text=text, artefact=whose
        )
    ]


def _bound(n: int, whose: str) -> str:
    few = f"{whose} classifies only {n} images right, and {FEWEST_IMAGES} are due; " if n < FEWEST_IMAGES else ""
    return few + _BOUND
