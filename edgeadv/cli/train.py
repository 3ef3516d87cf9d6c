"""``edgeadv train`` and ``edgeadv distill``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from edgeadv_runtime.bundle import check_replaceable
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.preprocess import Preprocess

from ._processes import Processes, gpus_may_be_here, join
from ._shared import need
from .export import export_run

if TYPE_CHECKING:
    from edgeadv.distill import Defence, Task
    from edgeadv.runs import Run
    from edgeadv.train import Progress, Report

MASKING_NOTE = (
    "Defensive distillation hides gradients: plain FGSM accuracy rises, a margin attack does not notice. "
    "Read the worst case and the masking verdict of `edgeadv evaluate`, not the FGSM column (docs/robustness.md)."
)

_LEAST_OF_A_TEACHER = 0.05

Data = Annotated[
    str, typer.Option("--data", help="mnist5k, mnist, fashion-mnist, cifar10, cifar100, imagenette, or a folder.")
]
Arch = Annotated[
    str, typer.Option("--arch", help="A torchvision or timm classifier, e.g. regnet_y_400mf; timm/NAME asks timm only.")
]
Out = Annotated[Path, typer.Option("--out", help="The run's folder.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training images, of each training.")]
BatchSize = Annotated[int, typer.Option("--batch-size")]
Rate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate; by default 0.02, or 0.01 without BatchNorm.")
]
Decay = Annotated[float, typer.Option("--weight-decay")]
Seed = Annotated[int, typer.Option("--seed")]
Augment = Annotated[str, typer.Option("--augment", help="none or crop-flip.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Train on at most this many images, as many of each class.")]
Workers = Annotated[int, typer.Option("--workers", help="Processes that decode images.")]
Upsample = Annotated[
    int,
    typer.Option("--upsample", help="Whole factor by which the model enlarges its input (AlexNet needs 63 pixels)."),
]
Prep = Annotated[
    str | None,
    typer.Option("--preprocess", help="Written resize=256,crop=224,interp=bicubic; by default the data's own."),
]
Clip = Annotated[float | None, typer.Option("--clip", help="Largest norm of the gradient; by default not clipped.")]
Ema = Annotated[
    float,
    typer.Option("--ema", help="Decay of an average of the weights that is kept in their place; 0 keeps the last."),
]
Holdout = Annotated[
    int | None,
    typer.Option(
        "--holdout", help="Training images held out to choose the epoch; by default 2,000 with adversarial images."
    ),
]
TimeLimit = Annotated[
    str | None, typer.Option("--time-limit", help="Stop cleanly after 9m, 90s or 2h, to be continued with --resume.")
]
AtEps = Annotated[
    str | None,
    typer.Option("--at-eps", help="Budget of the recipes with adversarial images, e.g. 8/255, in pixels of [0, 1]."),
]
Beta = Annotated[float | None, typer.Option("--beta", help="trades: weight of robustness, by default 6.")]
Smoothing = Annotated[float, typer.Option("--label-smoothing", help="Share of a label spread over all classes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what an interrupted run left in --out.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download the data.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Where torchvision keeps its data.")]


def train(
    data: Data,
    arch: Arch,
    out: Out,
    weights: Annotated[str, typer.Option(help="none, default, or a file to start from.")] = "none",
    weights_map: Annotated[str, typer.Option(help="by-name, or by-position if the file has other names.")] = "by-name",
    recipe: Annotated[
        str, typer.Option(help="undefended, or adversarial training: at-fgsm, n-fgsm (fast), at-pgd or trades.")
    ] = "undefended",
    at_eps: AtEps = None,
    at_steps: Annotated[
        int | None, typer.Option("--at-steps", help="Steps per image, by default 7 of at-pgd, 10 of trades.")
    ] = None,
    beta: Beta = None,
    label_smoothing: Smoothing = 0.0,
    epochs: Epochs = 8,
    batch_size: BatchSize = 64,
    lr: Rate = None,
    weight_decay: Decay = 5e-4,
    clip: Clip = None,
    ema: Ema = 0.0,
    holdout: Holdout = None,
    seed: Seed = 0,
    augment: Augment = "none",
    limit: Limit = None,
    workers: Workers = 0,
    upsample: Upsample = 1,
    preprocess: Prep = None,
    time_limit: TimeLimit = None,
    resume: Resume = False,
    download: Download = False,
    data_root: Root = None,
) -> None:
    """Train a classifier: the undefended network that every defence is compared with, or one on adversarial images."""
    need("train")
    from edgeadv import distill as runs

    if weights_map not in ("by-name", "by-position"):
        raise InputError(f"--weights-map {weights_map!r} is not by-name or by-position")
    defence = _defence(recipe, at_eps, at_steps, beta, label_smoothing)
    settings = _settings(epochs, batch_size, lr, weight_decay, seed, augment, limit, workers, clip, ema, holdout)
    deadline = _deadline(time_limit)
    with _together() as team, progress_bar() as report, _pausing(team):
        task = _task(data, data_root, download, preprocess, settings, resume, report, deadline, team)
        architecture = task.architecture(arch, upsample=upsample)
        run = runs.train(
            task, architecture, out, weights=weights, weights_map=weights_map, defence=defence,  # type: ignore[arg-type]
        )  # fmt: skip
    if team.first:
        _say(run)


def distill(
    data: Data,
    arch: Arch,
    out: Out,
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
    epochs: Epochs = 8,
    batch_size: BatchSize = 64,
    lr: Rate = None,
    weight_decay: Decay = 5e-4,
    clip: Clip = None,
    ema: Ema = 0.0,
    holdout: Holdout = None,
    seed: Seed = 0,
    augment: Augment = "none",
    limit: Limit = None,
    workers: Workers = 0,
    upsample: Upsample = 1,
    preprocess: Prep = None,
    time_limit: TimeLimit = None,
    resume: Resume = False,
    download: Download = False,
    data_root: Root = None,
    export: Annotated[
        Path | None, typer.Option(help="Export the student too, in fp32 and fp16, into this bundle.")
    ] = None,
) -> None:
    """Distil a teacher into a student; the student is the run.

    papernot is defensive distillation (Papernot et al. 2016). It hides gradients and does not make a network robust; it is
    here to be measured. ard and rslad train the student on adversarial images with a robust teacher's labels.
    """
    need("train")
    from edgeadv import distill as runs
    from edgeadv.robust_distillation import STEPS
    from edgeadv.runs import Run

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
        if export.exists():
            raise InputError(f"{export} exists: choose another --export")
    settings = _settings(epochs, batch_size, lr, weight_decay, seed, augment, limit, workers, clip, ema, holdout)
    deadline = _deadline(time_limit)
    with _together() as team, progress_bar() as report, _pausing(team):
        task = _task(data, data_root, download, preprocess, settings, resume, report, deadline, team)
        run = runs.distill(
            task, task.architecture(arch, upsample=upsample), out, recipe=recipe,  # type: ignore[arg-type]
            temperature=temperature, alpha=alpha, eps=None if at_eps is None else Eps.parse(at_eps),
            steps=STEPS if at_steps is None else at_steps, teacher=None if teacher is None else Run.open(teacher),
            teacher_architecture=None if teacher_arch is None else task.architecture(teacher_arch, upsample=upsample),
            teacher_defence=None if teacher_recipe is None else _defence(teacher_recipe, at_eps, None, None, 0.0),
        )  # fmt: skip
    if not team.first:
        return
    _say(run)
    stood = run.info["recipe"].get("teacher_worst_case")
    if stood is not None and stood < _LEAST_OF_A_TEACHER:
        typer.echo(
            f"warning: the teacher stood {stood:.1%} of the images held out: it has little robustness to hand on",
            err=True,
        )
    if not robust:
        typer.echo(MASKING_NOTE, err=True)
    if export is not None:
        export_run(run.path, export, data_root=data_root)


def _defence(recipe: str, eps: str | None, steps: int | None, beta: float | None, smoothing: float) -> Defence | None:
    from edgeadv.adversarial import AdversarialTraining, Trades, check_label_smoothing

    one_step = {"at-fgsm": AdversarialTraining.fgsm, "n-fgsm": AdversarialTraining.n_fgsm}
    check_label_smoothing(smoothing)
    if recipe not in ("undefended", *one_step, "at-pgd", "trades"):
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


@contextmanager
def _together() -> Iterator[Processes]:
    """The processes that ``torchrun`` started, each with a GPU of its own where there are any."""
    with join(own_gpu=gpus_may_be_here(), on_gpu=True) as processes:
        yield processes


@contextmanager
def _pausing(team: Processes) -> Iterator[None]:
    """End the command cleanly where training stopped for ``--time-limit``."""
    from edgeadv.train import OutOfTimeError

    try:
        yield
    except OutOfTimeError as pause:
        if team.first:
            typer.echo(str(pause))
        raise typer.Exit from None


def _deadline(text: str | None) -> float | None:
    """Read ``--time-limit`` as a point of ``time.monotonic()``."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if not found or not float(found[1]):
        raise InputError(f"--time-limit {text!r} is not a time such as 90s, 9m or 2h")
    return time.monotonic() + float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _settings(
    epochs: int,
    batch_size: int,
    lr: float | None,
    weight_decay: float,
    seed: int,
    augment: str,
    limit: int | None,
    workers: int,
    clip: float | None,
    ema: float,
    holdout: int | None,
) -> dict[str, Any]:
    return {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "augment": augment, "limit": limit, "workers": workers, "clip": clip, "ema": ema, "holdout": holdout,
    }  # fmt: skip


def _task(
    data: str,
    root: Path | None,
    download: bool,
    preprocess: str | None,
    settings: dict[str, Any],
    resume: bool,
    report: Report,
    deadline: float | None,
    processes: Processes,
) -> Task:
    from edgeadv.data import DEFAULT_ROOT, open_data
    from edgeadv.distill import Task
    from edgeadv.team import Team
    from edgeadv.trainer import TrainConfig

    with processes.in_turn():
        config = TrainConfig(**settings)
        train_images = open_data(data, split="train", root=root or DEFAULT_ROOT, download=download)
        return Task(
            train_images=train_images, test_images=open_data(data, split="test", root=root or DEFAULT_ROOT, download=download),
            preprocess=train_images.preprocess if preprocess is None else Preprocess.parse(preprocess), config=config, resume=resume,
            report=report if processes.first else None, deadline=deadline, team=Team(processes.rank, processes.world),
        )  # fmt: skip


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Loss, accuracy, speed and time left: a bar on a terminal, else one line an epoch on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_epoch
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def report(p: Progress) -> None:
            if p.stage not in tasks:
                tasks[p.stage] = bar.add_task(p.stage, total=p.epochs * p.steps, figures="")
            test = "" if p.test_accuracy is None else f" test {p.test_accuracy:.1%}"
            figures = f"epoch {p.epoch}/{p.epochs} loss {p.loss:.3f} accuracy {p.accuracy:.1%}{test} {p.images_per_s:.0f} images/s"
            bar.update(tasks[p.stage], completed=(p.epoch - 1) * p.steps + p.step, figures=figures)

        yield report


def _print_epoch(p: Progress) -> None:
    if p.step == p.steps:
        typer.echo(
            f"{p.stage} epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, accuracy {p.accuracy:.1%}, {p.images_per_s:.0f} images/s",
            err=True,
        )


def _say(run: Run) -> None:
    metrics = run.info["stages"][-1]
    low, high = metrics["test_accuracy_ci95"]
    typer.echo(
        f"{run.title}: test accuracy {metrics['test_accuracy']:.1%} [{low:.1%}, {high:.1%}] of {metrics['test_images']} images"
    )
    if stopped := metrics.get("stopped"):
        typer.echo(f"warning: {stopped}", err=True)
    if "kept_epoch" in metrics:
        kept = metrics["epochs"][metrics["kept_epoch"] - 1]
        typer.echo(
            f"epoch {metrics['kept_epoch']} of {len(metrics['epochs'])} is kept: of {kept['holdout_images']} training images held out "
            f"{kept['holdout_worst_case']:.1%} stood PGD (10 steps); measure what it is worth with `edgeadv evaluate`"
        )
    typer.echo(str(run.path))
