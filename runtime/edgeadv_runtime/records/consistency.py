"""What a results file says twice must be the same: a figure that contradicts its own file is none that was measured.

Each check raises a ValueError that names both values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .about import ScoredData
from .evidence import ORDER, Masking, least_believable
from .rows import CLEAN, WORST_CASE, Comparison, Row
from .tracks import TrackRow

# shares that follow from counts are derived again, and files of other writers may round them
_ALIKE = 5e-4
_DERIVED = ("top1", "top1_ci95", "top5", "top5_ci95", "drop", "drop_ci95", "mcnemar_p", "share", "share_ci95")


def check_rows(rows: Sequence[Row], data: ScoredData) -> None:
    """Hold the rows of a file to each other and to the images.

    Raises:
        ValueError: a row is of other images, two rows are of the same, or a worst case has more right than what it is
            the worst of.
    """
    found: dict[Any, Row] = {}
    for row in rows:
        if row.n > data.n or (row.n < data.n and row.attack in (CLEAN, WORST_CASE)):
            raise ValueError(f"{_name(row)} is of {row.n} images, and the file of {data.n}")
        if row.training_images not in (None, data.trained_on):
            raise ValueError(
                f"{_name(row)} says that {row.training_images} images were trained on, and the file {data.trained_on}"
            )
        key = (row.artefact, row.attack, row.eps)
        if key in found:
            raise ValueError(
                f"{_name(row)} is there twice, with {found[key].correct_top1} and {row.correct_top1} right"
            )
        found[key] = row
    of_artefact: dict[Any, list[Row]] = {}
    for row in rows:
        of_artefact.setdefault(row.artefact, []).append(row)
    for group in of_artefact.values():
        _check_worst(sorted(group, key=lambda row: row.eps_value))


def _check_worst(rows: Sequence[Row]) -> None:
    """Hold the worst cases of one artefact to its rows, ascending by budget: each has no more right than any within its
    budget."""
    at = 0
    least: dict[str, tuple[int, Row]] = {}
    for worst in (row for row in rows if row.attack == WORST_CASE):
        while at < len(rows) and rows[at].eps_value <= worst.eps_value:
            for name in ("correct_top1", "correct_top5"):
                count = getattr(rows[at], name)
                if count is not None and (name not in least or count < least[name][0]):
                    least[name] = (count, rows[at])
            at += 1
        for name, (count, row) in least.items():
            if (getattr(worst, name) or 0) > count and worst.n == row.n:
                more, of = getattr(worst, name), f"{_name(row)}, of which it is the worst"
                raise ValueError(f"{name} of {_name(worst)} is {more}, and of {of}, {count}")


def check_verdicts(rows: Sequence[Row], masking: Masking) -> None:
    """Hold the verdicts of rows, the verdict of the file and the evidence to each other.

    Raises:
        ValueError: a verdict is more believable than what was found, or less than anything that was.
    """
    attacked = [row for row in rows if row.masking is not None]
    found = [(item.finding, item.artefact) for item in masking.evidence if item.finding is not None]
    on_weights = least_believable(finding for finding, artefact in found if artefact is None)
    if ORDER.index(masking.verdict) < ORDER.index(on_weights):
        raise ValueError(f"the file's verdict is {masking.verdict}, and a finding on the weights {on_weights}")
    for row in attacked:
        due = least_believable(finding for finding, artefact in found if artefact in (None, str(row.artefact)))
        if ORDER.index(row.verdict) < ORDER.index(due):
            raise ValueError(f"the verdict of {_name(row)} is {row.verdict}, and a finding on it {due}")
    worst = least_believable(row.verdict for row in attacked)
    # what was found on one artefact need not hold for another; but it holds for one
    if attacked and masking.verdict in ORDER[2:] and ORDER.index(worst) < ORDER.index(masking.verdict):
        raise ValueError(f"the file's verdict is {masking.verdict}, and that of its rows at worst {worst}")


def check_comparisons(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> None:
    """Hold comparisons to the rows of the two artefacts.

    Raises:
        ValueError: they count other images, or another difference.
    """
    counts = {(row.artefact, row.attack, row.eps): row for row in rows}
    for entry in comparisons:
        base, row = (counts.get((who, entry.attack, entry.eps)) for who in (entry.baseline, entry.artefact))
        if base is None or row is None:
            continue
        apart, said = base.correct_top1 - row.correct_top1, entry.lost - entry.gained
        if apart != said or entry.n != row.n:
            raise ValueError(
                f"the comparison of {_name(row)} with {entry.baseline} is {said} of {entry.n} images, and their rows "
                f"are {apart} of {row.n} apart"
            )


def check_derived(written: object, entries: Sequence[Row | Comparison | TrackRow]) -> None:
    """Hold shares as a file writes them to those that follow from its counts.

    Args:
        written: the JSON list that ``entries`` were read from.
        entries: in the same order.

    Raises:
        ValueError: one differs.
    """
    if not isinstance(written, list):
        return
    for value, entry in zip(written, entries, strict=True):
        derived = entry.to_json()
        for key in _DERIVED:
            if key in derived and key in value and not _alike(value[key], derived[key]):
                raise ValueError(
                    f"{key} of {entry.attack} at eps {entry.eps} is {value[key]!r}, and its counts give {derived[key]}"
                )


def _alike(one: object, other: object) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool):
        return abs(one - other) <= _ALIKE
    return one is None and other is None


def _name(row: Row) -> str:
    return f"{row.artefact} {row.attack}" + ("" if row.attack == CLEAN else f" at eps {row.eps}")
