"""The rows of a results file, and the rules that hang on them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..bundle.variants import expanded
from ..errors import InputError
from .about import ScoredData
from .eps import SEVERITY, Eps
from .evidence import Verdict
from .measurement import Measurement
from .rows import BASELINE, CLEAN, NORMS, WORST_CASE, ArtefactId, Comparison, Row


def named(variant: str, names: Sequence[str]) -> bool:
    """Whether ``names`` choose ``variant``: ``"int8"`` chooses either int8 variant, and no names choose all."""
    return not names or variant in expanded(list(names), (variant,))


def accuracy_over(rows: Sequence[Row]) -> Fraction:
    """Top-1 accuracy over all images of ``rows``, at least one, exactly."""
    return Fraction(sum(row.correct_top1 for row in rows), sum(row.n for row in rows))


@dataclass(frozen=True, kw_only=True)
class MeasuredRows(Measurement):
    """What was measured on some images.

    Attributes:
        data: the images.
        rows: one for each artefact, attack and budget.
        comparisons: each pair of artefacts, image by image, on the clean images and in the worst case at each budget.

    Raises:
        ValueError: budgets are measured in several norms.
    """

    data: ScoredData
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        if len(norms := {row.norm for row in self.rows if row.attack != CLEAN}) > 1:
            raise ValueError(f"budgets are measured in {' and in '.join(sorted(norms))}: a run has one norm")

    @property
    def artefacts(self) -> tuple[ArtefactId, ...]:
        """What was scored, in the order of the file."""
        return tuple(dict.fromkeys(row.artefact for row in self.rows))

    @property
    def norm(self) -> str:
        """In which all budgets are measured, of :data:`~edgeadv_runtime.records.rows.NORMS`."""
        return next((row.norm for row in self.rows if row.attack != CLEAN), NORMS[0])

    @property
    def budgets(self) -> tuple[Eps, ...]:
        """The budgets with a worst case, ascending."""
        found = {row.eps_value: Eps(row.eps, row.eps_value) for row in self.rows if row.attack == WORST_CASE}
        return tuple(found[value] for value in sorted(found))

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.path or "the results")

    def select(self, **conditions: Any) -> list[Row]:
        """Rows whose attributes equal ``conditions``, e.g. ``select(backend="torch", attack="clean")``."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in conditions.items())]

    def clean(self, *, variant: str | None = None, backend: str | None = None) -> Row:
        """The row of one artefact without an attack.

        Args:
            variant: its name in the bundle, ``"int8"`` for either int8 variant; None where there is one only.
            backend: what scored it; None where there is one only.

        Raises:
            InputError: there is no such row, or more than one.
        """
        return self._one(self.select(attack=CLEAN), CLEAN, variant, backend)

    def worst_case(self, eps: Eps | str, *, variant: str | None = None, backend: str | None = None) -> Row:
        """The row of one artefact in the worst case: per image, over all attacks at ``eps`` or less.

        Args:
            eps: the budget, ``"8/255"`` or ``"0.03"``.
            variant: as for :meth:`clean`.
            backend: likewise.

        Raises:
            InputError: there is no such row, or more than one.
        """
        budget = self.budget(eps)
        rows = self.select(attack=WORST_CASE, eps_value=budget.value)
        return self._one(rows, f"{WORST_CASE} at eps {budget.text}", variant, backend)

    def corrupted(self, *, variant: str | None = None, backend: str | None = None, kind: str | None = None) -> float:
        """Mean accuracy of one artefact over all corruptions and severities of the file, from 0 to 1.

        Args:
            variant: as for :meth:`clean`.
            backend: likewise.
            kind: of one corruption only.

        Raises:
            InputError: there is no such artefact, or more than one, or the file has no such corruption.
        """
        by_kind = self.corruptions(self.clean(variant=variant, backend=backend).artefact)
        rows = [row for name, rows in by_kind.items() for row in rows if kind in (None, name)]
        if not rows:
            what = "corruptions" if kind is None else f"corruption {kind}"
            raise InputError(f"{self.name} has no {what}: evaluate with `corruptions`")
        return float(accuracy_over(rows))

    def corruptions(self, artefact: ArtefactId) -> dict[str, list[Row]]:
        """The rows of one artefact by corruption, each ascending in severity; the worst of them is none."""
        found: dict[str, list[Row]] = {}
        for row in self.select(artefact=artefact, norm=SEVERITY):
            if row.attack != WORST_CASE:
                found.setdefault(row.attack, []).append(row)
        return found

    def verdict(self, eps: Eps | str, *, variant: str | None = None, backend: str | None = None) -> Verdict:
        """The masking verdict on one artefact at a budget; the arguments and errors are those of :meth:`worst_case`."""
        return self.worst_case(eps, variant=variant, backend=backend).verdict

    def budget(self, eps: Eps | str | None = None) -> Eps:
        """A budget of the file, as the file writes it.

        Args:
            eps: the budget; None is the only one there is.

        Raises:
            InputError: it is not in the file, or several are and none was named.
        """
        have = ", ".join(budget.text for budget in self.budgets)
        if not have:
            raise InputError(f"{self.name} has no attacked images: evaluate with `eps`, or gate clean accuracy only")
        if eps is None:
            if len(self.budgets) > 1:
                raise InputError(f"{self.name} was attacked at {have}: say with `eps` which of them is judged")
            return self.budgets[0]
        wanted = eps if isinstance(eps, Eps) else Eps.parse(eps, norm=self.norm)
        for budget in self.budgets:
            if budget.value == wanted.value:
                return budget
        raise InputError(f"there is no attack at eps {wanted.text} in {self.name}; there are some at {have}")

    def baseline_of(self, artefact: ArtefactId, *, variant: str = BASELINE) -> ArtefactId | None:
        """What an artefact is compared with: ``variant`` on its own backend, or else the first one in the file.

        Returns:
            None for the first ``variant`` itself, which others of that name are compared with, and where there is none.
        """
        found = [other for other in self.artefacts if other.variant == variant]
        if artefact.variant != variant:
            found.sort(key=lambda other: other.backend != artefact.backend)
        return found[0] if found and found[0] != artefact else None

    def comparison(self, artefact: ArtefactId, baseline: ArtefactId, *, attack: str, eps: str) -> Comparison | None:
        """One artefact against another, whichever way round the file has it; None where it does not compare them."""
        for entry in self.comparisons:
            for turned in (entry, entry.reversed):
                if (turned.attack, turned.eps, turned.artefact, turned.baseline) == (attack, eps, artefact, baseline):
                    return turned
        return None

    def _one(self, rows: Sequence[Row], what: str, variant: str | None, backend: str | None) -> Row:
        names = () if variant is None else (variant,)
        found = [row for row in rows if named(row.variant, names) and backend in (None, row.backend)]
        if len(found) == 1:
            return found[0]
        have = ", ".join(str(row.artefact) for row in found or rows) or "no artefact"
        if found:
            raise InputError(f"{self.name} has {what} of {have}: say which with `variant` and `backend`")
        wanted = " ".join(filter(None, (backend, variant))) or "any artefact"
        raise InputError(f"{self.name} has {what} of {have}, and not of {wanted}: name one of these")
