"""The gate: does a results file hold what a release asks for?

Rules compare counts with the limit as it was written, so 400 of 1000 pass a limit of 0.40. Point estimates are judged; the
95% interval is printed beside them. ``docs/gate.md`` explains the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from .eps import Eps
from .errors import InputError, SchemaError
from .results import CLEAN, WORST_CASE, Results, Row
from .stats import mcnemar_p, paired_difference_interval
from .variants import expanded
from .verdict import ORDER

BASELINE = "fp32"
_KEY = ("backend", "variant", "artifact_sha256")


@dataclass(frozen=True)
class Ruling:
    """What one rule says of a results file.

    Attributes:
        rule: its name with its limit, ``"min-clean 0.8"``.
        passed: whether every artefact keeps to it.
        text: the artefact that is worst by it, with its figures.
    """

    rule: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'} {self.rule}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is asked of a results file; at least one rule.

    A rule on robust accuracy also fails where the masking verdict of a figure that it needs is worse than ``verdict``:
    a figure that may not be believed passes no gate.

    Attributes:
        min_clean: least clean top-1 accuracy, a share in [0, 1].
        min_robust: least top-1 accuracy in the worst case at ``eps``, a share in [0, 1].
        max_drop_clean: largest drop of clean accuracy against ``baseline``, paired, a share in [0, 1).
        max_drop_robust: largest such drop in the worst case at ``eps``.
        verdict: the least believable verdict that is accepted, of :data:`~edgeadv_runtime.verdict.ORDER`. A rule of its
            own if given; None accepts only ``"PASS"`` in rules on robust accuracy.
        baseline: variant that drops are counted from; None is ``"fp32"``. It is taken from the artefact's own backend, or
            from the first one in the file that has it.
        variants: those to judge, ``"int8"`` for either int8 variant, ``"int8-u8in"`` for either of these with uint8 input; empty
            for all in the file.
        backends: likewise.
        eps: the budget of the robust rules and of ``verdict``; None is the largest in the file.

    Raises:
        InputError: no rule, a limit that is not a share, an unknown verdict, or ``baseline`` or ``eps`` without a rule that
            needs it.
    """

    min_clean: float | None = None
    min_robust: float | None = None
    max_drop_clean: float | None = None
    max_drop_robust: float | None = None
    verdict: str | None = None
    baseline: str | None = None
    variants: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    eps: Eps | None = None

    def __post_init__(self) -> None:
        drops = {"--max-drop-clean": self.max_drop_clean, "--max-drop-robust": self.max_drop_robust}
        limits = {"--min-clean": self.min_clean, "--min-robust": self.min_robust, **drops}
        for option, value in limits.items():
            if value is not None:
                _check_share(option, value, whole=option not in drops)
        if all(value is None for value in (*limits.values(), self.verdict)):
            raise InputError(f"the gate has no rule: give at least one of {', '.join((*limits, '--verdict'))}")
        if self.verdict is not None and self.verdict not in ORDER:
            raise InputError(f"--verdict {self.verdict!r} is not one of {', '.join(ORDER)}")
        if self.baseline is not None and all(value is None for value in drops.values()):
            raise InputError(f"--baseline needs a rule that compares with it: {' or '.join(drops)}")
        if self.eps is not None and all(v is None for v in (self.min_robust, self.max_drop_robust, self.verdict)):
            raise InputError("--eps needs a rule on attacked images: --min-robust, --max-drop-robust or --verdict")

    def judge(self, results: Results) -> list[Ruling]:
        """Apply every rule; each has one ruling, in the order of the attributes.

        Raises:
            InputError: the file has nothing that a rule could judge: no such artefact, attack, budget or comparison.
            SchemaError: the file is damaged, or its comparisons contradict its rows.
        """
        with _complete(results):
            for row in results.rows:
                _ = row.top1_ci95  # counts that are not a share are found here, whether a rule needs them or not
            rulings = []
            if self.min_clean is not None:
                rulings.append(self._least("min-clean", self.min_clean, self._rows(results, CLEAN)))
            if self.min_robust is not None:
                rulings.append(self._least("min-robust", self.min_robust, self._rows(results, WORST_CASE)))
            if self.max_drop_clean is not None:
                rulings.append(self._drop("max-drop-clean", self.max_drop_clean, results, CLEAN))
            if self.max_drop_robust is not None:
                rulings.append(self._drop("max-drop-robust", self.max_drop_robust, results, WORST_CASE))
            if self.verdict is not None:
                rulings.append(self._believable(self._rows(results, WORST_CASE)))
            return rulings

    def _least(self, rule: str, limit: float, rows: Sequence[Row]) -> Ruling:
        lowest = min(rows, key=_share)
        doubt = self._doubt(lowest, *rows)
        passed = _share(lowest) >= _exactly(limit) and doubt is None
        return Ruling(f"{rule} {limit:g}", passed, f"lowest is {_figure(lowest)}{doubt or ''}")

    def _drop(self, rule: str, limit: float, results: Results, attack: str) -> Ruling:
        rows = self._rows(results, attack)
        drops = [_Drop.of(results, row, base) for row in rows if (base := self._base(results, row)) is not None]
        if not drops:
            raise InputError(
                f"{_name(results)} has nothing to compare with {self._baseline}: evaluate other variants with it in one run, "
                "or name another --baseline"
            )
        largest = max(drops, key=lambda drop: drop.share)
        judged = [row for drop in drops for row in (drop.row, drop.base)]
        doubt = self._doubt(largest.row, *judged)
        passed = largest.share <= _exactly(limit) and doubt is None
        return Ruling(f"{rule} {limit:g}", passed, f"largest is {largest}{doubt or ''}")

    def _believable(self, rows: Sequence[Row]) -> Ruling:
        worst = max(rows, key=_rank)
        text = f"worst is {_artefact(worst)} {_at(worst)}: {_standing(worst)}"
        return Ruling(f"verdict {self._least_verdict}", _rank(worst) <= ORDER.index(self._least_verdict), text)

    def _doubt(self, *rows: Row) -> str | None:
        """Which of ``rows`` may not be believed, and why; the first one's reason is in its figure already."""
        if rows[0].attack == CLEAN:
            return None
        worst = max(rows, key=_rank)
        if _rank(worst) <= ORDER.index(self._least_verdict):
            return None
        who = "" if worst is rows[0] else f"{_artefact(worst)} has {_standing(worst)}, "
        return f"; {who}the verdict asked for is {self._least_verdict}"

    def _rows(self, results: Results, attack: str) -> list[Row]:
        """The rows that a rule judges: one of each artefact that was chosen."""
        chosen = [
            row for row in results.rows
            if _named(row.variant, self.variants) and (not self.backends or row.backend in self.backends)
        ]  # fmt: skip
        variants, backends = {row.variant for row in results.rows}, {row.backend for row in results.rows}
        idle = [name for name in self.variants if not any(_named(variant, (name,)) for variant in variants)]
        idle += [name for name in self.backends if name not in backends]
        if idle or not chosen:
            have = ", ".join(dict.fromkeys(_artefact(row) for row in results.rows)) or "no rows"
            what = f"no {' and no '.join(idle)}" if idle else "no artefact that was chosen"
            raise InputError(f"{_name(results)} has {what}; it has {have}")
        if attack == CLEAN:
            found = [row for row in chosen if row.attack == CLEAN]
        else:
            eps = self._budget(results)
            found = [row for row in chosen if row.attack == attack and row.eps_value == eps.value]
        scored = {_key(row) for row in found}
        for row in chosen:
            if _key(row) not in scored:
                at = "" if attack == CLEAN else f" at eps {eps.text}"
                raise InputError(
                    f"{_name(results)} has no {attack} row of {_artefact(row)}{at}: evaluate it again, or choose others "
                    "with --variant and --backend"
                )
        return found

    def _budget(self, results: Results) -> Eps:
        budgets = {row.eps_value: Eps(row.eps, row.eps_value) for row in results.rows if row.attack == WORST_CASE}
        if not budgets:
            raise InputError(
                f"{_name(results)} has no attacked images: evaluate with --eps, or gate clean accuracy only"
            )
        if self.eps is None:
            return budgets[max(budgets)]
        if self.eps.value not in budgets:
            have = ", ".join(budgets[value].text for value in sorted(budgets))
            raise InputError(f"{_name(results)} was not attacked at eps {self.eps.text}; it was at {have}")
        return budgets[self.eps.value]

    def _base(self, results: Results, row: Row) -> Row | None:
        """The row that ``row`` is compared with; None if it is a baseline itself."""
        found = [
            base for base in results.rows
            if (base.variant, base.attack, base.eps_value) == (self._baseline, row.attack, row.eps_value)
        ]  # fmt: skip
        if not found:
            have = ", ".join(dict.fromkeys(row.variant for row in results.rows))
            raise InputError(
                f"{_name(results)} has no {self._baseline} to compare with, but {have}: evaluate it in the same run, or name "
                "another --baseline"
            )
        if row.variant == self._baseline:
            return None
        return next((base for base in found if base.backend == row.backend), found[0])

    @property
    def _baseline(self) -> str:
        return self.baseline or BASELINE

    @property
    def _least_verdict(self) -> str:
        return self.verdict or ORDER[0]


@dataclass(frozen=True)
class _Drop:
    """What ``row`` loses against ``base``, image by image."""

    row: Row
    base: Row
    lost: int
    gained: int

    @classmethod
    def of(cls, results: Results, row: Row, base: Row) -> _Drop:
        """Look the pair up; its counts are turned round if the file has it the other way."""
        for entry in results.comparisons:
            if (entry["attack"], entry["eps"]) != (row.attack, row.eps):
                continue
            ends = [tuple(entry[end][key] for key in _KEY) for end in ("baseline", "artefact")]
            if ends in ([_key(base), _key(row)], [_key(row), _key(base)]):
                lost, gained = entry["lost"], entry["gained"]
                if ends[0] == _key(row):
                    lost, gained = gained, lost
                if entry["n"] != row.n or lost - gained != base.correct_top1 - row.correct_top1:
                    raise ValueError(f"the comparison of {_artefact(row)} with {_artefact(base)} contradicts the rows")
                return cls(row, base, lost, gained)
        raise InputError(
            f"{_name(results)} has no paired comparison of {_artefact(row)} with {_artefact(base)}, as files of an older "
            "edgeadv have none: evaluate both again in one run"
        )

    @property
    def share(self) -> Fraction:
        return Fraction(self.lost - self.gained, self.row.n)

    def __str__(self) -> str:
        low, high = paired_difference_interval(self.lost, self.gained, self.row.n)
        figure = (
            f"{float(100 * self.share):.2f} points ({self.lost} lost, {self.gained} gained of {self.row.n}, 95% interval "
            f"{100 * low:.2f} to {100 * high:.2f}, McNemar p {mcnemar_p(self.lost, self.gained):.2g})"
        )
        if self.row.attack == CLEAN:
            return f"{_artefact(self.row)} against {_artefact(self.base)}: {figure}"
        # an artefact that only transferred attacks met looks better against one that met its own gradients than it is
        who = f"{_artefact(self.row)} ({self.row.threat}) against {_artefact(self.base)} ({self.base.threat})"
        return f"{who} {_at(self.row)}: {figure}, {_standing(self.row)}"


def _key(row: Row) -> tuple[str, ...]:
    return (row.backend, row.variant, row.artifact_sha256)


@contextmanager
def _complete(results: Results) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise SchemaError(f"{_name(results)} is not a complete results file ({error!r}); measure again") from error


def _check_share(option: str, value: float, *, whole: bool) -> None:
    # a drop of 1 limits nothing; who writes it means one point
    if not (0 <= value < 1 or (whole and value == 1)):
        hint = f": did you mean {_hundredth(value)}?" if 1 <= value <= 100 else ""
        raise InputError(f"{option} {value:g} is not a share in [0, 1{']' if whole else ')'}{hint}")


def _hundredth(value: float) -> str:
    return f"{value / 100:.2f}" if value == int(value) else f"{value / 100:g}"


def _exactly(limit: float) -> Fraction:
    """The limit as it was written: 0.07 of 100 images is 7, which no product of floats is."""
    return Fraction(repr(float(limit)))


def _named(variant: str, names: Sequence[str]) -> bool:
    return not names or variant in expanded(list(names), (variant,))


def _share(row: Row) -> Fraction:
    return Fraction(row.correct_top1, row.n)


def _rank(row: Row) -> int:
    """Place of the row's verdict in :data:`ORDER`; the larger, the less believable."""
    return ORDER.index((row.masking or {})["verdict"])


def _standing(row: Row) -> str:
    """The row's verdict, with its first reason unless it is ``PASS``."""
    masking = row.masking or {}
    if masking["verdict"] == ORDER[0]:
        return f"verdict {ORDER[0]}"
    reason = next(iter(masking.get("evidence") or ()), "the file does not say why")
    return f"verdict {masking['verdict']} ({reason})"


def _figure(row: Row) -> str:
    low, high = row.top1_ci95
    counted = f"({row.correct_top1} of {row.n}, 95% interval {low:.1%} to {high:.1%})"
    if row.attack == CLEAN:
        return f"{_artefact(row)} with {row.top1:.1%} {counted}"
    # what was not attacked with its own gradients, or not believed, is a bound
    bound = "at most " if row.correct_top1 and (_rank(row) or row.threat != "white-box") else ""
    return f"{_artefact(row)} {_at(row)} with {bound}{row.top1:.1%} {counted}, {row.threat}, {_standing(row)}"


def _at(row: Row) -> str:
    """The budget; in L2 the same number is a far smaller one, so that is said."""
    norm = row.params.norm or "linf"
    return f"at eps {row.eps}" if norm == "linf" else f"at eps {row.eps} in {norm}"


def _artefact(row: Row) -> str:
    return f"{row.backend} {row.variant}"


def _name(results: Results) -> str:
    return str(results.path or "the results")
