"""What several commands need: extras, lists, progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeadv_runtime.doctor import EXTRAS
from edgeadv_runtime.errors import InputError, require

ALL = "all"
# extras that are made of others and of what is listed for themselves
_INCLUDES = {"export": ("train", "ort")}
# columns, longer than any path or sentence
_UNBROKEN = 100_000
Bar = Callable[[int, int], None]


def need(extra: str) -> None:
    """Stop with the sentence that says what to install, if a module of ``extra`` is missing."""
    for part in (*_INCLUDES.get(extra, ()), extra):
        for distribution in EXTRAS[part]:
            require(distribution.replace("-", "_"), extra=extra)


def need_pytorch() -> None:
    """The same of ``train``, for commands that attack: settle PyTorch's memory. Never where latency or memory is measured."""
    need("train")
    from edgeadv.models.allocator import keep_freed_memory

    keep_freed_memory()


def names(text: str, *, option: str) -> list[str]:
    """Read a comma-separated list."""
    found = [part.strip() for part in text.split(",")]
    if "" in found or len(set(found)) != len(found):
        raise InputError(f"{option} {text!r} is a comma-separated list without gaps or repetitions")
    return found


def wide_console(width: int = 0) -> Console:
    """Standard output for a table: at least ``width`` columns on a terminal; in a file or a pipe no line is broken."""
    console = Console()
    console.width = max(console.width, width) if console.is_terminal else _UNBROKEN
    return console


def nobody_reads() -> None:
    """Give up standard output: its reader left, as ``head`` does, and nothing more can be said to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def image_bar(description: str) -> Iterator[Bar | None]:
    """A bar of images done, on standard error if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
