"""What several commands need: lists, wide tables, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.errors import plain

VERDICT = "masking check"
# columns, longer than any path or sentence
_UNBROKEN = 100_000


def keep_memory() -> None:
    """Fix what a command that attacks does with freed memory; never where latency or memory is measured."""
    from edgeadv.models.allocator import keep_freed_memory

    keep_freed_memory()


def cell(text: str, style: str = "") -> Text:
    """``text`` for rich, as it is: what looks like markup is none, and nothing in it moves a cursor or turns letters
    round."""
    return Text(plain(text), style=style)


def wide_console(width: int = 0) -> Console:
    """Standard output for a table: at least ``width`` columns on a terminal; in a file or a pipe no line is broken."""
    console = Console()
    console.width = max(console.width, width) if console.is_terminal else _UNBROKEN
    return console


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    bold: Sequence[str] = (),
    title: str | None = None,
    width: int = 0,
) -> Callable[..., None]:
    """Print a table, and give back what prints a line under it: ``tell(text, style)``.

    Args:
        headings: of the columns.
        rows: cells, as they are: what looks like rich's markup is none. One without cells ends a section.
        left: how many columns begin at the left, as verdicts do; figures end at the right.
        bold: headings of columns in bold.
        title: above the table.
        width: as :func:`wide_console` takes it: rich would cut figures to fit a narrower terminal.
    """
    table = Table(title=None if title is None else cell(title), title_justify="left")
    for i, heading in enumerate(headings):
        style = "bold" if heading in bold else None
        justify: JustifyMethod = "left" if i < left or heading == VERDICT else "right"
        table.add_column(heading, justify=justify, style=style, overflow="fold")
    for row in rows:
        if row:
            table.add_row(*map(cell, row))
        else:
            table.add_section()
    console = wide_console(width)
    console.print(table)

    def tell(text: str, style: str = "") -> None:
        console.print(cell(text, style))

    return tell


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
def progress_bar(*, threaded: bool = True) -> Iterator[Progress | None]:
    """A bar on standard error if that is a terminal; without ``threaded`` it is drawn only when it is called."""
    left = (TimeRemainingColumn(),) if threaded else ()
    with terminal_bar(MofNCompleteColumn(), *left, auto_refresh=threaded, transient=True) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("opening", total=None)

        def update(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=plain(text), refresh=not threaded)

        yield update
