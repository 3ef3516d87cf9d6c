"""Attacking batches once for every artefact, and what the reference model makes of it: the evidence for the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend
from ..bundle.batches import CleanBatch
from ..bundle.preprocess import to_tensor
from ..records.eps import Eps
from ..records.suites import contradicts, follows_gradients, is_ours, order_of
from .base import CLEAN_KEY, Attack, AttackInfo, CraftedBatch, CumulativeAttack, Evidence, Key, LazyImages
from .margins import clearly_broken, margins
from .perturbation import check_crafted, round_to_uint8

Bools = NDArray[np.bool_]
# of a model that gives probabilities, and of one that answers the same question in two ways
_SUM_SLACK, _CHANGE = 1e-4, 1e-3
_SMALLEST = np.float32(1e-30)


@dataclass(frozen=True)
class _Made:
    """What an attack made of a batch at one budget: the images as they are scored, and before they were rounded."""

    x: NDArray[np.float32]
    exact: NDArray[np.float32]
    zero_gradient: NDArray[np.bool_] | None
    linearity: NDArray[np.float32] | None


class WorstVersions:
    """Of each image of a batch the version that one artefact is most wrong about so far, within each budget.

    Args:
        backend: the artefact.
        batch: the images.
        logits: its answers to them, float32 (n, classes); None asks it.
    """

    def __init__(self, backend: Backend, batch: CleanBatch, logits: NDArray[np.float32] | None = None) -> None:
        self.backend: Backend = backend
        self.batch: CleanBatch = batch
        self.clean: NDArray[np.float32] = to_tensor(batch.pixels)
        logits = backend.infer(self.clean) if logits is None else logits
        self._clean_margin = margins(logits, batch.labels)
        self._tried: list[tuple[float, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]] = []

    def add(self, eps: Eps, x: NDArray[np.float32], logits: NDArray[np.float32] | None = None) -> None:
        """Take versions within ``eps``, float32 like the images; without ``logits`` the artefact is asked about those
        that stand."""
        labels = self.batch.labels
        if logits is not None:
            self._tried.append((eps.value, x, margins(logits, labels), clearly_broken(logits, labels)))
            return
        margin = np.full(len(x), -np.inf, np.float32)
        broken = np.zeros(len(x), np.bool_)
        if (rows := self.rows(eps)).any():
            answers = logits_of(self.backend, x[rows], self.batch.pixels[rows], eps)
            margin[rows], broken[rows] = margins(answers, labels[rows]), clearly_broken(answers, labels[rows])
        self._tried.append((eps.value, x, margin, broken))

    def rows(self, eps: Eps) -> NDArray[np.bool_]:
        """Images that stand within ``eps``, bool (n,): right as they are, and not clearly broken by any version."""
        stands = self._clean_margin < 0
        for value, _, _, broken in self._tried:
            if value <= eps.value:
                stands = stands & ~broken
        return stands

    def worst(self, eps: Eps) -> NDArray[np.float32]:
        """The versions with the largest margin within ``eps``, float32 (n, 3, H, W)."""
        return self._worst(eps)[0]

    def improves(self, eps: Eps, rows: Bools, x: NDArray[np.float32]) -> Bools:
        """Of the images ``rows`` those whose new version ``x``, (rows, 3, H, W), is to be kept: bool (n,).

        All but those whose worst version is just across the boundary, where the new one has to be worse: what counts is
        what stands.
        """
        kept = rows.copy()
        _, largest = self._worst(eps)
        just = rows & (largest >= 0)
        if just.any():
            logits = logits_of(self.backend, x[just[rows]], self.batch.pixels[just], eps)
            kept[just] = margins(logits, self.batch.labels[just]) > largest[just]
        return kept

    def _worst(self, eps: Eps) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        best, largest = self.clean.copy(), self._clean_margin.copy()
        for value, x, margin, _ in self._tried:
            if value <= eps.value:
                better = margin > largest
                best[better], largest[better] = x[better], margin[better]
        return best, largest


def logits_of(
    backend: Backend, x: NDArray[np.float32], pixels: NDArray[np.uint8], eps: Eps, *, norm: str | None = None
) -> NDArray[np.float32]:
    """Logits of images within ``eps`` of ``pixels``; those of a ``-u8in`` artefact are rounded within the budget first.

    Args:
        backend: the artefact.
        x: float32 (n, 3, H, W) in [0, 1].
        pixels: the originals, uint8 (n, H, W, 3).
        eps: the budget that rounding must keep.
        norm: what the budget limits.
    """
    if not backend.takes_uint8:
        return backend.infer(x)
    return backend.infer_pixels(round_to_uint8(x, pixels, eps, norm=norm))


def answers_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label given to each image, int64 (n,); where another class has the same logit as the true one, that other
    class."""
    wrong = logits.copy()
    rows = np.arange(len(labels))
    wrong[rows, labels] = -np.inf
    other = wrong.argmax(axis=1)
    right = logits[rows, labels] > wrong[rows, other]
    return np.where(right, labels, other)


def changing(backend: Backend, x: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Images to which the artefact gives other logits when it is asked again: bool (n,).

    Args:
        backend: the artefact.
        x: float32 (n, 3, H, W) in [0, 1].
        logits: its first answer, float32 (n, classes).
    """
    return changed(logits, backend.infer(x))


def changed(logits: NDArray[np.float32], again: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Images whose logits differ between two answers to the same question, both float32 (n, classes): bool (n,)."""
    # against the distance of the logits: a constant on all of them decides nothing
    spread = np.ptp(logits, axis=1) + _SMALLEST
    differs: NDArray[np.bool_] = np.abs(again - logits).max(axis=1) > _CHANGE * spread
    return differs


def craft(
    batches: Iterable[CleanBatch], attacks: Sequence[Attack], reference: Backend, *, uint8: bool
) -> Iterator[CraftedBatch]:
    """Attack each batch once, for every artefact that will be scored on it.

    They run in the order of :func:`~edgeadv_runtime.records.suites.order_of`. A cumulative attack runs on images that
    stand; what an attack of another library breaks stands for it: nobody says whether that asks or follows gradients,
    so it must hide no evidence of either.

    Args:
        batches: images; one batch at a time is held.
        attacks: what to run; the images of controls are shown to nobody.
        reference: the model whose gradients are used, to see what the attacks do to it.
        uint8: round adversarial images to 8 bits, staying within eps, as :func:`round_to_uint8` does.

    Raises:
        InputError: an attack broke its contract: shape, range, eps, or values that are not finite.
    """
    ordered = sorted(attacks, key=lambda attack: order_of(attack.name, cumulative=isinstance(attack, CumulativeAttack)))
    for batch in batches:
        if len(batch.labels):
            yield _Crafting(batch, reference, uint8=uint8).run(ordered)
        else:
            yield _nothing(batch, to_tensor(batch.pixels), attacks)


class _Crafting:
    """One batch on its way through the attacks."""

    def __init__(self, batch: CleanBatch, reference: Backend, *, uint8: bool) -> None:
        self.batch, self.reference, self.uint8 = batch, reference, uint8
        self.x = to_tensor(batch.pixels)
        self.logits = reference.infer(self.x)
        self.adversarial: dict[Key, NDArray[np.float32]] = {}
        self.answers = {CLEAN_KEY: answers_of(self.logits, batch.labels)}
        self.unrounded: dict[Key, NDArray[np.int64]] = {}
        self.zero: dict[Key, NDArray[np.bool_]] = {}
        self.linearity: dict[Key, NDArray[np.float32]] = {}
        self.budgets: dict[Key, Eps] = {}
        self.margins = {CLEAN_KEY: margins(self.logits, batch.labels)}
        self.attacked: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self.standing = {reference.identity: WorstVersions(reference, batch, self.logits)}

    def run(self, attacks: Sequence[Attack]) -> CraftedBatch:
        """All attacks, and what the reference says of them."""
        for attack in attacks:
            if isinstance(attack, CumulativeAttack):
                for eps in attack.eps:
                    self._take(
                        attack, eps, _on_standing(attack, eps, self._standing_on(attack.asked), uint8=self.uint8)
                    )
            else:
                for eps, made in zip(attack.eps, _attacked(attack, self.batch, self.x, uint8=self.uint8), strict=True):
                    self._take(attack, eps, made)
        keys = [key for key in self.adversarial if contradicts(key[0])]
        evidence = Evidence(
            self.answers,
            self.unrounded,
            self.zero,
            are_probabilities(self.logits),
            self._unstable(),
            {key: progress_of(key, self.margins, self.budgets) for key in keys},
            self.linearity,
        )
        return CraftedBatch(self.batch, self.adversarial, evidence)

    def _standing_on(self, asked: Backend | None) -> WorstVersions:
        backend = asked or self.reference
        if backend.identity not in self.standing:
            found = self.standing[backend.identity] = WorstVersions(backend, self.batch)
            for key, images in self.adversarial.items():
                if is_ours(key[0]):
                    found.add(self.budgets[key], images)
        return self.standing[backend.identity]

    def _take(self, attack: Attack, eps: Eps, made: _Made) -> None:
        """Show what was made to the reference model."""
        key, labels = (attack.name, eps.text), self.batch.labels
        if made.linearity is not None:
            self.linearity[key] = made.linearity
        if made.zero_gradient is not None:
            self.zero[key] = made.zero_gradient
        logits = self.reference.infer(made.x)
        self.answers[key] = answers_of(logits, labels)
        if attack.control:
            return
        self.adversarial[key], self.budgets[key] = made.x, eps
        self.margins[key], self.attacked = margins(logits, labels), (made.x, logits)
        for identity, standing in self.standing.items() if is_ours(attack.name) else ():
            standing.add(eps, made.x, logits if identity == self.reference.identity else None)
        # an attack on another artefact says nothing of what rounding costs here
        ours = self.reference.artifact_sha256 == attack.gradients_sha256 or self.reference.identity == attack.queried
        if self.uint8 and ours:
            self.unrounded[key] = answers_of(self.reference.infer(made.exact), labels)

    def _unstable(self) -> NDArray[np.bool_]:
        found = changing(self.reference, self.x, self.logits)
        return found if self.attacked is None else found | changing(self.reference, *self.attacked)


def progress_of(
    key: Key,
    reached: Mapping[Key, NDArray[np.float32]],
    budgets: Mapping[Key, Eps],
    own: Callable[[Key], bool] = lambda key: "@" not in key[0],
) -> NDArray[np.float32]:
    """How far ``key`` raised the margin of each image, over how far the best attack that follows gradients within its
    budget did.

    Args:
        key: a query attack, or noise.
        reached: margins of the clean images and under each attack, float32 (n,).
        budgets: of each attack.
        own: which of the attacks that follow gradients follow those of the model; by default those that were made for
            no other.

    Returns:
        float32 (n,), at least 0; infinite where gradients raised nothing.
    """
    clean = reached[CLEAN_KEY]
    by_gradients = np.zeros_like(clean)
    for other, margin in reached.items():
        if follows_gradients(other[0]) and own(other) and budgets[other].value <= budgets[key].value:
            by_gradients = np.maximum(by_gradients, margin - clean)
    gain = np.maximum(reached[key] - clean, 0)
    ratio = np.where(gain > 0, np.float32(np.inf), np.float32(0))
    np.divide(gain, by_gradients, out=ratio, where=by_gradients > 0)
    return ratio


def extend(
    batches: Iterable[CraftedBatch], attacks: Sequence[Attack], held: Sequence[AttackInfo], *, uint8: bool
) -> Iterator[CraftedBatch]:
    """Add attacks to batches that come from a pack, where there is no reference model: it is not asked about them.

    Args:
        batches: what a pack holds.
        attacks: attacks that need no gradients and no reference model; none of them a control. A cumulative one asks an
            artefact.
        held: what the pack's keys are.
        uint8: round their images to 8 bits, as those of the pack were.

    Raises:
        InputError: as :func:`craft`.
    """
    budgets = {info.key: info.eps for info in held}
    for batch in batches:
        x = to_tensor(batch.clean.pixels)
        added: dict[Key, NDArray[np.float32]] = {}
        worst: dict[str, WorstVersions] = {}
        for attack in attacks if len(x) else ():
            if isinstance(attack, CumulativeAttack):
                assert attack.asked is not None
                if attack.asked.identity not in worst:
                    worst[attack.asked.identity] = _of_pack(attack.asked, batch, budgets)
                made_at: Iterable[_Made] = (
                    _on_standing(attack, eps, worst[attack.asked.identity], uint8=uint8) for eps in attack.eps
                )
            else:
                made_at = _attacked(attack, batch.clean, x, uint8=uint8)
            for eps, made in zip(attack.eps, made_at, strict=True):
                added[attack.name, eps.text] = made.x
                for standing in worst.values():
                    standing.add(eps, made.x)
        if not len(x):
            added = {(attack.name, eps.text): x for attack in attacks for eps in attack.eps}
        known = {key: partial(batch.adversarial.__getitem__, key) for key in batch.adversarial}
        new = {key: partial(added.__getitem__, key) for key in added}
        yield replace(batch, adversarial=LazyImages({**known, **new}))


def _of_pack(backend: Backend, batch: CraftedBatch, budgets: Mapping[Key, Eps]) -> WorstVersions:
    found = WorstVersions(backend, batch.clean)
    for key, images in batch.adversarial.items():
        if is_ours(key[0]):
            found.add(budgets[key], images)
    return found


def _attacked(attack: Attack, batch: CleanBatch, x: NDArray[np.float32], *, uint8: bool) -> Iterator[_Made]:
    """What an attack makes of a batch at each budget, checked, and rounded if ``uint8``."""
    for eps, crafted in zip(attack.eps, attack.craft(x, batch.labels), strict=True):
        norm = attack.params(eps).norm
        check_crafted(crafted.x, x, attack.name, eps, norm=norm)
        made = to_tensor(round_to_uint8(crafted.x, batch.pixels, eps, norm=norm)) if uint8 else crafted.x
        yield _Made(made, crafted.x, crafted.zero_gradient, crafted.linearity)


def _on_standing(attack: CumulativeAttack, eps: Eps, standing: WorstVersions, *, uint8: bool) -> _Made:
    """What an attack makes of the images that stand; of the others the version that broke them."""
    rows, made = standing.rows(eps), standing.worst(eps)
    exact, batch = made.copy(), standing.batch
    zero: NDArray[np.bool_] | None = None
    linearity: NDArray[np.float32] | None = None
    if rows.any():
        x = standing.clean[rows]
        crafted = attack.craft_from(x, batch.labels[rows], made[rows], eps)
        check_crafted(crafted.x, x, attack.name, eps)
        new = to_tensor(round_to_uint8(crafted.x, batch.pixels[rows], eps)) if uint8 else crafted.x
        better = rows if attack.control else standing.improves(eps, rows, new)
        exact[better], made[better] = crafted.x[better[rows]], new[better[rows]]
        if crafted.zero_gradient is not None:
            zero = np.zeros(len(rows), np.bool_)
            zero[rows] = crafted.zero_gradient
        if crafted.linearity is not None:
            linearity = np.full((len(rows), crafted.linearity.shape[1]), np.nan, np.float32)
            linearity[rows] = crafted.linearity
    return _Made(made, exact, zero, linearity)


def _nothing(batch: CleanBatch, x: NDArray[np.float32], attacks: Sequence[Attack]) -> CraftedBatch:
    """A batch none of whose images could be decoded."""
    keys = [((attack.name, eps.text), attack.control) for attack in attacks for eps in attack.eps]
    labels, flags = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
    answers = dict.fromkeys([CLEAN_KEY, *(key for key, _ in keys)], labels)
    images = {key: x for key, control in keys if not control}
    return CraftedBatch(batch, images, Evidence(answers, {}, {}, flags, flags))


def are_probabilities(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Answers that lie in [0, 1] and add up to 1: bool (n,)."""
    within = ((logits >= 0) & (logits <= 1)).all(axis=1)
    found: NDArray[np.bool_] = within & (np.abs(logits.sum(axis=1, dtype=np.float64) - 1) <= _SUM_SLACK)
    return found
