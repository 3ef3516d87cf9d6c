"""Runs: train a network, undefended or on adversarial images, or distil one into another, into a folder that export
reads.

``ard`` and ``rslad`` train the student on adversarial images and make it robust. Defensive distillation (Papernot et
al. 2016) raises the accuracy under plain FGSM by hiding gradients, not by moving decision boundaries: Carlini and
Wagner 2017 break it completely, and so does a margin attack here. ``docs/explanation/masking.md`` has the figures. It
is implemented faithfully so that this can be measured.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from edgeadv_runtime._version import __version__
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TRAINING_FILE, TrainingImages
from edgeadv_runtime.errors import EdgeAdvError, InputError, StorageError
from edgeadv_runtime.files import sha256_file, working_on
from edgeadv_runtime.reading import file_hash
from edgeadv_runtime.records.eps import Eps

from ..data.datasets import ImageSet, balanced_subset, composed
from ..data.loading import loader
from ..models.builder import Architecture, load_pretrained
from ..models.checkpoints import WeightsMap
from ..models.device import default_device
from ..models.modes import evaluation_mode
from . import checkpoint
from .adversarial import Defence, Trades
from .config import TrainConfig
from .distributed import ProcessGroup
from .loop import Report, fit
from .objectives import DefensiveDistillation, HardLabels, Objective, SoftLabels
from .robust_distillation import STEPS, Ard, Rslad
from .runs import RUN_FILE, TEACHER_FOLDER, WEIGHTS_FILE, Run, check_savable, write_run
from .selection import hold_out
from .teachers import IMAGES, TeacherStanding, teacher_standing

Recipe = Literal["papernot", "soft-label", "ard", "rslad"]
Student = DefensiveDistillation | SoftLabels | Ard | Rslad
ROBUST: dict[str, type[Ard] | type[Rslad]] = {"ard": Ard, "rslad": Rslad}
DEFAULTS: dict[str, tuple[float, float | None]] = {
    "papernot": (40.0, None),
    "soft-label": (40.0, 0.9),
    "ard": (30.0, 1.0),
    "rslad": (1.0, 5 / 6),
}
"""Of each recipe: the temperature, and the weight ``alpha`` of the teacher's part, None where it has none."""
_TEACHER_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every training of a run shares.

    Attributes:
        train_images: images to train on.
        test_images: images to measure on after each epoch, with the same class ids.
        preprocess: how images become the model's input.
        config: hyper-parameters.
        device: where to train; None takes a GPU if there is one.
        resume: take up what an interrupted run left in the folder.
        report: called with progress every 20 steps.
        deadline: by ``time.monotonic()``: where training stops, to be resumed; see :func:`edgeadv.training.loop.fit`.
        processes: the processes that train together.
    """

    train_images: ImageSet
    test_images: ImageSet
    preprocess: Preprocess
    config: TrainConfig
    device: torch.device | None = None
    resume: bool = False
    report: Report | None = None
    deadline: float | None = None
    processes: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_images", self.test_images.relabel(self.train_images.classes))

    @property
    def where(self) -> torch.device:
        """The device, chosen if none was given."""
        return default_device() if self.device is None else self.device

    def architecture(self, name: Any, *, upsample: int, normalize: str | None = None) -> Architecture:
        """Look up ``name`` for this task's classes, as :meth:`Architecture.find` does."""
        classes = len(self.train_images.classes)
        return Architecture.find(name, num_classes=classes, upsample=upsample, normalize=normalize)


def train(
    task: Task,
    architecture: Architecture,
    out: Path,
    *,
    weights: str = "none",
    weights_map: WeightsMap = "by-name",
    defence: Defence | None = None,
) -> Run:
    """Ordinary training, of the undefended network that every defence is compared with, or adversarial training.

    Args:
        task: data and hyper-parameters.
        architecture: what to train.
        out: the run's folder.
        weights: ``"none"``, ``"default"`` or a file to start from; a last layer for other classes is replaced.
        weights_map: how a file's tensors find their place.
        defence: the recipe of adversarial training; None trains on the images as they are.

    Raises:
        OutOfTimeError: the task's deadline came first.
        EdgeAdvError: see :func:`edgeadv.training.loop.fit` and :func:`edgeadv.models.builder.load_pretrained`.
    """

    file = Path(weights)
    start = _run_behind(file)
    about = {"recipe": "undefended"} if defence is None else defence.to_json()
    if file.is_file():
        # every run's file has the same name
        about["start_weights_sha256"] = sha256_file(file)
    return _train_run(
        task,
        architecture,
        HardLabels() if defence is None else defence,
        out,
        stage="train",
        title=f"{architecture.name}, {'undefended' if defence is None else defence.title}",
        recipe={**about, "start_weights": file.name, "weights_map": weights_map},
        weights=weights,
        weights_map=weights_map,
        seen_before=None if start is None else start.training_images,
        # one that held images out has them in its list, and cannot tell them from those that it was trained on
        knows_all=start is not None and start.info.stage.kept_epoch is None,
    )


def _run_behind(weights: Path) -> Run | None:
    """The run whose weights a file is; None of any other file, or of none."""
    if not weights.is_file() or not (weights.parent / RUN_FILE).is_file():
        return None
    # somebody else's folder may look like a run: it is the weights that were asked for
    with suppress(EdgeAdvError):
        run = Run.open(weights.parent)
        if run.info.weights_sha256 == sha256_file(weights):
            return run
    return None


def distill(
    task: Task,
    architecture: Architecture,
    out: Path,
    *,
    recipe: Recipe,
    temperature: float | None = None,
    alpha: float | None = None,
    eps: Eps | None = None,
    steps: int = STEPS,
    teacher_architecture: Architecture | None = None,
    teacher: Run | None = None,
    teacher_defence: Defence | None = None,
    on_teacher: Callable[[TeacherStanding], None] | None = None,
) -> Run:
    """Distil a teacher into a student of ``architecture``; the student is the run, to be deployed at T = 1.

    Args:
        task: data and hyper-parameters, for teacher and student alike.
        architecture: the student.
        out: the run's folder; a teacher trained here goes into ``out/teacher``, a run of its own.
        recipe: ``"papernot"``: teacher of the same architecture, trained at ``temperature``, student on its soft labels
            at ``temperature``. ``"soft-label"``: a teacher trained as usual, soft labels mixed with hard ones.
            ``"ard"`` and ``"rslad"``: a robust teacher, the student on adversarial images; see
            :mod:`edgeadv.training.robust_distillation`.
        temperature: T; None takes the recipe's own, :data:`DEFAULTS`.
        alpha: weight of the teacher's part; None takes the recipe's own; ``"papernot"`` has none.
        eps: budget that ``"ard"`` and ``"rslad"`` defend, and only these.
        steps: of their search for an adversarial image.
        teacher_architecture: the teacher, e.g. ResNet-101; None takes the student's. Not for ``"papernot"``.
        teacher: a finished run to use instead of training a teacher.
        teacher_defence: how ``"ard"`` and ``"rslad"`` train one; None takes TRADES at ``eps``.
        on_teacher: called, in the first process, with how the teacher of ``"ard"`` and ``"rslad"`` stands on images
            held out, before the student is trained; not where none are.

    Raises:
        InputError: the teacher does not fit the recipe or the data, or an option does not belong to the recipe.
        OutOfTimeError: the task's deadline came first.
        EdgeAdvError: see :func:`edgeadv.training.loop.fit`.
    """
    if (eps is not None) != (recipe in ROBUST):
        raise InputError(
            f"{recipe} needs `eps`, e.g. 8/255: there is no budget that suits every data set"
            if recipe in ROBUST
            else f"{recipe} is trained on images as they are: leave `eps` out"
        )
    if recipe == "papernot" and alpha is not None:
        raise InputError("papernot has no `alpha`: its student never sees the hard labels; use `recipe` soft-label")
    if recipe == "papernot" and (teacher_architecture or architecture).name != architecture.name:
        raise InputError("papernot distils into the same architecture; use `recipe` soft-label for another teacher")
    temperature = DEFAULTS[recipe][0] if temperature is None else temperature
    alpha = DEFAULTS[recipe][1] if alpha is None else alpha
    # what is wrong with the settings is said before a teacher is trained for them
    objective = _student_objective(recipe, temperature, alpha, eps, steps)
    about: dict[str, Any] = {"recipe": recipe, **objective(nn.Identity()).to_json()}
    finished = _finished(out, task, architecture, about)
    if teacher is None:
        trained_by: Objective = HardLabels(temperature if recipe == "papernot" else 1.0)
        if eps is not None:
            trained_by = Trades.at(eps) if teacher_defence is None else teacher_defence
        teacher = _teacher_run(task, teacher_architecture or architecture, trained_by, out / TEACHER_FOLDER)
    _check_teacher(teacher, task, architecture, recipe, temperature)
    frozen = teacher.load_model()
    frozen.to(task.where, memory_format=frozen.memory_format)  # type: ignore[call-overload]
    about |= {
        "teacher": teacher.title,
        "teacher_weights_sha256": teacher.info.weights_sha256,
        "teacher_test_accuracy": teacher.info.stage.test_accuracy,
    }
    if teacher.info.stage.kept_epoch is not None:
        about["teacher_worst_case"] = teacher.info.stage.kept["holdout_worst_case"]
    budget = "" if eps is None else f" eps {eps.text}"
    with evaluation_mode(frozen):
        if eps is not None and finished is None and on_teacher is not None and task.processes.first:
            _look_at_teacher(task, frozen, eps, on_teacher)
        return _train_run(
            task,
            architecture,
            objective(frozen),
            out,
            stage="student",
            title=f"{architecture.name}, {recipe} T={temperature:g}{budget}",
            recipe=about,
            seen_before=teacher.training_images,
        )


def _look_at_teacher(task: Task, teacher: nn.Module, eps: Eps, tell: Callable[[TeacherStanding], None]) -> None:
    """Measure the teacher on images that are held out."""
    images, config = task.train_images, task.config
    order = hold_out(images, config.holdout, config.holdout_list, budget=eps).choosing
    order = order[balanced_subset(images.labels[order], IMAGES)]
    if len(order):
        source = loader(images, order, task.preprocess, task.where, workers=config.workers)
        tell(teacher_standing(teacher, source, order, eps))


def _student_objective(
    recipe: str, temperature: float, alpha: float | None, eps: Eps | None, steps: int
) -> Callable[[nn.Module], Student]:
    """The objective once the teacher is there."""
    if alpha is None:
        return partial(DefensiveDistillation, temperature=temperature)
    if eps is None:
        return partial(SoftLabels, temperature=temperature, alpha=alpha)
    return partial(ROBUST[recipe].at, eps, temperature=temperature, alpha=alpha, steps=steps)


def _teacher_run(task: Task, architecture: Architecture, objective: Objective, out: Path) -> Run:
    task = replace(task, config=task.config.with_seed(_TEACHER_SEED))
    if isinstance(objective, Defence):
        title, recipe = f"{architecture.name}, {objective.title}", objective.to_json()
    else:
        title = f"{architecture.name}, teacher T={objective.head_scale:g}"
        recipe = {"recipe": "teacher", "temperature": objective.head_scale}
    with working_on(out) if task.processes.first else nullcontext():
        return _train_run(task, architecture, objective, out, stage="teacher", title=title, recipe=recipe)


def _check_teacher(teacher: Run, task: Task, student: Architecture, recipe: str, temperature: float) -> None:
    if [*map(composed, teacher.classes.ids)] != [*map(composed, task.train_images.classes.ids)]:
        raise InputError(f"{teacher.path} was trained on other classes than {task.train_images.spec}")
    if teacher.preprocess != task.preprocess:
        raise InputError(f"{teacher.path} was trained with other preprocessing ({teacher.preprocess}): use the same")
    if recipe in ROBUST and "eps" not in teacher.info.recipe:
        raise InputError(
            f"{teacher.path} was not trained on adversarial images: {recipe} hands on the robustness of its "
            "teacher, and this one "
            "has none; train one with `recipe` trades or at-pgd, or let distill train it"
        )
    trained_by = teacher.info.recipe
    # the temperature of the others is that of the labels that they were given: their logits are no T times as large
    trained_at = trained_by.get("temperature", 1.0) if trained_by["recipe"] in ("teacher", "papernot") else 1.0
    if recipe == "papernot" and (trained_at != temperature or teacher.architecture.name != student.name):
        raise InputError(
            f"{teacher.path} is {teacher.architecture.name} trained at T = {trained_at:g}; papernot needs "
            f"{student.name} at T = {temperature:g}"
        )


def _finished(out: Path, task: Task, architecture: Architecture, recipe: dict[str, Any]) -> Run | None:
    """The run at ``out`` if training it again would only repeat it, None where there is none yet."""
    if not (out / RUN_FILE).exists():
        return None
    run = Run.open(out)
    if not task.resume:
        raise InputError(f"{out} holds a finished run: choose another `out`")
    images = task.train_images
    config = task.config.resume_settings()
    have = (
        {key: run.info.config.get(key, TrainConfig.before(key)) for key in config},
        run.architecture,
        run.preprocess,
        run.classes,
        Path(run.data).name,
    )
    want = (config, architecture, task.preprocess, images.classes, Path(images.spec).name)
    listed = task.config.holdout_list
    list_now = None if listed is None else file_hash(Path(listed), what="list of images")
    list_then = (run.info.stage.holdout_list or {}).get("sha256")
    if task.config.ema is None:
        # the recipe's own; trainings of an edgeadv that had no average say 0
        have[0]["ema"] = None
    if have != want or list_now != list_then or any(run.info.recipe.get(k) != value for k, value in recipe.items()):
        raise InputError(f"{out} holds a finished run with other settings: choose another `out`")
    return run


def _config(config: TrainConfig) -> dict[str, Any]:
    """Hyper-parameters as ``run.json`` keeps them: a folder's place says something about the machine only."""
    listed = config.holdout_list
    return {**asdict(config), "holdout_list": None if listed is None else Path(listed).name}


def _refuse_others(out: Path) -> None:
    """Refuse a folder in which files that a run writes are there already, and are of no run.

    Raises:
        StorageError: they are.
    """
    there = [name for name in (WEIGHTS_FILE, TRAINING_FILE) if (out / name).exists()]
    if there and not checkpoint.exists(out):
        raise StorageError(f"{out} holds a {there[0]} of something else: choose another `out`, or move it away")


def _train_run(
    task: Task,
    architecture: Architecture,
    objective: Objective,
    out: Path,
    *,
    stage: str,
    title: str,
    recipe: dict[str, Any],
    weights: str = "none",
    weights_map: WeightsMap = "by-name",
    seen_before: TrainingImages | None = None,
    knows_all: bool = False,
) -> Run:
    """Train and write a run; ``seen_before`` are images that its teacher, or its first weights, were trained on, and no
    others if it ``knows_all``."""
    if (finished := _finished(out, task, architecture, recipe)) is not None:
        if task.processes.first:
            checkpoint.remove(out)  # of a training that was killed just before it did so itself
        return finished
    if task.processes.first:
        _refuse_others(out)
    torch.manual_seed(task.config.seed)
    model = load_pretrained(architecture, weights, weights_map=weights_map, replace_head=True)
    if task.processes.first:
        check_savable(model, out)
    metrics = fit(
        model,
        objective,
        task.train_images,
        task.test_images,
        preprocess=task.preprocess,
        config=task.config,
        out=out,
        stage=stage,
        resume=task.resume,
        device=task.where,
        report=task.report,
        settings={"stage": stage, "recipe": recipe},
        deadline=task.deadline,
        processes=task.processes,
        seen_before=seen_before if knows_all else None,
    )
    info = {
        "title": title,
        "recipe": recipe,
        "config": _config(task.config),
        "architecture": model.architecture.to_json(),
        "preprocess": task.preprocess.to_json(),
        "classes": task.train_images.classes.to_json(),
        "data": {
            "spec": task.train_images.spec,
            "train_images": metrics["train_images"],
            "test_images": metrics["test_images"],
        },
        "stages": [metrics],
        "device": torch.cuda.get_device_name(task.where) if task.where.type == "cuda" else "cpu",
        "versions": {
            "edgeadv": __version__,
            **{m: importlib.metadata.version(m) for m in ("torch", "torchvision", "timm")},
        },
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if task.processes.first:
        write_run(out, model, info, TrainingImages.load(out / TRAINING_FILE) | seen_before)
        checkpoint.remove(out)
    task.processes.wait()
    return Run.open(out)
