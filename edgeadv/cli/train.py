"""``edgeadv train`` and ``edgeadv distill``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.preprocess import Preprocess

from ._shared import need

if TYPE_CHECKING:
    from edgeadv.adversarial import AdversarialTraining
    from edgeadv.distill import Task
    from edgeadv.runs import Run
    from edgeadv.train import Progress, Report

MASKING_NOTE = (
    "Defensive distillation hides gradients: plain FGSM accuracy rises, a margin attack does not notice. "
    "Read the worst case and the masking verdict of `edgeadv evaluate`, not the FGSM column (docs/robustness.md)."
)

COLLAPSE_NOTE = (
    "at-fgsm can collapse: accuracy under FGSM then rises while that under PGD falls to nothing, and training does not notice. "
    "Read the PGD figures and the masking verdict of `edgeadv evaluate` (docs/training.md)."
)

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
        str, typer.Option(help="undefended, or adversarial training: at-fgsm (fast) or at-pgd.")
    ] = "undefended",
    at_eps: Annotated[
        str | None, typer.Option("--at-eps", help="Budget of at-fgsm and at-pgd, e.g. 8/255, in pixels of [0, 1].")
    ] = None,
    at_steps: Annotated[int | None, typer.Option("--at-steps", help="at-pgd: steps per image, by default 7.")] = None,
    epochs: Epochs = 8,
    batch_size: BatchSize = 64,
    lr: Rate = None,
    weight_decay: Decay = 5e-4,
    seed: Seed = 0,
    augment: Augment = "none",
    limit: Limit = None,
    workers: Workers = 0,
    upsample: Upsample = 1,
    preprocess: Prep = None,
    resume: Resume = False,
    download: Download = False,
    data_root: Root = None,
) -> None:
    """Train a classifier: the undefended network that every defence is compared with, or one on adversarial images."""
    need("train")
    from edgeadv import distill as runs

    if weights_map not in ("by-name", "by-position"):
        raise InputError(f"--weights-map {weights_map!r} is not by-name or by-position")
    defence = _defence(recipe, at_eps, at_steps)
    settings = _settings(epochs, batch_size, lr, weight_decay, seed, augment, limit, workers)
    with progress_bar() as report:
        task = _task(data, data_root, download, preprocess, settings, resume, report)
        architecture = task.architecture(arch, upsample=upsample)
        run = runs.train(
            task, architecture, out, weights=weights, weights_map=weights_map, defence=defence,  # type: ignore[arg-type]
        )  # fmt: skip
    _say(run)
    if recipe == "at-fgsm":
        typer.echo(COLLAPSE_NOTE, err=True)


def distill(
    data: Data,
    arch: Arch,
    out: Out,
    recipe: Annotated[str, typer.Option(help="papernot, or soft-label.")] = "papernot",
    temperature: Annotated[
        float, typer.Option("--temperature", "-T", help="Softmax temperature of the training.")
    ] = 40.0,
    alpha: Annotated[float | None, typer.Option(help="soft-label: weight of the soft labels, by default 0.9.")] = None,
    teacher_arch: Annotated[
        str | None, typer.Option(help="soft-label: the teacher's architecture; by default the student's.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="A finished run to use as the teacher.")] = None,
    epochs: Epochs = 8,
    batch_size: BatchSize = 64,
    lr: Rate = None,
    weight_decay: Decay = 5e-4,
    seed: Seed = 0,
    augment: Augment = "none",
    limit: Limit = None,
    workers: Workers = 0,
    upsample: Upsample = 1,
    preprocess: Prep = None,
    resume: Resume = False,
    download: Download = False,
    data_root: Root = None,
) -> None:
    """Distil a teacher into a student; the student is the run.

    papernot is defensive distillation (Papernot et al. 2016). It hides gradients and does not make a network robust;
    it is here to be measured.
    """
    need("train")
    from edgeadv import distill as runs
    from edgeadv.runs import Run

    if recipe == "papernot" and alpha is not None:
        raise InputError("papernot has no --alpha: its student never sees the hard labels; use --recipe soft-label")
    if teacher is not None and teacher_arch is not None:
        raise InputError("--teacher is a run and brings its architecture: leave --teacher-arch out")
    settings = _settings(epochs, batch_size, lr, weight_decay, seed, augment, limit, workers)
    with progress_bar() as report:
        task = _task(data, data_root, download, preprocess, settings, resume, report)
        run = runs.distill(
            task, task.architecture(arch, upsample=upsample), out, recipe=recipe,  # type: ignore[arg-type]
            temperature=temperature, alpha=0.9 if alpha is None else alpha, teacher=None if teacher is None else Run.open(teacher),
            teacher_architecture=None if teacher_arch is None else task.architecture(teacher_arch, upsample=upsample),
        )  # fmt: skip
    _say(run)
    typer.echo(MASKING_NOTE, err=True)


def _defence(recipe: str, eps: str | None, steps: int | None) -> AdversarialTraining | None:
    from edgeadv.adversarial import PGD_STEPS, AdversarialTraining

    if recipe not in ("undefended", "at-fgsm", "at-pgd"):
        raise InputError(f"recipe {recipe!r} is not undefended, at-fgsm or at-pgd")
    if recipe == "undefended":
        if eps is not None or steps is not None:
            raise InputError(
                "--at-eps and --at-steps belong to adversarial training: add --recipe at-pgd or at-fgsm, or leave them out"
            )
        return None
    if eps is None:
        raise InputError(f"{recipe} needs --at-eps, e.g. 8/255: there is no budget that suits every data set")
    if recipe == "at-fgsm":
        if steps is not None:
            raise InputError("at-fgsm takes one step: leave --at-steps out, or use --recipe at-pgd")
        return AdversarialTraining.fgsm(Eps.parse(eps))
    return AdversarialTraining.pgd(Eps.parse(eps), PGD_STEPS if steps is None else steps)


def _settings(
    epochs: int,
    batch_size: int,
    lr: float | None,
    weight_decay: float,
    seed: int,
    augment: str,
    limit: int | None,
    workers: int,
) -> dict[str, Any]:
    return {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "augment": augment, "limit": limit, "workers": workers,
    }  # fmt: skip


def _task(
    data: str,
    root: Path | None,
    download: bool,
    preprocess: str | None,
    settings: dict[str, Any],
    resume: bool,
    report: Report,
) -> Task:
    from edgeadv.data import DEFAULT_ROOT, open_data
    from edgeadv.distill import Task
    from edgeadv.train import TrainConfig

    config = TrainConfig(**settings)
    train_images = open_data(data, split="train", root=root or DEFAULT_ROOT, download=download)
    return Task(
        train_images=train_images, test_images=open_data(data, split="test", root=root or DEFAULT_ROOT, download=download),
        preprocess=train_images.preprocess if preprocess is None else Preprocess.parse(preprocess),
        config=config, resume=resume, report=report,
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
    typer.echo(str(run.path))
