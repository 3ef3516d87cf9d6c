"""What the page says about accuracy: headline and comparison. Every figure comes from the counts of one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeadv_runtime.results import CLEAN, WORST_CASE, Row, engine_sentence, engines
from edgeadv_runtime.suites import FGSM, FGSM_RANDOM_START, FGSM_RESCALED, PGD_MARGIN

from .inputs import Inputs, ResultsFile

# the order in which an eye should meet the attacks: from the flattering to the one that counts
LABELS = {
    CLEAN: "clean",
    FGSM: "FGSM",
    FGSM_RESCALED: "FGSM rescaled",
    FGSM_RANDOM_START: "FGSM-RS",
    PGD_MARGIN: "PGD margin",
    WORST_CASE: "worst case",
}
COLUMNS = (CLEAN, FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_MARGIN, WORST_CASE)
# from this share of the images on the page says in words what plain FGSM hides
_MUCH_HIGHER = 0.10

MEANINGS = {
    "UNCHECKED": (
        "What ran cannot show whether the attacks saw gradients worth following: "
        "the true robust accuracy may be far lower."
    ),
    "PASS": (
        "No rule found hidden gradients, so the worst case can be read as measured. "
        "The check says nothing about how hard the model is to fool; the number does."
    ),
    "SUSPECT": (
        "At least one rule found a sign of hidden gradients: "
        "the true robust accuracy may be lower than any number here."
    ),
    "MASKED": (
        "Attacks that follow the plain gradient fail because it is missing or misleads, not because the model resists: "
        "no accuracy above the worst case counts."
    ),
}
_GAP_MEANINGS = {
    "UNCHECKED": "one step is a weak attack, and the worst case itself is not checked",
    "PASS": "one step is a weak attack; quote the worst case",
    "SUSPECT": "the difference may be hidden gradients; do not count it as robustness",
    "MASKED": "the difference is hidden gradients, not robustness",
}


def attack_label(attack: str) -> str:
    """The attack's short name on the page; one that the page does not know keeps its own."""
    return LABELS.get(attack, attack)


@dataclass(frozen=True)
class Artefact:
    """What was scored, and by what."""

    backend: str
    variant: str
    provider: str
    device: str

    @classmethod
    def of(cls, row: Row) -> Artefact:
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
    def n(self) -> int | None:
        """Images behind the worst case, or behind the first row there is."""
        row = self.rows.get(WORST_CASE) or next(iter(self.rows.values()), None)
        return row.n if row else None


@dataclass(frozen=True)
class Group:
    """One artefact of one model with all its budgets, smallest first."""

    artefact: Artefact
    clean: Row | None
    lines: tuple[Line, ...]

    @property
    def plans(self) -> tuple[str, ...]:
        """What a person must know of the plan that ran; nothing for a backend without one."""
        rows = (row for line in self.lines for row in line.rows.values())
        return tuple(engine_sentence(engine) for _, engine in engines(rows))

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
        order = list(LABELS)
        names = dict.fromkeys(name for line in self.lines for name in line.rows if name != CLEAN)
        return tuple(sorted(names, key=lambda name: order.index(name) if name in LABELS else len(order) - 1.5))


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What is said of one model before anything else.

    Attributes:
        artefact: the one with the lowest worst case at the largest budget; None if nothing was scored.
        clean: its clean row.
        worst: its worst case.
        steps: its rows at that budget, from clean to worst case.
        upper_bound: whether the page writes "at most" before the worst case, because the masking check did not pass.
        gap: what plain FGSM hides, in words, where it hides much.
        others: the other artefacts with their clean row and worst case at the same budget.
    """

    artefact: Artefact | None
    clean: Row | None
    worst: Row | None
    steps: tuple[Row, ...]
    upper_bound: bool
    gap: str | None
    others: tuple[tuple[Artefact, Row | None, Row | None], ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One results file as the page shows it."""

    file: ResultsFile
    groups: tuple[Group, ...]
    headline: Headline


def models(inputs: Inputs) -> tuple[Model, ...]:
    """The models of a report, in the order of their files."""
    shown = []
    for file in inputs.results:
        groups = _groups(file.results.rows)
        shown.append(Model(file=file, groups=groups, headline=_headline(groups, file.verdict)))
    return tuple(shown)


@dataclass(frozen=True)
class Compared:
    """One artefact of all models that have it: budget by budget, model under model.

    Attributes:
        artefact: what was scored.
        members: each model with its group for this artefact, in the order of the files.
        lines: model title and line; the same budget stands together.
    """

    artefact: Artefact
    members: tuple[tuple[Model, Group], ...]
    lines: tuple[tuple[str, Line], ...]

    @property
    def threats(self) -> tuple[str, ...]:
        """Threat models of the rows; more than one means that every figure must carry its own."""
        rows = (row for _, line in self.lines for row in line.rows.values())
        return tuple(dict.fromkeys(row.threat for row in rows if row.threat))


def compare(shown: Sequence[Model]) -> tuple[Compared, ...]:
    """All models side by side, artefact by artefact."""
    compared = []
    for artefact in dict.fromkeys(group.artefact for model in shown for group in model.groups):
        members = tuple((model, group) for model in shown for group in model.groups if group.artefact == artefact)
        lines = [(model.file.title, line) for model, group in members for line in group.lines]
        # stable: within one budget the models keep the order of their files
        compared.append(Compared(artefact, members, tuple(sorted(lines, key=lambda entry: entry[1].eps_value))))
    return tuple(compared)


def _groups(rows: Sequence[Row]) -> tuple[Group, ...]:
    groups = []
    for artefact in dict.fromkeys(Artefact.of(row) for row in rows):
        own = [row for row in rows if Artefact.of(row) == artefact]
        base = _by_attack(row for row in own if row.attack == CLEAN)
        attacked = [row for row in own if row.attack != CLEAN]
        budgets = sorted({(row.eps_value, row.eps) for row in attacked})
        lines = [
            Line(eps, value, base | _by_attack(row for row in attacked if row.eps == eps)) for value, eps in budgets
        ]
        groups.append(Group(artefact, base.get(CLEAN), tuple(lines) or (Line(None, 0.0, base),)))
    return tuple(groups)


def _by_attack(rows: Iterable[Row]) -> dict[str, Row]:
    """One attack may have run twice with other parameters: the stronger run counts."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.attack not in found or row.top1 < found[row.attack].top1:
            found[row.attack] = row
    return found


def _headline(groups: Sequence[Group], verdict: str) -> Headline:
    worst_rows = [row for group in groups for line in group.lines if (row := line.rows.get(WORST_CASE))]
    if not worst_rows:
        first = groups[0] if groups else None
        return Headline(
            artefact=first.artefact if first else None, clean=first.clean if first else None, worst=None, steps=(),
            upper_bound=False, gap=None, others=tuple((group.artefact, group.clean, None) for group in groups[1:]),
        )  # fmt: skip
    largest = max(row.eps_value for row in worst_rows)
    worst = min((row for row in worst_rows if row.eps_value == largest), key=lambda row: row.top1)
    group = next(group for group in groups if group.artefact == Artefact.of(worst))
    line = next(line for line in group.lines if line.eps == worst.eps)
    names = [name for name in (CLEAN, *group.attacks) if name in line.rows]
    return Headline(
        artefact=group.artefact,
        clean=group.clean,
        worst=worst,
        steps=tuple(line.rows[name] for name in names),
        upper_bound=(verdict != "PASS" or worst.threat != "white-box") and worst.correct_top1 > 0,
        gap=_gap(line.rows.get(FGSM), worst, verdict),
        others=tuple((other.artefact, other.clean, other.worst(worst.eps)) for other in groups if other is not group),
    )


def _gap(fgsm: Row | None, worst: Row, verdict: str) -> str | None:
    if fgsm is None:
        return None
    if fgsm.top1 - worst.top1 >= _MUCH_HIGHER:
        return f"plain FGSM says {fgsm.top1:.0%}, the worst case says {worst.top1:.0%}: {_GAP_MEANINGS[verdict]}"
    if (fgsm.zero_gradient_share or 0.0) >= _MUCH_HIGHER:
        return f"plain FGSM found no gradient on {fgsm.zero_gradient_share:.0%} of the images: it did not attack them"
    return None
