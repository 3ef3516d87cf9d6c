"""Attacks as the evaluation sees them: pixels and labels in, adversarial pixels out, on NumPy arrays.

Whoever makes the gradients fits in here: ``edgeadv.attacks`` with PyTorch, or any function ``(x, y) -> x_adv`` of another
library through :class:`CallableAttack`. What comes back is checked before it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .backends.base import Backend
from .eps import Eps
from .errors import InputError
from .files import sha256_bytes
from .perturbation import NORMS, check_crafted, round_to_uint8
from .preprocess import to_tensor
from .results import CLEAN, AttackParams

# of a model that gives probabilities, and of one that answers the same question in two ways
_SUM_SLACK, _CHANGE = 1e-4, 1e-3
Key = tuple[str, str]
"""Name of an attack and the text of its eps; ``(CLEAN, "0")`` for the image as it is."""
CLEAN_KEY: Key = (CLEAN, "0")


@dataclass(frozen=True)
class Crafted:
    """Adversarial images of one attack at one budget.

    Attributes:
        x: float32 (n, 3, H, W) in [0, 1].
        zero_gradient: bool (n,): images without a gradient to follow; None where the attack does not tell.
    """

    x: NDArray[np.float32]
    zero_gradient: NDArray[np.bool_] | None


class Attack(Protocol):
    """An attack at one or more budgets."""

    @property
    def name(self) -> str:
        """Its name in result rows."""
        ...

    @property
    def eps(self) -> Sequence[Eps]:
        """Its budgets."""
        ...

    @property
    def gradients(self) -> str | None:
        """Where its gradients come from, e.g. ``"torch fp32"``; None for an attack without gradients."""
        ...

    @property
    def gradients_sha256(self) -> str | None:
        """Hash of the weights that the gradients belong to; None where there are none."""
        ...

    @property
    def queried(self) -> str | None:
        """:attr:`~edgeadv_runtime.Backend.identity` of the artefact that a query attack asked; None for the others."""
        ...

    @property
    def control(self) -> bool:
        """Whether it is evidence for the verdict only: no row, not scored on artefacts, not stored in packs."""
        ...

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``, for the result row."""
        ...

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch.

        Args:
            x: float32 (n, 3, H, W) in [0, 1].
            y: true labels, int64 (n,).

        Returns:
            One :class:`Crafted` per budget, in the order of :attr:`eps`.
        """
        ...


@dataclass(frozen=True)
class CallableAttack:
    """Any function ``(x, y) -> x_adv`` on NumPy arrays as an :class:`Attack` at one budget.

    Attributes:
        function: x float32 (n, 3, H, W) in [0, 1] and y int64 (n,) to adversarial images like x.
        name: its name in result rows.
        budget: the budget it keeps to, in the norm that ``described`` names; this is checked.
        gradients: where its gradients come from, in words.
        gradients_sha256: hash of the weights that they belong to.
        described: how it is run, for the result row.
        queried: identity of the artefact that it asks, for a query attack.
        control: whether it is evidence only.
    """

    function: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
    name: str
    budget: Eps
    gradients: str | None = None
    gradients_sha256: str | None = None
    described: AttackParams = field(default_factory=lambda: AttackParams(norm="linf"))
    queried: str | None = None
    control: bool = False

    @property
    def eps(self) -> Sequence[Eps]:
        """The one budget."""
        return (self.budget,)

    def params(self, eps: Eps) -> AttackParams:
        """How it is run."""
        return self.described

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Call the function."""
        return [Crafted(np.asarray(self.function(x, y), dtype=np.float32), None)]


@dataclass(frozen=True)
class AttackInfo:
    """What is known of an attack at one budget, whether it was run here or comes from a pack; see :class:`Attack`."""

    name: str
    eps: Eps
    params: AttackParams
    gradients: str | None
    gradients_sha256: str | None
    queried: str | None = None
    control: bool = False

    @property
    def key(self) -> Key:
        """The key of its images in a :class:`CraftedBatch`."""
        return (self.name, self.eps.text)


@dataclass(frozen=True)
class CleanBatch:
    """Preprocessed images and labels, in the order they are scored.

    Attributes:
        index: int64 (n,), positions in the data set.
        pixels: uint8 (n, crop, crop, 3).
        labels: int64 (n,), positions among the bundle's classes.
    """

    index: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Hex SHA-256 of each image's pixels."""
        return tuple(sha256_bytes(pixels.tobytes()) for pixels in self.pixels)

    def select(self, chosen: NDArray[np.bool_]) -> CleanBatch:
        """The images whose flag in ``chosen``, bool (n,), is set."""
        return CleanBatch(self.index[chosen], self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Evidence:
    """What the reference model, whose gradients the attacks used, makes of a batch: what the verdict is read off.

    Attributes:
        answers: for the clean images and for each key that it was asked about, the label that it gives, int64 (n,).
            Attacks that were added to a pack's are not among the keys.
        unrounded: for each key of an attack on the reference model itself, in a run that rounds to 8 bits, the label that
            it gives to the images before they are rounded, int64 (n,).
        zero_gradient: for each key whose attack tells, bool (n,): images without a gradient to follow.
        probabilities: bool (n,): the answer to the clean image lies in [0, 1] and adds up to 1, so these are no logits.
        unstable: bool (n,): asked again about the same clean images, it gave other logits.
    """

    answers: Mapping[Key, NDArray[np.int64]]
    unrounded: Mapping[Key, NDArray[np.int64]]
    zero_gradient: Mapping[Key, NDArray[np.bool_]]
    probabilities: NDArray[np.bool_]
    unstable: NDArray[np.bool_]

    def select(self, chosen: NDArray[np.bool_]) -> Evidence:
        """That of the images whose flag in ``chosen``, bool (n,), is set."""
        return Evidence(
            {key: labels[chosen] for key, labels in self.answers.items()},
            {key: labels[chosen] for key, labels in self.unrounded.items()},
            {key: flags[chosen] for key, flags in self.zero_gradient.items()},
            self.probabilities[chosen],
            self.unstable[chosen],
        )


class LazyImages(Mapping[Key, NDArray[np.float32]]):
    """Images of each key, float32 (n, 3, H, W), made when they are asked for: a device has not the memory for all."""

    def __init__(self, made: Mapping[Key, Callable[[], NDArray[np.float32]]]) -> None:
        self._made = made

    def __getitem__(self, key: Key) -> NDArray[np.float32]:
        return self._made[key]()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True)
class CraftedBatch:
    """Images, their adversarial versions, and what the model whose gradients were used makes of them.

    This is what evaluation scores and what an attack pack holds.

    Attributes:
        clean: the images.
        adversarial: for each key but those of controls, float32 (n, 3, H, W) in [0, 1].
        evidence: what the reference model makes of them.
    """

    clean: CleanBatch
    adversarial: Mapping[Key, NDArray[np.float32]]
    evidence: Evidence

    def select(self, chosen: NDArray[np.bool_]) -> CraftedBatch:
        """The images whose flag in ``chosen``, bool (n,), is set."""
        images = self.adversarial

        def some(key: Key) -> NDArray[np.float32]:
            return images[key][chosen]

        lazy = LazyImages({key: partial(some, key) for key in images})
        return CraftedBatch(self.clean.select(chosen), lazy, self.evidence.select(chosen))


def infos(attacks: Iterable[Attack], *, uint8: bool) -> list[AttackInfo]:
    """One :class:`AttackInfo` per attack and budget.

    Raises:
        InputError: as :func:`check_infos`.
    """
    found: list[AttackInfo] = []
    for attack in attacks:
        for eps in attack.eps:
            params = replace(attack.params(eps), uint8=uint8)
            found.append(
                AttackInfo(
                    attack.name, eps, params, attack.gradients, attack.gradients_sha256, attack.queried, attack.control
                )
            )
    check_infos(found)
    return found


def check_infos(listed: Iterable[AttackInfo]) -> None:
    """Hold attacks that are to run together to what a run can keep apart.

    Raises:
        InputError: two have the same name and budget, a norm is unknown, two norms are mixed, or 8-bit images cannot hold a
            budget.
    """
    found: set[Key] = set()
    norms: dict[str, str] = {}
    for info in listed:
        if info.key in found:
            raise InputError(f"two attacks are called {info.name} at eps {info.eps.text}: give one another name")
        found.add(info.key)
        norm = info.params.norm or NORMS[0]
        if norm not in NORMS:
            raise InputError(f"attack {info.name} is measured in {norm!r}: choose from {', '.join(NORMS)}")
        if info.params.uint8 and norm != "l2":
            info.eps.check_8_bits(instead="do not round (attack --float32, evaluate without --uint8)")
        if not info.control:
            norms.setdefault(norm, info.name)
    if len(norms) > 1:
        both = " and ".join(f"{name} in {norm}" for norm, name in norms.items())
        raise InputError(f"eps means one norm in a run, and {both} is two: run them one after the other")


def craft(
    batches: Iterable[CleanBatch], attacks: Sequence[Attack], reference: Backend, *, uint8: bool
) -> Iterator[CraftedBatch]:
    """Attack each batch once, for every artefact that will be scored on it.

    Args:
        batches: images; one batch at a time is held.
        attacks: what to run; the images of controls are shown to the reference model and forgotten.
        reference: the model whose gradients are used, to see what the attacks do to it.
        uint8: round adversarial images to 8 bits, staying within eps, as :func:`round_to_uint8` does.

    Raises:
        InputError: an attack broke its contract: shape, range, eps, or values that are not finite.
    """
    for batch in batches:
        x = to_tensor(batch.pixels)
        if not len(x):
            yield _nothing(batch, x, attacks)
            continue
        adversarial: dict[Key, NDArray[np.float32]] = {}
        unrounded: dict[Key, NDArray[np.int64]] = {}
        zero: dict[Key, NDArray[np.bool_]] = {}
        logits = reference.infer(x)
        answers: dict[Key, NDArray[np.int64]] = {CLEAN_KEY: logits.argmax(axis=1)}
        for attack in attacks:
            # an attack on another artefact says nothing of what rounding costs here
            ours = reference.artifact_sha256 == attack.gradients_sha256 or reference.identity == attack.queried
            for key, made, flags, exact in _attacked(attack, batch, x, uint8=uint8):
                answers[key] = _label(reference, made)
                if not attack.control:
                    adversarial[key] = made
                    if uint8 and ours:
                        unrounded[key] = _label(reference, exact)
                if flags is not None:
                    zero[key] = flags
        again = np.abs(reference.infer(x) - logits).max(axis=1)
        unstable = again > _CHANGE * np.abs(logits).max(axis=1)
        yield CraftedBatch(batch, adversarial, Evidence(answers, unrounded, zero, _are_probabilities(logits), unstable))


def extend(batches: Iterable[CraftedBatch], attacks: Sequence[Attack], *, uint8: bool) -> Iterator[CraftedBatch]:
    """Add attacks to batches that come from a pack, where there is no reference model: it is not asked about them.

    Args:
        batches: what a pack holds.
        attacks: attacks that need no gradients and no reference model; none of them a control.
        uint8: round their images to 8 bits, as those of the pack were.

    Raises:
        InputError: as :func:`craft`.
    """
    for batch in batches:
        x = to_tensor(batch.clean.pixels)
        added: dict[Key, NDArray[np.float32]] = {}
        for attack in attacks:
            if len(x):
                added |= {key: made for key, made, _, _ in _attacked(attack, batch.clean, x, uint8=uint8)}
            else:
                added |= {(attack.name, eps.text): x for eps in attack.eps}
        known = {key: partial(batch.adversarial.__getitem__, key) for key in batch.adversarial}
        new = {key: partial(added.__getitem__, key) for key in added}
        yield replace(batch, adversarial=LazyImages({**known, **new}))


_Attacked = tuple[Key, NDArray[np.float32], NDArray[np.bool_] | None, NDArray[np.float32]]
"""Key, images as they are scored, images without a gradient, images before they were rounded."""


def _attacked(attack: Attack, batch: CleanBatch, x: NDArray[np.float32], *, uint8: bool) -> Iterator[_Attacked]:
    """What an attack makes of a batch at each budget, checked, and rounded if ``uint8``."""
    for eps, crafted in zip(attack.eps, attack.craft(x, batch.labels), strict=True):
        norm = attack.params(eps).norm
        check_crafted(crafted.x, x, attack.name, eps, norm=norm)
        made = to_tensor(round_to_uint8(crafted.x, batch.pixels, eps, norm=norm)) if uint8 else crafted.x
        yield (attack.name, eps.text), made, crafted.zero_gradient, crafted.x


def _nothing(batch: CleanBatch, x: NDArray[np.float32], attacks: Sequence[Attack]) -> CraftedBatch:
    """A batch none of whose images could be decoded."""
    keys = [((attack.name, eps.text), attack.control) for attack in attacks for eps in attack.eps]
    labels, flags = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
    answers = dict.fromkeys([CLEAN_KEY, *(key for key, _ in keys)], labels)
    images = {key: x for key, control in keys if not control}
    return CraftedBatch(batch, images, Evidence(answers, {}, {}, flags, flags))


def _label(backend: Backend, x: NDArray[np.float32]) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = backend.infer(x).argmax(axis=1)
    return labels


def _are_probabilities(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    within = ((logits >= 0) & (logits <= 1)).all(axis=1)
    found: NDArray[np.bool_] = within & (np.abs(logits.sum(axis=1, dtype=np.float64) - 1) <= _SUM_SLACK)
    return found
