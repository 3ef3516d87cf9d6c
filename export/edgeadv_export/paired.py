"""What int8 loses against fp32, image by image, and by which interval it is judged.

A drop is judged at the upper end of an interval, so the images must be enough to show it. Every graph that is measured
on the same images is one more chance to pass by luck: the later ones are judged at the end of a wider interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.records.statistics import paired_difference_interval, pairs_needed

ERROR = 0.025
"""Nominal one-sided error of the first look: the upper end of a two-sided 95% interval. ``docs/explanation/int8.md``
says what it was measured to be."""


def error_of(look: int) -> float:
    """One-sided error of the interval that the ``look``-th graph measured on the same images is judged by, the first
    being 1.

    The first has :data:`ERROR`. All later ones together have as much again, however many there are: the ``k``-th spends
    ``1 / (k * (k - 1))`` of it, which adds up to less than 1.
    """
    return ERROR if look == 1 else ERROR / (look * (look - 1))


def quantile_of(look: int) -> float:
    """The normal distribution's quantile that goes with :func:`error_of`."""
    return NormalDist().inv_cdf(1 - error_of(look))


def images_needed(max_drop: float, look: int = 1, *, like: Paired | None = None) -> int | None:
    """Fewest images that can show a drop of at most ``max_drop`` points; None where no number can.

    Args:
        max_drop: in points.
        look: which graph it is that is measured on them.
        like: where given, how many are lost and gained for each image; else none is, which is the best that can be.
    """
    lost, gained = (0.0, 0.0) if like is None else (like.lost / like.n, like.gained / like.n)
    return pairs_needed(max_drop / 100, gained=lost, lost=gained, z=quantile_of(look))


@dataclass(frozen=True)
class Paired:
    """Right answers of fp32 and of int8 on the same images.

    Attributes:
        n: images.
        fp32_correct: fp32 is right.
        lost: fp32 is right and int8 is wrong.
        gained: int8 is right and fp32 is wrong.
    """

    n: int
    fp32_correct: int
    lost: int
    gained: int

    @classmethod
    def of(cls, fp32: NDArray[np.bool_], int8: NDArray[np.bool_]) -> Paired:
        """Count; both bool of shape (n,)."""
        return cls(len(fp32), int(fp32.sum()), int((fp32 & ~int8).sum()), int((~fp32 & int8).sum()))

    @property
    def drop(self) -> float:
        """Points of top-1 that int8 loses."""
        return 100 * (self.lost - self.gained) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of :attr:`drop`."""
        low, high = paired_difference_interval(self.lost, self.gained, self.n)
        return 100 * low, 100 * high

    def upper(self, look: int) -> float:
        """Upper end of the interval that the ``look``-th graph is judged by, in points."""
        return 100 * paired_difference_interval(self.lost, self.gained, self.n, z=quantile_of(look))[1]

    def to_json(self, look: int) -> dict[str, Any]:
        """A JSON object."""
        return {
            "n": self.n,
            "fp32_correct": self.fp32_correct,
            "int8_correct": self.fp32_correct - self.lost + self.gained,
            "lost": self.lost,
            "gained": self.gained,
            "drop": self.drop,
            "drop_ci95": list(self.interval),
            "drop_upper": self.upper(look),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.drop:.2f} points [{low:.2f}, {high:.2f}] of {self.n} images"


@dataclass(frozen=True)
class Measured:
    """What one graph lost.

    Attributes:
        clean: without an attack.
        worst: under the worst of the attacks and none; None where that was not measured.
        max_drop: what may be lost, in points.
        look: which graph it is that was measured on these images, the first being 1.
        attacks: what the manifest says of these, beside what was lost.
    """

    clean: Paired
    worst: Paired | None
    max_drop: float
    look: int = 1
    attacks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> list[Paired]:
        """What is held to the limit."""
        return [self.clean] if self.worst is None else [self.clean, self.worst]

    @property
    def holds(self) -> bool:
        """Whether it is shown that no more is lost than may be."""
        return all(paired.upper(self.look) <= self.max_drop for paired in self.judged)

    def __str__(self) -> str:
        clean = f"{self.clean}, judged at {self.clean.upper(self.look):.2f}"
        if self.worst is None:
            return clean
        return f"{clean}, and in the worst case {self.worst}, judged at {self.worst.upper(self.look):.2f}"
