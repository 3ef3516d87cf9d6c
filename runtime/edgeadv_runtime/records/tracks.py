"""What an application decides on a track: several frames of one thing that passes by."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..decoding import Count
from .rows import ArtefactId, Size
from .statistics import wilson_interval

Rule = Literal["majority", "smoother", "last-confident", "worst-frame"]
RULES: tuple[Rule, ...] = ("majority", "smoother", "last-confident", "worst-frame")
PGD_TRACK, PATCH_TRACK = SHARED = ("pgd-track", "patch-track")
"""Attacks by what all frames of a track share: a perturbation, or a patch."""


class TrackRow(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact on tracks, under one attack at one budget, decided by one rule.

    Attributes:
        artefact: what answered.
        attack: ``"clean"``, an attack, or ``"worst-case"``, which is known for the rule ``worst-frame`` only.
        eps: the budget as written; ``"0"`` for clean.
        rule: ``majority`` is the label of most frames; ``smoother`` what :class:`~edgeadv_runtime.Smoother` shows after
            the last one; ``last-confident`` the label of the last frame above the threshold; ``worst-frame`` is right
            where every frame is.
        n: tracks, at least 1.
        correct: tracks that are decided right.
        undecided: tracks without a decision: a tie, or no frame above the threshold. They are not right.
        left_out: tracks of which a frame was not scored; they are not among ``n``.

    Raises:
        ValueError: the counts do not fit together.
    """

    artefact: ArtefactId
    attack: str
    eps: str
    rule: Rule
    n: Size
    correct: Count
    undecided: Count = 0
    left_out: Count = 0

    def __post_init__(self) -> None:
        if self.correct + self.undecided > self.n:
            raise ValueError(f"{self.rule} of {self.attack} has more decisions than its {self.n} tracks")

    @property
    def tracks(self) -> str:
        """How many tracks there are, in words."""
        torn = f", {self.left_out} of which a frame was not scored left out" if self.left_out else ""
        return f"{self.n} tracks{torn}"

    @property
    def share(self) -> float:
        """Of the tracks, those that are decided right."""
        return self.correct / self.n

    def to_json(self) -> dict[str, Any]:
        """The counts, and what follows from them."""
        interval = list(wilson_interval(self.correct, self.n))
        return {**msgspec.to_builtins(self), "share": self.share, "share_ci95": interval}
