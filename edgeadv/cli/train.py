"""``edgeadv train`` and ``edgeadv distill``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..workflows import training
from ..workflows.exporting import check_export, export_after_training
from ..workflows.extras import need
from ..workflows.processes import gpus_may_be_here, is_first, join
from ..workflows.training import DistillOptions, OutOfTimeError, RecipeOptions, TrainConfig, TrainJob
from ._fields import say
from ._training import progress_bar
from .bundle import print_summary

if TYPE_CHECKING:
    from edgeadv.training.runs import Run

MASKING_NOTE = (
    "Defensive distillation hides gradients: plain FGSM accuracy rises, a margin attack does not notice. "
    "Read the worst case and the masking verdict of `edgeadv evaluate`, not the FGSM column "
    "(docs/explanation/masking.md)."
)


@dataclass(kw_only=True)
class _Network:
    data: Annotated[str, "mnist5k, mnist, fashion-mnist, cifar10, cifar100, imagenette, or a folder."]
    arch: Annotated[
        str,
        "A torchvision or timm classifier, e.g. regnet_y_400mf; timm/NAME asks timm only. Or package.module:factory, a "
        "function of your own code that makes a network: that code is imported from the current directory, and run.",
    ]
    out: Annotated[Path, "The run's folder."]
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps", "--at-eps", help="Budget of the recipes with adversarial images, e.g. 8/255, in pixels of [0, 1]."
        ),
    ] = None


@dataclass(kw_only=True)
class _Training(_Network):
    weights: Annotated[str, "none, default, or a file to start from."] = "none"
    weights_map: Annotated[str, "by-name, or by-position if the file has other names."] = "by-name"
    recipe: Annotated[
        str,
        "undefended, or adversarial training: at-fgsm, n-fgsm or fgsm-pgi (fast), at-pgd, trades, adr or awp.",
    ] = "undefended"
    options: RecipeOptions
    config: TrainConfig
    job: TrainJob


def train(asked: _Training) -> None:
    """Train a classifier: the undefended network that every defence is compared with, or one on adversarial images."""
    with _session(), progress_bar() as progress:
        run = training.train(**vars(asked), progress=progress)
    if is_first():
        _print_run(run)


@dataclass(kw_only=True)
class _Distillation(_Network):
    recipe: Annotated[str, "papernot or soft-label, the paper's; ard or rslad, which make the student robust."] = (
        "papernot"
    )
    teacher: Annotated[Path | None, "A finished run to use as the teacher."] = None
    options: DistillOptions
    config: TrainConfig
    job: TrainJob


def distill(
    asked: _Distillation,
    export: Annotated[Path | None, "Export the student too, in fp32 and fp16, into this bundle."] = None,
) -> None:
    """Distil a teacher into a student; the student is the run.

    papernot is defensive distillation (Papernot et al. 2016). It hides gradients and does not make a network robust; it
    is here to be measured. ard and rslad train the student on adversarial images with a robust teacher's labels.
    """
    if export is not None:
        need("export")
        check_export(export, field="export", may_exist=asked.job.resume)
    with _session(), progress_bar() as progress:
        run = training.distill(**vars(asked), progress=progress)
    if not is_first():
        return
    _print_run(run)
    if "eps" not in run.info.recipe:
        say(MASKING_NOTE, err=True)
    if export is not None and export.exists():
        say(f"{export} is there already, and left as it is", err=True)
    elif export is not None:
        print_summary(
            export_after_training(run, export, data_root=asked.job.data_root, progress=partial(say, err=True))
        )


@contextmanager
def _session() -> Iterator[None]:
    """Each process has a GPU of its own where there are any; a pause is a clean end of the command."""
    try:
        with join(own_gpu=gpus_may_be_here(), on_gpu=True):
            yield
    except OutOfTimeError as pause:
        if is_first():
            say(str(pause))
        raise typer.Exit from None


def _print_run(run: Run) -> None:
    stage = run.info.stage
    low, high = stage.test_accuracy_ci95
    say(f"{run.title}: test accuracy {stage.test_accuracy:.1%} [{low:.1%}, {high:.1%}] of {stage.test_images} images")
    if stage.stopped:
        say(f"warning: {stage.stopped}", err=True)
    if stage.kept_epoch is not None:
        kept = stage.kept
        say(
            f"epoch {stage.kept_epoch} of {len(stage.epochs)} is kept: of {kept['holdout_images']} training images "
            f"held out {kept['holdout_worst_case']:.1%} stood PGD (10 steps); measure what it is worth with `edgeadv "
            "evaluate`"
        )
        if kept["holdout_labels"] == 1:
            say(
                "warning: it gives one label to every image held out, and has learnt nothing: train longer, on more "
                "images, or with another --lr",
                err=True,
            )
    say(f"preprocessing: {run.preprocess} (--preprocess)", err=True)
    if unreadable := stage.unreadable:
        say(
            f"warning: {len(unreadable)} training images are unreadable and were left out, e.g. {unreadable[0]}",
            err=True,
        )
    say(str(run.path))
