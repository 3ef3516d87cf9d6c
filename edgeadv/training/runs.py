"""A run: the folder that training leaves and export reads.

::

    weights.safetensors   the trained network
    run.json              every hyper-parameter, data, seed, versions, metrics per epoch
    training-images.npy   hashes of the images that it was trained on, which export hands on
    state.bin             what --resume needs; only while the run is unfinished
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TRAINING_FILE, TrainingImages
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError, SchemaError
from edgeadv_runtime.files import atomic_file, read_json, sha256_file, write_json

from ..models.builder import Architecture, PixelModel, build, load_state, read_weights, save_weights
from .checkpoint import STATE_FILE

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
WEIGHTS_FILE = "weights.safetensors"
TEACHER_FOLDER = "teacher"


@dataclass(frozen=True)
class Run:
    """A finished run, opened.

    Attributes:
        path: the folder.
        info: ``run.json`` as read.
    """

    path: Path
    info: dict[str, Any]

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
        info = read_json(folder / RUN_FILE, what="training run")
        if info.get("kind") != "run" or info.get("schema_version") != SCHEMA_VERSION:
            raise SchemaError(
                f"{folder} is a {info.get('kind')!r} of schema version {info.get('schema_version')!r}, not a run of {SCHEMA_VERSION}"
            )
        if not info.get("finished"):
            raise InputError(f"{folder} is not finished: continue it with `resume`")
        run = cls(folder, info)
        try:
            _ = run.architecture, run.preprocess, run.classes, run.title, run.data, run.provenance
            written = {WEIGHTS_FILE: info["weights_sha256"]}
            if "training_images" in info:
                written[TRAINING_FILE] = info["training_images"]["sha256"]
            for name, digest in written.items():
                if sha256_file(folder / name) != digest:
                    raise IntegrityError(f"{folder / name} is not what this run wrote; train again or copy it again")
        except (KeyError, TypeError, AttributeError, InputError, SchemaError, FileNotFoundError) as error:
            raise BundleError(f"{folder} is a damaged run ({error}); copy it again or train again") from error
        return run

    @property
    def architecture(self) -> Architecture:
        """What was trained."""
        return Architecture.from_json(self.info["architecture"])

    @property
    def preprocess(self) -> Preprocess:
        """How its images were prepared."""
        return Preprocess.from_json(self.info["preprocess"])

    @property
    def classes(self) -> Classes:
        """Its classes in logit order."""
        return Classes.from_json(self.info["classes"])

    @property
    def data(self) -> str:
        """The ``--data`` it was trained on."""
        return str(self.info["data"]["spec"])

    @property
    def training_images(self) -> TrainingImages | None:
        """What it was trained on, and its teacher; None of a run of an edgeadv that kept no list.

        Raises:
            BundleError: the file is not such a list.
        """
        entry = self.info.get("training_images")
        return None if entry is None else TrainingImages.load(self.path / TRAINING_FILE, count=entry["count"])

    @property
    def title(self) -> str:
        """The run in a few words, e.g. ``"regnet_y_400mf, papernot T=40"``."""
        return str(self.info["title"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What a bundle keeps of the run: recipe, hyper-parameters, data, seed, versions and final metrics."""
        keys = ("recipe", "config", "data", "versions", "created", "stages")
        kept = {key: self.info[key] for key in keys if key in self.info}
        # a folder's place says something about the machine and nothing about the model
        if "stages" in kept:
            kept["stages"] = [
                {**stage, "unreadable": [message.partition(": ")[0] for message in stage["unreadable"]]}
                for stage in kept["stages"]
            ]
        return {**kept, "data": {**self.info["data"], "spec": Path(self.data).name}}

    def load_model(self) -> PixelModel:
        """The trained network, in training mode, on the CPU."""
        model = build(self.architecture)
        load_state(model.net, read_weights(self.path / WEIGHTS_FILE), origin=str(self.path / WEIGHTS_FILE))
        return model


def write_run(folder: Path, model: PixelModel, info: dict[str, Any], images: TrainingImages | None = None) -> Run:
    """Write a finished run: weights and the list of ``images`` first, then ``run.json`` that vouches for them."""
    save_weights(model, folder / WEIGHTS_FILE)
    listed: dict[str, Any] = {}
    if images is not None:
        with atomic_file(folder / TRAINING_FILE) as temporary:
            images.save(temporary)
        listed["training_images"] = {
            "file": TRAINING_FILE, "sha256": sha256_file(folder / TRAINING_FILE), "count": len(images)
        }  # fmt: skip
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
