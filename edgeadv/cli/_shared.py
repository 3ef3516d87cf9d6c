"""What several commands need: lists, wide tables, progress bars."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.errors import plain

from ._fields import say

VERDICT = "masking check"
# columns, longer than any path or sentence
_UNBROKEN = 100_000
# of a table where no terminal says how many
_TABLE = 100
# between two lines of progress where there is no terminal
_PAUSE_S = 10.0
# between two columns
_GAP = 2
# "83.7% [79.5%, 87.2%]", "<0.01" or nothing
_FIGURE = re.compile(r"[-+<\d.,%\[\]/ e]*")


def keep_memory() -> None:
    """Fix what a command that attacks does with freed memory; never where latency or memory is measured."""
    from edgeadv.models.allocator import keep_freed_memory

    keep_freed_memory()


def cell(text: str, style: str = "") -> Text:
    """``text`` for rich, as it is: what looks like markup is none, and nothing in it moves a cursor or turns letters
    round."""
    return Text(plain(text), style=style)


def wide_console() -> Console:
    """Standard output: lines as wide as a terminal is; in a file or a pipe no line is broken."""
    console = Console()
    if not console.is_terminal:
        console.width = _UNBROKEN
    return console


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    bold: Sequence[str] = (),
    title: str | None = None,
) -> Callable[..., None]:
    """Print a table, and give back what prints a line under it: ``tell(text, style)``.

    It is as wide as the terminal, and 100 columns in a file or a pipe. Cells are folded between words to fit, figures
    never; where that is not enough each row becomes a paragraph. Columns without any cell are left out.

    Args:
        headings: of the columns.
        rows: cells, as they are: what looks like rich's markup is none. One without cells ends a section; at the end of
            one cells may lack.
        left: how many columns begin at the left whatever is in them; later ones end at the right if they hold figures.
        bold: headings of columns in bold.
        title: above the table.
    """
    console, listed = wide_console(), [[*row, *[""] * (len(headings) - len(row))] if row else [] for row in rows]
    columns = [_Column.of(heading, [row[i] for row in listed if row], i < left) for i, heading in enumerate(headings)]
    kept = [i for i, column in enumerate(columns) if column.widest]
    widths = _widths([columns[i] for i in kept], console.width if console.is_terminal else _TABLE)
    if title is not None:
        console.print(cell(title, "italic"))
    if widths is None:
        for row in filter(None, listed):
            console.print(cell("; ".join(f"{headings[i]}: {row[i]}" for i in kept if row[i])))
        return partial(_tell, console)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, width in zip(kept, widths, strict=True):
        style = "bold" if headings[i] in bold else None
        table.add_column(headings[i], justify="right" if columns[i].figures else "left", style=style, width=width)
    for row in listed:
        if row:
            table.add_row(*(cell(row[i]) for i in kept))
        else:
            table.add_section()
    console.print(table, width=sum(widths) + _GAP * len(widths))
    return partial(_tell, console)


@dataclass(frozen=True)
class _Column:
    """How a column may be folded.

    Attributes:
        figures: it holds figures, which are never folded.
        narrowest: columns that its longest word, or figure, takes.
        widest: columns that its longest cell takes; 0 if all are empty.
    """

    figures: bool
    narrowest: int
    widest: int

    @classmethod
    def of(cls, heading: str, cells: Sequence[str], words: bool) -> _Column:
        """What these cells need; ``words`` says that they are no figures, whatever they look like."""
        widest = max(map(len, cells), default=0)
        figures = not words and all(map(_FIGURE.fullmatch, cells))
        pieces = [*heading.split(), *(cells if figures else " ".join(cells).split())]
        return cls(figures, max(map(len, pieces)), widest and max(widest, len(heading)))


def _widths(columns: Sequence[_Column], total: int) -> list[int] | None:
    """The width of each column, which together fit; None if they do not."""
    widths = [column.narrowest for column in columns]
    for _ in range(free := total - sum(widths) - _GAP * (len(widths) - 1)):
        wanted = [column.widest - width for column, width in zip(columns, widths, strict=True)]
        if (most := max(wanted, default=0)) <= 0:
            break
        widths[wanted.index(most)] += 1
    return widths if free >= 0 else None


def _tell(console: Console, text: str, style: str = "") -> None:
    console.print(cell(text, style))


def now_and_then() -> Callable[[], bool]:
    """What says, when asked, whether ten seconds have passed since it last said so."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        passed = time.monotonic() - last >= _PAUSE_S
        last = time.monotonic() if passed else last
        return passed

    return due


def _in_lines() -> Progress:
    due = now_and_then()

    def update(done: int, total: int, text: str) -> None:
        if due():
            say(f"{plain(text)}: {done} of {total}", err=True)

    return update


@contextmanager
def terminal_bar(*columns: ProgressColumn, **options: Any) -> Iterator[RichProgress | None]:
    """A bar on standard error, and these columns behind it; None where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    begin = (TextColumn("{task.description}", markup=False), BarColumn())
    with RichProgress(*begin, *columns, console=console, **options) as bar:
        yield bar


@contextmanager
def progress_bar(*, threaded: bool = True) -> Iterator[Progress]:
    """A bar on standard error if that is a terminal, else a line every ten seconds; without ``threaded`` the bar is
    drawn only when it is called."""
    left = (TimeRemainingColumn(),) if threaded else ()
    with terminal_bar(MofNCompleteColumn(), *left, auto_refresh=threaded, transient=True) as bar:
        if bar is None:
            yield _in_lines()
            return
        task = bar.add_task("opening", total=None)

        def update(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=plain(text), refresh=not threaded)

        yield update
