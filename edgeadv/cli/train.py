"""``edgeadv train`` and ``edgeadv distill``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeadv_runtime.bundle.bundle import check_replaceable
from edgeadv_runtime.errors import InputError, StorageError
from edgeadv_runtime.files import ensure_writable
from edgeadv_runtime.records.eps import Eps

from ..workflows.extras import need
from ._fields import say
from ._training import TrainOptions, with_options
from .export import export_run

if TYPE_CHECKING:
    from edgeadv.training.recipes import Defence
    from edgeadv.training.runs import Run

MASKING_NOTE = (
    "Defensive distillation hides gradients: plain FGSM accuracy rises, a margin attack does not notice. "
    "Read the worst case and the masking verdict of `edgeadv evaluate`, not the FGSM column (docs/robustness.md)."
)

_LEAST_OF_A_TEACHER = 0.05
_OF_TRAIN = ("undefended", "at-fgsm", "n-fgsm", "at-pgd", "trades")

AtEps = Annotated[
    str | None,
    typer.Option("--at-eps", help="Budget of the recipes with adversarial images, e.g. 8/255, in pixels of [0, 1]."),
]


@with_options
def train(
    *,
    weights: Annotated[str, typer.Option(help="none, default, or a file to start from.")] = "none",
    weights_map: Annotated[str, typer.Option(help="by-name, or by-position if the file has other names.")] = "by-name",
    recipe: Annotated[
        str, typer.Option(help="undefended, or adversarial training: at-fgsm, n-fgsm (fast), at-pgd or trades.")
    ] = "undefended",
    at_eps: AtEps = None,
    at_steps: Annotated[
        int | None, typer.Option("--at-steps", help="Steps per image, by default 7 of at-pgd, 10 of trades.")
    ] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="trades: weight of robustness, by default 6.")] = None,
    label_smoothing: Annotated[
        float, typer.Option("--label-smoothing", help="Share of a label spread over all classes.")
    ] = 0.0,
    options: TrainOptions,
) -> None:
    """Train a classifier: the undefended network that every defence is compared with, or one on adversarial images."""
    need("train")
    from edgeadv.training import recipes as runs

    if weights_map not in ("by-name", "by-position"):
        raise InputError(f"--weights-map {weights_map!r} is not by-name or by-position")
    defence = _defence(recipe, at_eps, at_steps, beta, label_smoothing)
    with options.task() as task:
        architecture = task.architecture(options.arch, upsample=options.upsample)
        run = runs.train(
            task, architecture, options.out, weights=weights, weights_map=weights_map, defence=defence,  # type: ignore[arg-type]
        )  # fmt: skip
    if task.team.first:
        _say(run)


@with_options
def distill(
    *,
    recipe: Annotated[
        str, typer.Option(help="papernot or soft-label, the paper's; ard or rslad, which make the student robust.")
    ] = "papernot",
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-T", help="Softmax temperature of the training; by default the recipe's own."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the teacher's part; by default the recipe's own.")
    ] = None,
    at_eps: AtEps = None,
    at_steps: Annotated[
        int | None, typer.Option("--at-steps", help="ard, rslad: steps per image, by default 10.")
    ] = None,
    teacher_arch: Annotated[
        str | None, typer.Option(help="The teacher's architecture; by default the student's. Not for papernot.")
    ] = None,
    teacher_recipe: Annotated[
        str | None,
        typer.Option(help="ard, rslad: how the teacher is trained: trades (default), at-pgd, n-fgsm or at-fgsm."),
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="A finished run to use as the teacher.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Export the student too, in fp32 and fp16, into this bundle.")
    ] = None,
    options: TrainOptions,
) -> None:
    """Distil a teacher into a student; the student is the run.

    papernot is defensive distillation (Papernot et al. 2016). It hides gradients and does not make a network robust; it is
    here to be measured. ard and rslad train the student on adversarial images with a robust teacher's labels.
    """
    need("train")
    from edgeadv.training import recipes as runs
    from edgeadv.training.robust_distillation import STEPS
    from edgeadv.training.runs import Run

    if recipe not in runs.DEFAULTS:
        elsewhere = "; edgeadv train has that one" if recipe in _OF_TRAIN else ""
        raise InputError(f"--recipe {recipe!r} is not one of {', '.join(runs.DEFAULTS)}{elsewhere}")
    if teacher_recipe not in (None, *_OF_TRAIN):
        raise InputError(f"--teacher-recipe {teacher_recipe!r} is not one of {', '.join(_OF_TRAIN[1:])}")
    if recipe == "papernot" and alpha is not None:
        raise InputError("papernot has no --alpha: its student never sees the hard labels; use --recipe soft-label")
    if teacher is not None and (teacher_arch is not None or teacher_recipe is not None):
        raise InputError("--teacher is a finished run: leave --teacher-arch and --teacher-recipe out")
    robust = recipe in runs.ROBUST
    if robust and at_eps is None:
        raise InputError(f"{recipe} needs --at-eps, e.g. 8/255: there is no budget that suits every data set")
    if not robust and (at_eps is not None or at_steps is not None or teacher_recipe is not None):
        raise InputError("--at-eps, --at-steps and --teacher-recipe belong to --recipe ard and rslad: leave them out")
    if teacher_recipe == "undefended":
        raise InputError(
            f"--teacher-recipe undefended has no robustness for {recipe} to hand on: at-fgsm, n-fgsm, at-pgd or trades"
        )
    if export is not None:
        need("export")
        check_replaceable(export)
        if export.exists() and not options.resume:
            raise InputError(f"{export} exists: choose another --export")
        try:
            ensure_writable(export.absolute().parent)
        except StorageError as error:
            raise InputError(f"--export {export}: {error}") from error
    with options.task() as task:
        run = runs.distill(
            task, task.architecture(options.arch, upsample=options.upsample), options.out, recipe=recipe,  # type: ignore[arg-type]
            temperature=temperature, alpha=alpha, eps=None if at_eps is None else Eps.parse(at_eps),
            steps=STEPS if at_steps is None else at_steps, teacher=None if teacher is None else Run.open(teacher),
            teacher_architecture=None if teacher_arch is None else task.architecture(teacher_arch, upsample=options.upsample),
            teacher_defence=None if teacher_recipe is None else _defence(teacher_recipe, at_eps, None, None, 0.0),
        )  # fmt: skip
    if not task.team.first:
        return
    _say(run)
    stood = run.info["recipe"].get("teacher_worst_case")
    if stood is not None and stood < _LEAST_OF_A_TEACHER:
        say(
            f"warning: the teacher stood {stood:.1%} of the images held out: it has little robustness to hand on",
            err=True,
        )
    if not robust:
        say(MASKING_NOTE, err=True)
    if export is not None and export.exists():
        say(f"{export} is there already, and left as it is", err=True)
    elif export is not None:
        export_run(run.path, export, data_root=options.data_root)


def _defence(recipe: str, eps: str | None, steps: int | None, beta: float | None, smoothing: float) -> Defence | None:
    from edgeadv.training.adversarial import AdversarialTraining, Trades, check_label_smoothing

    one_step = {"at-fgsm": AdversarialTraining.fgsm, "n-fgsm": AdversarialTraining.n_fgsm}
    check_label_smoothing(smoothing)
    if recipe not in _OF_TRAIN:
        elsewhere = " (edgeadv distill has papernot, soft-label, ard and rslad)"
        raise InputError(f"recipe {recipe!r} is not undefended, at-fgsm, n-fgsm, at-pgd or trades{elsewhere}")
    if beta is not None and recipe != "trades":
        raise InputError("--beta belongs to --recipe trades: leave it out")
    if recipe == "undefended":
        if eps is not None or steps is not None or smoothing:
            raise InputError(
                "--at-eps, --at-steps and --label-smoothing belong to adversarial training: add --recipe at-pgd, n-fgsm, "
                "at-fgsm or trades, or leave them out"
            )
        return None
    if eps is None:
        raise InputError(f"{recipe} needs --at-eps, e.g. 8/255: there is no budget that suits every data set")
    if recipe in one_step and steps is not None:
        raise InputError(f"{recipe} takes one step: leave --at-steps out, or use --recipe at-pgd")
    budget, given = Eps.parse(eps), {} if steps is None else {"steps": steps}
    if recipe in one_step:
        return one_step[recipe](budget).smoothed(smoothing)
    if recipe == "trades":
        return Trades.at(budget, **given, beta=6.0 if beta is None else beta).smoothed(smoothing)
    return AdversarialTraining.pgd(budget, **given).smoothed(smoothing)


def _say(run: Run) -> None:
    metrics = run.info["stages"][-1]
    low, high = metrics["test_accuracy_ci95"]
    say(
        f"{run.title}: test accuracy {metrics['test_accuracy']:.1%} [{low:.1%}, {high:.1%}] of {metrics['test_images']} images"
    )
    if stopped := metrics.get("stopped"):
        say(f"warning: {stopped}", err=True)
    if "kept_epoch" in metrics:
        kept = metrics["epochs"][metrics["kept_epoch"] - 1]
        say(
            f"epoch {metrics['kept_epoch']} of {len(metrics['epochs'])} is kept: of {kept['holdout_images']} training images held out "
            f"{kept['holdout_worst_case']:.1%} stood PGD (10 steps); measure what it is worth with `edgeadv evaluate`"
        )
        if kept["holdout_labels"] == 1:
            say(
                "warning: it gives one label to every image held out, and has learnt nothing: train longer, on more images, or with another --lr",
                err=True,
            )
    size = run.preprocess
    how = "as they are" if size.resize is None else f"resized to {size.resize}"
    say(f"images were {how} and cropped to {size.crop} pixels (--preprocess)", err=True)
    if lost := metrics["unreadable"]:
        say(f"warning: {len(lost)} training images are unreadable and were left out, e.g. {lost[0]}", err=True)
    say(str(run.path))
