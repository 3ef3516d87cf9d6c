"""How ``edgeadv train`` and ``edgeadv distill`` tell where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import TextColumn, TimeRemainingColumn

from ._fields import say
from ._shared import now_and_then, terminal_bar

if TYPE_CHECKING:
    from edgeadv.training.loop import Progress, Report


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Loss, accuracy, speed and time left: a bar on a terminal, else on standard error a line for each epoch, and one
    every ten seconds of a longer one."""
    with terminal_bar(TextColumn("{task.fields[figures]}"), TimeRemainingColumn()) as bar:
        if bar is None:
            yield _in_lines()
            return
        tasks: dict[str, Any] = {}

        def report(p: Progress) -> None:
            if p.stage not in tasks:
                tasks[p.stage] = bar.add_task(p.stage, total=p.epochs * p.steps, figures="")
            done = (p.epoch - 1) * p.steps + p.step
            bar.update(tasks[p.stage], completed=done, figures=f"epoch {p.epoch}/{p.epochs} {_figures(p)}")

        yield report


def _in_lines() -> Report:
    due = now_and_then()

    def report(p: Progress) -> None:
        # what is due at the end of an epoch is said by its line
        if due() or p.measured is not None:
            step = "" if p.measured is not None else f", step {p.step} of {p.steps}"
            say(f"{p.stage} epoch {p.epoch}/{p.epochs}{step}: {_figures(p)}", err=True)

    return report


def _figures(p: Progress) -> str:
    test = "" if p.test_accuracy is None else f", test {p.test_accuracy:.1%}"
    held_out = "" if p.worst_case is None else f", held-out worst case {p.worst_case:.1%}"
    waiting = f", {p.waiting:.0%} of it waiting for data"
    return f"loss {p.loss:.4f}, accuracy {p.accuracy:.1%}{test}{held_out}, {p.images_per_s:.0f} images/s{waiting}"
