"""What a study says: one table for the terminal, Markdown and the page, and curves. Every figure comes from the counts
of one row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from edgeadv_runtime.evaluation.verdict import BADGES
from edgeadv_runtime.files import write_bytes
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, Row
from edgeadv_runtime.records.statistics import wilson_interval
from edgeadv_runtime.records.study import Study, StudyArchitecture
from edgeadv_runtime.records.suites import FGSM

from . import charts
from .page import fill, interval

FGSM_ALONE = (
    "FGSM alone gives an upper bound on robust accuracy, and so a lower bound on the error under attack: "
    "`edgeadv evaluate` with the suite standard gives a worst case."
)
HEADINGS = ("architecture", "eps", "top-1 error", "95% interval", "top-5 error", "95% interval", "n", "masking check")
_TEMPLATE = "study.html.j2"


class Share(NamedTuple):
    """A share of the scored images that are wrong, with its Wilson 95% interval."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def wrong(cls, correct: int, n: int) -> Share:
        """The error behind a count of right answers."""
        return cls((n - correct) / n, wilson_interval(n - correct, n))


@dataclass(frozen=True)
class Line:
    """One classifier at one budget: a line of the table."""

    row: Row

    @property
    def attacked(self) -> bool:
        """Whether there is a budget."""
        return self.row.attack != CLEAN

    @property
    def top1(self) -> Share:
        """Error of the first label."""
        return Share.wrong(self.row.correct_top1, self.row.n)

    @property
    def top5(self) -> Share | None:
        """Error of the first five labels; None for five classes or fewer."""
        return None if self.row.correct_top5 is None else Share.wrong(self.row.correct_top5, self.row.n)

    @property
    def budget(self) -> str:
        """The budget in words."""
        return self.row.eps if self.attacked else "no attack"

    @property
    def check(self) -> str:
        """The verdict, and what of the images FGSM could not attack; nothing without attack."""
        if not self.attacked:
            return ""
        hidden = self.row.zero_gradient_share
        return f"{self.row.verdict}{f', {hidden:.1%} not attacked' if hidden else ''}"


@dataclass(frozen=True)
class Entry:
    """One classifier of a study.

    Attributes:
        subject: what was asked for.
        results: the whole of what was measured.
    """

    subject: StudyArchitecture
    results: Results

    @property
    def title(self) -> str:
        """Its name."""
        return self.subject.name

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Without attack, then by eps."""
        rows = [row for row in self.results.rows if row.attack in (CLEAN, FGSM)]
        return tuple(Line(row) for row in sorted(rows, key=lambda row: row.eps_value))

    @property
    def how(self) -> str:
        """Preprocessing, weights and what ran it, in words."""
        subject, steps, row = self.subject, self.subject.preprocess, self.lines[0].row
        origin = "the published transform" if subject.preprocess_published else "stated by the user"
        mean, std = (" ".join(f"{x:g}" for x in numbers) for numbers in (subject.mean, subject.std))
        ran = f"{row.artefact}, {row.provider}, {row.device}"
        return f"{steps} ({origin}), mean {mean}, std {std}; weights {subject.weights}; {ran}"

    @property
    def reasons(self) -> str:
        """What the verdict of the masking check rests on; empty for nothing."""
        return "; ".join(item.text.rstrip(".") for item in self.results.masking.evidence if item.matters)

    @property
    def judgement(self) -> str:
        """The verdict with its reasons, in one sentence."""
        return BADGES[self.results.masking.verdict] + (f": {self.reasons}" if self.reasons else "")


def entries(study: Study) -> tuple[Entry, ...]:
    """The classifiers of a study, in the order they were asked for."""
    return tuple(map(Entry, study.settings.architectures, study.results))


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
    return (line.budget, *_cells(line.top1), *_cells(line.top5), str(line.row.n), line.check)


def _cells(share: Share | None) -> tuple[str, str]:
    return ("–", "–") if share is None else (f"{share.value:.1%}", interval(share.interval))


def _left_out(found: tuple[Entry, ...]) -> Iterator[str]:
    """Unreadable images once each, though every classifier met them."""
    yield from dict.fromkeys(message for entry in found for message in entry.results.data.unreadable)


def page(study: Study) -> str:
    """The table and the curves as one HTML page: no script, no network.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    found = entries(study)
    eps_limit = max(line.row.eps_value for entry in found for line in entry.lines)
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
        panels=[(entry, _panel(entry, eps_limit)) for entry in found],
    )


def _panel(entry: Entry, eps_limit: float) -> charts.Panel:
    curves = []
    # the first last, so that it lies on top
    for kind in ("top5", "top1"):
        shares = [(line.row.eps_value, *share) for line in entry.lines if (share := getattr(line, kind))]
        if shares:
            name = kind.replace("top", "top-")
            curves.append(charts.Curve(f"e-{name}", f"{name} error", shares, 3.5))
    return charts.Panel(
        f"Error against eps: {entry.title}",
        curves,
        [(curve.css, share) for curve in curves for eps, share in curve.line if not eps],
        [(line.row.eps_value, line.row.eps) for line in entry.lines if line.attacked],
        eps_limit,
    )


def write_pages(study: Study, folder: Path) -> None:
    """Write ``study.md`` and ``study.html``.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        StorageError: they cannot be written.
    """
    write_bytes(folder / "study.md", markdown(study).encode())
    write_bytes(folder / "study.html", page(study).encode())
