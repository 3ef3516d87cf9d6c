"""The results file: one schema for what was measured, read by the report, tables and CI gates.

``docs/reference/file-formats.md`` describes every key. Readers ignore keys that they do not know; keys that came later
have a default, so older files of this version load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .about import Example, Skipped, Subject
from .consistency import check_comparisons, check_derived, check_rows, check_verdicts
from .eps import Eps
from .evidence import Masking, Verdict, least_believable
from .machine import Environment
from .measured_rows import MeasuredRows
from .measurement import Kind
from .release_gate import Gate, GateOutcome
from .rows import ArtefactId, Comparison, Row
from .suites import SuiteName
from .tracks import Rule, TrackRow


@dataclass(frozen=True, kw_only=True)
class Results(MeasuredRows):
    """A results file.

    Attributes:
        bundle: what was scored.
        environment: device facts and versions.
        masking: the verdict on the weights' gradients.
        skipped: pairs of backend and variant that were asked for as ``all`` and cannot be, with the reason.
        examples: a few images with their predictions.
        tracks: what an application would decide on tracks; empty where images were scored one by one.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
    """

    kind: ClassVar[Kind] = "results"
    bundle: Subject
    environment: Environment
    masking: Masking
    skipped: tuple[Skipped, ...] = ()
    examples: tuple[Example, ...] = ()
    tracks: tuple[TrackRow, ...] = ()
    created: str = ""
    edgeadv_version: str = ""

    def check(self, written: dict[str, Any]) -> None:
        """Hold rows, comparisons and verdicts to each other, and shares to the counts that they follow from.

        Raises:
            ValueError: they contradict each other.
        """
        check_rows(self.rows, self.data)
        check_verdicts(self.rows, self.masking)
        check_comparisons(self.rows, self.comparisons)
        check_derived(written.get("rows"), self.rows)
        check_derived(written.get("comparisons"), self.comparisons)
        check_derived(written.get("tracks"), self.tracks)

    @property
    def decisions(self) -> dict[tuple[ArtefactId, str, str], dict[Rule, TrackRow]]:
        """What was decided on tracks: by artefact, attack and budget the row of each rule that says something."""
        found: dict[tuple[ArtefactId, str, str], dict[Rule, TrackRow]] = {}
        for row in self.tracks:
            found.setdefault((row.artefact, row.attack, row.eps), {})[row.rule] = row
        return found

    @property
    def overall_verdict(self) -> Verdict:
        """The least believable verdict of the file: on the weights, or on any artefact that was attacked."""
        return least_believable([self.masking.verdict, *(row.verdict for row in self.rows if row.masking)])

    def gate(
        self,
        *,
        eps: Eps | str | None = None,
        min_clean: float | None = None,
        min_robust: float | None = None,
        max_drop_clean: float | None = None,
        max_drop_robust: float | None = None,
        min_corrupted: float | None = None,
        max_drop_corrupted: float | None = None,
        corruptions: str | None = None,
        min_patch: str | None = None,
        verdict: str | None = None,
        variants: str | Sequence[str] | None = None,
        backends: str | Sequence[str] | None = None,
        baseline: str | None = None,
        suite: SuiteName | None = None,
    ) -> GateOutcome:
        """Judge the file by the rules of a release; at least one must be given. ``docs/how-to/gate-in-ci.md`` has them.

        Args:
            eps: budget of the rules on attacked images; None is the only one in the file.
            min_clean: least clean accuracy of every artefact, a share in [0, 1].
            min_robust: least accuracy of every artefact in the worst case, a share in [0, 1].
            max_drop_clean: largest drop of clean accuracy against ``baseline``, a share in [0, 1).
            max_drop_robust: largest such drop in the worst case.
            min_corrupted: least mean accuracy over all corruptions and severities of the file.
            max_drop_corrupted: largest drop of that mean against ``baseline``.
            corruptions: kinds or sets that these two are of; None is all in the file, which must hold a whole set.
            min_patch: least accuracy under a patch, ``"5%=0.5"``.
            verdict: least believable masking verdict that is accepted; None accepts only ``"PASS"`` for robust
                accuracy.
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
            min_corrupted=min_corrupted,
            max_drop_corrupted=max_drop_corrupted,
            corruptions=corruptions,
            min_patch=min_patch,
            verdict=verdict,
            baseline=baseline,
            variants=_names(variants),
            backends=_names(backends),
            suite=suite,
        ).judge(self)

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value, the long lists last."""
        found = super().to_json()
        tables: dict[str, Sequence[Row | Comparison | TrackRow]] = {
            "rows": self.rows,
            "comparisons": self.comparisons,
            "tracks": self.tracks,
        }
        for name in tables:
            del found[name]
        return {**found, **{name: [entry.to_json() for entry in table] for name, table in tables.items()}}


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, or several."""
    return (given,) if isinstance(given, str) else tuple(given or ())
