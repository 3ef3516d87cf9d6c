"""What the page says about accuracy: headline and comparison. Every figure comes from the counts of one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadv_runtime.records.evidence import ORDER, Finding, Verdict, least_believable
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, ArtefactId, ArtefactRow, Row, engines
from edgeadv_runtime.records.suites import FGSM, base_name

from .inputs import Inputs
from .phrases import LABELS

# of two figures that are alike, the one of the attack that came closest to the artefact
_CLOSEST = ("white-box", "query", "transfer", None)
# from this share of the images on the page says in words what plain FGSM hides
_MUCH_HIGHER = 0.10


_GAP_MEANINGS = {
    "UNCHECKED": "one step is a weak attack, and the worst case itself is not checked",
    "PASS": "one step is a weak attack; quote the worst case",
    "SUSPECT": "the difference may be hidden gradients; do not count it as robustness",
    "MASKED": "the difference is hidden gradients, not robustness",
}


@dataclass(frozen=True)
class Artefact:
    """What was scored, and by what."""

    backend: str
    variant: str
    provider: str
    device: str

    @classmethod
    def of(cls, row: ArtefactRow) -> Artefact:
        """The artefact of ``row``."""
        return cls(row.backend, row.variant, row.provider, row.device)

    @property
    def label(self) -> str:
        """Backend and variant."""
        return f"{self.backend} {self.variant}"

    @property
    def detail(self) -> str:
        """Provider and device."""
        return " · ".join(dict.fromkeys(part for part in (self.provider, self.device) if part and part != self.backend))


@dataclass(frozen=True)
class Line:
    """One artefact at one budget: a line of the comparison.

    Attributes:
        eps: as written; None for an artefact that was not attacked.
        eps_value: in pixels of [0, 1]; 0 for an artefact that was not attacked.
        rows: attack to row, the clean row included.
    """

    eps: str | None
    eps_value: float
    rows: dict[str, Row]

    @property
    def fgsm(self) -> Row | None:
        """Plain FGSM."""
        return self.rows.get(FGSM)

    @property
    def worst(self) -> Row | None:
        """The worst case."""
        return self.rows.get(WORST_CASE)

    @property
    def gradient(self) -> Row | None:
        """The strongest attack with gradients; plain FGSM, which has a place of its own, only where it is stronger
        yet."""
        rows = [row for row in self._attacks if row.gradients is not None and row.attack != FGSM]
        found, fgsm = strongest(rows), self.fgsm
        return fgsm if found and fgsm and fgsm.top1 < found.top1 else found

    @property
    def query(self) -> Row | None:
        """The strongest attack without gradients."""
        return strongest(row for row in self._attacks if row.gradients is None)

    @property
    def flatters(self) -> bool:
        """Whether plain FGSM says more than may be believed.

        It does where it stands above a worst case that the check has not passed, or far above any, or without one.
        """
        if self.fgsm is None or self.worst is None:
            return self.fgsm is not None
        above = _above(self.fgsm, self.worst)
        return above >= _MUCH_HIGHER or (above > 0 and self.worst.verdict != "PASS")

    @property
    def summary(self) -> tuple[Row, ...]:
        """The rows that the page shows at first sight, from clean to worst case."""
        rows = (self.rows.get(CLEAN), self.fgsm, self.gradient, self.query, self.worst)
        return tuple({row.attack: row for row in rows if row}.values())

    @property
    def _attacks(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows.values() if row.attack not in (CLEAN, WORST_CASE))

    @property
    def n(self) -> int | None:
        """Images behind the worst case, or behind the first row there is."""
        row = self.worst or next(iter(self.rows.values()), None)
        return row.n if row else None


@dataclass(frozen=True)
class Group:
    """One artefact of one model with all its budgets, smallest first.

    Attributes:
        artefact: what was scored.
        clean: its clean row.
        lines: its budgets.
        rows: all that was measured on it, in the order of the file.
        verdict: the masking verdict on it, which may be worse than the one on the weights.
        reasons: what was found, in sentences.
    """

    artefact: Artefact
    clean: Row | None
    lines: tuple[Line, ...]
    rows: tuple[Row, ...]
    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def plans(self) -> tuple[str, ...]:
        """What a person must know of the plan that ran; nothing for a backend without one."""
        return tuple(str(engine) for _, engine in engines(self.rows))

    @property
    def id(self) -> ArtefactId:
        """What tells it from the others of its file."""
        return self.rows[0].artefact

    def worst(self, eps: str) -> Row | None:
        """The worst case at one budget."""
        return next((line.rows.get(WORST_CASE) for line in self.lines if line.eps == eps), None)

    @property
    def attacked(self) -> tuple[Line, ...]:
        """The lines with a budget."""
        return tuple(line for line in self.lines if line.eps is not None)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Attacks of all lines but clean, in the order of :data:`LABELS`, unknown ones before the worst case."""
        names = dict.fromkeys(name for line in self.lines for name in line.rows if name != CLEAN)
        return tuple(sorted(names, key=_order))


@dataclass(frozen=True)
class Headline:
    """What is said of one model before anything else.

    Attributes:
        group: the artefact with the lowest worst case at the largest budget; the first one if nothing was attacked.
        line: its rows at that budget.
    """

    group: Group
    line: Line

    @property
    def gap(self) -> str | None:
        """What plain FGSM hides, in words, where it hides much."""
        fgsm, worst = self.line.fgsm, self.line.worst
        if fgsm is None or worst is None:
            return None
        if _above(fgsm, worst) >= _MUCH_HIGHER:
            meaning = _GAP_MEANINGS[self.group.verdict]
            return f"plain FGSM says {fgsm.top1:.0%}, the worst case says {worst.top1:.0%}: {meaning}"
        if (fgsm.zero_gradient_share or 0.0) >= _MUCH_HIGHER:
            return (
                f"plain FGSM found no gradient on {fgsm.zero_gradient_share:.0%} of the images: it did not attack them"
            )
        return None


@dataclass(frozen=True)
class Model:
    """One results file as the page shows it."""

    path: Path
    title: str
    results: Results
    groups: tuple[Group, ...]

    @property
    def headline(self) -> Headline | None:
        """What comes first; None if nothing was scored."""
        lines = (Headline(group, line) for group in self.groups for line in group.lines)
        return min(lines, key=_lowest, default=None)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the masking check found, the worst first, and then why it could not tell."""
        found = [finding for finding in self.results.masking.evidence if finding.matters]
        return tuple(sorted(found, key=lambda finding: -ORDER.index(finding.finding or ORDER[0])))


def models(inputs: Inputs) -> tuple[Model, ...]:
    """The models of a report, in the order of their files."""
    return tuple(
        Model(path, inputs.titles[path], results, _groups(results)) for path, results in inputs.results.items()
    )


@dataclass(frozen=True)
class Compared:
    """One artefact of all models that have it: budget by budget, model under model.

    Attributes:
        artefact: what was scored.
        members: each model with its group for this artefact, in the order of the files.
        lines: model title, verdict and line; the same budget stands together.
    """

    artefact: Artefact
    members: tuple[tuple[Model, Group], ...]
    lines: tuple[tuple[str, str, Line], ...]


def compare(shown: Sequence[Model]) -> tuple[Compared, ...]:
    """All models side by side, artefact by artefact."""
    compared = []
    for artefact in dict.fromkeys(group.artefact for model in shown for group in model.groups):
        members = tuple((model, group) for model in shown for group in model.groups if group.artefact == artefact)
        lines = [(model.title, group.verdict, line) for model, group in members for line in group.lines]
        # stable: within one budget the models keep the order of their files
        compared.append(Compared(artefact, members, tuple(sorted(lines, key=lambda entry: entry[2].eps_value))))
    return tuple(compared)


def upper_bound(worst: Row, verdict: str) -> bool:
    """Whether a worst case is written with "at most": no attack of its own met the artefact, or the check did not
    pass."""
    return (verdict != "PASS" or worst.threat != "white-box") and worst.correct_top1 > 0


def _above(fgsm: Row, worst: Row) -> float:
    # 50.1% is 10 points above 40.1%, whatever the floats say
    return round(fgsm.top1 - worst.top1, 9)


def strongest(rows: Iterable[Row]) -> Row | None:
    """The attack that leaves the fewest images right; of two that leave as many, the one that came closest to the
    artefact, then the later one of the suite."""
    return min(rows, key=lambda row: (row.top1, _CLOSEST.index(row.threat), -_order(row.attack)), default=None)


def _order(attack: str) -> float:
    """The attack's place in :data:`LABELS`, of one that the page does not know before the worst case."""
    order, base = list(LABELS), base_name(attack)
    return order.index(base) if base in order else len(order) - 1.5


def _groups(results: Results) -> tuple[Group, ...]:
    groups = []
    rows = results.rows
    for artefact in dict.fromkeys(Artefact.of(row) for row in rows):
        own = tuple(row for row in rows if Artefact.of(row) == artefact)
        base = _by_attack(row for row in own if row.attack == CLEAN)
        attacked = [row for row in own if row.attack != CLEAN]
        budgets = sorted({(row.eps_value, row.eps) for row in attacked})
        lines = [
            Line(eps, value, base | _by_attack(row for row in attacked if row.eps == eps)) for value, eps in budgets
        ]
        verdicts = [results.masking.verdict, *(row.verdict for row in attacked)]
        groups.append(
            Group(
                artefact,
                base.get(CLEAN),
                tuple(lines) or (Line(None, 0.0, base),),
                own,
                least_believable(verdicts),
                tuple(dict.fromkeys(text for row in attacked for text in row.reasons)),
            )
        )
    return tuple(groups)


def _by_attack(rows: Iterable[Row]) -> dict[str, Row]:
    """One attack may have run twice with other parameters: the stronger run counts."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.attack not in found or row.top1 < found[row.attack].top1:
            found[row.attack] = row
    return found


def _lowest(found: Headline) -> tuple[float, float]:
    """The largest budget with a worst case first, and of that the lowest."""
    worst = found.line.worst
    return (-worst.eps_value, worst.top1) if worst else (1.0, 0.0)
