"""Somebody else's ONNX file becomes a bundle, if the rewritten graph is shown to be the file that came in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from msgspec.structs import replace
from numpy.typing import NDArray

from edgeadv_runtime.bundle.bundle import Bundle, Classes, check_out, new_bundle
from edgeadv_runtime.bundle.entries import ArchitectureEntry, GradientsEntry, VariantEntry
from edgeadv_runtime.bundle.manifest import requirements
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.bundle.variants import INT8, precision_of
from edgeadv_runtime.errors import ExportError, InputError
from edgeadv_runtime.files import sha256_file

from .compute_types import compute_types
from .draft import Draft
from .examination import Examined, examine, refuse_needed
from .foreign_input import Asked
from .frames import bounded, preprocessed
from .own_gradients import own_gradients
from .package import seal
from .parity import TOLERANCES, artifact_logits, compare, summary

SOURCE = "onnx"
"""Of an imported network, what the manifest calls its architecture's source."""


def import_bundle(
    path: Path,
    out: Path,
    *,
    classes: Classes,
    preprocess: Preprocess,
    frames: Sequence[NDArray[Any]],
    asked: Asked,
    provenance: Mapping[str, Any],
    training_images: TrainingImages | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Write the bundle at ``out`` of the ONNX file at ``path``, if on every frame it gives what the file gives.

    ::

        asked = Asked(scale="0..1", color="rgb")
        about = {"from": "another team"}
        import_bundle(
            Path("net.onnx"), out, classes=classes, preprocess=preprocess, frames=frames, asked=asked, provenance=about
        )

    Args:
        path: somebody else's file.
        out: the folder to make.
        classes: ids and names in logit order.
        preprocess: how a frame becomes the picture that the file is given.
        frames: real images, uint8 RGB of shape (height, width, 3) or, for a ``window``, uint16 of shape (height,
            width); sizes may differ. All are compared.
        asked: how the file takes a picture, as far as that is known; shape and classes are filled in here.
        provenance: a JSON object.
        training_images: what the network was trained on; None where that is not known.
        overwrite: replace a bundle that is at ``out``.
        progress: told in a few words what begins, and what was read off the file.

    Returns:
        The opened bundle, without weights for PyTorch.

    Raises:
        InputError: the file is no classifier that a bundle can hold, or something about it must be given.
        ExportError: the rewritten graph is not the file, in ONNX Runtime or in PyTorch; no bundle is left then.
        StorageError: ``out`` cannot be written, or is something else than a bundle.
    """
    check_out(out, overwrite=overwrite)
    tell = progress or (lambda _: None)
    frames = bounded(frames, preprocess)
    pixels = preprocessed(frames, preprocess)
    full = dataclasses.replace(asked, shape=preprocess.input_shape, classes=len(classes))
    tell(f"reading and running {path.name} on {len(pixels)} frames")
    found = examine(path, full, pixels)
    refuse_needed(path, dict(found.needed))
    for note in found.notes:
        tell(note)
    with new_bundle(out, overwrite=overwrite) as folder:
        draft = Draft(
            folder, classes, preprocess, None, training_images=training_images, single=found.single, pixels=pixels
        )
        entry, logits = _written(draft, found, pixels, path, tell)
        entries = {found.variant: entry}
        mean, std = found.normalisation
        about = {"name": path.name, "sha256": sha256_file(path), "read": found.notes}
        seal(
            draft,
            frames,
            entries,
            {found.variant: logits},
            title=path.stem,
            architecture=ArchitectureEntry(
                name=path.stem, source=SOURCE, num_classes=len(classes), upsample=1, mean=mean, std=std
            ),
            requires=requirements(entries, None),
            provenance={**provenance, "onnx": about},
        )
    return Bundle.open(out)


def _written(
    draft: Draft, found: Examined, pixels: NDArray[np.uint8], path: Path, tell: Callable[[str], None]
) -> tuple[VariantEntry, NDArray[np.float32]]:
    """Write the graph, prove it on both sides, and give its manifest entry and logits."""
    assert found.model is not None and found.logits is not None
    variant = found.variant
    proto = onnx.load_from_string(found.model)
    draft.write(variant, proto)
    expected = found.logits
    reference = f"{path.name} in onnxruntime {onnxruntime.__version__}, CPUExecutionProvider"
    with draft.backend(variant) as backend:  # the class that will serve it
        logits = artifact_logits(backend, pixels)
        runtime = f"onnxruntime {onnxruntime.__version__}, {backend.provider}"
    parity = compare(expected, logits, reference=reference, runtime=runtime)
    if not parity.max_relative_error <= TOLERANCES[variant] or parity.flips:
        raise ExportError(f"the rewritten graph is not {path.name}: {summary(parity)}. No bundle was written")
    entry = draft.entry(variant)
    tell(f"comparing the graph in PyTorch with it on {len(pixels)} frames")
    try:
        _, close = own_gradients(proto, variant, sha256=entry.sha256, pixels=pixels, logits=logits, single=found.single)
        gradients = GradientsEntry(parity=close)
    except InputError as error:
        tell(f"warning: it can be attacked by queries only (square, noise): {error}")
        gradients = GradientsEntry(missing=str(error))
    compute = None if precision_of(variant) == INT8 else compute_types(proto)
    return replace(entry, opset=found.opset, parity=parity, compute=compute, gradients=gradients), logits
