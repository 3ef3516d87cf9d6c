"""What a study says: one table for the terminal, Markdown and the page, and curves. Every figure comes from the counts
of one row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeadv_runtime.evaluation.verdict import BADGES
from edgeadv_runtime.files import write_bytes
from edgeadv_runtime.records.evidence import Verdict
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, Row
from edgeadv_runtime.records.statistics import wilson_interval
from edgeadv_runtime.records.study import Study, StudyArchitecture
from edgeadv_runtime.records.suites import FGSM

from . import charts
from .page import fill

FGSM_ALONE = (
    "FGSM alone gives an upper bound on robust accuracy, and so a lower bound on the error under attack: "
    "`edgeadv evaluate` with the suite standard gives a worst case."
)
HEADINGS = ("architecture", "eps", "top-1 error", "95% interval", "top-5 error", "95% interval", "n", "masking check")
_TEMPLATE = "study.html.j2"


@dataclass(frozen=True)
class Share:
    """A share of the scored images that are wrong, with its Wilson 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def wrong(cls, correct: int | None, n: int) -> Share | None:
        """The error behind a count of right answers; None where there is none."""
        return None if correct is None else cls((n - correct) / n, *wilson_interval(n - correct, n))

    @property
    def interval(self) -> tuple[float, float]:
        """Both bounds."""
        return self.low, self.high


@dataclass(frozen=True)
class Line:
    """One classifier at one budget: a line of the table.

    Attributes:
        eps: as written; None without attack.
        eps_value: in pixels of [0, 1]; 0 without attack.
        top1: error of the first label.
        top5: error of the first five labels; None for five classes or fewer.
        n: scored images.
        not_attacked: share of the images without a gradient to follow; None without attack, or where unknown.
        verdict: of the masking check; None without attack.
    """

    eps: str | None
    eps_value: float
    top1: Share
    top5: Share | None
    n: int
    not_attacked: float | None
    verdict: str | None

    @classmethod
    def of(cls, row: Row) -> Line:
        """What ``row`` counts."""
        top1 = Share.wrong(row.correct_top1, row.n)
        assert top1 is not None
        attacked = row.attack != CLEAN
        return cls(
            row.eps if attacked else None,
            row.eps_value,
            top1,
            Share.wrong(row.correct_top5, row.n),
            row.n,
            row.zero_gradient_share if attacked else None,
            row.verdict if attacked else None,
        )

    @property
    def budget(self) -> str:
        """The budget in words."""
        return "no attack" if self.eps is None else self.eps

    @property
    def check(self) -> str:
        """The verdict, and what of the images FGSM could not attack."""
        hidden = f", {self.not_attacked:.1%} not attacked" if self.not_attacked else ""
        return f"{self.verdict or ''}{hidden}"


@dataclass(frozen=True)
class Entry:
    """One classifier of a study.

    Attributes:
        title: its name.
        lines: without attack, then by eps.
        how: preprocessing, weights and what ran it, in words.
        verdict: of the masking check.
        reasons: what it rests on.
        results: the whole of what was measured.
    """

    title: str
    lines: tuple[Line, ...]
    how: str
    verdict: Verdict
    reasons: tuple[str, ...]
    results: Results

    @property
    def judgement(self) -> str:
        """The verdict with its reasons, in one sentence."""
        return f"{BADGES[self.verdict]}: {'; '.join(self.reasons)}" if self.reasons else BADGES[self.verdict]


def entries(study: Study) -> tuple[Entry, ...]:
    """The classifiers of a study, in the order they were asked for."""
    return tuple(
        _entry(subject, results) for subject, results in zip(study.settings.architectures, study.results, strict=False)
    )


def _entry(subject: StudyArchitecture, results: Results) -> Entry:
    rows = [row for row in results.rows if row.attack in (CLEAN, FGSM)]
    rows.sort(key=lambda row: row.eps_value)
    reasons = [item.text.rstrip(".") for item in results.masking.evidence if item.matters]
    return Entry(
        subject.name,
        tuple(Line.of(row) for row in rows),
        _how(subject, rows[0]),
        results.masking.verdict,
        tuple(reasons),
        results,
    )


def _how(subject: StudyArchitecture, row: Row) -> str:
    steps = subject.preprocess
    size = "size kept" if steps.resize is None else f"shorter side {steps.resize}, {steps.interpolation}"
    origin = "the published transform" if subject.preprocess_published else "stated by the user"
    mean, std = (" ".join(f"{x:g}" for x in numbers) for numbers in (subject.mean, subject.std))
    ran = f"{row.artefact}, {row.provider}, {row.device}"
    return f"{size}, centre {steps.crop} ({origin}), mean {mean}, std {std}; weights {subject.weights}; {ran}"


def headline(study: Study) -> str:
    """What was asked of whom."""
    data, count = study.settings.data, len(study.results)
    images = f"{data.n} images of {data.name} ({data.split}), chosen at random, seed {study.settings.seed}"
    return f"FGSM on {count} classifier{'s' if count > 1 else ''}: {images}"


def markdown(study: Study) -> str:
    """The table and its footer as Markdown."""
    found = entries(study)
    lines = [f"# {headline(study)}", "", "| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * 5 + "---|"]
    for entry in found:
        lines += ["| " + " | ".join((entry.title, *cells(line))) + " |" for line in entry.lines]
    lines += ["", FGSM_ALONE, ""]
    lines += [f"- **{entry.title}**: {entry.judgement}." for entry in found]
    lines += ["", "Errors are shares of all n images; intervals are Wilson 95%; eps is in pixels of [0, 1].", ""]
    lines += [f"- {entry.title}: {entry.how}." for entry in found]
    left_out = list(_left_out(found))
    lines += ["", "Unreadable, left out:", "", *(f"- {text}" for text in left_out)] if left_out else []
    return "\n".join(lines) + "\n"


def cells(line: Line) -> tuple[str, ...]:
    """The cells of one line after its architecture, as :data:`HEADINGS` has them."""
    return (line.budget, *_cells(line.top1), *_cells(line.top5), str(line.n), line.check)


def _cells(share: Share | None) -> tuple[str, str]:
    return ("–", "–") if share is None else (f"{share.value:.1%}", f"{100 * share.low:.1f}–{100 * share.high:.1f}%")


def _left_out(found: tuple[Entry, ...]) -> Iterator[str]:
    """Unreadable images once each, though every classifier met them."""
    yield from dict.fromkeys(message for entry in found for message in entry.results.data.unreadable)


def page(study: Study) -> str:
    """The table and the curves as one HTML page: no script, no network.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    found = entries(study)
    eps_limit = max(line.eps_value for entry in found for line in entry.lines)
    return fill(
        _TEMPLATE,
        title="FGSM on pre-trained classifiers",
        subjects=[entry.title for entry in found],
        created=study.created,
        study=study,
        entries=found,
        headline=headline(study),
        fgsm_alone=FGSM_ALONE.split("`"),
        left_out=list(_left_out(found)),
        curves=[(entry, _curves(entry, eps_limit)) for entry in found],
    )


def _curves(entry: Entry, eps_limit: float) -> str:
    series = []
    for kind in ("top-1", "top-5"):
        shares = [(line, share) for line in entry.lines if (share := line.top1 if kind == "top-1" else line.top5)]
        if shares:
            places = [(line.eps_value, share.value, share.interval) for line, share in shares]
            series.append((f"e-{kind}", f"{kind} error", places))
    budgets = [(line.eps_value, line.eps) for line in entry.lines if line.eps is not None]
    return charts.error_curves(series, budgets, title=f"Error against eps: {entry.title}", eps_limit=eps_limit)


def write_pages(study: Study, folder: Path) -> None:
    """Write ``study.md`` and ``study.html``.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        StorageError: they cannot be written.
    """
    write_bytes(folder / "study.md", markdown(study).encode())
    write_bytes(folder / "study.html", page(study).encode())
