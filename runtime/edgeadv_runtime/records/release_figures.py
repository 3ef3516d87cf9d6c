"""What the gate's lines say: artefacts, budgets, figures and paired drops, in words and as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..bundle.training_images import MOST_PERCENT, too_many
from ..errors import InputError
from .effort import effort_of
from .results import CLEAN, ORDER, Results, Row
from .statistics import mcnemar_p, paired_difference_interval

_KEY = ("backend", "variant", "artifact_sha256")


@dataclass(frozen=True)
class Drop:
    """What ``row`` loses against ``base``, image by image."""

    row: Row
    base: Row
    lost: int
    gained: int

    @classmethod
    def of(cls, results: Results, row: Row, base: Row) -> Drop:
        """Look the pair up; its counts are turned round if the file has it the other way."""
        for entry in results.comparisons:
            if (entry["attack"], entry["eps"]) != (row.attack, row.eps):
                continue
            ends = [tuple(entry[end][key] for key in _KEY) for end in ("baseline", "artefact")]
            if ends in ([key_of(base), key_of(row)], [key_of(row), key_of(base)]):
                lost, gained = entry["lost"], entry["gained"]
                if ends[0] == key_of(row):
                    lost, gained = gained, lost
                if entry["n"] != row.n or lost - gained != base.correct_top1 - row.correct_top1:
                    raise ValueError(
                        f"the comparison of {artefact_of(row)} with {artefact_of(base)} contradicts the rows"
                    )
                return cls(row, base, lost, gained)
        raise InputError(
            f"{name_of(results)} has no paired comparison of {artefact_of(row)} with {artefact_of(base)}, as files of an older "
            "edgeadv have none: evaluate both again in one run"
        )

    @property
    def share(self) -> Fraction:
        """Of the images, lost less gained."""
        return Fraction(self.lost - self.gained, self.row.n)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of :attr:`share`."""
        return paired_difference_interval(self.lost, self.gained, self.row.n)

    def to_json(self) -> dict[str, Any]:
        """The counts and what follows of them; shares, not points."""
        return {
            "baseline": artefact_json(self.base),
            "lost": self.lost,
            "gained": self.gained,
            "drop": float(self.share),
            "drop_ci95": list(self.interval),
            "mcnemar_p": mcnemar_p(self.lost, self.gained),
        }

    def __str__(self) -> str:
        low, high = self.interval
        figure = (
            f"{float(100 * self.share):.2f} points ({self.lost} lost, {self.gained} gained of {self.row.n}, 95% interval "
            f"{100 * low:.2f} to {100 * high:.2f}, McNemar p {mcnemar_p(self.lost, self.gained):.2g})"
        )
        if self.row.attack == CLEAN:
            return f"{artefact_of(self.row)} against {artefact_of(self.base)}: {figure}"
        # an artefact that only transferred attacks met looks better against one that met its own gradients than it is
        who = f"{artefact_of(self.row)} ({self.row.threat}) against {artefact_of(self.base)} ({self.base.threat})"
        return f"{who} {budget_of(self.row)}: {figure}, {standing_of(self.row)}"


def key_of(row: Row) -> tuple[str, ...]:
    """What tells its artefact from all others of the file."""
    return (row.backend, row.variant, row.artifact_sha256)


def share_of(row: Row) -> Fraction:
    """Its top-1 accuracy."""
    return Fraction(row.correct_top1, row.n)


def rank_of(row: Row) -> int:
    """Place of the row's verdict in :data:`ORDER`; the larger, the less believable."""
    return ORDER.index((row.masking or {})["verdict"])


def standing_of(row: Row) -> str:
    """The row's verdict, with its first reason unless it is ``PASS``."""
    masking = row.masking or {}
    if masking["verdict"] == ORDER[0]:
        return f"verdict {ORDER[0]}"
    reason = next(iter(masking.get("evidence") or ()), "the file does not say why")
    return f"verdict {masking['verdict']} ({reason})"


def figure_of(row: Row) -> str:
    """Artefact and accuracy, with its counts and interval; attacked, also budget, threat and verdict."""
    low, high = row.top1_ci95
    counted = f"({row.correct_top1} of {row.n}, 95% interval {low:.1%} to {high:.1%})"
    if row.attack == CLEAN:
        return f"{artefact_of(row)} with {row.top1:.1%} {counted}"
    # what was not attacked with its own gradients, or not believed, is a bound
    bound = "at most " if row.correct_top1 and (rank_of(row) or row.threat != "white-box") else ""
    return f"{artefact_of(row)} {budget_of(row)} with {bound}{row.top1:.1%} {counted}, {row.threat}, {standing_of(row)}"


def budget_of(row: Row) -> str:
    """The budget; in L2 the same number is a far smaller one, so that is said."""
    norm = row.params.norm or "linf"
    return f"at eps {row.eps}" if norm == "linf" else f"at eps {row.eps} in {norm}"


def artefact_of(row: Row) -> str:
    """Backend and variant."""
    return f"{row.backend} {row.variant}"


def name_of(results: Results) -> str:
    """How errors call the file."""
    return str(results.path or "the results")


def classes_of(results: Results) -> int | None:
    """Classes of the model, where the file says how many."""
    classes = results.data.get("classes")
    return None if classes is None else int(classes)


def scope_of(results: Results, row: Row) -> str:
    """Data set, split and number of images of ``row``, and what attacked it: a suite that was covered, or the attacks' names."""
    scope = f"{results.data['name']} {results.data['split']}, {row.n} images"
    if row.attack == CLEAN:
        return scope
    suite = effort_of(row, results.rows, classes=classes_of(results))
    attacks = ", ".join(row.params.attacks or ()) or "not named"
    return f"{scope}, " + (f"attacks {attacks}" if suite is None else f"suite {suite}")


def artefact_json(row: Row) -> dict[str, Any]:
    """Which artefact, and on what it ran."""
    return {
        "backend": row.backend,
        "variant": row.variant,
        "artifact_sha256": row.artifact_sha256,
        "provider": row.provider,
        "device": row.device,
    }


def row_json(results: Results, row: Row) -> dict[str, Any]:
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
        "norm": row.params.norm or "linf",
        "threat": row.threat,
        "verdict": (row.masking or {})["verdict"],
        "evidence": list((row.masking or {}).get("evidence") or ()),
        "attacks": list(row.params.attacks or ()),
        "suite": effort_of(row, results.rows, classes=classes_of(results)),
    }


def trained_on(results: Results) -> str | None:
    """Why no figure of the file is one of a test: more than 1% of its images were trained on. None where they were not.

    Files that do not say how many there were are not held to it.
    """
    trained = results.data.get("training_images")
    if not too_many(trained, results.data["n"]):
        return None
    return (
        f"{trained} of the {results.data['n']} images are training images, and at most "
        f"{MOST_PERCENT}% may be: evaluate on others"
    )
