"""``edgeadv study``: the paper's table, pre-trained ImageNet classifiers under FGSM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgeadv.reporting.study import FGSM_ALONE, HEADINGS, cells, entries, headline
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.records.study import Study

from ..workflows.pretrained import IMAGES, Pretrained
from ..workflows.pretrained import study as run_study
from ._arguments import EpsList, at_least
from ._fields import say
from ._shared import keep_memory, print_table, progress_bar


@dataclass(kw_only=True)
class _Study:
    arch: Annotated[str, "Comma-separated torchvision or timm classifiers of ImageNet-1k."]
    data: Annotated[Path, "Folder of class folders named by WordNet id, or that has them in val/."]
    eps: EpsList
    out: Annotated[Path, "The folder to make: study.json, study.md and study.html."]
    pretrained: Pretrained
    n: Annotated[int, typer.Option("--n", min=1, help="Images to choose at random, as many of each class.")] = IMAGES
    seed: Annotated[int, at_least(0, "Of their choice.")] = 0
    provider: Annotated[str, "cpu or cuda; there is no fallback."] = "cpu"
    workers: Annotated[int, at_least(0, "Processes that decode images.")] = 0
    allow_unreadable: Annotated[bool, "Accept more than 1% of unreadable images."] = False
    resume: Annotated[bool, "Go on with the classifiers that are not finished."] = False


def study(asked: _Study) -> None:
    """Top-1 and top-5 error of pre-trained ImageNet classifiers, without attack and under FGSM.

    FGSM is one step, so its errors are lower bounds; edgeadv evaluate --suite standard gives a worst case.
    """
    keep_memory()
    with progress_bar() as progress:
        finished = run_study(**vars(asked), progress=_lines(progress))
    print_study(finished)
    say(f"written: {asked.out}")


def _lines(bar: Progress | None) -> Progress:
    """A line on standard error when a classifier begins, beside the bar."""

    def progress(done: int, total: int, what: str) -> None:
        if not done:
            say(f"attacking {what}", err=True)
        if bar is not None:
            bar(done, total, what)

    return progress


def print_study(study: Study) -> None:
    """The table on the terminal, and under it what it is worth and how it was made."""
    found = entries(study)
    rows: list[list[str]] = []
    for entry in found:
        rows += [["" if i else entry.title, *cells(line)] for i, line in enumerate(entry.lines)]
        rows.append([])
    tell = print_table(HEADINGS, rows, left=2, title=headline(study))
    tell(FGSM_ALONE, "bold")
    for entry in found:
        tell(f"{entry.title}: {entry.judgement}")
        tell(f"  {entry.how}")
    if left_out := max(len(entry.results.data.unreadable) for entry in found):
        tell(f"{left_out} unreadable images were left out; the file lists them")
