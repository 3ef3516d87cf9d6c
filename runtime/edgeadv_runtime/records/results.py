"""The results file: one schema for what was measured, read by the report, tables and CI gates.

``docs/results.md`` describes every key. Readers ignore keys that they do not know; keys that came later have a default, so
older files of this version load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ..decoding import convert
from ..errors import InputError
from ..files import write_json
from .about import Example, ScoredData, Skipped, Subject
from .eps import Eps
from .evidence import Masking, Verdict, least_believable
from .machine import Environment
from .measurement import SCHEMA_VERSION, read_measurement
from .release_gate import Gate, GateOutcome, named
from .rows import BASELINE, CLEAN, NORMS, WORST_CASE, ArtefactId, Comparison, Row
from .suites import SuiteName


@dataclass(frozen=True, kw_only=True)
class Results:
    """A results file.

    Attributes:
        bundle: what was scored.
        data: the images.
        environment: device facts and versions.
        masking: the verdict on the weights' gradients.
        rows: what was measured.
        skipped: pairs of backend and variant that were asked for as ``all`` and cannot be, with the reason.
        examples: a few images with their predictions.
        comparisons: each pair of artefacts, image by image, on the clean images and in the worst case at each budget.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
        path: the file that it was read from; None for what was just measured.

    Raises:
        ValueError: budgets are measured in several norms.
    """

    bundle: Subject
    data: ScoredData
    environment: Environment
    masking: Masking
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = ()
    examples: tuple[Example, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    created: str = ""
    edgeadv_version: str = ""
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(norms := {row.norm for row in self.rows if row.attack != CLEAN}) > 1:
            raise ValueError(f"budgets are measured in {' and in '.join(sorted(norms))}: a run has one norm")

    @property
    def artefacts(self) -> tuple[ArtefactId, ...]:
        """What was scored, in the order of the file."""
        return tuple(dict.fromkeys(row.artefact for row in self.rows))

    @property
    def norm(self) -> str:
        """In which all budgets are measured, ``"linf"`` or ``"l2"``."""
        return next((row.norm for row in self.rows if row.attack != CLEAN), NORMS[0])

    @property
    def budgets(self) -> tuple[Eps, ...]:
        """The budgets with a worst case, ascending."""
        found = {row.eps_value: Eps(row.eps, row.eps_value) for row in self.rows if row.attack == WORST_CASE}
        return tuple(found[value] for value in sorted(found))

    @property
    def overall_verdict(self) -> Verdict:
        """The least believable verdict of the file: on the weights, or on any artefact that was attacked."""
        return least_believable([self.masking.verdict, *(row.verdict for row in self.rows if row.masking)])

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
        wanted = Eps.parse(eps, norm=self.norm) if isinstance(eps, str) else eps
        for budget in self.budgets:
            if budget.value == wanted.value:
                return budget
        raise InputError(f"{self.name} was not attacked at eps {wanted.text}; it was at {have}")

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

    def gate(
        self,
        *,
        eps: Eps | str | None = None,
        min_clean: float | None = None,
        min_robust: float | None = None,
        max_drop_clean: float | None = None,
        max_drop_robust: float | None = None,
        verdict: str | None = None,
        variants: Sequence[str] | None = None,
        backends: Sequence[str] | None = None,
        baseline: str | None = None,
        suite: SuiteName | None = None,
    ) -> GateOutcome:
        """Judge the file by the rules of a release; at least one must be given. ``docs/gate.md`` explains them.

        Args:
            eps: budget of the rules on attacked images; None is the only one in the file.
            min_clean: least clean accuracy of every artefact, a share in [0, 1].
            min_robust: least accuracy of every artefact in the worst case, a share in [0, 1].
            max_drop_clean: largest drop of clean accuracy against ``baseline``, a share in [0, 1).
            max_drop_robust: largest such drop in the worst case.
            verdict: least believable masking verdict that is accepted; None accepts only ``"PASS"`` for robust accuracy.
            variants: those to judge; None is all in the file.
            backends: likewise.
            baseline: variant that drops are counted from; None is ``"fp32"``.
            suite: the least that must have attacked an artefact; None is ``"standard"``.

        Raises:
            InputError: no rule, a limit that is not a share, or the file has nothing that a rule could judge.
            SchemaError: the file's comparisons contradict its rows.
        """
        return Gate(
            eps=Eps.parse(eps, norm=self.norm) if isinstance(eps, str) else eps,
            min_clean=min_clean,
            min_robust=min_robust,
            max_drop_clean=max_drop_clean,
            max_drop_robust=max_drop_robust,
            verdict=verdict,
            baseline=baseline,
            variants=tuple(variants or ()),
            backends=tuple(backends or ()),
            suite=suite,
        ).judge(self)

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.path or "the results")

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        parts = {
            name: msgspec.to_builtins(getattr(self, name))
            for name in ("bundle", "data", "environment", "masking", "skipped", "examples")
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "results",
            "edgeadv_version": self.edgeadv_version,
            "created": self.created,
            **parts,
            "rows": [row.to_json() for row in self.rows],
            "comparisons": [entry.to_json() for entry in self.comparisons],
        }

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read a results file.

        Raises:
            SchemaError: another kind or version, a key is missing, or a value is none that could have been measured.
            BundleError: not readable.
        """
        return cls.from_json(read_measurement(path, "results"), path=Path(path))

    @classmethod
    def from_json(cls, value: dict[str, Any], *, path: Path | None = None) -> Results:
        """Read what :meth:`to_json` wrote; shares and intervals are derived again from the counts.

        Raises:
            SchemaError: it is something else.
        """
        found = convert({**value, "path": None}, cls, what="results file", path=path, mend="measure again")
        return replace(found, path=path)

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
