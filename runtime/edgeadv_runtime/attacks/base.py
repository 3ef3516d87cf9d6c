"""Attacks as the evaluation sees them: pixels and labels in, adversarial pixels out, on NumPy arrays.

Whoever makes the gradients fits in here: ``edgeadv.attacks`` with PyTorch, or any function ``(x, y) -> x_adv`` of
another library through :class:`CallableAttack`. What comes back is checked before it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..backends.base import Backend
from ..bundle.batches import CleanBatch
from ..errors import InputError
from ..records.eps import Eps
from ..records.rows import CLEAN, NORMS, AttackParams

Key = tuple[str, str]
"""Name of an attack and the text of its eps; ``(CLEAN, "0")`` for the image as it is."""
CLEAN_KEY: Key = (CLEAN, "0")


@dataclass(frozen=True)
class Crafted:
    """Adversarial images of one attack at one budget.

    Attributes:
        x: float32 (n, 3, H, W) in [0, 1].
        zero_gradient: bool (n,): images without a gradient to follow; None where the attack does not tell.
        linearity: what the gradients predict against what happens, float32 (n, k); None but of the control that
            measures it.
        logits: of the images before the attack, float32 (n, classes), where the attack has asked for them.
    """

    x: NDArray[np.float32]
    zero_gradient: NDArray[np.bool_] | None
    linearity: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


class Attack(Protocol):
    """An attack at one or more budgets. It is used by one thread at a time; make one for each."""

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
        """Hash of the file that the gradients belong to; None where there are none."""
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


@runtime_checkable
class CumulativeAttack(Attack, Protocol):
    """An attack that only adds to the worst case: it runs on images that stand after the attacks before it.

    Its row counts what stands after all of them: an image that fell before keeps the version that broke it.
    """

    @property
    def asked(self) -> Backend | None:
        """The artefact on which images have to stand; None is the reference model."""
        ...

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        """Attack images that stand.

        Args:
            x: float32 (n, 3, H, W) in [0, 1], n >= 1.
            y: true labels, int64 (n,).
            start: of each image the version with the largest margin so far, float32 like ``x``, within ``eps``.
            eps: one of :attr:`eps`.
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
        gradients_sha256: hash of the file that they belong to.
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
    cumulative: bool = False

    @property
    def key(self) -> Key:
        """The key of its images in a :class:`CraftedBatch`."""
        return (self.name, self.eps.text)


@dataclass(frozen=True)
class Evidence:
    """What the reference model, whose gradients the attacks used, makes of a batch: what the verdict is read off.

    Attributes:
        answers: for the clean images and for each key that it was asked about, the label that it gives, int64 (n,).
            Attacks that were added to a pack's are not among the keys.
        unrounded: for each key of an attack on the reference model itself, in a run that rounds to 8 bits, the label
            that it gives to the images before they are rounded, int64 (n,).
        zero_gradient: for each key whose attack tells, bool (n,): images without a gradient to follow.
        probabilities: bool (n,): the answer to the clean image lies in [0, 1] and adds up to 1, so these are no logits.
        unstable: bool (n,): asked again about the clean or the attacked image, it gave other logits.
        progress: for each key of noise and of a query attack on it, float32 (n,): how far it raised the margin, over
            how far the best attack that follows gradients within the budget did.
        linearity: for each key of the control ``linearity``, float32 (n, k): how far the margin rose along the
            gradient, over what the gradient predicts, 1 for a network that is linear there; NaN where it was not
            measured.
    """

    answers: Mapping[Key, NDArray[np.int64]]
    unrounded: Mapping[Key, NDArray[np.int64]]
    zero_gradient: Mapping[Key, NDArray[np.bool_]]
    probabilities: NDArray[np.bool_]
    unstable: NDArray[np.bool_]
    progress: Mapping[Key, NDArray[np.float32]] = field(default_factory=dict)
    linearity: Mapping[Key, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def nothing(cls, infos: Iterable[AttackInfo]) -> Evidence:
        """That of no images."""
        labels, flags = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        return cls(dict.fromkeys([CLEAN_KEY, *(info.key for info in infos)], labels), {}, {}, flags, flags)

    @property
    def tables(self) -> dict[str, Mapping[Key, NDArray[Any]]]:
        """What it has by key, by name."""
        return {name: getattr(self, name) for name in EVIDENCE_TABLES}

    def select(self, chosen: NDArray[np.bool_]) -> Evidence:
        """That of the images whose flag in ``chosen``, bool (n,), is set."""
        tables: dict[str, Any] = {
            name: {key: values[chosen] for key, values in table.items()} for name, table in self.tables.items()
        }
        return Evidence(**tables, probabilities=self.probabilities[chosen], unstable=self.unstable[chosen])

    def fits(self, labels: NDArray[np.int64], n_classes: int) -> bool:
        """Whether it is of as many images as there are ``labels``, and these and its own are below ``n_classes``."""
        n = len(labels)
        given = [labels, *self.answers.values(), *self.unrounded.values()]
        rest = [self.probabilities, self.unstable, *self.zero_gradient.values(), *self.progress.values()]
        return (
            all(array.shape == (n,) for array in (*given, *rest))
            and all(ratios.ndim == 2 and len(ratios) == n for ratios in self.linearity.values())
            and all(array.min() >= 0 and array.max() < n_classes for array in given if n)
        )


EVIDENCE_TABLES = ("answers", "unrounded", "zero_gradient", "progress", "linearity")


class LazyImages(Mapping[Key, NDArray[np.float32]]):
    """Images of each key, float32 (n, 3, H, W), made when they are asked for: a device has not the memory for all.

    Args:
        stored: what they are made from, by key.
        make: of what is stored the images.
    """

    def __init__(self, stored: Mapping[Key, NDArray[Any]], make: Callable[[NDArray[Any]], NDArray[np.float32]]) -> None:
        self._stored, self._make = stored, make

    def __getitem__(self, key: Key) -> NDArray[np.float32]:
        return self._make(self._stored[key])

    def __iter__(self) -> Iterator[Key]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


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
        lazy = LazyImages(self.adversarial, lambda images: images[chosen])
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
            cumulative = isinstance(attack, CumulativeAttack)
            if cumulative and not attack.control:
                params = replace(params, cumulative=True)
            found.append(
                AttackInfo(
                    attack.name,
                    eps,
                    params,
                    attack.gradients,
                    attack.gradients_sha256,
                    attack.queried,
                    attack.control,
                    cumulative,
                )
            )
    check_infos(found)
    return found


def check_infos(listed: Iterable[AttackInfo]) -> None:
    """Hold attacks that are to run together to what a run can keep apart.

    Raises:
        InputError: two have the same name and budget, a norm is unknown, two norms are mixed, or 8-bit images cannot
            hold a budget.
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
        if info.params.uint8 and norm == NORMS[0]:
            info.eps.check_8_bits(instead="do not round to 8 bits")
        if not info.control:
            norms.setdefault(norm, info.name)
    if len(norms) > 1:
        both = " and ".join(f"{name} in {norm}" for norm, name in norms.items())
        raise InputError(f"eps means one norm in a run, and {both} is two: run them one after the other")
