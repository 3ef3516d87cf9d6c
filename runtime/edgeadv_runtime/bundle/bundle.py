"""The bundle: the only thing that crosses from training to the device.

A folder with a ``manifest.json`` and the files it names::

    model.<variant>.onnx   dynamic batch; input "image", float32 or (-u8in) uint8, output "logits" float32
    weights.safetensors    the same weights, for the side that needs gradients
    golden.npz             real frames with the tensors and logits they must give
    surrogate.<variant>.safetensors   an int8 graph for the side that needs gradients
    training-images.npy    hashes of the images that the network was trained on, where they are known

The manifest always names every file of the full bundle with its hash; ``left_out`` names those that a slim copy does
not carry. ``bundle_id`` is the SHA-256 of the manifest without ``left_out`` and itself, so a slim bundle keeps the id.

Hashes stop corruption. Somebody who can change a file can also change the manifest: only an expected manifest hash
(``expected_sha256``) or a public key for its signature (``public_key``), which came by another way, stops tampering.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, InputError, IntegrityError, SchemaError, StorageError
from ..files import atomic_folder, canonical_json, sha256_bytes, sha256_file, write_json
from . import signature
from .confidence import Confidence
from .preprocess import Preprocess
from .training_images import TrainingImages
from .variants import INT8, precision_of

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# both become paths, and file systems take less than 256 bytes
_FILE_NAME, _VARIANT = re.compile(r"[^/\\\0]{1,63}"), re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# what every bundle has; a reader ignores what it does not know, and relies on these
_KEYS = ("created", "edgeadv_version", "title", "provenance")
_ENTRY_KEYS = {
    "architecture": ("name", "source", "num_classes", "upsample", "mean", "std"), "variants": ("bytes", "tolerance", "parity"),
}  # fmt: skip
_ID_EXCLUDES = ("bundle_id", "left_out")


def bundle_id(manifest: Mapping[str, Any]) -> str:
    """The id that a manifest must carry: SHA-256 of everything in it but the id and what was left out."""
    return sha256_bytes(canonical_json({key: value for key, value in manifest.items() if key not in _ID_EXCLUDES}))


def _read_manifest(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        if (path.parent / "run.json").exists():
            raise BundleError(
                f"{path.parent} is a training run and no bundle: edgeadv export makes one of it"
            ) from error
        raise BundleError(f"{path} does not exist: no bundle manifest there") from error
    except NotADirectoryError as error:
        raise BundleError(f"{path.parent} is a file: give the bundle's folder") from error
    except OSError as error:
        raise BundleError(f"{path} is not a readable bundle manifest ({error}); copy the bundle again") from error


def _parse_manifest(data: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a readable bundle manifest ({error}); copy the bundle again") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{path} is not a bundle manifest: a JSON object is expected")
    return manifest


def check_replaceable(out: Path) -> None:
    """Refuse to let ``--overwrite`` replace anything but a bundle.

    Raises:
        StorageError: ``out`` exists and is something else.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise StorageError(f"{out} exists and is not a bundle: it is not replaced; choose another `out`")


@dataclass(frozen=True)
class Golden:
    """Real frames and what the exported model must make of them.

    Attributes:
        frames: uint8 RGB arrays of shape (height, width, 3), sizes may differ.
        pixels: uint8 array of shape (n, crop, crop, 3): the frames preprocessed.
        logits: for each variant, float32 of shape (n, classes), computed by ONNX Runtime on the CPU at export.
    """

    frames: list[NDArray[np.uint8]]
    pixels: NDArray[np.uint8]
    logits: dict[str, NDArray[np.float32]]

    def save(self, path: Path) -> None:
        """Write a compressed ``.npz`` without pickles."""
        arrays: dict[str, Any] = {f"frame_{i}": frame for i, frame in enumerate(self.frames)}
        arrays["pixels"] = self.pixels
        arrays |= {f"logits_{variant}": values for variant, values in self.logits.items()}
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                pixels = arrays["pixels"]
                frames = [arrays[f"frame_{i}"] for i in range(len(pixels))]
                logits = {k.removeprefix("logits_"): arrays[k] for k in arrays.files if k.startswith("logits_")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path} is not a golden file ({error}); export the bundle again") from error
        return cls(frames=frames, pixels=pixels, logits=logits)


@dataclass(frozen=True)
class Classes:
    """The classes of a model in the order of its logits."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or len(set(self.ids)) != len(self.ids) or len(self.ids) < 2:
            raise InputError("classes need at least two distinct ids, and one name for each id")
        object.__setattr__(self, "_index", {class_id: i for i, class_id in enumerate(self.ids)})

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, class_id: str) -> int:
        """Position of ``class_id`` among the logits.

        Raises:
            InputError: the model does not know this class.
        """
        try:
            return self._index[class_id]
        except KeyError:
            raise InputError(f"class {class_id!r} is not one of the model's {len(self)} classes") from None

    def to_json(self) -> list[dict[str, str]]:
        """A list of ``{"id", "name"}`` in logit order."""
        return [{"id": i, "name": n} for i, n in zip(self.ids, self.names, strict=True)]

    @classmethod
    def from_json(cls, value: Sequence[Mapping[str, str]]) -> Classes:
        """Read what :meth:`to_json` wrote."""
        return cls(ids=tuple(c["id"] for c in value), names=tuple(c["name"] for c in value))


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file that is there has the hash its manifest names.

    Attributes:
        path: the folder.
        manifest: the manifest as read; ``docs/bundle.md`` describes it.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(
        cls, path: str | Path, *, expected_sha256: str | None = None, public_key: str | Path | None = None
    ) -> Bundle:
        """Open the bundle at ``path``, checking every hash before anything in it is used.

        Args:
            path: the bundle's folder.
            expected_sha256: hex SHA-256 of ``manifest.json``, for callers who know it from elsewhere.
            public_key: PEM file with the Ed25519 public key that must have signed ``manifest.json``; the signature is
                checked before the manifest is even parsed.

        Raises:
            IntegrityError: a hash differs, a file is missing that was not left out, or the signature is missing or wrong.
            SchemaError: the manifest is of another kind or version.
            BundleError: there is no bundle, the manifest is damaged, or it names a path outside the bundle.
            InputError: the public key cannot be used.
            MissingDependencyError: a public key was given and cryptography is not installed.
        """
        folder = Path(path)
        # the bytes that are checked are the bytes that are parsed: the file is read once
        data = _read_manifest(folder / MANIFEST)
        if public_key is not None:
            signature.check(data, folder / MANIFEST, Path(public_key))
        if expected_sha256 is not None and sha256_bytes(data) != expected_sha256.lower():
            raise IntegrityError(
                f"{folder / MANIFEST} is not the manifest you expect: its SHA-256 differs from the one given"
            )
        manifest = _parse_manifest(data, folder / MANIFEST)
        if manifest.get("kind") != "bundle" or manifest.get("schema_version") != SCHEMA_VERSION:
            raise SchemaError(
                f"{folder} is a {manifest.get('kind')!r} of schema version {manifest.get('schema_version')!r}; this edgeadv "
                f"reads bundles of version {SCHEMA_VERSION}: use the edgeadv it was made with, or export it again"
            )
        bundle = cls(folder, manifest)
        bundle._check()
        return bundle

    def _check(self) -> None:
        try:
            if self.manifest["bundle_id"] != bundle_id(self.manifest):
                raise IntegrityError(
                    f"{self.path / MANIFEST} was changed after export: its bundle_id does not fit; copy it again"
                )
            files = self.files
            left_out = set(self.manifest["left_out"])
            _ = self.preprocess, self.classes, self.confidence
            entries = {"architecture": [self.manifest["architecture"]], "variants": self.manifest["variants"].values()}
            _ = [self.manifest[key] for key in _KEYS], self.manifest["weights"]["bytes"], self.calibration_images
            _ = [float(entry["tolerance"]) for entry in self.manifest["variants"].values()]
            _ = [int(entry["count"]) for entry in self._training_entry]
            if odd := [name for name in self.manifest["variants"] if not _VARIANT.fullmatch(name)]:
                # it becomes part of file names
                raise ValueError(f"variant {odd[0]!r}")
            _ = [self.float_sha256(variant) for variant in self.manifest["variants"]]
            _ = [entry[key] for kind, keys in _ENTRY_KEYS.items() for entry in entries[kind] for key in keys]
        except (KeyError, TypeError, AttributeError, ValueError, InputError) as error:
            raise BundleError(
                f"{self.path / MANIFEST} is damaged ({error!r}); export or copy the bundle again"
            ) from error
        for name, digest in files.items():
            if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name in (".", ".."):
                raise BundleError(
                    f"{self.path / MANIFEST} names {name!r}, a path outside the bundle; do not use this bundle"
                )
            file = self.path / name
            if name in left_out:
                continue
            if file.is_symlink() or not file.is_file():
                raise IntegrityError(f"{file} is missing from the bundle or not a plain file; copy the bundle again")
            if sha256_file(file) != digest:
                raise IntegrityError(f"{file} is damaged: its SHA-256 is not the manifest's; copy the bundle again")
        # the id does not cover left_out: it must not hide a file that is read all the same
        if not isinstance(self.manifest["left_out"], list) or not left_out <= set(files) - self._always:
            raise BundleError(
                f"{self.path / MANIFEST} is damaged: left_out is not a list of files to leave out; copy the bundle again"
            )

    @property
    def id(self) -> str:
        """``bundle_id``: the same for a bundle and its slim copies."""
        return str(self.manifest["bundle_id"])

    @property
    def signed(self) -> bool:
        """Whether a signature lies beside the manifest; only :meth:`open` with a public key tells whose it is."""
        return signature.signature_path(self.path / MANIFEST).is_file()

    def sign(self, private_key: str | Path) -> Path:
        """Sign the manifest, and with it every file that it names; returns the path of the signature.

        Args:
            private_key: an unencrypted PEM file with an Ed25519 private key, as ``openssl genpkey -algorithm ed25519`` makes.

        Raises:
            InputError: the key is not such a key.
            StorageError: the signature cannot be written.
            MissingDependencyError: cryptography is not installed.
        """
        return signature.sign(self.path / MANIFEST, Path(private_key))

    @cached_property
    def files(self) -> dict[str, str]:
        """Name and SHA-256 of every file of the full bundle."""
        variants = list(self.manifest["variants"].values())
        surrogates = [entry["surrogate"] for entry in variants if "file" in entry.get("surrogate", {}).keys()]  # noqa: SIM118
        entries = [*variants, *surrogates, self.manifest["weights"], self.manifest["golden"], *self._training_entry]
        return {entry["file"]: entry["sha256"] for entry in entries}

    @property
    def _training_entry(self) -> list[dict[str, Any]]:
        return [self.manifest["training_images"]] if "training_images" in self.manifest else []

    @property
    def _always(self) -> set[str]:
        """Files that every copy carries."""
        return {str(entry["file"]) for entry in (self.manifest["golden"], *self._training_entry)}

    @cached_property
    def preprocess(self) -> Preprocess:
        """How a frame becomes the model's input."""
        return Preprocess.from_json(self.manifest["preprocess"])

    @cached_property
    def classes(self) -> Classes:
        """Class ids and names in logit order."""
        return Classes.from_json(self.manifest["classes"])

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights: what an attack pack is bound to."""
        return str(self.manifest["weights"]["sha256"])

    @cached_property
    def calibration_images(self) -> frozenset[str]:
        """Hex SHA-256 of the preprocessed pixels of every image that int8 was calibrated on: not to be scored again."""
        images = self.manifest.get("calibration", {"images": []})["images"]
        if not isinstance(images, list) or not all(isinstance(image, str) and len(image) == 64 for image in images):
            raise ValueError("calibration names its images by something else than hashes")
        return frozenset(images)

    @cached_property
    def training_images(self) -> TrainingImages | None:
        """Images that the network was trained on, under :attr:`preprocess`; None where the export was given none.

        Raises:
            BundleError: the file is not such a list.
        """
        listed = [
            TrainingImages.load(self.path / entry["file"], count=entry["count"]) for entry in self._training_entry
        ]
        return listed[0] if listed else None

    @cached_property
    def confidence(self) -> Confidence | None:
        """Temperature and rejection threshold, fitted on the reference logits; None where the export had no images for them."""
        value = self.manifest.get("confidence")
        return None if value is None else Confidence.from_json(value)

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants whose ONNX file is here."""
        left_out = self.manifest["left_out"]
        return tuple(name for name, entry in self.manifest["variants"].items() if entry["file"] not in left_out)

    def onnx_path(self, variant: str) -> Path:
        """The ONNX file of ``variant``.

        Raises:
            InputError: this bundle does not carry it.
        """
        if variant not in self.variants:
            have = ", ".join(self.variants) or "none"
            if variant in self.manifest["variants"]:
                raise InputError(
                    f"{self.path} is a slim copy with no variant {variant!r} (it has: {have}); slim the full bundle again with it"
                )
            raise InputError(
                f"{self.path} carries no variant {variant!r} (it has: {have}); export it with `precisions`"
            )
        return self.path / str(self.manifest["variants"][variant]["file"])

    def artifact_sha256(self, variant: str) -> str:
        """Hash of the ONNX file of ``variant``; present or left out."""
        return str(self.manifest["variants"][variant]["sha256"])

    def float_sha256(self, variant: str) -> str | None:
        """Hash of the graph with float input that a ``-u8in`` ``variant`` was made from, carried or not; None for any other."""
        made_from = self.manifest["variants"][variant].get("made_from")
        return None if made_from is None else str(made_from["sha256"])

    def tolerance(self, variant: str) -> float:
        """Largest accepted logit error of ``variant``, as a share of the largest absolute logit."""
        return float(self.manifest["variants"][variant]["tolerance"])

    @property
    def weights_path(self) -> Path:
        """The weights for the gradient side.

        Raises:
            InputError: they were left out of this slim bundle.
        """
        entry = self.manifest["weights"]
        if entry["file"] in self.manifest["left_out"]:
            raise InputError(
                f"{self.path} is a slim bundle without weights: gradients need the full one, or use an attack pack"
            )
        return self.path / str(entry["file"])

    def surrogate_path(self, variant: str) -> Path:
        """The graph of an int8 ``variant`` for the gradient side, see ``edgeadv.gradients.graph``; with ``-u8in`` or without the same.

        Raises:
            InputError: this bundle carries none.
        """
        if variant not in self.manifest["variants"]:
            self.onnx_path(variant)  # says what there is
        entry = self.manifest["variants"][variant].get("surrogate", {})
        if precision_of(variant) != INT8:
            raise InputError(f"only int8 has surrogates: the gradients of {variant} are those of the weights")
        if "file" not in entry:
            why = entry.get("not_made", "it was exported by an edgeadv that made none; export it again")
            raise InputError(f"{self.path} has no surrogate of {variant}, attack it with the gradients of fp32: {why}")
        if entry["file"] in self.manifest["left_out"]:
            raise InputError(
                f"{self.path} is a slim bundle without the surrogate of {variant}: gradients need the full one, or use an attack pack"
            )
        return self.path / str(entry["file"])

    def golden(self) -> Golden:
        """The frames of the self-test."""
        return Golden.load(self.path / str(self.manifest["golden"]["file"]))

    def slim(self, out: Path, *, variants: Sequence[str], weights: bool, overwrite: bool = False) -> Bundle:
        """Copy this bundle without the variants not named, and without weights unless ``weights``. Same bundle id.

        Surrogates hand over the white box as well: those of ``variants`` go with the weights.
        The copy has a manifest of its own, so a signature does not fit it and stays behind: sign the copy.

        Raises:
            InputError: a variant is not here.
            StorageError: ``out`` cannot be written.
        """
        if not variants:
            raise InputError("a slim bundle needs at least one variant")
        keep = {self.onnx_path(variant).name for variant in variants} | self._always
        if weights:
            keep.add(self.weights_path.name)
            surrogates = {self.manifest["variants"][variant].get("surrogate", {}).get("file") for variant in variants}
            keep |= surrogates & set(self.files) - set(self.manifest["left_out"])
        check_replaceable(out)
        with atomic_folder(out, overwrite=overwrite) as folder:
            for name in sorted(keep):
                shutil.copyfile(self.path / name, folder / name)
            manifest = {**self.manifest, "left_out": sorted(set(self.files) - keep)}
            write_json(folder / MANIFEST, manifest)
        return Bundle.open(out)
