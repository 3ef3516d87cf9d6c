"""Just enough of a bundle for the backend that will serve an artefact, before there is a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.files import sha256_file


@dataclass(frozen=True)
class Draft:
    """A folder for graphs that are tried, or written before the manifest.

    Attributes:
        folder: where the files go.
        classes: ids and names in logit order.
        preprocess: how a frame becomes the model's input.
        weights_sha256: hash of the weights that the graphs are made from.
        training_images: what these were trained on; None where that is not known.
    """

    folder: Path
    classes: Classes
    preprocess: Preprocess
    weights_sha256: str = ""
    training_images: TrainingImages | None = None

    def path(self, variant: str) -> Path:
        """The file of ``variant``."""
        return self.folder / f"model.{variant}.onnx"

    def write(self, variant: str, proto: Any) -> Path:
        """Write the graph of ``variant``, over an earlier one."""
        path = self.path(variant)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return path

    def backend(self, variant: str, *, threads: int | None = None) -> OnnxRuntimeBackend:
        """Open the graph of ``variant`` that was written last.

        Raises:
            BackendError: ONNX Runtime refuses it.
        """
        return OnnxRuntimeBackend(self.bundle(variant), variant=variant, threads=threads)

    def bundle(self, *variants: str) -> Bundle:
        """The files of ``variants`` as a bundle that was never written."""
        entries = {v: {"file": self.path(v).name, "sha256": sha256_file(self.path(v))} for v in variants}
        manifest = {
            "bundle_id": "draft", "variants": entries, "left_out": [], "classes": self.classes.to_json(),
            "preprocess": self.preprocess.to_json(), "weights": {"sha256": self.weights_sha256},
        }  # fmt: skip
        return Bundle(self.folder, manifest)
