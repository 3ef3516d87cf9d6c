"""How hard an artefact was attacked, read off the rows of a results file: which suite did they try at least as hard as?

A label that somebody typed says nothing here: the rows name each attack with its steps, restarts and queries.
"""

from __future__ import annotations

from collections.abc import Sequence

from .rows import WORST_CASE, Row
from .suites import CONTROLS, NOISE, QUERY_ATTACKS, SQUARE, SUITES, Effort, SuiteName


def lacking(worst: Row, rows: Sequence[Row], suite: SuiteName, *, classes: int | None = None) -> list[str]:
    """What of ``suite`` did not run on an artefact at a budget, or tried less hard.

    An attack counts where the worst case names it, and where it was untargeted and edgeadv's own. Square must have
    asked this very
    artefact: what it found on another one is transferred. An attack of another artefact's gradients counts under its
    plain name, as the reference's do, or where they are the artefact's own.

    Args:
        worst: the artefact's worst case at the budget.
        rows: those of the file, other artefacts' and budgets' included.
        suite: what is asked for.
        classes: of the model, where known: no attack moves towards more than all but one of them.

    Returns:
        A few words for each attack, in the suite's order; empty where the suite is covered. Controls have no rows.
    """
    found = []
    for name, effort in SUITES[suite].items():
        if name in CONTROLS:
            continue
        ran = [row for row in rows if _counts(row, name, worst)]
        if not ran:
            found.append(f"{name} did not ask it" if name == SQUARE else f"{name} did not run")
        elif not any(_tried(row, effort, classes) for row in ran):
            found.append(f"{name} ran with less than {_in_words(name, effort, classes)}")
    return found


def effort_of(worst: Row, rows: Sequence[Row], *, classes: int | None = None) -> SuiteName | None:
    """The hardest suite of which every attack ran on an artefact at a budget, at least as hard; None if not even the
    easiest.

    The arguments are those of :func:`lacking`.
    """
    return next((suite for suite in [*SUITES][::-1] if not lacking(worst, rows, suite, classes=classes)), None)


def only_transferred(worst: Row, rows: Sequence[Row]) -> bool:
    """Whether no attack at the budget was made for the artefact, so that its worst case is an upper bound and no more.

    Noise is made for nobody, whoever was asked which draw is the strongest. The arguments are those of :func:`lacking`.
    """
    own = (row for row in rows if _beside(row, worst) and row.threat in ("white-box", "query"))
    return all(row.attack.partition("@")[0] == NOISE for row in own)


def _beside(row: Row, worst: Row) -> bool:
    """Whether ``row`` is of an attack on the artefact, at the budget and on the images of ``worst``."""
    if (row.artefact, row.eps_value, row.n) != (worst.artefact, worst.eps_value, worst.n):
        return False
    return row.attack != WORST_CASE and row.attack in (worst.params.attacks or ())


def _counts(row: Row, name: str, worst: Row) -> bool:
    """Whether ``row`` is attack ``name``, beside ``worst``."""
    plain, _, made_for = row.attack.partition("@")
    if plain != name or not _beside(row, worst) or row.params.target is not None or row.params.library is not None:
        return False
    if name == SQUARE:
        return row.threat == "query"
    # several draws of noise carry the name of whom they asked
    return name == NOISE or not made_for or row.threat == "white-box"


def _tried(row: Row, effort: Effort, classes: int | None) -> bool:
    """Whether ``row`` tried as hard as ``effort``; a row that does not say how often did it once."""
    params, wanted = row.params, _restarts(effort, classes)
    said = (params.steps or 1, params.restarts or 1, params.queries or 1)
    return all(did >= asked for did, asked in zip(said, (effort.steps, wanted, effort.queries), strict=True))


def _restarts(effort: Effort, classes: int | None) -> int:
    """What a row counts as restarts: a targeted attack's are the classes that it moves towards."""
    if effort.targets == 1:
        return effort.restarts
    return effort.targets if classes is None else min(effort.targets, max(classes - 1, 1))


def _in_words(name: str, effort: Effort, classes: int | None) -> str:
    if name in QUERY_ATTACKS:
        return f"{effort.queries} queries"
    what = "classes" if effort.targets > 1 else "restarts"
    times = _restarts(effort, classes)
    return f"{times} {what} of {effort.steps} steps" if times > 1 else f"{effort.steps} steps"
