"""The gate: does a results file hold what a release asks for?

Rules compare counts with the limit as it was written, so 400 of 1000 pass a limit of 0.40. Point estimates are judged;
the 95% interval is printed beside them. ``docs/how-to/gate-in-ci.md`` explains the rules,
:mod:`edgeadv_runtime.records.release_output` writes them for a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..decoding import Options
from ..errors import GateError, InputError
from .effort import effort_of, lacking, only_transferred
from .eps import AREA, SEVERITY, Eps
from .evidence import ORDER
from .measured_rows import MeasuredRows, accuracy_over, named
from .release_figures import (
    Drop,
    artefact_json,
    budget_of,
    check_share,
    figure_of,
    rank_of,
    row_json,
    scope_of,
    share_of,
    standing_of,
    trained_on,
)
from .release_shifts import in_words, judged, patch_of
from .rows import BASELINE, CLEAN, WORST_CASE, Row
from .suites import SQUARE, SUITES, SuiteName

SUITE: SuiteName = "standard"
_PATCH_VERDICT = "UNCHECKED"
"""The most that a patch can earn: nothing without gradients looks for a better one."""


@dataclass(frozen=True)
class Ruling:
    """What one rule says of a results file.

    Attributes:
        rule: its name with its limit, ``"min-clean 0.8"``.
        passed: whether every artefact keeps to it.
        text: the artefact that is worst by it, with its figures.
        scope: data set, split and number of images; of attacked ones also the suite, or the attacks.
        figures: what ``text`` says, as a JSON object.
    """

    rule: str
    passed: bool
    text: str
    scope: str = ""
    figures: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        scope = f" ({self.scope})" if self.scope else ""
        return f"{'passed' if self.passed else 'FAILED'} {self.rule}{scope}: {self.text}"


@dataclass(frozen=True)
class GateOutcome:
    """What the gate says of a results file.

    Attributes:
        rulings: one of each rule.
    """

    rulings: tuple[Ruling, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(ruling.passed for ruling in self.rulings)

    @property
    def lines(self) -> tuple[str, ...]:
        """A sentence for each rule."""
        return tuple(map(str, self.rulings))

    def raise_if_failed(self) -> None:
        """Do nothing if every rule passed.

        Raises:
            GateError: with the lines of those that failed.
        """
        if not self.passed:
            raise GateError("; ".join(str(ruling) for ruling in self.rulings if not ruling.passed))


@dataclass(frozen=True, kw_only=True)
class Gate(Options):
    """What is asked of a results file; at least one rule.

    A rule on robust accuracy also fails where the masking verdict of a figure that it needs is worse than ``verdict``:
    a figure that may not be believed passes no gate. It refuses to judge where less than ``suite`` attacked an artefact
    at the budget, or nothing that was made for it: that is an upper bound.

    Attributes:
        min_clean: least clean top-1 accuracy, a share in [0, 1].
        min_robust: least top-1 accuracy in the worst case at ``eps``, a share in [0, 1].
        max_drop_clean: largest drop of clean accuracy against ``baseline``, paired, a share in [0, 1).
        max_drop_robust: largest such drop in the worst case at ``eps``.
        verdict: the least believable verdict that is accepted, of :data:`~edgeadv_runtime.evaluation.verdict.ORDER`. A
            rule of its own if given; None accepts only ``"PASS"`` in rules on robust accuracy.
        baseline: variant that drops are counted from; None is ``"fp32"``. It is taken from the artefact's own backend,
            or from the first one in the file that has it.
        variants: those to judge, ``"int8"`` for either int8 variant, ``"int8-u8in"`` for either of these with uint8
            input; empty for all in the file.
        backends: likewise.
        min_corrupted: least mean accuracy over all corruptions and severities of the file, a share in [0, 1].
        max_drop_corrupted: largest drop of that mean against ``baseline``, a share in [0, 1).
        corruptions: kinds or sets that these two are of, comma-separated; None is all in the file, which has to hold a
            whole set at each severity.
        min_patch: least accuracy under a patch, ``"5%=0.5"``: the area, and a share in [0, 1]. It accepts the verdict
            ``"UNCHECKED"``, as no patch earns more, or that of ``verdict``.
        eps: the budget of the robust rules and of ``verdict``; None is the only one in the file.
        suite: the least that rules on robust accuracy accept, of :data:`~edgeadv_runtime.records.suites.SUITES`; None
            is ``"standard"``.

    Raises:
        InputError: no rule, a limit that is not a share, an unknown verdict or suite, or ``baseline``, ``eps`` or
            ``suite`` without a rule that needs it.
    """

    min_clean: float | None = None
    min_robust: float | None = None
    max_drop_clean: float | None = None
    max_drop_robust: float | None = None
    min_corrupted: float | None = None
    max_drop_corrupted: float | None = None
    corruptions: str | None = None
    min_patch: str | None = None
    verdict: str | None = None
    baseline: str | None = None
    variants: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    eps: Eps | None = None
    suite: SuiteName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        drops = {
            "`max_drop_clean`": self.max_drop_clean,
            "`max_drop_robust`": self.max_drop_robust,
            "`max_drop_corrupted`": self.max_drop_corrupted,
        }
        least = {
            "`min_clean`": self.min_clean,
            "`min_robust`": self.min_robust,
            "`min_corrupted`": self.min_corrupted,
            "`min_patch`": None if self.min_patch is None else self._patch[1],
        }
        limits = {**least, **drops}
        for option, value in limits.items():
            if value is not None:
                check_share(option, value, whole=option not in drops)
        if all(value is None for value in (*limits.values(), self.verdict)):
            raise InputError(f"the gate has no rule: give at least one of {', '.join((*limits, '`verdict`'))}")
        if self.verdict is not None and self.verdict not in ORDER:
            raise InputError(f"`verdict` {self.verdict!r} is not one of {', '.join(ORDER)}")
        if self.baseline is not None and all(value is None for value in drops.values()):
            raise InputError(f"`baseline` needs a rule that compares with it: {' or '.join(drops)}")
        if self.eps is not None and all(v is None for v in (self.min_robust, self.max_drop_robust, self.verdict)):
            raise InputError("`eps` needs a rule on attacked images: `min_robust`, `max_drop_robust` or `verdict`")
        if self.corruptions is not None and self.min_corrupted is None and self.max_drop_corrupted is None:
            raise InputError("`corruptions` needs a rule on them: `min_corrupted` or `max_drop_corrupted`")
        if self.suite is not None and self.suite not in SUITES:
            raise InputError(f"`suite` {self.suite!r} is not one of {', '.join(SUITES)}")
        if self.suite is not None and self.min_robust is None and self.max_drop_robust is None:
            raise InputError("`suite` needs a rule on robust accuracy: `min_robust` or `max_drop_robust`")

    def judge(self, results: MeasuredRows) -> GateOutcome:
        """Apply every rule; each has one ruling, in the order of the attributes.

        Raises:
            InputError: the file has nothing that a rule could judge: no such artefact, attack, budget or comparison,
                several budgets and none was named, or too little attacked an artefact.
            SchemaError: the file's comparisons contradict its rows.
        """
        self._check_kind(results)
        limits = (
            ("min-clean", self.min_clean, CLEAN),
            ("min-robust", self.min_robust, WORST_CASE),
            ("max-drop-clean", self.max_drop_clean, CLEAN),
            ("max-drop-robust", self.max_drop_robust, WORST_CASE),
        )
        rulings = [self._held_to(rule, limit, results, attack) for rule, limit, attack in limits if limit is not None]
        corrupted = (("min-corrupted", self.min_corrupted), ("max-drop-corrupted", self.max_drop_corrupted))
        rulings += [self._corrupted(rule, limit, results) for rule, limit in corrupted if limit is not None]
        if self.min_patch is not None:
            rulings.append(self._patched(results))
        if self.verdict is not None:
            rulings.append(self._believable(results, None if self.min_patch is None else self._patch[0]))
        if (flaw := trained_on(results)) is not None:
            rulings = [replace(ruling, passed=False, text=f"{ruling.text}; {flaw}") for ruling in rulings]
        return GateOutcome(tuple(rulings))

    def _held_to(self, rule: str, limit: float, results: MeasuredRows, attack: str) -> Ruling:
        """What a rule with a limit says of the worst by it, if all that it looked at may be believed."""
        rows = self._rows(results, attack)
        figures: dict[str, Any] = {}
        if rule.startswith("max-drop"):
            drops = [Drop.of(results, row, base) for row in rows if (base := self._base(results, row)) is not None]
            if not drops:
                raise InputError(
                    f"{results.name} has nothing to compare with {self._baseline}: evaluate other variants with it in "
                    "one run, or name another `baseline`"
                )
            largest = max(drops, key=lambda drop: drop.share)
            worst, kept = largest.row, largest.share <= _exactly(limit)
            rows = [row for drop in drops for row in (drop.row, drop.base)]
            text, figures = f"largest is {largest}", largest.to_json()
        else:
            worst = min(rows, key=share_of)
            text, kept = f"lowest is {figure_of(worst)}", share_of(worst) >= _exactly(limit)
        self._check_attacked(results, rows)
        doubt = self._doubt(worst, *rows)
        figures = {"limit": limit, **row_json(results, worst), **figures}
        return Ruling(f"{rule} {limit:g}", kept and not doubt, text + doubt, scope_of(results, worst), figures)

    def _check_kind(self, results: MeasuredRows) -> None:
        """Refuse rules on another kind of budget than the file's."""
        asked = {
            AREA: ("`min_patch`", self.min_patch is not None),
            SEVERITY: (
                "`min_corrupted` and `max_drop_corrupted`",
                self.min_corrupted is not None or self.max_drop_corrupted is not None,
            ),
        }
        within_eps = any(value is not None for value in (self.min_robust, self.max_drop_robust, self.eps))
        # a verdict is on patches too, and on no corruption
        within_eps |= self.verdict is not None and self.min_patch is None
        for norm, (rules, given) in asked.items():
            if given and results.norm != norm:
                raise InputError(
                    f"{results.name} has no budgets of {norm}: {rules} judge a file that has; evaluate one"
                )
            if within_eps and results.norm == norm:
                raise InputError(f"{results.name} has budgets of {norm} and no eps: judge it with {rules}")

    def _corrupted(self, rule: str, limit: float, results: MeasuredRows) -> Ruling:
        """What a rule on the mean over corruptions says of the worst artefact by it."""

        def mean_of(row: Row) -> Fraction:
            return accuracy_over(
                [each for rows in judged(results, row.artefact, self.corruptions).values() for each in rows]
            )

        found = {row.artefact: (row, mean_of(row)) for row in self._rows(results, CLEAN)}
        what = in_words(judged(results, next(iter(found)), self.corruptions))
        if rule.startswith("min"):
            row, mean = min(found.values(), key=lambda each: each[1])
            text, kept = f"lowest is {row.artefact} with {float(mean):.1%}", mean >= _exactly(limit)
            more: dict[str, Any] = {}
        else:
            pairs = [
                (row, base, mean_of(base) - mean)
                for row, mean in found.values()
                if (base := self._base(results, row)) is not None
            ]
            if not pairs:
                raise InputError(
                    f"{results.name} has nothing to compare with {self._baseline}: evaluate other variants with it in "
                    "one run"
                )
            row, base, drop = max(pairs, key=lambda each: each[2])
            text = f"largest is {row.artefact} against {base.artefact}: {float(100 * drop):.2f} points"
            kept, more = drop <= _exactly(limit), {"drop": float(drop)}
            mean = mean_of(row)
        scope = f"{results.data.name} {results.data.split}, {row.n} images, mean over {what}"
        about = {"artefact": artefact_json(row), "n": row.n, "corruptions": what}
        figures = {"limit": limit, **about, "share": float(mean), **more}
        return Ruling(f"{rule} {limit:g}", kept, text, scope, figures)

    def _patched(self, results: MeasuredRows) -> Ruling:
        """What the rule on patches says of the artefact that stands them least."""
        area, limit = self._patch
        rows = self._rows(results, WORST_CASE, area)
        patches = [patch_of(results, row) for row in rows]
        worst = min(rows, key=share_of)
        text = f"lowest is {figure_of(worst)}"
        doubt = self._doubt(worst, *rows, least=self.verdict or _PATCH_VERDICT)
        place = patches[rows.index(worst)].params.place
        figures = {"limit": limit, **row_json(results, worst), "place": place}
        kept = share_of(worst) >= _exactly(limit) and not doubt
        scope = f"{scope_of(results, worst)}, {place or 'at a place that the file does not name'}"
        return Ruling(f"min-patch {area.text}={limit:g}", kept, text + doubt, scope, figures)

    @property
    def _patch(self) -> tuple[Eps, float]:
        """Area and share of :attr:`min_patch`."""
        area, _, share = str(self.min_patch).partition("=")
        try:
            return Eps.parse(area, norm=AREA), float(share)
        except ValueError as error:
            raise InputError(f"`min_patch` {self.min_patch!r} is not written AREA=SHARE, such as 5%=0.5") from error

    def _believable(self, results: MeasuredRows, area: Eps | None) -> Ruling:
        worst = max(self._rows(results, WORST_CASE, area), key=rank_of)
        text = f"worst is {worst.artefact} {budget_of(worst)}: {standing_of(worst)}"
        passed = rank_of(worst) <= ORDER.index(self._least_verdict)
        figures = {"limit": self._least_verdict, **row_json(results, worst)}
        return Ruling(f"verdict {self._least_verdict}", passed, text, scope_of(results, worst), figures)

    def _check_attacked(self, results: MeasuredRows, rows: Sequence[Row]) -> None:
        """Refuse what is an upper bound only: rows whose artefacts met nothing of their own, or less than the suite."""
        suite, classes = self.suite or SUITE, results.data.classes
        for row in rows:
            if row.attack == CLEAN:
                continue
            who = f"{results.name}: {row.artefact} {budget_of(row)}"
            if only_transferred(row, results.rows):
                raise InputError(
                    f"{who} met only transferred attacks: an upper bound; evaluate it with `attacks` {SQUARE} on "
                    "the device, or attack it by its own gradients"
                )
            if missing := lacking(row, results.rows, suite, classes=classes):
                less = effort_of(row, results.rows, classes=classes)
                packed = f", of a pack with `attacks` {SQUARE}" if any(SQUARE in text for text in missing) else ""
                accept = "" if less is None else f", or accept less: `suite` {less}"
                # a line has its limit, and what to do stands at its end
                some = missing[0] + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
                raise InputError(
                    f"{who} was attacked by less than the suite {suite}: {some}. Evaluate it with "
                    f"`eps` {row.eps} and `suite` {suite}{packed}{accept}"
                )

    def _doubt(self, *rows: Row, least: str | None = None) -> str:
        """Which of ``rows`` may not be believed, and why, if any; the first one's reason is in its figure."""
        if rows[0].attack == CLEAN:
            return ""
        worst = max(rows, key=rank_of)
        least = least or self._least_verdict
        if rank_of(worst) <= ORDER.index(least):
            return ""
        who = "" if worst is rows[0] else f"{worst.artefact} has {standing_of(worst)}, "
        return f"; {who}the verdict asked for is {least}"

    def _rows(self, results: MeasuredRows, attack: str, budget: Eps | None = None) -> list[Row]:
        """The rows that a rule judges: one of each artefact that was chosen."""
        chosen = [
            row
            for row in results.rows
            if named(row.variant, self.variants) and (not self.backends or row.backend in self.backends)
        ]
        variants, backends = {row.variant for row in results.rows}, {row.backend for row in results.rows}
        idle = [name for name in self.variants if not any(named(variant, (name,)) for variant in variants)]
        idle += [name for name in self.backends if name not in backends]
        if idle or not chosen:
            have = ", ".join(map(str, results.artefacts)) or "no rows"
            what = f"no {' and no '.join(idle)}" if idle else "no artefact that was chosen"
            raise InputError(f"{results.name} has {what}; it has {have}")
        eps = None if attack == CLEAN else results.budget(budget or self.eps)
        found = [row for row in chosen if row.attack == attack and (eps is None or row.eps_value == eps.value)]
        scored = {row.artefact for row in found}
        for row in chosen:
            if row.artefact not in scored:
                at = "" if eps is None else f" at eps {eps.text}"
                raise InputError(
                    f"{results.name} has no {attack} row of {row.artefact}{at}: evaluate it again, or choose others "
                    "with `variants` and `backends`"
                )
        return found

    def _base(self, results: MeasuredRows, row: Row) -> Row | None:
        """The row that ``row`` is compared with; None if it is a baseline itself."""
        if row.variant == self._baseline:
            return None
        base = results.baseline_of(row.artefact, variant=self._baseline)
        if found := results.select(attack=row.attack, eps_value=row.eps_value, artefact=base):
            return found[0]
        have = ", ".join(dict.fromkeys(row.variant for row in results.rows))
        raise InputError(
            f"{results.name} has no {self._baseline} to compare with, but {have}: evaluate it in the same run, or name "
            "another `baseline`"
        )

    @property
    def _baseline(self) -> str:
        return self.baseline or BASELINE

    @property
    def _least_verdict(self) -> str:
        return self.verdict or ORDER[0]


def _exactly(limit: float) -> Fraction:
    """The limit as it was written: 0.07 of 100 images is 7, which no product of floats is."""
    return Fraction(repr(float(limit)))
