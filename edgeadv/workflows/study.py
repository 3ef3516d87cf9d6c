"""The paper's table: pre-trained ImageNet classifiers without attack and under FGSM, on images chosen at random.

After Sen, Sen and Chatterjee, "Adversarial Attacks on Image Classification Models: Analysis and Defense" (2023). Each
classifier becomes a bundle in memory and goes through the one evaluation loop, so its figures are made as every
other's.
"""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from timm.data import resolve_data_config

from edgeadv_runtime import Bundle, DataInfo, Eps, InputError, Preprocess, Results, __version__
from edgeadv_runtime.attacks.base import infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.entries import ArchitectureEntry, SizedFileEntry
from edgeadv_runtime.bundle.manifest import Manifest
from edgeadv_runtime.bundle.preprocess import Interpolation
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import StorageError
from edgeadv_runtime.evaluation.loop import evaluate
from edgeadv_runtime.files import canonical_json, ensure_writable, partial_of, sha256_bytes, sha256_file
from edgeadv_runtime.records.study import Study, StudySettings
from edgeadv_runtime.records.suites import FGSM, Effort
from edgeadv_runtime.unfinished import publish

from ..attacks import build_attacks
from ..attacks.pack_writer import clean_batches
from ..backends.pytorch import ModuleBackend
from ..data.datasets import ImageSet, balanced_subset
from ..models.builder import Architecture, PixelModel, load_pretrained, save_weights
from ..models.checkpoints import WeightsMap
from ..models.checks import check_input_size
from ..models.device import full_precision, memory_order
from ..reporting.study import write_pages
from .backends import torch_device
from .inputs import one_of

STUDY_FILE = "study.json"
DEFAULT = "default"
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One classifier of a study, not yet loaded.

    Attributes:
        name: as it was asked for, e.g. ``"resnet101"``; also what the table calls it.
        architecture: how to build it.
        preprocess: from a picture to its input.
        published: whether ``preprocess`` is the library's own; otherwise the user stated it.
        weights: ``"default"`` for the library's pre-trained weights (downloaded), or a file.
        weights_map: how a file's tensors are matched.
    """

    name: str
    architecture: Architecture
    preprocess: Preprocess
    published: bool
    weights: str
    weights_map: WeightsMap

    def load(self) -> PixelModel:
        """The network with its weights, shown one batch of the right size.

        Raises:
            InputError: the weights are missing or do not fit, or the network takes no images of this size.
        """
        model = load_pretrained(self.architecture, self.weights, weights_map=self.weights_map)
        check_input_size(model, self.preprocess.input_shape)
        return model

    def to_json(self) -> dict[str, Any]:
        """What a study file says of it; files by name and hash."""
        if self.weights == DEFAULT:
            origin = {"file": None, "name": published_name(self.architecture)}
        else:
            file = Path(self.weights)
            origin = {"file": file.name, "sha256": sha256_file(file), "map": self.weights_map}
        return {
            "name": self.name,
            "source": self.architecture.source,
            "weights": origin,
            "preprocess": self.preprocess.to_json(),
            "preprocess_published": self.published,
            "mean": list(self.architecture.mean),
            "std": list(self.architecture.std),
        }


def make_subjects(
    names: Sequence[str], classes: Classes, *, weights: str, weights_map: str = "by-name", preprocess: str | None = None
) -> list[Subject]:
    """Look up what is to be studied.

    Args:
        names: architectures, each once.
        classes: of every one of them, in logit order.
        weights: ``"default"``, or ``ARCH=FILE,ARCH=FILE`` with one entry for each architecture.
        weights_map: ``"by-name"`` or ``"by-position"``, for all files.
        preprocess: as ``--preprocess`` writes it, for all; None takes each one's published evaluation transform.

    Raises:
        InputError: an architecture is unknown, a file is missing, or an option is not written as it must be.
    """
    one_of(weights_map, get_args(WeightsMap), field="weights_map")
    steps = None if preprocess is None else Preprocess.parse(preprocess)
    architectures = {name: Architecture.find(name, num_classes=len(classes)) for name in names}
    files = dict.fromkeys(names, DEFAULT) if weights == DEFAULT else _weight_files(weights, names)
    return [
        Subject(
            name=name,
            architecture=architecture,
            preprocess=steps or published_preprocess(architecture),
            published=steps is None,
            weights=files[name],
            weights_map=weights_map,  # type: ignore[arg-type]
        )
        for name, architecture in architectures.items()
    ]


def _weight_files(text: str, names: Sequence[str]) -> dict[str, str]:
    """Read ``ARCH=FILE,ARCH=FILE``: every architecture once, every file there."""
    files: dict[str, str] = {}
    for part in text.split(","):
        name, _, file = (piece.strip() for piece in part.partition("="))
        if not file or name in files:
            raise InputError(
                f"`weights` is written {DEFAULT}, or ARCH=FILE,ARCH=FILE with each architecture once; "
                f"{part.strip()!r} does not fit"
            )
        files[name] = file
    if missing := [name for name in names if name not in files]:
        raise InputError(f"`weights` names no file for {', '.join(missing)}: add {missing[0]}=FILE")
    if unknown := [name for name in files if name not in names]:
        raise InputError(
            f"`weights` names {', '.join(unknown)}, which `arch` does not: leave it out, or add it to `arch`"
        )
    for name, file in files.items():
        if not Path(file).is_file():
            raise InputError(f"{file} does not exist: `weights` {name}=FILE takes a file of weights")
    return files


def published_preprocess(architecture: Architecture) -> Preprocess:
    """The evaluation transform that the library publishes with its best weights, but for the normalisation.

    torchvision's is that of the weights it calls ``DEFAULT``; timm's is that of its default configuration at test size,
    as ``timm.data.create_transform`` reads it.

    Raises:
        InputError: there is none, or it is neither a resize of the shorter side nor a stretch, and a centre crop.
    """
    if architecture.source == "torchvision":
        transforms = torchvision.models.get_model_weights(architecture.name)["DEFAULT"].transforms()
        (resize,), (crop,), kind = transforms.resize_size, transforms.crop_size, transforms.interpolation.value
    elif architecture.source == "module":
        raise InputError(
            f"for {architecture.name}, own code, nobody publishes a transform: state one with `preprocess`"
        )
    else:
        published = timm.get_pretrained_cfg(architecture.name)
        if published is None:
            raise InputError(f"timm publishes no transform for {architecture.name}: state one with `preprocess`")
        config = resolve_data_config(pretrained_cfg=published.to_dict(), use_test_size=True)
        _, crop, width = config["input_size"]
        kind, mode, share = config["interpolation"], config["crop_mode"], config["crop_pct"]
        if mode == "squash":
            size = (math.floor(crop / share), math.floor(width / share))
            return Preprocess(resize=size, resize_mode="stretch", crop=(crop, width), interpolation=kind)
        if mode != "center" or crop != width:
            raise InputError(
                f"the transform of timm's {architecture.name} (crop mode {mode}, {crop}x{width} pixels) is not a "
                "resize of the shorter side, or a stretch, and a centre crop: state one with `preprocess`"
            )
        resize = math.floor(crop / share)
    if kind not in get_args(Interpolation):
        raise InputError(f"{architecture.name} is published with {kind} interpolation: state another with `preprocess`")
    return Preprocess(resize=resize, crop=crop, interpolation=kind)


def published_name(architecture: Architecture) -> str:
    """What the library calls the weights behind ``default`` and behind its transform, e.g.
    ``"ResNet101_Weights.IMAGENET1K_V2"``."""
    if architecture.source == "torchvision":
        return str(torchvision.models.get_model_weights(architecture.name)["DEFAULT"])
    config = timm.get_pretrained_cfg(architecture.name)
    tag = f".{config.tag}" if config is not None and config.tag else ""
    return f"timm/{architecture.name.partition('.')[0]}{tag}"


def choose_images(images: ImageSet, n: int, *, seed: int) -> NDArray[np.int64]:
    """Positions, ascending, of ``n`` images chosen at random, with as equal a share of each class as there is.

    Raises:
        InputError: there are fewer.
    """
    if n > len(images):
        raise InputError(f"`n` {n}, but {images.spec} holds {len(images)} images: ask for `n` {len(images)} or fewer")
    return balanced_subset(images.labels, n, seed=seed)


def run_study(
    out: Path,
    *,
    subjects: Sequence[Subject],
    images: ImageSet,
    n: int,
    eps: Sequence[Eps],
    seed: int,
    provider: str = "cpu",
    resume: bool = False,
    allow_unreadable: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Measure one classifier after the other and write ``study.json``, ``study.md`` and ``study.html``.

    Work goes on in ``OUT.partial``, which becomes ``out`` when it is whole; it keeps every classifier that is finished.

    Args:
        out: the folder to make; must not exist.
        subjects: what is measured.
        images: labelled in the order of the classifiers' logits.
        n: how many of them.
        eps: budgets, ascending.
        seed: of the choice of images.
        provider: where they run, ``"cpu"`` or ``"cuda"``.
        resume: continue what an interrupted call left.
        allow_unreadable: accept more than 1% of unreadable images.
        workers: processes that decode.
        progress: called with the images done, all images and the classifier, first of each with none done.

    Raises:
        StorageError: ``out`` exists or cannot be written, or there is an unfinished study and ``resume`` is false.
        InputError: weights do not fit, there are too few images, or the unfinished study was started with other
            settings.
        DataError: more than 1% of the images are unreadable and that was not allowed.
    """
    if out.exists():
        raise StorageError(f"{out} exists: choose another `out`")
    order = choose_images(images, n, seed=seed)
    data = DataInfo(name=Path(images.spec).name, split=images.split, total=n, allow_unreadable=allow_unreadable)
    chosen = {"names": [images.names[int(i)] for i in order], "labels": images.labels[order].tolist()}
    settings = {
        "architectures": [subject.to_json() for subject in subjects],
        "data": {"name": data.name, "split": data.split, "n": n, "images_sha256": sha256_bytes(canonical_json(chosen))},
        "seed": seed,
        "attack": FGSM,
        "eps": [budget.text for budget in eps],
        "libraries": {"timm": timm.__version__, "torchvision": torchvision.__version__},
    }
    partial = partial_of(out)
    study = _begin(partial, convert(settings, StudySettings, what="study"), resume=resume)
    left = subjects[len(study.results) :]
    # before the first hour is spent: do the weights of the last one fit?
    for subject in left:
        subject.load()
    for number, subject in enumerate(left, start=len(study.results) + 1):
        report = _report_of(f"{subject.name} ({number} of {len(subjects)})", n, progress)
        result = _measure(
            subject,
            images,
            order,
            data=data,
            eps=eps,
            provider=provider,
            workers=workers,
            progress=report,
        )
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        study = replace(study, results=(*study.results, result), created=now)
        study.save(partial / STUDY_FILE)
    write_pages(study, partial)
    publish(partial, out)
    return replace(study, path=out / STUDY_FILE)


def _report_of(what: str, n: int, progress: Progress | None) -> Progress:
    def report(done: int, total: int, _: str) -> None:
        if progress is not None:
            progress(done, total, what)

    report(0, n, what)
    return report


def _begin(partial: Path, settings: StudySettings, *, resume: bool) -> Study:
    """The unfinished study to go on with, or one with nothing measured yet."""
    fresh = Study(settings=settings, results=(), edgeadv_version=__version__)
    if not (partial / STUDY_FILE).exists():  # nothing is measured, whatever a killed process began
        if partial.exists() and any(not file.name.startswith(".") for file in partial.iterdir()):
            raise StorageError(f"{partial} holds something else than a study: delete it, or choose another `out`")
        ensure_writable(partial)
        return fresh
    if not resume:
        raise StorageError(f"{partial} holds an unfinished study: continue it with `resume`, or delete it")
    study = Study.load(partial / STUDY_FILE)
    if (study.settings, study.edgeadv_version) != (fresh.settings, fresh.edgeadv_version):
        raise InputError(f"{partial} was started with other settings: continue with the same ones, or delete it")
    return study


def _measure(
    subject: Subject,
    images: ImageSet,
    order: NDArray[np.int64],
    *,
    data: DataInfo,
    eps: Sequence[Eps],
    provider: str,
    workers: int,
    progress: Progress | None,
) -> Results:
    """One classifier through the evaluation loop."""
    with tempfile.TemporaryDirectory(prefix="edgeadv-study-") as folder:
        bundle = _bundle(subject, images.classes, Path(folder) / subject.name.replace("/", "-"))
        with _in_pytorch(subject, bundle, torch_device(provider)) as reference:
            attacks = build_attacks(
                reference.model,
                eps,
                efforts={FGSM: Effort()},
                classes=len(bundle.classes),
                gradients_sha256=reference.gradients_sha256,
            )
            unreadable: list[str] = []
            clean = clean_batches(images, bundle, order, unreadable=unreadable, workers=workers)
            return evaluate(
                bundle,
                craft(clean, attacks, reference, uint8=False),
                infos=infos(attacks, uint8=False),
                backends=[reference],
                data=data,
                unreadable=unreadable,
                examples=0,
                progress=progress,
            )


def _in_pytorch(subject: Subject, bundle: Bundle, device: torch.device) -> ModuleBackend:
    """The classifier as its library computes it: nothing is exported."""
    full_precision(device)
    model = subject.load().eval().requires_grad_(False)
    return ModuleBackend(
        model.to(device, memory_format=memory_order(device)),  # type: ignore[call-overload]
        sha256=bundle.weights_sha256,
        input_shape=bundle.preprocess.input_shape,
        n_classes=len(bundle.classes),
    )


def _bundle(subject: Subject, classes: Classes, folder: Path) -> Bundle:
    """A bundle without a manifest: the weights, as an export of them would write them, and what the loop asks for."""
    file = folder / _WEIGHTS
    save_weights(subject.load(), file)
    manifest = Manifest.draft(
        classes.to_json(),
        subject.preprocess.entry,
        variants={},
        weights=SizedFileEntry(file=file.name, sha256=sha256_file(file), bytes=file.stat().st_size),
        title=subject.name,
        architecture=ArchitectureEntry(**subject.architecture.to_json()),
        provenance={"weights": subject.to_json()["weights"]},
    )
    return Bundle(folder, manifest)
