"""Train a network, or distil one into another.

Loading this module loads no PyTorch: the command line makes options of its groups.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from edgeadv_runtime import Eps, InputError, Preprocess
from edgeadv_runtime.decoding import Options

from ..training.config import OutOfTimeError, TrainConfig
from .alone import alone
from .durations import seconds
from .extras import need
from .inputs import one_of
from .processes import join

if TYPE_CHECKING:
    from torch import nn

    from ..data.sources import Data, Source
    from ..training.adversarial import Defence
    from ..training.loop import Progress, Report
    from ..training.recipes import Task
    from ..training.runs import Run
    from ..training.teachers import TeacherStanding

__all__ = ["DistillOptions", "OutOfTimeError", "RecipeOptions", "TrainConfig", "TrainJob", "distill", "train"]

TRAIN_RECIPES = ("undefended", "at-fgsm", "n-fgsm", "fgsm-pgi", "at-pgd", "trades", "adr", "awp")
DISTILL_RECIPES = ("papernot", "soft-label", "ard", "rslad")
_ONE_STEP = ("at-fgsm", "n-fgsm", "fgsm-pgi")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """What belongs to single recipes of :func:`train`."""

    steps: Annotated[int | None, "Steps per image, by default 7 of at-pgd, adr and awp, 10 of trades."] = None
    beta: Annotated[
        float | None, "Weight of robustness in trades, by default 6; of the regulariser of fgsm-pgi, by default 10."
    ] = None
    label_smoothing: Annotated[float, "Share of a label spread over all classes."] = 0.0


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Options):
    """What belongs to single recipes of :func:`distill`, and how a teacher is trained where none is given."""

    temperature: Annotated[float | None, "Softmax temperature of the training; by default the recipe's own."] = None
    alpha: Annotated[float | None, "Weight of the teacher's part; by default the recipe's own."] = None
    steps: Annotated[int | None, "ard, rslad: steps per image, by default 10."] = None
    teacher_arch: Annotated[
        str | None, "The teacher's architecture, written as `arch`; by default the student's. Not for papernot."
    ] = None
    teacher_recipe: Annotated[
        str | None,
        "ard, rslad: how the teacher is trained, by a recipe of train with adversarial images; by default trades.",
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainJob(Options):
    """How images reach the network, and how the work is done."""

    upsample: Annotated[int, "Whole factor by which the model enlarges its input (AlexNet needs 63 pixels)."] = 1
    preprocess: Annotated[
        str | None,
        "Written resize=256,crop=224,interp=bicubic or size=120x160,color=gray, see docs/reference/preprocessing.md; "
        "by default the data's own.",
    ] = None
    normalize: Annotated[
        str | None,
        "imagenet, none, or MEAN/STD such as 0.5,0.5,0.5/0.25,0.25,0.25, put inside every network that is made; by "
        "default the library's, and none for your own code.",
    ] = None
    time_limit: Annotated[str | None, "Stop cleanly after 9m, 90s or 2h, to be continued with `resume`."] = None
    resume: Annotated[bool, "Continue what an interrupted run left in `out`."] = False
    tensorboard: Annotated[Path | None, "Folder for the event files of TensorBoard."] = None
    download: Annotated[bool, "Let torchvision download the data."] = False
    data_root: Annotated[Path | None, "Where torchvision keeps its data."] = None


@alone()
def train(
    arch: str | Callable[[], nn.Module],
    data: Source | Data,
    *,
    out: str | Path,
    recipe: str = "undefended",
    eps: str | Eps | None = None,
    epochs: int | None = None,
    weights: str | Path = "none",
    weights_map: str = "by-name",
    config: TrainConfig = TrainConfig(),
    options: RecipeOptions = RecipeOptions(),
    job: TrainJob = TrainJob(),
    progress: Report | None = None,
) -> Run:
    """Train a classifier: the undefended network that every defence is compared with, or one on adversarial images.

    ::

        run = train("regnet_y_400mf", "cifar10", recipe="trades", eps="8/255", out="runs/robust")

    Args:
        arch: a torchvision or timm classifier, e.g. ``"regnet_y_400mf"``; ``"timm/NAME"`` asks timm only. Or a function
            or class of own code, called without arguments, or its name ``"package.module:factory"``, by which
            ``resume`` and export find it again: a module that is made already has none, and is refused.
        data: as :func:`~edgeadv.data.sources.load_data` takes it.
        out: the run's folder.
        recipe: ``"undefended"``, or adversarial training: ``"at-fgsm"``, ``"n-fgsm"`` or ``"fgsm-pgi"``, the fast
            ones, ``"at-pgd"``, ``"trades"``, ``"adr"`` or ``"awp"``.
        eps: the budget of adversarial training, e.g. ``"8/255"``, in pixels of [0, 1].
        epochs: passes over the training images; None takes ``config``'s.
        weights: ``"none"``, ``"default"`` or a file to start from; a last layer for other classes is replaced.
        weights_map: how a file's tensors find their place, ``"by-name"`` or ``"by-position"``.
        config: hyper-parameters.
        options: what belongs to single recipes.
        job: preprocessing, resuming, limits.
        progress: called with a :class:`~edgeadv.training.loop.Progress` every 20 steps. What it raises ends the
            training, and what is done is kept to be resumed.

    Returns:
        The finished run; one that was finished before is opened again under ``resume``.

    Raises:
        InputError: an argument is wrong; it names the field.
        OutOfTimeError: the time limit of ``job`` came first; what is done is saved.
        EdgeAdvError: the data cannot be read, or the training cannot go on.
    """
    need("train")
    from ..models.checkpoints import WeightsMap
    from ..training import recipes

    matched = one_of(weights_map, get_args(WeightsMap), field="weights_map")
    defence = _defence(recipe, eps, options)
    with _task(data, out, _with_epochs(config, epochs), job, progress) as task:
        return recipes.train(
            task,
            task.architecture(arch, upsample=job.upsample, normalize=job.normalize),
            Path(out),
            weights=str(weights),
            weights_map=matched,
            defence=defence,
        )


@alone()
def distill(
    arch: str | Callable[[], nn.Module],
    data: Source | Data,
    *,
    out: str | Path,
    recipe: str = "papernot",
    teacher: Run | str | Path | None = None,
    eps: str | Eps | None = None,
    epochs: int | None = None,
    config: TrainConfig = TrainConfig(),
    options: DistillOptions = DistillOptions(),
    job: TrainJob = TrainJob(),
    progress: Report | None = None,
) -> Run:
    """Distil a teacher into a student; the student is the run.

    ::

        student = distill("regnet_y_400mf", "cifar10", recipe="rslad", teacher=run, eps="8/255", out="runs/student")

    Args:
        arch: the student, as for :func:`train`.
        data: as :func:`~edgeadv.data.sources.load_data` takes it.
        out: the run's folder; a teacher that is trained here goes into ``out/teacher``.
        recipe: ``"papernot"`` or ``"soft-label"``, which make no network robust; ``"ard"`` or ``"rslad"``, which do.
        teacher: a finished run; None trains one.
        eps: the budget of ``"ard"`` and ``"rslad"``, e.g. ``"8/255"``, in pixels of [0, 1].
        epochs: of each training; None takes ``config``'s.
        config: hyper-parameters, of teacher and student alike.
        options: what belongs to single recipes.
        job: preprocessing, resuming, limits.
        progress: as for :func:`train`.

    Raises:
        InputError: an argument is wrong; it names the field.
        OutOfTimeError: the time limit of ``job`` came first; what is done is saved.
        EdgeAdvError: the data cannot be read, or the training cannot go on.
    """
    need("train")
    from ..training import recipes
    from ..training.robust_distillation import STEPS
    from ..training.runs import Run

    budget = _budget(eps)
    _check_distillation(recipe, budget, teacher is not None, options)
    teacher_defence = None
    if options.teacher_recipe is not None and budget is not None:
        teacher_defence = _defence(options.teacher_recipe, budget, RecipeOptions())
    with _task(data, out, _with_epochs(config, epochs), job, progress) as task:
        teacher_arch = options.teacher_arch
        return recipes.distill(
            task,
            task.architecture(arch, upsample=job.upsample, normalize=job.normalize),
            Path(out),
            recipe=recipe,  # type: ignore[arg-type]
            temperature=options.temperature,
            alpha=options.alpha,
            eps=budget,
            steps=STEPS if options.steps is None else options.steps,
            teacher=Run.open(teacher) if isinstance(teacher, str | Path) else teacher,
            teacher_architecture=(
                None
                if teacher_arch is None
                else task.architecture(teacher_arch, upsample=job.upsample, normalize=job.normalize)
            ),
            teacher_defence=teacher_defence,
            on_teacher=_tell_of_teacher,
        )


def _tell_of_teacher(standing: TeacherStanding) -> None:
    _log.log(logging.INFO if standing.helps else logging.WARNING, "%s", standing.said)


def _with_epochs(config: TrainConfig, epochs: int | None) -> TrainConfig:
    return config if epochs is None else replace(config, epochs=epochs)


def _budget(eps: str | Eps | None) -> Eps | None:
    return eps if eps is None or isinstance(eps, Eps) else Eps.parse(eps)


def _check_distillation(recipe: str, eps: Eps | None, has_teacher: bool, options: DistillOptions) -> None:
    """Refuse what does not go together, before the data is opened."""
    if recipe not in DISTILL_RECIPES:
        elsewhere = "; edgeadv train has that one" if recipe in TRAIN_RECIPES else ""
        raise InputError("recipe", f"{recipe!r} is not one of {', '.join(DISTILL_RECIPES)}{elsewhere}")
    if options.teacher_recipe not in (None, "undefended"):
        one_of(options.teacher_recipe, TRAIN_RECIPES[1:], field="teacher_recipe")
    if has_teacher and (options.teacher_arch is not None or options.teacher_recipe is not None):
        raise InputError("teacher", "is a finished run: leave `teacher_arch` and `teacher_recipe` out")
    if recipe not in ("ard", "rslad") and (eps, options.steps, options.teacher_recipe) != (None, None, None):
        raise InputError("`eps`, `steps` and `teacher_recipe` belong to `recipe` ard and rslad: leave them out")
    if options.teacher_recipe == "undefended":
        raise InputError(
            "teacher_recipe",
            f"undefended has no robustness for {recipe} to hand on: one of {', '.join(TRAIN_RECIPES[1:])}",
        )


def _defence(recipe: str, eps: str | Eps | None, options: RecipeOptions) -> Defence | None:
    """The recipe of adversarial training; None of ``"undefended"``."""
    from ..training.adversarial import AdversarialTraining, Trades, check_label_smoothing
    from ..training.prior_guided import PriorGuided
    from ..training.self_distillation import Adr
    from ..training.weight_perturbation import Awp

    check_label_smoothing(options.label_smoothing)
    if recipe not in TRAIN_RECIPES:
        elsewhere = f" (edgeadv distill has {', '.join(DISTILL_RECIPES)})"
        raise InputError("recipe", f"{recipe!r} is not one of {', '.join(TRAIN_RECIPES)}{elsewhere}")
    if options.beta is not None and recipe not in ("trades", "fgsm-pgi"):
        raise InputError("beta", "belongs to `recipe` trades and fgsm-pgi: leave it out")
    if recipe == "undefended":
        if eps is not None or options.steps is not None or options.label_smoothing:
            raise InputError(
                "`eps`, `steps` and `label_smoothing` belong to adversarial training: add `recipe` at-pgd, n-fgsm, "
                "trades or another, or leave them out"
            )
        return None
    budget = _budget(eps)
    if budget is None:
        raise InputError(f"{recipe} needs `eps`, e.g. 8/255: there is no budget that suits every data set")
    beta: dict[str, Any] = {} if options.beta is None else {"beta": options.beta}
    made: dict[str, Callable[..., Defence]] = {
        "at-fgsm": AdversarialTraining.fgsm,
        "n-fgsm": AdversarialTraining.n_fgsm,
        "fgsm-pgi": partial(PriorGuided.at, **beta),
        "at-pgd": AdversarialTraining.pgd,
        "trades": partial(Trades.at, **beta),
        "adr": Adr.at,
        "awp": Awp.at,
    }
    if options.steps is None:
        return made[recipe](budget).smoothed(options.label_smoothing)
    if recipe in _ONE_STEP:
        raise InputError(f"{recipe} takes one step: leave `steps` out, or use `recipe` at-pgd")
    return made[recipe](budget, steps=options.steps).smoothed(options.label_smoothing)


@contextmanager
def _task(
    data: Source | Data, out: str | Path, config: TrainConfig, job: TrainJob, progress: Report | None
) -> Iterator[Task]:
    """The data opened and the settings checked, in the processes that ``torchrun`` started."""
    from ..data.sources import load_data
    from ..training.distributed import ProcessGroup
    from ..training.recipes import Task
    from ..training.tensorboard import Scalars

    limit = job.time_limit
    deadline = None if limit is None else time.monotonic() + seconds(limit, field="time_limit")
    with ExitStack() as stack:
        processes = stack.enter_context(join(on_gpu=True))
        reports: list[Callable[[Progress], None]] = []
        if processes.first:
            reports += [] if progress is None else [progress]
            reports += [] if job.tensorboard is None else [stack.enter_context(Scalars(Path(job.tensorboard)))]

        def report(moment: Progress) -> None:
            for each in reports:
                each(moment)

        with processes.in_turn():
            opened = load_data(data, root=job.data_root, download=job.download)
            preprocess = Preprocess.parse(job.preprocess) if job.preprocess else opened.train.preprocess
            task = Task(
                train_images=opened.train,
                test_images=opened.test,
                preprocess=preprocess,
                config=config,
                resume=job.resume,
                report=report,
                deadline=deadline,
                processes=ProcessGroup(processes.rank, processes.world),
            )
        if processes.first:
            _check(task, Path(out))
        yield task


def _check(task: Task, out: Path) -> None:
    """Refuse a run among the images, and say which classes have no test images."""
    source = Path(task.train_images.spec)
    if source.is_dir() and out.resolve() == source.resolve():
        raise InputError("out", f"{out} is the folder of the images: choose another")
    ids, tested = task.train_images.classes.ids, set(task.test_images.labels.tolist())
    if missing := [name for i, name in enumerate(ids) if i not in tested]:
        some = ", ".join(missing[:5]) + ("..." if len(missing) > 5 else "")
        _log.warning("no test images of %d of %d classes: %s", len(missing), len(ids), some)
