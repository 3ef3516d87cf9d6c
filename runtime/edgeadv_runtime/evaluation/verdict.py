"""The masking verdict: may the robustness figures of these weights, and of what was made of them, be believed?

The evidence on the gradients is gathered on the reference model, whose gradients the attacks used, from images that it
classifies right; on an artefact from the images that the artefact classifies right. The rules are in ``verdict_rules``.

``PASS`` says that no rule fired, with all that the rules need: attacks that follow gradients, controls of these
gradients, and a search that asks the artefact itself and could have contradicted them. It does not say that the model
is robust, and nothing of what was not looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..attacks.base import CLEAN_KEY, AttackInfo, Evidence, Key
from ..records.evidence import COVERAGE, Finding, Masking, RowMasking, Verdict, least_believable
from ..records.suites import LARGE_EPS, LINEARITY, NOISE, PGD_CE, PGD_MARGIN, PGD_SMOOTHED, SQUARE, base_name, is_ours
from .verdict_rules import (
    NEEDED,
    Bools,
    Standing,
    answers,
    large_eps,
    nonlinear,
    pairs,
    queries,
    rising,
    zero_gradients,
)

if TYPE_CHECKING:
    from .outcomes import Artefact, BatchOutcome

NEEDED_CONTROLS = (NOISE, PGD_SMOOTHED, LINEARITY)
"""What a ``PASS`` needs at every budget beside :data:`NEEDED`, and :data:`LARGE_EPS`."""
FEWEST_IMAGES = 300
"""With fewer images classified right a rule may well stay silent where it should fire, so their silence is no
``PASS``."""
FEWEST_STEPS = 10
"""Of the attacks with many steps, for a ``PASS``."""
FEWEST_DRAWS = 20
"""Of noise, for a ``PASS``."""
FEWEST_QUERIES = 500
"""Of Square on the artefact that is judged, for a ``PASS``."""
BADGES: dict[Verdict, str] = {
    "UNCHECKED": "masking check: UNCHECKED (an upper bound: not enough was tried)",
    "PASS": "masking check: PASS (no sign of hidden or false gradients)",
    "SUSPECT": "masking check: SUSPECT (signs of hidden or false gradients)",
    "MASKED": "masking check: MASKED (hidden or false gradients)",
}
"""How a verdict is printed, everywhere: worded so that ``PASS`` is not taken for robustness."""


class MaskingEvidence:
    """Gathers what the reference model makes of the images, batch by batch, and reads the verdict off it."""

    def __init__(self, infos: Sequence[AttackInfo], *, reference: str | None = None) -> None:
        """Name what ran.

        Args:
            infos: the attacks, controls included.
            reference: identity of the reference model; None is that of the file that the gradients belong to.
        """
        self._infos = {info.key: info for info in infos if _ours(info)}
        self._reference = reference
        self.budgets: dict[float, str] = budgets_of(infos)
        self._batches: list[tuple[NDArray[np.int64], Evidence]] = []

    def add(self, labels: NDArray[np.int64], evidence: Evidence) -> None:
        """Take one batch.

        Args:
            labels: true labels, int64 (n,).
            evidence: what the reference model makes of its images.
        """
        if len(labels):
            self._batches.append((labels, evidence))

    def verdict(self, *, artefact_asked: bool = False) -> Masking:
        """One verdict for the weights, the worst finding over all budgets.

        ``artefact_asked``: Square asked an artefact of these weights, so the reference need not have been asked.
        """
        return self.concluded(self.findings(), artefact_asked=artefact_asked)

    def concluded(self, evidence: list[Finding], *, artefact_asked: bool) -> Masking:
        """:meth:`verdict`, from what :meth:`findings` has found."""
        ours = {key: info for key, info in self._infos.items() if self._knows(key)}
        if self._reference is None:
            asked = {key: info for key, info in ours.items() if info.name == SQUARE}
        else:
            asked = {key: info for key, info in ours.items() if info.queried == self._reference}
        missing = None if artefact_asked else unasked(asked, self.budgets)
        if missing and not any(item.obstacle for item in evidence):
            n = sum(int((batch.answers[CLEAN_KEY] == labels).sum()) for labels, batch in self._batches)
            evidence = [*evidence, Finding(rule=COVERAGE, n=n, finding=None, text=missing)]
        return Masking(verdict=verdict_on(evidence), evidence=tuple(evidence))

    def findings(self) -> list[Finding]:
        """The evidence on the weights' gradients, with what is missing of it; not whether the model was asked
        itself."""
        standing, zero, irregular, ratios = self._gather()
        evidence: list[Finding] = []
        if standing.n:
            evidence += [*answers(standing, irregular), *zero_gradients(standing, zero), *pairs(standing)]
            evidence += [*nonlinear(standing, ratios), *queries(standing, self._infos)]
            evidence += [*large_eps(standing), *rising(standing)]
        if obstacle := _obstacle(standing, self.budgets) or _untold(standing, zero, ratios):
            evidence.append(Finding(rule=COVERAGE, n=standing.n, finding=None, text=obstacle))
        return evidence

    def _knows(self, key: Key) -> bool:
        return all(key in evidence.answers for _, evidence in self._batches)

    def _gather(self) -> tuple[Standing, dict[Key, Bools], dict[str, Bools], dict[Key, NDArray[np.float32]]]:
        """Of the images that the reference gets right: what stands, had no gradient, was answered oddly, and was
        linear."""
        right = [evidence.answers[CLEAN_KEY] == labels for labels, evidence in self._batches]

        def kept(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
            chosen = [part[rows] for part, rows in zip(parts, right, strict=True)]
            return np.concatenate(chosen) if chosen else np.empty(0, dtype=dtype)

        def table(name: str) -> dict[Key, NDArray[Any]]:
            tables = [getattr(evidence, name) for _, evidence in self._batches]
            keys = [key for key in self._infos if any(key in each for each in tables)]
            return {
                key: kept(_filled([each.get(key) for each in tables], [len(rows) for rows in right]), np.bool_)
                for key in keys
            }

        labels = kept([labels for labels, _ in self._batches], np.int64)
        survived = {
            key: kept([evidence.answers[key] == labels for labels, evidence in self._batches], np.bool_)
            for key in self._infos
            if self._knows(key)
        }
        irregular = {
            name: kept([getattr(evidence, name) for _, evidence in self._batches], np.bool_)
            for name in ("probabilities", "unstable")
        }
        standing = Standing(self._infos, labels, survived, table("progress"))
        return standing, table("zero_gradient"), irregular, table("linearity")


def _filled(parts: Sequence[NDArray[Any] | None], sizes: Sequence[int]) -> list[NDArray[Any]]:
    """What each batch holds; one in which no image stood holds nothing of a cumulative attack, and nothing was found
    there."""
    like = next(part for part in parts if part is not None)
    empty = np.nan if like.dtype.kind == "f" else False
    return [
        np.full((size, *like.shape[1:]), empty, like.dtype) if part is None else part
        for part, size in zip(parts, sizes, strict=True)
    ]


def budgets_of(infos: Sequence[AttackInfo]) -> dict[float, str]:
    """The budgets of all attacks, as texts by value: a worst case has those of a third party's too."""
    return {info.eps.value: info.eps.text for info in reversed(infos) if not info.control}


def _obstacle(standing: Standing, budgets: Mapping[float, str]) -> str | None:
    """Why the evidence on the gradients cannot earn a ``PASS`` for worst cases at ``budgets``, which are texts by
    value."""
    if standing.n < FEWEST_IMAGES:
        return (
            f"only {standing.n} images are classified right without an attack; at least {FEWEST_IMAGES} are "
            "needed for a verdict"
        )
    infos = standing.infos
    hashes: set[str | None] = set()
    for name in (*NEEDED, *NEEDED_CONTROLS):
        # several draws of noise carry the name of whom they asked
        ran = [infos[key] for key in standing.survived if (base_name(key[0]) if name == NOISE else key[0]) == name]
        if missing := _missing(ran, budgets):
            return f"{name} did not run at every budget{missing}: no PASS without it"
        if any(info.params.target is not None for info in ran):
            return f"{name} ran with a target: no PASS without the untargeted attack"
        if name != NOISE and any(info.gradients_sha256 is None for info in ran):
            return f"{name} does not say which weights its gradients belong to: no PASS without that"
        if name != NOISE and len(hashes := hashes | {info.gradients_sha256 for info in ran}) > 1:
            return f"{name} follows the gradients of other weights than the attacks before it: no PASS for either"
        if name in (PGD_CE, PGD_MARGIN, PGD_SMOOTHED) and any((info.params.steps or 0) < FEWEST_STEPS for info in ran):
            return f"{name} took fewer than {FEWEST_STEPS} steps: no PASS without them"
        if name == NOISE and any((info.params.queries or 0) < FEWEST_DRAWS for info in ran):
            return f"noise was drawn fewer than {FEWEST_DRAWS} times: no PASS without that many"
    at_one = standing.untargeted(LARGE_EPS).values()
    if not any((info.params.steps or 0) >= FEWEST_STEPS and info.gradients_sha256 in hashes for info in at_one):
        return f"{LARGE_EPS} did not run with at least {FEWEST_STEPS} steps: no PASS without it"
    return None


def _untold(standing: Standing, zero: Mapping[Key, Bools], ratios: Mapping[Key, NDArray[np.float32]]) -> str | None:
    """What the attacks that ran do not tell, as those of an incomplete pack: silence is no ``PASS``."""
    for key in standing.survived:
        name, eps = key[0], standing.infos[key].eps.value
        left = standing.left_by_gradients(eps)
        untold = (
            (name in NEEDED and key not in zero)
            or (base_name(name) in (NOISE, SQUARE) and key not in standing.progress)
            or (name == LINEARITY and left.any() and (key not in ratios or np.isnan(ratios[key][left]).any()))
        )
        if untold:
            return f"{name} at eps {key[1]} does not tell all that a verdict needs: make the pack again"
    return None


def _ours(info: AttackInfo) -> bool:
    """Whether the rules know what an attack does: not one of another library, whatever it is called."""
    return is_ours(info.name) and info.params.library is None


def unasked(asked: Mapping[Key, AttackInfo], budgets: Mapping[float, str], whom: str = "the artefact") -> str | None:
    """Why the attacks that ``asked`` an artefact itself, called ``whom``, cannot earn it a ``PASS``."""
    ran = [info for info in asked.values() if base_name(info.name) == SQUARE and info.params.target is None]
    if missing := _missing(ran, budgets):
        return (
            f"{SQUARE} did not ask {whom} itself at every budget{missing}: its figures are an upper bound, and no PASS"
        )
    if any((info.params.queries or 0) < FEWEST_QUERIES for info in ran):
        return (
            f"{SQUARE} asked {whom} fewer than {FEWEST_QUERIES} times: figures are an upper bound, and no PASS without "
            "as many"
        )
    return None


def _missing(ran: Sequence[AttackInfo], budgets: Mapping[float, str]) -> str | None:
    """At which of ``budgets`` nothing ``ran``, in words; None where it ran at all of them."""
    missing = sorted(text for value, text in budgets.items() if value not in {info.eps.value for info in ran})
    if missing or not budgets:
        return f" (missing at {', '.join(missing)})" if missing else " (there is none)"
    return None


def verdict_on(evidence: Sequence[Finding]) -> Verdict:
    """The least believable finding; ``UNCHECKED`` where something is missing and nothing worse was found."""
    return least_believable(item.finding or "UNCHECKED" for item in evidence if item.matters)


CORRUPTIONS = "corruptions are no attacks: they follow no gradients, and nothing was looked for that could hide"
"""What the rows of corruptions have instead of a verdict's evidence."""


def no_verdict(n: int, artefacts: int) -> tuple[Masking, list[RowMasking]]:
    """Of ``n`` images under corruptions, of so many ``artefacts``: nothing to judge."""
    finding = Finding(rule=COVERAGE, n=n, finding=None, text=CORRUPTIONS)
    row = RowMasking(verdict="UNCHECKED", evidence=(CORRUPTIONS,))
    return Masking(verdict="UNCHECKED", evidence=(finding,)), [row] * artefacts


def verdict_of(
    infos: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome], artefacts: Sequence[Artefact]
) -> tuple[Masking, list[RowMasking]]:
    """The verdict on the weights, and on each artefact that was made of them.

    Args:
        infos: the attacks, controls included.
        outcomes: what became of the images; ``outcomes[i].top1[k]`` belongs to ``artefacts[k]``.
        artefacts: what was scored.

    Returns:
        That of the weights, with the evidence on the artefacts too; and that of each artefact's rows.
    """
    gathered = MaskingEvidence(infos)
    for outcome in outcomes:
        gathered.add(outcome.labels, outcome.evidence)
    gradients = gathered.findings()
    own = [_on_artefact(k, artefact, infos, outcomes, gathered.budgets) for k, artefact in enumerate(artefacts)]
    asked = any(not any(item.obstacle for item in items) for items in own)
    masking = gathered.concluded(gradients, artefact_asked=asked)
    # what was found on the weights themselves is theirs, whoever asked
    weights = {info.gradients_sha256 for info in infos if info.name in NEEDED}
    same = [
        item
        for artefact, items in zip(artefacts, own, strict=True)
        if any(map(artefact.has_gradients, weights))
        for item in items
    ]
    verdict = least_believable([masking.verdict, *(item.finding for item in same if item.finding)])
    rows = []
    for items in own:
        together = [*gradients, *items]
        sentences = tuple(item.text for item in together if item.matters)
        rows.append(RowMasking(verdict=verdict_on(together), evidence=sentences))
    return Masking(verdict=verdict, evidence=(*masking.evidence, *(item for items in own for item in items))), rows


def _on_artefact(
    k: int,
    artefact: Artefact,
    infos: Sequence[AttackInfo],
    outcomes: Sequence[BatchOutcome],
    budgets: Mapping[float, str],
) -> list[Finding]:
    """What attacks that asked this very artefact found beyond the gradients that were tried on it, and what is
    missing."""
    ours = {info.key: info for info in infos if _ours(info)}
    asked = {key: info for key, info in ours.items() if info.queried == artefact.identity}
    whose = f"{artefact.backend} {artefact.variant}"
    items: list[Finding] = []
    n = 0
    if outcomes:
        hits = {key: np.concatenate([o.top1[k][key] for o in outcomes]) for key in outcomes[0].top1[k]}
        labels, right = np.concatenate([o.labels for o in outcomes]), hits[CLEAN_KEY]
        n = int(right.sum())
    if n:

        def of_right(tables: Sequence[Mapping[Key, NDArray[np.float32]]]) -> dict[Key, NDArray[np.float32]]:
            return {key: np.concatenate([t[key] for t in tables])[right] for key in tables[0] if key in ours}

        survived = {key: flags[right] for key, flags in hits.items() if key in ours}
        gradients = frozenset({artefact.artifact_sha256, artefact.float_sha256} - {None})
        progress = of_right([o.progress[k] for o in outcomes])
        standing = Standing(ours, labels[right], survived, progress, whose, gradients)
        # what asked the reference is judged with the weights, unless it was added to a pack, where there is no
        # reference
        new = {
            key: i for key, i in asked.items() if "@" in i.name or not all(key in o.evidence.answers for o in outcomes)
        }
        items += queries(standing, new)
        unstable = np.concatenate([o.unstable[k] for o in outcomes])[right]
        if unstable.any():
            items += answers(standing, {"unstable": unstable})
    missing = unasked(asked, budgets, whose)
    if missing is None and n < FEWEST_IMAGES:
        missing = (
            f"{whose} classifies only {n} images right without an attack; at least {FEWEST_IMAGES} are needed "
            "for a verdict"
        )
    if missing:
        items.append(Finding(rule=COVERAGE, n=n, finding=None, text=missing, artefact=whose))
    return items
