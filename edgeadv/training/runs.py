"""A run: the folder that training leaves and export reads.

::

    weights.safetensors   the trained network
    run.json              every hyper-parameter, data, seed, versions, metrics per epoch
    training-images.npy   hashes of the images that it was trained on, which export hands on
    state.bin             what --resume needs; only while the run is unfinished
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors.torch
import torch

from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TRAINING_FILE, TrainingImages
from edgeadv_runtime.decoding import Count, Sha256, Share, convert
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError, SchemaError, StorageError
from edgeadv_runtime.files import atomic_file, read_json, sha256_file, write_json
from edgeadv_runtime.reading import file_hash, read_bytes, read_checked
from edgeadv_runtime.storage import folder_for, storage_errors

from ..models.builder import Architecture, PixelModel, build, save_weights
from ..models.checkpoints import load_state, read_weights
from ..models.torch_files import torch_content
from .checkpoint import STATE_FILE

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
WEIGHTS_FILE = "weights.safetensors"
TEACHER_FOLDER = "teacher"
_TRIAL = f".{WEIGHTS_FILE}.savable_.tmp"  # as what atomic_file leaves, so that the next run removes it


Number = bool | int | float
"""What JSON has of numbers: a count stays one."""


class RunData(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run was trained and measured on.

    Attributes:
        spec: the data set: a name, the folder, or what a data set in memory was called.
        train_images: images trained on.
        test_images: images measured on.
    """

    spec: str
    train_images: Count | None = None
    test_images: Count | None = None


class RunStage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One training and what was measured.

    Attributes:
        epochs: loss, accuracies and times of each epoch.
        test_accuracy: top-1 on the test images, of the weights that are kept.
        test_accuracy_ci95: its interval.
        test_images: images behind it.
        unreadable: messages of training images that were left out.
        train_images: images trained on.
        peak_lr: largest learning rate.
        optimizer: its settings.
        ema: decay of the average of the weights; 0 for none.
        kept_weights: which they are, ``"average"`` or ``"last"``.
        kept_epoch: from 1, the epoch whose weights are kept; None where none was chosen.
        holdout_images: images held out to choose it.
        holdout_list: name and SHA-256 of the list that named the images held out.
        processes: that trained together; None of one alone.
        stopped: why training ended early, in words.
    """

    epochs: Annotated[list[dict[str, Number]], msgspec.Meta(min_length=1)]
    test_accuracy: Share
    test_accuracy_ci95: tuple[Share, Share]
    test_images: Count
    unreadable: list[str]
    train_images: Count | None = None
    peak_lr: float | None = None
    optimizer: dict[str, Any] | None = None
    ema: float | None = None
    kept_weights: str | None = None
    kept_epoch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    holdout_images: Count | None = None
    holdout_list: dict[str, str] | None = None
    processes: Count | None = None
    stopped: str | None = None

    def __post_init__(self) -> None:
        if self.kept_epoch is not None and self.kept_epoch > len(self.epochs):
            raise ValueError(f"epoch {self.kept_epoch} of {len(self.epochs)} is kept")

    @property
    def kept(self) -> dict[str, Number]:
        """What was measured of the epoch whose weights are kept."""
        return self.epochs[(self.kept_epoch or len(self.epochs)) - 1]


class RunImages(msgspec.Struct, frozen=True):
    """The list of training images beside ``run.json``."""

    file: str
    sha256: Sha256
    count: Count


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``run.json``.

    Attributes:
        title: the run in a few words.
        recipe: its name under ``"recipe"``, and the recipe's settings.
        config: hyper-parameters.
        architecture: of :class:`~edgeadv.models.builder.Architecture`.
        preprocess: of :class:`~edgeadv_runtime.bundle.preprocess.Preprocess`.
        classes: of :class:`~edgeadv_runtime.bundle.bundle.Classes`.
        data: what it was trained on.
        stages: what was measured; the last one is the run's own.
        weights_sha256: hash of the weights.
        device: what it was trained on.
        versions: of edgeadv, torch, torchvision and timm.
        created: when, in ISO 8601.
        training_images: the list of them; None of an edgeadv that kept none.
        rounded_from: SHA-256 of the weights in float32 that were measured and then rounded; None where these are they.
    """

    schema_version: int
    kind: str
    finished: bool
    title: str
    recipe: dict[str, Number | str | None]
    config: dict[str, Number | str | None] = {}
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    classes: list[dict[str, str]]
    data: RunData
    stages: Annotated[list[RunStage], msgspec.Meta(min_length=1)]
    weights_sha256: Sha256
    device: str | None = None
    versions: dict[str, str] = {}
    created: str | None = None
    training_images: RunImages | None = None
    rounded_from: Sha256 | None = None

    @property
    def stage(self) -> RunStage:
        """The run's own training; others went before it."""
        return self.stages[-1]


@dataclass(frozen=True)
class Run:
    """A finished run, opened.

    Attributes:
        path: the folder.
        info: ``run.json``.
    """

    path: Path
    info: RunInfo

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run at ``path``.

        Raises:
            InputError: training did not finish there.
            SchemaError: another version wrote it.
            IntegrityError: the weights, or the list of training images, are not the run's.
            BundleError: there is no run, or ``run.json`` is damaged.
        """
        folder = Path(path)
        # a distillation trains its teacher in a folder of its own first
        if not (folder / RUN_FILE).exists() and any((folder / name).exists() for name in (STATE_FILE, TEACHER_FOLDER)):
            raise InputError(f"{folder} is not finished: continue it with `resume`")
        if (folder / "manifest.json").exists():
            raise InputError(f"{folder} is a bundle, not a training run: what it was made from is exported")
        file = folder / RUN_FILE
        head = read_json(file, what="training run")
        if head.get("kind") != "run" or head.get("schema_version") != SCHEMA_VERSION:
            raise SchemaError(
                f"{folder} is a {head.get('kind')!r} of schema version {head.get('schema_version')!r}, "
                f"not a run of {SCHEMA_VERSION}"
            )
        if not head.get("finished"):
            raise InputError(f"{folder} is not finished: continue it with `resume`")
        run = cls(folder, convert(head, RunInfo, what="training run", path=file, mend="copy it again or train again"))
        written = {WEIGHTS_FILE: run.info.weights_sha256}
        if run.info.training_images is not None:
            written[TRAINING_FILE] = run.info.training_images.sha256
        try:
            _ = run.architecture, run.preprocess, run.classes
            changed = next((name for name in written if file_hash(folder / name) != written[name]), None)
        except Exception as error:  # what it says of the network, the pictures and the classes is taken apart here
            raise BundleError(f"{folder} is a damaged run ({error}); copy it again or train again") from error
        if changed is not None:
            raise IntegrityError(f"{folder / changed} is not what this run wrote; train again or copy it again")
        return run

    @property
    def architecture(self) -> Architecture:
        """What was trained."""
        return Architecture.from_json(self.info.architecture)

    @property
    def preprocess(self) -> Preprocess:
        """How its images were prepared."""
        return Preprocess.from_json(self.info.preprocess)

    @property
    def classes(self) -> Classes:
        """Its classes in logit order."""
        return Classes.from_json(self.info.classes)

    @property
    def data(self) -> str:
        """What it was trained on: a name, a folder, or what a data set in memory was called."""
        return self.info.data.spec

    @property
    def training_images(self) -> TrainingImages | None:
        """What it was trained on, and its teacher; None of a run of an edgeadv that kept no list.

        Raises:
            BundleError: the file is not such a list.
        """
        listed = self.info.training_images
        if listed is None:
            return None
        file = self.path / TRAINING_FILE
        data = read_checked(file, listed.sha256, what="list of training images")
        return TrainingImages.parse(data, file, count=listed.count)

    @property
    def title(self) -> str:
        """The run in a few words, e.g. ``"regnet_y_400mf, papernot T=40"``."""
        return self.info.title

    @property
    def provenance(self) -> dict[str, Any]:
        """What a bundle keeps of the run: recipe, hyper-parameters, data, seed, versions and final metrics."""
        info: dict[str, Any] = msgspec.to_builtins(self.info)
        # a folder's place says something about the machine and nothing about the model
        info["data"]["spec"] = Path(self.data).name
        for stage in info["stages"]:
            stage["unreadable"] = [message.partition(": ")[0] for message in stage["unreadable"]]
        keys = ("recipe", "config", "data", "versions", "created", "stages", "rounded_from")
        return {key: info[key] for key in keys if key in info}

    def load_model(self) -> PixelModel:
        """The trained network, in training mode, on the CPU."""
        model = build(self.architecture)
        weights = read_weights(self.path / WEIGHTS_FILE, sha256=self.info.weights_sha256)
        load_state(model.net, weights, origin=str(self.path / WEIGHTS_FILE))
        return model


def check_savable(model: PixelModel, folder: Path) -> None:
    """Write the weights of ``model`` into ``folder`` and read them again, before the hours that make better ones; no
    file is left.

    Raises:
        InputError: they cannot be written as safetensors, or do not come back.
        StorageError: ``folder`` cannot be written.
    """
    trial = folder / _TRIAL
    with storage_errors(folder), folder_for(folder):
        try:
            save_weights(model, trial)
            # the numbers that it has: nothing changes
            load_state(model.net, safetensors.torch.load(read_bytes(trial, what="weight file")))
            saved = io.BytesIO()
            torch.save(model.state_dict(), saved)
            torch_content(saved.getvalue())
        except StorageError:
            raise
        except Exception as error:  # own code may put anything into its state
            raise InputError(
                f"the weights of {model.architecture.name} cannot be saved and read again, so that a training would "
                f"be lost ({' '.join(str(error).split())[:120]}): let its state_dict hold tensors only"
            ) from error
        finally:
            trial.unlink(missing_ok=True)


def write_run(folder: Path, model: PixelModel, info: dict[str, Any], images: TrainingImages | None = None) -> Run:
    """Write a finished run: weights and the list of ``images`` first, then ``run.json`` that vouches for them."""
    save_weights(model, folder / WEIGHTS_FILE)
    listed: dict[str, Any] = {}
    if images is not None:
        with atomic_file(folder / TRAINING_FILE) as temporary:
            images.save(temporary)
        listed["training_images"] = {
            "file": TRAINING_FILE,
            "sha256": sha256_file(folder / TRAINING_FILE),
            "count": len(images),
        }
    write_json(
        folder / RUN_FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "run",
            "finished": True,
            **info,
            **listed,
            "weights_sha256": sha256_file(folder / WEIGHTS_FILE),
        },
    )
    return Run.open(folder)
