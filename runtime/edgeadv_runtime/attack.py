"""Attacks as the evaluation sees them: pixels and labels in, adversarial pixels out, on NumPy arrays.

Whoever makes the gradients fits in here: ``edgeadv.attacks`` with PyTorch, or any function ``(x, y) -> x_adv`` of another
library through :class:`CallableAttack`. What comes back is checked before it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .backends.base import Backend
from .eps import Eps
from .errors import InputError
from .preprocess import to_tensor
from .results import CLEAN, AttackParams

# rounding of float32 sums near 1, far below one grey level
_EPS_SLACK = 1e-6
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
        budget: the L-infinity budget it keeps to; this is checked.
        gradients: where its gradients come from, in words.
        gradients_sha256: hash of the weights that they belong to.
        described: how it is run, for the result row.
    """

    function: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
    name: str
    budget: Eps
    gradients: str | None = None
    gradients_sha256: str | None = None
    described: AttackParams = field(default_factory=lambda: AttackParams(norm="linf"))

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
    """What a result row says of an attack at one budget, whether it was run here or comes from a pack."""

    name: str
    eps: Eps
    params: AttackParams
    gradients: str | None
    gradients_sha256: str | None

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


@dataclass(frozen=True)
class CraftedBatch:
    """Images, their adversarial versions, and what the model whose gradients were used makes of them.

    This is what evaluation scores and what an attack pack holds.

    Attributes:
        clean: the images.
        adversarial: for each key, float32 (n, 3, H, W) in [0, 1].
        reference: for each key and the clean images, the label that the reference model gives, int64 (n,).
        zero_gradient: for each key whose attack tells, bool (n,).
    """

    clean: CleanBatch
    adversarial: Mapping[Key, NDArray[np.float32]]
    reference: Mapping[Key, NDArray[np.int64]]
    zero_gradient: Mapping[Key, NDArray[np.bool_]]

    def select(self, chosen: NDArray[np.bool_]) -> CraftedBatch:
        """The images whose flag in ``chosen``, bool (n,), is set."""
        clean = self.clean
        return CraftedBatch(
            CleanBatch(clean.index[chosen], clean.pixels[chosen], clean.labels[chosen]),
            _Selected(self.adversarial, chosen),
            {key: labels[chosen] for key, labels in self.reference.items()},
            {key: flags[chosen] for key, flags in self.zero_gradient.items()},
        )


class _Selected(Mapping[Key, NDArray[np.float32]]):
    """Some images of each key, taken one key at a time: those of a pack become float32 only then."""

    def __init__(self, images: Mapping[Key, NDArray[np.float32]], chosen: NDArray[np.bool_]) -> None:
        self._images = images
        self._chosen = chosen

    def __getitem__(self, key: Key) -> NDArray[np.float32]:
        return self._images[key][self._chosen]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


def infos(attacks: Iterable[Attack], *, uint8: bool) -> list[AttackInfo]:
    """One :class:`AttackInfo` per attack and budget.

    Raises:
        InputError: two attacks have the same name and budget, or a budget is too small for 8 bits.
    """
    found: dict[Key, AttackInfo] = {}
    for attack in attacks:
        for eps in attack.eps:
            if uint8 and eps.grey_levels < 1:
                raise InputError(
                    f"eps {eps.text} is less than one grey level: 8-bit images cannot hold it; use float32 or a larger eps"
                )
            params = AttackParams.from_json({**attack.params(eps).to_json(), "uint8": uint8})
            info = AttackInfo(attack.name, eps, params, attack.gradients, attack.gradients_sha256)
            if info.key in found:
                raise InputError(f"two attacks are called {attack.name} at eps {eps.text}: give one another name")
            found[info.key] = info
    return list(found.values())


def craft(
    batches: Iterable[CleanBatch], attacks: Sequence[Attack], reference: Backend, *, uint8: bool
) -> Iterator[CraftedBatch]:
    """Attack each batch once, for every artefact that will be scored on it.

    Args:
        batches: images; one batch at a time is held.
        attacks: what to run.
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
        zero: dict[Key, NDArray[np.bool_]] = {}
        reference_labels = {CLEAN_KEY: _label(reference, x)}
        for attack in attacks:
            for eps, crafted in zip(attack.eps, attack.craft(x, batch.labels), strict=True):
                key = (attack.name, eps.text)
                check_crafted(crafted.x, x, attack.name, eps)
                adversarial[key] = to_tensor(round_to_uint8(crafted.x, batch.pixels, eps)) if uint8 else crafted.x
                reference_labels[key] = _label(reference, adversarial[key])
                if crafted.zero_gradient is not None:
                    zero[key] = crafted.zero_gradient
        yield CraftedBatch(batch, adversarial, reference_labels, zero)


def round_to_uint8(x_adv: NDArray[np.float32], pixels: NDArray[np.uint8], eps: Eps) -> NDArray[np.uint8]:
    """Adversarial images as 8-bit pixels: the nearest grey level that is still within eps of the original.

    Args:
        x_adv: float32 (n, 3, H, W) in [0, 1].
        pixels: the originals, uint8 (n, H, W, 3).
        eps: the budget.

    Returns:
        uint8 (n, H, W, 3).
    """
    levels = eps.grey_levels
    nearest = np.rint(x_adv.transpose(0, 2, 3, 1) * np.float32(255)).astype(np.int16)
    original = pixels.astype(np.int16)
    within = np.clip(nearest, np.maximum(original - levels, 0), np.minimum(original + levels, 255))
    rounded: NDArray[np.uint8] = within.astype(np.uint8)
    return rounded


def _nothing(batch: CleanBatch, x: NDArray[np.float32], attacks: Sequence[Attack]) -> CraftedBatch:
    """A batch none of whose images could be decoded."""
    keys = [(attack.name, eps.text) for attack in attacks for eps in attack.eps]
    none = np.empty(0, dtype=np.int64)
    return CraftedBatch(batch, dict.fromkeys(keys, x), dict.fromkeys([CLEAN_KEY, *keys], none), {})


def _label(backend: Backend, x: NDArray[np.float32]) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = backend.infer(x).argmax(axis=1)
    return labels


def check_crafted(x_adv: NDArray[np.float32], x: NDArray[np.float32], name: str, eps: Eps) -> None:
    """Hold an attack to its contract: shape, dtype, range, and no pixel moved by more than eps.

    Raises:
        InputError: it is broken.
    """
    if x_adv.shape != x.shape or x_adv.dtype != np.float32:
        raise InputError(f"attack {name} returned {x_adv.dtype} {x_adv.shape} for float32 {x.shape}")
    if not len(x):
        return
    if not np.isfinite(x_adv).all():
        raise InputError(f"attack {name} returned values that are not finite")
    if x_adv.min() < 0 or x_adv.max() > 1:
        raise InputError(f"attack {name} left the range [0, 1]: it must work on pixels, not on normalised tensors")
    largest = float(np.abs(x_adv - x).max())
    if largest > eps.value + _EPS_SLACK:
        raise InputError(f"attack {name} moved a pixel by {largest:.6f}, more than eps {eps.text} = {eps.value:.6f}")
