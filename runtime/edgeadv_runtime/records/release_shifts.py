"""What the gate judges of corruptions and patches, and what it refuses to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..corruptions.kinds import SETS, SEVERITIES, kinds_of
from ..errors import InputError
from .measured_rows import MeasuredRows
from .release_figures import budget_of
from .rows import ArtefactId, Row
from .suites import base_name

_PATCH = "patch"


def judged(results: MeasuredRows, artefact: ArtefactId, named: str | None) -> dict[str, list[Row]]:
    """The rows that a rule on corruptions is about, by kind, each ascending in severity.

    Args:
        results: the file.
        artefact: whose rows.
        named: kinds and sets, comma-separated; None for all in the file.

    Raises:
        InputError: none is named and the file has no whole set at every severity, whose mean says little; or the file
            lacks one that is named.
    """
    found = results.corruptions(artefact)
    if named is None:
        whole = {kind for kind, rows in found.items() if len(rows) == SEVERITIES}
        if not any(whole >= set(kinds) for kinds in SETS.values()):
            raise InputError(
                f"{results.name} has {in_words(found)}, and no whole set at each severity: evaluate with `corruptions` "
                f"{next(iter(SETS))}, or name with `corruptions` what is judged"
            )
        return found
    wanted = kinds_of(named)
    if missing := [kind for kind in wanted if kind not in found]:
        raise InputError(f"{results.name} has no {', '.join(missing)}; it has {in_words(found)}")
    return {kind: found[kind] for kind in wanted}


def in_words(found: Mapping[str, Sequence[Row]]) -> str:
    """Kinds and severities, sets by their names."""
    kinds = list(found)
    name = next((name for name, each in SETS.items() if set(each) == set(kinds)), None)
    severities = sorted({row.eps for rows in found.values() for row in rows}, key=float)
    several = "severities" if len(severities) > 1 else "severity"
    return f"{name or ', '.join(kinds) or 'no corruptions'} at {several} {', '.join(severities)}"


def patch_of(results: MeasuredRows, worst: Row) -> Row:
    """The row of the patch that was made by the gradients of the very artefact of ``worst``, at its area.

    Raises:
        InputError: there is none, so that the worst case is an upper bound.
    """
    for row in results.select(artefact=worst.artefact, eps_value=worst.eps_value, threat="white-box"):
        if base_name(row.attack) == _PATCH:
            return row
    raise InputError(
        f"{results.name}: {worst.artefact} {budget_of(worst)} met no patch of its own gradients: an upper bound; "
        "evaluate it with `patch` where its graph has gradients"
    )
