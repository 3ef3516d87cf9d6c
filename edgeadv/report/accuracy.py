"""What the page says about accuracy: headline and comparison. Every figure comes from the counts of one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgeadv_runtime.results import CLEAN, WORST_CASE, Row, engine_sentence, engines
from edgeadv_runtime.suites import (
    APGD_CE,
    APGD_DLR,
    APGD_TARGETED,
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    LARGE_EPS,
    MI_FGSM,
    NOISE,
    PGD_CE,
    PGD_L2,
    PGD_MARGIN,
    SQUARE,
)
from edgeadv_runtime.variants import VARIANTS
from edgeadv_runtime.verdict import ORDER

from .inputs import Finding, Inputs, ResultsFile

# the order in which an eye should meet the attacks: from the flattering to the one that counts
LABELS = {
    CLEAN: "clean",
    FGSM: "FGSM",
    FGSM_RESCALED: "FGSM rescaled",
    FGSM_RANDOM_START: "FGSM-RS",
    MI_FGSM: "MI-FGSM",
    PGD_L2: "PGD L2",
    PGD_CE: "PGD-CE",
    PGD_MARGIN: "PGD margin",
    APGD_CE: "APGD-CE",
    APGD_DLR: "APGD-DLR",
    APGD_TARGETED: "APGD-T",
    LARGE_EPS: "PGD at eps 1",
    NOISE: "noise",
    SQUARE: "Square",
    WORST_CASE: "worst case",
}
# of two figures that are alike, the one of the attack that came closest to the artefact
_CLOSEST = ("white-box", "query", "transfer", None)
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


RULES = {
    "zero-gradient": "images without a gradient to follow",
    "rescaled-logits": "one step, logits divided by their largest",
    "random-start": "one step from a random point",
    "margin": "the margin against the cross-entropy",
    "one-step": "one step against twenty",
    "query": "queries against gradients",
    "large-eps": "what stands at eps 1",
    "rising": "a larger eps against a smaller",
    "probabilities": "answers that are no logits",
    "unstable": "one question, two answers",
    "coverage": "what a PASS needs",
}
"""What each rule of the masking check looks at, in a few words."""


def base_name(attack: str) -> str:
    """The attack's name without what it was bound to: ``pgd-margin`` of ``pgd-margin@int8-u8s8``."""
    return attack.partition("@")[0]


def attack_label(attack: str) -> str:
    """The attack's short name on the page, with the variant that it was bound to; one that the page does not know keeps its
    own."""
    base, bound, to = attack.partition("@")
    if base not in LABELS:
        return attack
    # the backend can be read off the full name, which stands where there is room
    variant = next((name for name in VARIANTS if to.endswith(name)), to)
    return f"{LABELS[base]} on {variant}" if bound else LABELS[base]


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
    def fgsm(self) -> Row | None:
        """Plain FGSM."""
        return self.rows.get(FGSM)

    @property
    def worst(self) -> Row | None:
        """The worst case."""
        return self.rows.get(WORST_CASE)

    @property
    def gradient(self) -> Row | None:
        """The strongest attack with gradients; plain FGSM, which has a place of its own, only where it is stronger yet."""
        rows = [row for row in self._attacks if row.gradients is not None and row.attack != FGSM]
        strongest = min(rows, key=_strength, default=None)
        fgsm = self.fgsm
        return fgsm if strongest and fgsm and fgsm.top1 < strongest.top1 else strongest

    @property
    def query(self) -> Row | None:
        """The strongest attack without gradients."""
        return min((row for row in self._attacks if row.gradients is None), key=_strength, default=None)

    @property
    def flatters(self) -> bool:
        """Whether plain FGSM says more than may be believed.

        It does where it stands above a worst case that the check has not passed, or far above any, or without one.
        """
        if self.fgsm is None or self.worst is None:
            return self.fgsm is not None
        above = self.fgsm.top1 - self.worst.top1
        return above >= _MUCH_HIGHER or (above > 0 and verdict_of(self.worst) not in ("PASS", None))

    @property
    def told(self) -> tuple[Row, ...]:
        """The rows that the page shows at first sight, from clean to worst case."""
        rows = (self.rows.get(CLEAN), self.fgsm, self.gradient, self.query, self.worst)
        return tuple({row.attack: row for row in rows if row}.values())

    @property
    def _attacks(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows.values() if row.attack not in (CLEAN, WORST_CASE))

    @property
    def n(self) -> int | None:
        """Images behind the worst case, or behind the first row there is."""
        row = self.rows.get(WORST_CASE) or next(iter(self.rows.values()), None)
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
    verdict: str
    reasons: tuple[str, ...]

    @property
    def plans(self) -> tuple[str, ...]:
        """What a person must know of the plan that ran; nothing for a backend without one."""
        return tuple(engine_sentence(engine) for _, engine in engines(self.rows))

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
        places = {
            name: order.index(base_name(name)) if base_name(name) in order else len(order) - 1.5 for name in names
        }
        return tuple(sorted(names, key=places.__getitem__))

    @property
    def drawn(self) -> Group:
        """The same with those attacks alone that make a line of the curves: those that are strongest at the largest eps."""
        kept = {row.attack for line in self.attacked[-1:] for row in line.told}
        lines = (
            replace(line, rows={name: row for name, row in line.rows.items() if name in kept}) for line in self.lines
        )
        return replace(self, lines=tuple(lines))


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What is said of one model before anything else.

    Attributes:
        artefact: the one with the lowest worst case at the largest budget; None if nothing was scored.
        clean: its clean row.
        worst: its worst case.
        verdict: the masking verdict on that artefact.
        line: its rows at that budget.
        upper_bound: whether the page writes "at most" before the worst case.
        gap: what plain FGSM hides, in words, where it hides much.
    """

    artefact: Artefact | None
    clean: Row | None
    worst: Row | None
    verdict: str
    line: Line | None
    upper_bound: bool
    gap: str | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """One results file as the page shows it."""

    file: ResultsFile
    groups: tuple[Group, ...]
    headline: Headline

    @property
    def told(self) -> tuple[Finding, ...]:
        """What the masking check found, the worst first, and then why it could not tell."""
        told = [finding for finding in self.file.findings if finding.finding or finding.obstacle]
        return tuple(sorted(told, key=lambda finding: -_badness(finding.finding or ORDER[0])))

    @property
    def silent(self) -> tuple[Finding, ...]:
        """Where it looked and found nothing."""
        return tuple(finding for finding in self.file.findings if finding not in self.told)


def models(inputs: Inputs) -> tuple[Model, ...]:
    """The models of a report, in the order of their files."""
    shown = []
    for file in inputs.results:
        groups = _groups(file)
        shown.append(Model(file=file, groups=groups, headline=_headline(groups, file.verdict)))
    return tuple(shown)


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
        lines = [(model.file.title, group.verdict, line) for model, group in members for line in group.lines]
        # stable: within one budget the models keep the order of their files
        compared.append(Compared(artefact, members, tuple(sorted(lines, key=lambda entry: entry[2].eps_value))))
    return tuple(compared)


def upper_bound(worst: Row, verdict: str) -> bool:
    """Whether a worst case is written with "at most": no attack of its own met the artefact, or the check did not pass."""
    return (verdict != "PASS" or worst.threat != "white-box") and worst.correct_top1 > 0


def verdict_of(row: Row) -> str | None:
    """The masking verdict on the artefact of ``row``; None where the row has none."""
    return str(row.masking["verdict"]) if row.masking else None


def _badness(verdict: str) -> int:
    return [*ORDER].index(verdict)  # type: ignore[arg-type]


def _strength(row: Row) -> tuple[float, int, int]:
    order = list(LABELS)
    base = base_name(row.attack)
    return row.top1, _CLOSEST.index(row.threat), -order.index(base) if base in order else 0


def _groups(file: ResultsFile) -> tuple[Group, ...]:
    groups = []
    rows = file.results.rows
    for artefact in dict.fromkeys(Artefact.of(row) for row in rows):
        own = tuple(row for row in rows if Artefact.of(row) == artefact)
        base = _by_attack(row for row in own if row.attack == CLEAN)
        attacked = [row for row in own if row.attack != CLEAN]
        budgets = sorted({(row.eps_value, row.eps) for row in attacked})
        lines = [
            Line(eps, value, base | _by_attack(row for row in attacked if row.eps == eps)) for value, eps in budgets
        ]
        judged = [row.masking for row in own if row.masking]
        groups.append(
            Group(
                artefact, base.get(CLEAN), tuple(lines) or (Line(None, 0.0, base),), own,
                max([file.verdict, *(str(one["verdict"]) for one in judged)], key=_badness),
                tuple(dict.fromkeys(str(text) for one in judged for text in one.get("evidence", ()))),
            )
        )  # fmt: skip
    return tuple(groups)


def _by_attack(rows: Iterable[Row]) -> dict[str, Row]:
    """One attack may have run twice with other parameters: the stronger run counts."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.attack not in found or row.top1 < found[row.attack].top1:
            found[row.attack] = row
    return found


def _headline(groups: Sequence[Group], verdict: str) -> Headline:
    worst_rows = [row for group in groups for line in group.lines if (row := line.worst)]
    if not worst_rows:
        first = groups[0] if groups else None
        return Headline(
            artefact=first.artefact if first else None, clean=first.clean if first else None, worst=None,
            verdict=first.verdict if first else verdict, line=None, upper_bound=False, gap=None,
        )  # fmt: skip
    largest = max(row.eps_value for row in worst_rows)
    worst = min((row for row in worst_rows if row.eps_value == largest), key=lambda row: row.top1)
    group = next(group for group in groups if group.artefact == Artefact.of(worst))
    line = next(line for line in group.lines if line.eps == worst.eps)
    return Headline(
        artefact=group.artefact,
        clean=group.clean,
        worst=worst,
        verdict=group.verdict,
        line=line,
        upper_bound=upper_bound(worst, group.verdict),
        gap=_gap(line.fgsm, worst, group.verdict),
    )


def _gap(fgsm: Row | None, worst: Row, verdict: str) -> str | None:
    if fgsm is None:
        return None
    if fgsm.top1 - worst.top1 >= _MUCH_HIGHER:
        return f"plain FGSM says {fgsm.top1:.0%}, the worst case says {worst.top1:.0%}: {_GAP_MEANINGS[verdict]}"
    if (fgsm.zero_gradient_share or 0.0) >= _MUCH_HIGHER:
        return f"plain FGSM found no gradient on {fgsm.zero_gradient_share:.0%} of the images: it did not attack them"
    return None
