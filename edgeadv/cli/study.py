"""``edgeadv study``: the paper's table, pre-trained ImageNet classifiers under FGSM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from edgeadv.reporting.study import FGSM_ALONE, HEADINGS, cells, entries, headline
from edgeadv_runtime.errors import DataError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.study import Study

from ._attacks import EpsList, Unreadable, Workers
from ._backends import open_torch, to_stderr
from ._fields import say
from ._shared import Bar, image_bar, names, need, need_pytorch, wide_console

if TYPE_CHECKING:
    from edgeadv.backends.pytorch import TorchBackend
    from edgeadv_runtime.bundle.bundle import Bundle

IMAGES = 1000


def study(
    arch: Annotated[str, typer.Option(help="Comma-separated torchvision or timm classifiers of ImageNet-1k.")],
    data: Annotated[Path, typer.Option(help="Folder of class folders named by WordNet id, or that has them in val/.")],
    eps: EpsList,
    out: Annotated[Path, typer.Option(help="The folder to make: study.json, study.md and study.html.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Images to choose at random, as many of each class.")] = IMAGES,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice.")] = 0,
    weights: Annotated[
        str, typer.Option(help="default, downloaded from the library's own source; or files: ARCH=FILE,ARCH=FILE.")
    ] = "default",
    weights_map: Annotated[
        str, typer.Option(help="by-name, or by-position for files that have other names.")
    ] = "by-name",
    preprocess: Annotated[
        str | None,
        typer.Option(help="For all: resize=256,crop=224,interp=bicubic; by default what is published with each."),
    ] = None,
    provider: Annotated[str, typer.Option(help="cpu or cuda; there is no fallback.")] = "cpu",
    workers: Workers = 0,
    allow_unreadable: Unreadable = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the classifiers that are not finished.")] = False,
) -> None:
    """Top-1 and top-5 error of pre-trained ImageNet classifiers, without attack and under FGSM.

    FGSM is one step, so its errors are lower bounds; edgeadv evaluate --suite standard gives a worst case.
    """
    need_pytorch()
    need("report")
    from edgeadv.data.datasets import imagenet_classes, open_data
    from edgeadv.workflows.study import make_subjects, run_study

    budgets, classes = Eps.parse_list(eps), imagenet_classes()
    subjects = make_subjects(
        names(arch, option="--arch"), classes, weights=weights, weights_map=weights_map, preprocess=preprocess
    )
    if not data.is_dir():
        raise DataError(f"--data {data} is not a folder: it takes class folders of images, named by WordNet id")
    images = open_data(str(data), split="test").relabel(classes)
    finished = run_study(
        out, subjects=subjects, images=images, n=n, eps=budgets, seed=seed,
        open_reference=lambda bundle: _reference(bundle, provider), resume=resume, allow_unreadable=allow_unreadable,
        workers=workers, bar=_bar,
    )  # fmt: skip
    print_study(finished)
    say(f"written: {out}")


def _reference(bundle: Bundle, provider: str) -> TorchBackend:
    from edgeadv.backends.pytorch import TorchBackend

    backend = open_torch(bundle, provider=provider)
    assert isinstance(backend, TorchBackend)
    return backend


@contextmanager
def _bar(what: str) -> Iterator[Bar | None]:
    to_stderr(f"attacking {what}")
    with image_bar(what) as progress:
        yield progress


def print_study(study: Study) -> None:
    """The table on the terminal, and under it what it is worth and how it was made."""
    found = entries(study)
    table = Table(title=Text(headline(study)), title_justify="left")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if 1 < i < len(HEADINGS) - 1 else "left", no_wrap=True)
    for entry in found:
        for i, line in enumerate(entry.lines):
            table.add_row(
                Text("" if i else entry.title), *map(Text, cells(line)), end_section=i == len(entry.lines) - 1
            )
    console = wide_console(140)
    console.print(table)
    console.print(Text(FGSM_ALONE, style="bold"))
    for entry in found:
        console.print(Text(f"{entry.title}: {entry.judgement}"))
        console.print(Text(f"  {entry.how}"))
    if left_out := max(len(entry.results.data.unreadable) for entry in found):
        console.print(Text(f"{left_out} unreadable images were left out; the file lists them"))
