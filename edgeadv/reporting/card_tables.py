"""What a card's page and its Markdown are made of: sections of tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeadv_runtime.records.about import ScoredData
from edgeadv_runtime.records.card import CardSource, Figure, Sourced

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a text, what stands small beside it, and whether the text is a verdict."""

    text: str
    beside: str = ""
    verdict: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headings: of the columns.
        rows: cells, as many.
        words: how many of the columns, from the left, hold words and not figures.
        title: above it.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    title: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a card.

    Attributes:
        key: its anchor.
        title: its heading.
        lead: a sentence below that.
        tables: of figures, or of terms and what they are.
        points: sentences in a list.
        code: lines of a shell.
        files: those that say all this.
    """

    key: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    files: tuple[CardSource, ...] = ()


def span(bounds: tuple[float, float]) -> str:
    """An interval of a share."""
    return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}%"


def measured(figure: Figure | None, *, at_most: bool = False) -> Cell:
    """A share with its interval."""
    if figure is None:
        return Cell(NOT_MEASURED)
    return Cell(f"{'≤ ' if at_most else ''}{figure.share:.1%}", span(figure.ci95))


def data_name(data: ScoredData) -> str:
    """Data set and split."""
    return f"{data.name} ({data.split})" if data.split else data.name


def files_of(said: Sequence[Sourced]) -> tuple[CardSource, ...]:
    """The files that say something, each once."""
    return tuple(dict.fromkeys(each.source for each in said))
