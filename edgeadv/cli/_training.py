"""What ``edgeadv train`` and ``edgeadv distill`` share: their options, their data, and how they tell where they are."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import InputError

from ..workflows.processes import Processes, gpus_may_be_here, join
from ._fields import say
from ..workflows.durations import seconds

if TYPE_CHECKING:
    from edgeadv.training.config import TrainConfig
    from edgeadv.training.loop import Progress, Report
    from edgeadv.training.recipes import Task


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of every training, as the command line says them."""

    data: Annotated[
        str, typer.Option("--data", help="mnist5k, mnist, fashion-mnist, cifar10, cifar100, imagenette, or a folder.")
    ]
    arch: Annotated[
        str,
        typer.Option("--arch", help="A torchvision or timm classifier, e.g. regnet_y_400mf; timm/NAME asks timm only."),
    ]
    out: Annotated[Path, typer.Option("--out", help="The run's folder.")]
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training images, of each training.")] = 8
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per step, of all processes together.")] = 64
    accumulate: Annotated[
        int, typer.Option("--accumulate", help="Parts that a batch passes in one after another, to need less memory.")
    ] = 1
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate; by default 0.02, or 0.01 without BatchNorm.")
    ] = None
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="L2 penalty.")] = 5e-4
    clip: Annotated[
        float | None, typer.Option("--clip", help="Largest norm of the gradient; by default not clipped.")
    ] = None
    ema: Annotated[
        float,
        typer.Option("--ema", help="Decay of an average of the weights that is kept in their place; 0 keeps the last."),
    ] = 0.0
    holdout: Annotated[
        int | None,
        typer.Option(
            "--holdout", help="Training images held out to choose the epoch; by default 2,000 with adversarial images."
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="Of weights, order, augmentation and random starts.")] = 0
    augment: Annotated[str, typer.Option("--augment", help="none, crop-flip, resized-crop or trivial.")] = "none"
    limit: Annotated[
        int | None, typer.Option("--limit", help="Train on at most this many images, as many of each class.")
    ] = None
    workers: Annotated[int, typer.Option("--workers", help="Processes that decode images.")] = 0
    upsample: Annotated[
        int,
        typer.Option(
            "--upsample", help="Whole factor by which the model enlarges its input (AlexNet needs 63 pixels)."
        ),
    ] = 1
    preprocess: Annotated[
        str | None,
        typer.Option("--preprocess", help="Written resize=256,crop=224,interp=bicubic; by default the data's own."),
    ] = None
    compile: Annotated[
        bool, typer.Option("--compile", help="Fuse the network by torch.compile: minutes at the start, faster steps.")
    ] = False
    time_limit: Annotated[
        str | None,
        typer.Option("--time-limit", help="Stop cleanly after 9m, 90s or 2h, to be continued with --resume."),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue what an interrupted run left in --out.")] = False
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for the event files of TensorBoard.")
    ] = None
    download: Annotated[bool, typer.Option("--download", help="Let torchvision download the data.")] = False
    data_root: Annotated[Path | None, typer.Option("--data-root", help="Where torchvision keeps its data.")] = None

    @contextmanager
    def task(self) -> Iterator[Task]:
        """The data opened and the settings checked, in the processes that ``torchrun`` started; a pause ends the command cleanly.

        Raises:
            EdgeAdvError: an option is wrong, or the data cannot be opened.
        """
        from edgeadv.data.datasets import DEFAULT_ROOT, open_data
        from edgeadv.training.distributed import Team
        from edgeadv.training.loop import OutOfTimeError
        from edgeadv.training.recipes import Task
        from edgeadv.training.tensorboard import Scalars

        limit_s = None if self.time_limit is None else seconds(self.time_limit, field="time_limit")
        deadline = None if limit_s is None else time.monotonic() + limit_s
        root = self.data_root or DEFAULT_ROOT
        with ExitStack() as stack:
            # each process has a GPU of its own where there are any
            team: Processes = stack.enter_context(join(own_gpu=gpus_may_be_here(), on_gpu=True))
            report = None
            if team.first:
                report = stack.enter_context(progress_bar())
                if self.tensorboard is not None:
                    report = _both(report, stack.enter_context(Scalars(self.tensorboard)))
            with team.in_turn():
                config = self._config()
                train_images = open_data(self.data, split="train", root=root, download=self.download)
                task = Task(
                    train_images=train_images, test_images=open_data(self.data, split="test", root=root, download=self.download),
                    preprocess=train_images.preprocess if self.preprocess is None else Preprocess.parse(self.preprocess),
                    config=config, resume=self.resume, report=report, deadline=deadline, team=Team(team.rank, team.world),
                )  # fmt: skip
            if team.first:
                _check(task, self.out)
            try:
                yield task
            except OutOfTimeError as pause:
                if team.first:
                    say(str(pause))
                raise typer.Exit from None

    def _config(self) -> TrainConfig:
        from edgeadv.training.config import TrainConfig

        asked = {option.name for option in fields(self)}
        return TrainConfig(
            **{each.name: getattr(self, each.name) for each in fields(TrainConfig) if each.name in asked}
        )


def _check(task: Task, out: Path) -> None:
    """Refuse a run among the images, and say which classes have no test images."""
    source = Path(task.train_images.spec)
    if source.is_dir() and out.resolve() == source.resolve():
        raise InputError(f"--out {out} is the folder of the images: choose another")
    ids = task.train_images.classes.ids
    tested = set(task.test_images.labels.tolist())
    if missing := [ids[i] for i in range(len(ids)) if i not in tested]:
        some = ", ".join(missing[:5]) + ("..." if len(missing) > 5 else "")
        say(f"warning: no test images of {len(missing)} of {len(ids)} classes: {some}", err=True)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options of :class:`TrainOptions`, which it gets as its parameter ``options``.

    typer reads a command's signature: the one made here has the fields that must be given first, then the command's own
    parameters, then the other fields.
    """
    hints = get_type_hints(TrainOptions, include_extras=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = TrainOptions(**{field.name: given.pop(field.name) for field in fields(TrainOptions)})
        command(**given, options=options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(command, eval_str=True).parameters.values()
    shared = [
        inspect.Parameter(
            field.name,
            keyword,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(TrainOptions)
    ]
    parameters = [
        *(parameter for parameter in shared if parameter.default is inspect.Parameter.empty),
        *(parameter.replace(kind=keyword) for parameter in own if parameter.name != "options"),
        *(parameter for parameter in shared if parameter.default is not inspect.Parameter.empty),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _both(one: Report, other: Report) -> Report:
    def report(progress: Progress) -> None:
        one(progress)
        other(progress)

    return report


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
            done = (p.epoch - 1) * p.steps + p.step
            bar.update(tasks[p.stage], completed=done, figures=f"epoch {p.epoch}/{p.epochs} {_figures(p)}")

        yield report


def _print_epoch(p: Progress) -> None:
    if p.measured is not None:
        say(f"{p.stage} epoch {p.epoch}/{p.epochs}: {_figures(p)}", err=True)


def _figures(p: Progress) -> str:
    test = "" if p.test_accuracy is None else f", test {p.test_accuracy:.1%}"
    held_out = "" if p.worst_case is None else f", held-out worst case {p.worst_case:.1%}"
    waiting = f", {p.waiting:.0%} of it waiting for data"
    return f"loss {p.loss:.4f}, accuracy {p.accuracy:.1%}{test}{held_out}, {p.images_per_s:.0f} images/s{waiting}"
