"""Just enough of a bundle for the backend that will serve an artefact, before there is a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.entries import InputEntry, OutputEntry, SizedFileEntry, VariantEntry
from edgeadv_runtime.bundle.manifest import Manifest
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.bundle.variants import precision_of, takes_uint8
from edgeadv_runtime.files import sha256_file

from .parity import TOLERANCES
from .to_onnx import OPSET

WEIGHTS = "weights.safetensors"
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
    """

    folder: Path
    classes: Classes
    preprocess: Preprocess
    weights_sha256: str | None = ""
    training_images: TrainingImages | None = None
    single: bool = False

    def path(self, variant: str) -> Path:
        """The file of ``variant``."""
        return self.folder / f"model.{variant}.onnx"

    def write(self, variant: str, proto: Any) -> None:
        """Write the graph of ``variant``, over an earlier one."""
        self.path(variant).write_bytes(proto.SerializeToString(deterministic=True))

    def backend(self, variant: str, *, threads: int | None = None) -> OnnxRuntimeBackend:
        """Open the graph of ``variant`` that was written last.

        Raises:
            BackendError: ONNX Runtime refuses it.
        """
        return OnnxRuntimeBackend(self.bundle(variant), variant=variant, threads=threads)

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
