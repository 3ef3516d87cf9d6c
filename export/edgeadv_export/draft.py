"""Just enough of a bundle for the backend that will serve an artefact, before there is a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.backends.first_run import FirstRun, first_run
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.entries import InputEntry, OutputEntry, SizedFileEntry, VariantEntry
from edgeadv_runtime.bundle.manifest import Manifest
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.bundle.variants import precision_of, takes_uint8
from edgeadv_runtime.files import sha256_file

from .onnx_form import OPSET
from .parity import TOLERANCES

WEIGHTS = "weights.safetensors"
_ADVICE = "install another version of it, leave this out of `precisions`, or give `keep_going`"
_TRIED_ON = 2
_FLOATS = InputEntry(name="image", dtype="float32", layout="NCHW", range=(0.0, 1.0))
_PIXELS = InputEntry(name="image", dtype="uint8", layout="NHWC", range=(0, 255))


@dataclass(frozen=True)
class Draft:
    """A folder for graphs that are tried, or written before the manifest.

    Attributes:
        folder: where the files go.
        classes: ids and names in logit order.
        preprocess: how a frame becomes the model's input.
        weights_sha256: hash of the weights that the graphs are made from; None where there are only graphs.
        training_images: what these were trained on; None where that is not known.
        single: whether the graphs take one image a call only.
        pixels: preprocessed images that a new graph is tried on, uint8 (n, height, width, channels); None tries it on
            black.
    """

    folder: Path
    classes: Classes
    preprocess: Preprocess
    weights_sha256: str | None = ""
    training_images: TrainingImages | None = None
    single: bool = False
    pixels: NDArray[np.uint8] | None = None
    # SHA-256 of the files that a process of its own has run: shared by the drafts that are made of this one
    _tried: set[str] = field(default_factory=set, repr=False, compare=False)

    def path(self, variant: str) -> Path:
        """The file of ``variant``."""
        return self.folder / f"model.{variant}.onnx"

    def write(self, variant: str, proto: Any) -> None:
        """Write the graph of ``variant``, over an earlier one."""
        self.path(variant).write_bytes(proto.SerializeToString(deterministic=True))

    def backend(self, variant: str, *, threads: int | None = None) -> OnnxRuntimeBackend:
        """Open the graph of ``variant`` that was written last; before that, a process of its own has run it.

        Raises:
            BackendError: ONNX Runtime refuses it.
            ExportError: it crashes ONNX Runtime.
        """
        if self.entry(variant).sha256 not in self._tried:
            channels, height, width = self.preprocess.input_shape
            black = np.zeros((1, height, width, channels), dtype=np.uint8)
            self.first_run(variant, [black if self.pixels is None else self.pixels[:_TRIED_ON]])
        return OnnxRuntimeBackend(self.bundle(variant), variant=variant, threads=threads)

    def first_run(self, variant: str, batches: Sequence[NDArray[np.uint8 | np.float32]]) -> FirstRun:
        """Run images through the graph of ``variant`` that was written last, in a process of its own.

        Raises:
            BackendError: ONNX Runtime refuses it, or it does not deliver.
            ExportError: it crashes ONNX Runtime.
        """
        bundle = self.bundle(variant)
        found = first_run(bundle, variant, batches, advice=_ADVICE)
        self._tried.add(bundle.manifest.variants[variant].sha256)
        return found

    def entry(self, variant: str) -> VariantEntry:
        """What the manifest says of the graph of ``variant`` that was written last, before it is compared with
        anything."""
        return VariantEntry(
            **sized(self.path(variant)),
            precision=precision_of(variant),
            opset=OPSET,
            input=_PIXELS if takes_uint8(variant) else _FLOATS,
            output=OutputEntry(name="logits", dtype="float32"),
            tolerance=TOLERANCES[variant],
            batch=1 if self.single else None,
        )

    def bundle(self, *variants: str) -> Bundle:
        """The files of ``variants`` as a bundle that was never written; what is not there yet has no hash."""
        entries = {variant: self.entry(variant) for variant in variants}
        digest = self.weights_sha256
        weights = None if digest is None else SizedFileEntry(file=WEIGHTS, sha256=digest, bytes=0)
        return Bundle(
            self.folder,
            Manifest.draft(self.classes.to_json(), self.preprocess.entry, variants=entries, weights=weights),
        )


def sized(path: Path) -> dict[str, Any]:
    """What the manifest says of any file."""
    return {"file": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
