"""What the gate's lines say: artefacts, budgets, figures and paired drops, in words and as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec

from ..bundle.training_images import MOST_PERCENT
from ..errors import InputError, SchemaError
from .effort import effort_of
from .eps import AREA, SEVERITY
from .evidence import ORDER
from .measured_rows import MeasuredRows
from .rows import CLEAN, Comparison, Row


@dataclass(frozen=True)
class Drop:
    """What ``row`` loses against ``base``, image by image."""

    row: Row
    base: Row
    counts: Comparison

    @classmethod
    def of(cls, results: MeasuredRows, row: Row, base: Row) -> Drop:
        """Look the pair up.

        Raises:
            InputError: the file does not compare the two.
            SchemaError: the comparison contradicts the rows.
        """
        counts = results.comparison(row.artefact, base.artefact, attack=row.attack, eps=row.eps)
        if counts is None:
            raise InputError(
                f"{results.name} has no paired comparison of {row.artefact} with {base.artefact}, as files of an older "
                "edgeadv have none: evaluate both again in one run"
            )
        if counts.n != row.n or counts.lost - counts.gained != base.correct_top1 - row.correct_top1:
            raise SchemaError(
                f"{results.name} is not a complete results file (the comparison of {row.artefact} with {base.artefact} "
                "contradicts the rows); measure again"
            )
        return cls(row, base, counts)

    @property
    def share(self) -> Fraction:
        """Of the images, lost less gained."""
        return Fraction(self.counts.lost - self.counts.gained, self.counts.n)

    def to_json(self) -> dict[str, Any]:
        """The counts and what follows of them; shares, not points."""
        counts = self.counts.to_json()
        kept = ("lost", "gained", "drop", "drop_ci95", "mcnemar_p")
        return {"baseline": artefact_json(self.base), **{key: counts[key] for key in kept}}

    def __str__(self) -> str:
        counts, (low, high) = self.counts, self.counts.interval
        figure = (
            f"{float(100 * self.share):.2f} points ({counts.lost} lost, {counts.gained} gained of {counts.n}, 95% "
            f"interval {100 * low:.2f} to {100 * high:.2f}, McNemar p {counts.p:.2g})"
        )
        if self.row.attack == CLEAN:
            return f"{self.row.artefact} against {self.base.artefact}: {figure}"
        # an artefact that only transferred attacks met looks better against one that met its own gradients than it is
        who = f"{self.row.artefact} ({self.row.threat}) against {self.base.artefact} ({self.base.threat})"
        return f"{who} {budget_of(self.row)}: {figure}, {standing_of(self.row)}"


def share_of(row: Row) -> Fraction:
    """Its top-1 accuracy."""
    return Fraction(row.correct_top1, row.n)


def rank_of(row: Row) -> int:
    """Place of the row's verdict in :data:`ORDER`; the larger, the less believable."""
    return ORDER.index(row.verdict)


def standing_of(row: Row) -> str:
    """The row's verdict, with its first reason unless it is ``PASS``."""
    if row.verdict == ORDER[0]:
        return f"verdict {ORDER[0]}"
    return f"verdict {row.verdict} ({next(iter(row.reasons), 'the file does not say why')})"


def figure_of(row: Row) -> str:
    """Artefact and accuracy, with its counts and interval; attacked, also budget, threat and verdict."""
    low, high = row.top1_ci95
    counted = f"({row.correct_top1} of {row.n}, 95% interval {low:.1%} to {high:.1%})"
    if row.attack == CLEAN:
        return f"{row.artefact} with {row.top1:.1%} {counted}"
    # what was not attacked with its own gradients, or not believed, is a bound
    bound = "at most " if row.correct_top1 and (rank_of(row) or row.threat != "white-box") else ""
    return f"{row.artefact} {budget_of(row)} with {bound}{row.top1:.1%} {counted}, {row.threat}, {standing_of(row)}"


def budget_of(row: Row) -> str:
    """The budget; in L2 the same number is a far smaller one, so that is said."""
    words = {"linf": "at eps {}", "l2": "at eps {} in l2", AREA: "under a patch of {}", SEVERITY: "at severity {}"}
    return words[row.norm].format(row.eps)


def scope_of(results: MeasuredRows, row: Row) -> str:
    """Data set, split and number of images of ``row``, and what attacked it: a suite that was covered, or the attacks'
    names."""
    scope = f"{results.data.name} {results.data.split}, {row.n} images"
    if row.attack == CLEAN:
        return scope
    suite = effort_of(row, results.rows, classes=results.data.classes)
    attacks = ", ".join(row.params.attacks or ()) or "not named"
    return f"{scope}, " + (f"attacks {attacks}" if suite is None else f"suite {suite}")


def artefact_json(row: Row) -> dict[str, Any]:
    """Which artefact, and on what it ran."""
    return {**msgspec.to_builtins(row.artefact), "provider": row.provider, "device": row.device}


def row_json(results: MeasuredRows, row: Row) -> dict[str, Any]:
    """The figures of ``row``; those of an attacked one with budget, threat, verdict, attacks and suite."""
    found = {
        "artefact": artefact_json(row),
        "attack": row.attack,
        "n": row.n,
        "correct": row.correct_top1,
        "share": row.top1,
        "share_ci95": list(row.top1_ci95),
    }
    if row.attack == CLEAN:
        return found
    return {
        **found,
        "eps": row.eps,
        "eps_value": row.eps_value,
        "norm": row.norm,
        "threat": row.threat,
        "verdict": row.verdict,
        "evidence": list(row.reasons),
        "attacks": list(row.params.attacks or ()),
        "suite": effort_of(row, results.rows, classes=results.data.classes),
    }


def trained_on(results: MeasuredRows) -> str | None:
    """Why no figure of the file is one of a test: more than 1% of its images were trained on. None where they were not.

    Files that do not say how many there were are not held to it.
    """
    data = results.data
    if not data.flatters:
        return None
    return (
        f"{data.trained_on} of the {data.n} images are training images, and at most {MOST_PERCENT}% may be: "
        "evaluate on others"
    )


def check_share(option: str, value: float, *, whole: bool) -> None:
    """Make sure that a limit is a share in [0, 1), or with ``whole`` in [0, 1].

    Raises:
        InputError: it is none; ``option`` is its name.
    """
    # a drop of 1 limits nothing; who writes it means one point
    if not (0 <= value < 1 or (whole and value == 1)):
        hint = f": did you mean {_hundredth(value)}?" if 1 <= value <= 100 else ""
        raise InputError(f"{option} {value:g} is not a share in [0, 1{']' if whole else ')'}{hint}")


def _hundredth(value: float) -> str:
    return f"{value / 100:.2f}" if value == int(value) else f"{value / 100:g}"
