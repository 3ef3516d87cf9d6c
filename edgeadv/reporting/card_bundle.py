"""What a bundle says of itself, as a card has it: the model, its files, its training, its signature."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.entries import PairedEntry
from edgeadv_runtime.bundle.manifest import MANIFEST
from edgeadv_runtime.errors import BundleError, require
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.records.card import (
    CardArtefact,
    CardComparison,
    CardModel,
    CardSignature,
    CardSource,
    CardTraining,
    Setting,
)
from edgeadv_runtime.records.evidence import ORDER, Verdict
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE

# figures that a training measured of itself and of its teacher have no interval and no verdict
_MEASURED = re.compile("accuracy|worst_case|robust|entropy")
_STATISTICS = ("running_mean", "running_var")
_STAGE = ("kept_epoch", "holdout_images", "peak_lr", "stopped")
_MOST_COUNTED = 1 << 53


def manifest_of(bundle: Bundle) -> CardSource:
    """The manifest, which has the hash of every file of the bundle."""
    path, manifest = bundle.path / MANIFEST, bundle.manifest
    return CardSource(
        kind="bundle",
        name=f"{_name(bundle)}/{MANIFEST}",
        sha256=sha256_file(path),
        created=manifest.created,
        edgeadv_version=manifest.edgeadv_version,
    )


def _name(bundle: Bundle) -> str:
    return bundle.path.resolve().name


def model(bundle: Bundle, source: CardSource) -> CardModel:
    """What it is.

    Raises:
        BundleError: the weights are no safetensors.
        MissingDependencyError: there are weights, and the extra ``report`` is not installed.
    """
    manifest = bundle.manifest
    return CardModel(
        source=source,
        title=manifest.title,
        bundle_id=bundle.id,
        architecture=f"{manifest.architecture.name} ({manifest.architecture.source})",
        parameters=_parameters(bundle),
        input_shape=bundle.preprocess.input_shape,
        preprocess=str(bundle.preprocess),
        classes=bundle.classes.names,
        artefacts=tuple(_artefact(bundle, variant) for variant in manifest.variants),
        gates=tuple(_gates(bundle)),
    )


def _parameters(bundle: Bundle) -> int | None:
    """Numbers in the weights, BatchNorm's statistics left out; None where this copy has none."""
    weights = bundle.manifest.weights
    if weights is None or weights.file in bundle.manifest.left_out:
        return None
    library = require("safetensors", extra="report")
    try:
        tensors: list[tuple[str, dict[str, Any]]] = library.deserialize(bundle.read(weights.file))
    except library.SafetensorError as error:
        path = bundle.path / weights.file
        raise BundleError(f"{path} is no safetensors file: export or copy the bundle again") from error
    total: int = sum(
        math.prod(tensor["shape"])
        for name, tensor in tensors
        if "F" in tensor["dtype"] and not name.endswith(_STATISTICS)
    )
    return total


def _artefact(bundle: Bundle, variant: str) -> CardArtefact:
    entry = bundle.manifest.variants[variant]
    return CardArtefact(
        variant=variant,
        file=entry.file,
        sha256=entry.sha256,
        bytes=entry.bytes,
        input=f"{entry.input.dtype} {entry.input.layout}",
        carried=variant in bundle.variants,
        parity_frames=None if entry.parity is None else entry.parity.frames,
        parity_same=None if entry.parity is None else entry.parity.frames - len(entry.parity.flips),
        no_gradients=None if entry.gradients is None else entry.gradients.missing,
    )


def training(bundle: Bundle, source: CardSource) -> CardTraining:
    """Trained on what, as far as the provenance has it in the form of a run; whoever exports may write anything."""
    about, listed = bundle.manifest.provenance, bundle.manifest.training_images
    data, stage = _object(about.get("data")), _last(about.get("stages"))
    recipe = about.get("recipe")
    epochs, held_out = stage.get("epochs"), _object(stage.get("holdout_list"))
    return CardTraining(
        source=source,
        data=_text(about.get("data") if isinstance(about.get("data"), str) else data.get("spec")),
        images=_count(stage.get("train_images")) or _count(data.get("train_images")),
        recipe=_settings({"recipe": recipe} if isinstance(recipe, str) else recipe),
        config=_settings(about.get("config")),
        stage={
            **({"epochs": len(epochs)} if isinstance(epochs, list) else {}),
            **_settings(stage.get("optimizer")),
            **_settings({key: stage[key] for key in _STAGE if stage.get(key) is not None}),
        },
        holdout_list=_text(held_out.get("name")),
        versions={key: str(value) for key, value in _settings(about.get("versions")).items()},
        listed_images=None if listed is None else listed.count,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _last(value: Any) -> dict[str, Any]:
    return _object(value[-1]) if isinstance(value, list) and value else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_COUNTED else None


def _text(value: Any) -> str | None:
    return without_place(value) if isinstance(value, str) else None


def without_place(text: str) -> str:
    """The last name of a path from the root: where a file lies says something about a machine. Other text as it is."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~")
    return PureWindowsPath(text).name or text if absolute else text


def _settings(value: Any) -> dict[str, Setting]:
    """Numbers and texts of a JSON object, without what was measured."""
    return {
        key: without_place(each) if isinstance(each, str) else each
        for key, each in _object(value).items()
        if (each is None or isinstance(each, str | bool | int | float)) and not _MEASURED.search(key)
    }


def _gates(bundle: Bundle) -> Iterator[CardComparison]:
    """What the export measured of each int8 variant against fp32."""
    for variant, entry in bundle.manifest.variants.items():
        gate = entry.gate
        if gate is None:
            continue
        shared: dict[str, Any] = {
            "artefact": variant if gate.of is None else f"{variant}, by {gate.of}",
            "baseline": "fp32",
            "data": gate.data.name if gate.data.split is None else f"{gate.data.name} ({gate.data.split})",
        }
        yield CardComparison(**shared, **_paired(gate.clean), attack=CLEAN, eps="0", verdict=None)
        if (worst := gate.worst) is not None:
            # whoever writes a manifest may write any word
            verdict: Verdict = next((known for known in ORDER if known == worst.verdict), "UNCHECKED")
            yield CardComparison(**shared, **_paired(worst), attack=WORST_CASE, eps=worst.eps, verdict=verdict)


def _paired(entry: PairedEntry) -> Mapping[str, Any]:
    low, high = entry.drop_ci95
    # a gate counts in points
    return {
        "n": entry.n,
        "lost": entry.lost,
        "gained": entry.gained,
        "drop": entry.drop / 100,
        "drop_ci95": (low / 100, high / 100),
    }


def signed(bundle: Bundle, source: CardSource, public_key: Path | None) -> CardSignature:
    """Whether the manifest is signed; ``public_key`` is the one that it was opened with, which it fits."""
    if not bundle.signed:
        return CardSignature(source=source, state="none")
    return CardSignature(
        source=source,
        state="unchecked" if public_key is None else "fits",
        public_key_sha256=None if public_key is None else sha256_file(public_key),
    )
