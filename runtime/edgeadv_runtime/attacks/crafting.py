"""Attacking batches once for every artefact, and what the reference model makes of it: the evidence for the verdict."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend
from ..bundle.batches import CleanBatch
from ..bundle.preprocess import to_tensor
from ..records.eps import Eps
from ..records.suites import contradicts, follows_gradients, is_ours, order_of
from .base import CLEAN_KEY, Attack, AttackInfo, Crafted, CraftedBatch, CumulativeAttack, Evidence, Key, infos
from .margins import clearly_broken, margins
from .perturbation import check_crafted, round_to_uint8
from .remembered import Remembered, pays

Bools = NDArray[np.bool_]
# of a model that gives probabilities, and of one that answers the same question in two ways
_SUM_SLACK, _CHANGE = 1e-4, 1e-3
_SMALLEST = np.float32(1e-30)


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
        rows = np.ones(len(x), np.bool_) if logits is not None else self.rows(eps)
        margin, broken = np.full(len(x), -np.inf, np.float32), np.zeros(len(x), np.bool_)
        if rows.any():
            if logits is None:
                logits = logits_of(self.backend, x[rows], self.batch.pixels[rows], eps)
            labels = self.batch.labels[rows]
            margin[rows], broken[rows] = margins(logits, labels), clearly_broken(logits, labels)
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
    backend: Backend | Remembered,
    x: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    eps: Eps,
    *,
    norm: str | None = None,
) -> NDArray[np.float32]:
    """Logits of images within ``eps`` of ``pixels``; those of a ``-u8in`` artefact are rounded within the budget first.

    Args:
        backend: the artefact, remembered or not; one that takes 8-bit pixels is not.
        x: float32 (n, 3, H, W) in [0, 1].
        pixels: the originals, uint8 (n, H, W, 3).
        eps: the budget that rounding must keep.
        norm: what the budget limits.
    """
    if isinstance(backend, Remembered) or not backend.takes_uint8:
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
            yield _crafted(batch, ordered, reference, uint8=uint8)
        else:
            listed, x = infos(attacks, uint8=uint8), to_tensor(batch.pixels)
            yield CraftedBatch(batch, {i.key: x for i in listed if not i.control}, Evidence.nothing(listed))


def _crafted(batch: CleanBatch, attacks: Sequence[Attack], reference: Backend, *, uint8: bool) -> CraftedBatch:
    """One batch under all attacks, and what the reference says of them."""
    adversarial: dict[Key, NDArray[np.float32]] = {}
    budgets: dict[Key, Eps] = {}
    standing = _Standing(batch, adversarial, budgets, uint8=uint8)
    x, labels = to_tensor(batch.pixels), batch.labels
    asked = Remembered(reference) if pays(reference) else reference
    clean = asked.infer(x)
    standing.on(reference, clean)
    answers, reached = {CLEAN_KEY: answers_of(clean, labels)}, {CLEAN_KEY: margins(clean, labels)}
    unrounded: dict[Key, NDArray[np.int64]] = {}
    zero: dict[Key, NDArray[np.bool_]] = {}
    linearity: dict[Key, NDArray[np.float32]] = {}
    again: NDArray[np.float32] | None = None
    last: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    for attack in attacks:
        # an attack on another artefact says nothing of what rounding costs here
        own = reference.artifact_sha256 == attack.gradients_sha256 or reference.identity == attack.queried
        for eps, made, crafted in standing.attacked(attack, reference):
            key = (attack.name, eps.text)
            if crafted.linearity is not None:
                linearity[key] = crafted.linearity
            if crafted.zero_gradient is not None:
                zero[key] = crafted.zero_gradient
            if again is None and is_ours(attack.name) and attack.gradients == getattr(reference, "gradients", None):
                again = crafted.logits
            logits = asked.infer(made)
            answers[key] = answers_of(logits, labels)
            if attack.control:
                continue
            adversarial[key], budgets[key], reached[key] = made, eps, margins(logits, labels)
            last = (made, logits)
            if is_ours(attack.name):
                standing.add(eps, made, {reference.identity: logits})
            if uint8 and own:
                unrounded[key] = answers_of(reference.infer(crafted.x), labels)
    # the gradients of one step have asked the reference about the clean images already
    unstable = changing(reference, x, clean) if again is None else changed(clean, again)
    if last is not None:
        unstable |= changing(reference, *last)
    progress = {key: progress_of(key, reached, budgets) for key in adversarial if contradicts(key[0])}
    evidence = Evidence(answers, unrounded, zero, are_probabilities(clean), unstable, progress, linearity)
    return CraftedBatch(batch, adversarial, evidence)


class _Standing:
    """What is left of a batch for attacks that run on what stands, by the artefact on which it has to.

    Args:
        batch: the images.
        adversarial: what attacks made of them, by key; it may grow.
        budgets: of these.
        uint8: round what attacks make to 8 bits.
    """

    def __init__(
        self,
        batch: CleanBatch,
        adversarial: Mapping[Key, NDArray[np.float32]],
        budgets: Mapping[Key, Eps],
        *,
        uint8: bool,
    ) -> None:
        self._batch, self._adversarial, self._budgets, self._uint8 = batch, adversarial, budgets, uint8
        self._worst: dict[str, WorstVersions] = {}

    def on(self, backend: Backend, logits: NDArray[np.float32] | None = None) -> WorstVersions:
        """The worst versions on an artefact, which gives ``logits`` to the clean images; None asks it."""
        if backend.identity not in self._worst:
            found = self._worst[backend.identity] = WorstVersions(backend, self._batch, logits)
            for key, images in self._adversarial.items():
                if is_ours(key[0]):
                    found.add(self._budgets[key], images)
        return self._worst[backend.identity]

    def add(self, eps: Eps, x: NDArray[np.float32], known: Mapping[str, NDArray[np.float32]]) -> None:
        """Take new versions within ``eps``; ``known`` are logits to them, by the identity of the artefact."""
        for identity, worst in self._worst.items():
            worst.add(eps, x, known.get(identity))

    def attacked(self, attack: Attack, reference: Backend | None) -> Iterator[tuple[Eps, NDArray[np.float32], Crafted]]:
        """What an attack makes of the batch at each budget: as it is scored, and before it was rounded."""
        batch = self._batch
        if isinstance(attack, CumulativeAttack):
            backend = attack.asked or reference
            assert backend is not None
            worst = self.on(backend)
            for eps in attack.eps:
                yield (eps, *_on_standing(attack, eps, worst, uint8=self._uint8))
            return
        x = to_tensor(batch.pixels)
        for eps, crafted in zip(attack.eps, attack.craft(x, batch.labels), strict=True):
            norm = attack.params(eps).norm
            yield eps, _checked(crafted.x, x, batch.pixels, attack.name, eps, norm, uint8=self._uint8), crafted


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
        added = {(attack.name, eps.text): x for attack in attacks for eps in attack.eps}
        standing = _Standing(batch.clean, batch.adversarial, budgets, uint8=uint8)
        for attack in attacks if len(x) else ():
            for eps, made, _ in standing.attacked(attack, None):
                added[attack.name, eps.text] = made
                standing.add(eps, made, {})
        yield replace(batch, adversarial=ChainMap(added, batch.adversarial))  # type: ignore[arg-type]


def _checked(
    made: NDArray[np.float32],
    x: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    name: str,
    eps: Eps,
    norm: str | None,
    *,
    uint8: bool,
) -> NDArray[np.float32]:
    """What an attack made of images, held to its contract, and rounded if ``uint8``."""
    check_crafted(made, x, name, eps, norm=norm)
    return to_tensor(round_to_uint8(made, pixels, eps, norm=norm)) if uint8 else made


def _on_standing(
    attack: CumulativeAttack, eps: Eps, standing: WorstVersions, *, uint8: bool
) -> tuple[NDArray[np.float32], Crafted]:
    """What an attack makes of the images that stand; of the others the version that broke them."""
    rows, made = standing.rows(eps), standing.worst(eps)
    exact, batch = made.copy(), standing.batch
    if not rows.any():
        return made, Crafted(exact, None)
    x, pixels = standing.clean[rows], batch.pixels[rows]
    crafted = attack.craft_from(x, batch.labels[rows], made[rows], eps)
    new = _checked(crafted.x, x, pixels, attack.name, eps, None, uint8=uint8)
    better = rows if attack.control else standing.improves(eps, rows, new)
    exact[better], made[better] = crafted.x[better[rows]], new[better[rows]]

    def of_all(found: NDArray[Any] | None, nothing: float) -> NDArray[Any] | None:
        if found is None:
            return None
        whole = np.full((len(rows), *found.shape[1:]), nothing, found.dtype)
        whole[rows] = found
        return whole

    return made, Crafted(exact, of_all(crafted.zero_gradient, False), of_all(crafted.linearity, np.nan))


def are_probabilities(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Answers that lie in [0, 1] and add up to 1: bool (n,)."""
    within = ((logits >= 0) & (logits <= 1)).all(axis=1)
    found: NDArray[np.bool_] = within & (np.abs(logits.sum(axis=1, dtype=np.float64) - 1) <= _SUM_SLACK)
    return found
