"""The manifest of a bundle in typed records, and the one way to read it; ``docs/reference/file-formats.md`` lists them.

A key that no record knows is ignored: it describes. Where it would change what is computed, in ``preprocess`` and in
what a variant takes and gives, it is refused. What else a reader must know stands in ``requires``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .._version import __version__
from ..decoding import Sha256, convert, decode
from ..errors import BundleError, IntegrityError, SchemaError
from ..files import canonical_json, sha256_bytes
from ..reading import MOST_RECORD_BYTES, read_bytes
from .entries import (
    MOST_CLASSES,
    ArchitectureEntry,
    CalibrationEntry,
    ClassEntry,
    ConfidenceEntry,
    CountedFileEntry,
    Entry,
    SizedFileEntry,
    Text,
    VariantEntry,
    VariantName,
)
from .preprocess import PreprocessEntry

MANIFEST = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
NO_WEIGHTS, FIXED_BATCH = "no-weights", "fixed-batch"
"""Required where there is no ``weights``, and where a variant has ``batch``: an older reader would misread either."""
FEATURES = frozenset({NO_WEIGHTS, FIXED_BATCH})
"""What a manifest may require of this version."""
_WHAT, _MEND = "bundle manifest", "update edgeadv, or export or copy the bundle again"
_MOST_NESTED = 32
_ID_EXCLUDES = ("bundle_id", "left_out")


class Manifest(Entry, frozen=True, kw_only=True):
    """All of ``manifest.json``."""

    bundle_id: Sha256
    schema_version: Literal[1]
    kind: Literal["bundle"]
    created: Text
    edgeadv_version: Text
    title: Text
    architecture: ArchitectureEntry
    classes: Annotated[tuple[ClassEntry, ...], msgspec.Meta(min_length=2, max_length=MOST_CLASSES)]
    preprocess: PreprocessEntry
    variants: Annotated[dict[VariantName, VariantEntry], msgspec.Meta(min_length=1)]
    golden: CountedFileEntry
    provenance: dict[str, Any]
    left_out: tuple[str, ...]
    weights: SizedFileEntry | None = None
    requires: tuple[Text, ...] = ()
    calibration: CalibrationEntry | None = None
    training_images: CountedFileEntry | None = None
    confidence: ConfidenceEntry | None = None
    refused: dict[VariantName, Text] = msgspec.field(default_factory=dict)

    @classmethod
    def draft(
        cls,
        classes: Sequence[Mapping[str, str]],
        preprocess: PreprocessEntry,
        *,
        variants: dict[str, VariantEntry],
        weights: SizedFileEntry | None,
        title: str = "",
        architecture: ArchitectureEntry | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Manifest:
        """That of a bundle which is not written: a model at work before it is exported, if ever it is.

        Args:
            classes: ``{"id", "name"}`` in logit order.
            preprocess: how a frame becomes the model's input.
            variants: the files that there are.
            weights: of the model; the file need not be there. None where only the graphs are known.
            title: the model in a few words.
            architecture: of the model; None where nobody will build it again.
            provenance: where the weights come from.
        """
        unknown = ArchitectureEntry(name="", source="", num_classes=len(classes), upsample=1, mean=(), std=())
        return cls(
            bundle_id="draft",
            schema_version=SCHEMA_VERSION,
            kind="bundle",
            created="",
            edgeadv_version=__version__,
            title=title,
            architecture=architecture or unknown,
            classes=tuple(ClassEntry(**entry) for entry in classes),
            preprocess=preprocess,
            variants=variants,
            weights=weights,
            golden=CountedFileEntry(file="golden.npz", sha256="", count=0),
            provenance=provenance or {},
            left_out=(),
            requires=requirements(variants, weights),
        )

    def __post_init__(self) -> None:
        if len({entry.id for entry in self.classes}) != len(self.classes):
            raise ValueError("two classes have the same id")
        if (self.weights is None) != (NO_WEIGHTS in self.requires):
            raise ValueError(f"there are no weights, and `requires` lacks {NO_WEIGHTS}, or the other way round")
        if any(entry.batch for entry in self.variants.values()) != (FIXED_BATCH in self.requires):
            raise ValueError(f"a variant has a `batch`, and `requires` lacks {FIXED_BATCH}, or the other way round")
        named, listed = self.architecture.num_classes, len(self.classes)
        if named != listed:
            raise ValueError(f"the architecture has {named} classes, and {listed} are listed")
        if len(self.files) != len(set(self._hashes)):
            raise ValueError("a file is named with two hashes")
        # the id does not cover left_out: it must not hide a file that is read all the same
        if not set(self.left_out) <= set(self.files) - self.always:
            raise ValueError("left_out is not a list of files to leave out")

    @property
    def files(self) -> dict[str, str]:
        """Name and SHA-256 of every file of the full bundle."""
        return dict(self._hashes)

    @property
    def always(self) -> set[str]:
        """Files that every copy carries."""
        return {entry.file for entry in (self.golden, self.training_images) if entry is not None}

    @property
    def _hashes(self) -> list[tuple[str, str]]:
        variants = self.variants.values()
        found: list[Any] = [
            *variants,
            *(entry.surrogate for entry in variants),
            self.weights,
            self.golden,
            self.training_images,
        ]
        return [(entry.file, entry.sha256) for entry in found if entry is not None and entry.file is not None]


def requirements(variants: Mapping[str, VariantEntry], weights: SizedFileEntry | None) -> tuple[str, ...]:
    """What a reader must know of a bundle with these: ``requires``."""
    single = any(entry.batch for entry in variants.values())
    return (*((NO_WEIGHTS,) if weights is None else ()), *((FIXED_BATCH,) if single else ()))


def bundle_id(manifest: Mapping[str, Any]) -> str:
    """The id that a manifest must carry: SHA-256 of everything in it but the id and what was left out."""
    return sha256_bytes(canonical_json({key: value for key, value in manifest.items() if key not in _ID_EXCLUDES}))


def read_manifest(path: Path) -> bytes:
    """The bytes of the manifest at ``path``.

    Raises:
        BundleError: there is none, it is no plain file, or too large for one.
    """
    if not path.exists() and (path.parent / "run.json").exists():
        raise BundleError(f"{path.parent} is a training run and no bundle: edgeadv export makes one of it")
    if path.parent.is_file():
        raise BundleError(f"{path.parent} is a file: give the bundle's folder")
    return read_bytes(path, what=_WHAT, limit=MOST_RECORD_BYTES)


def read_object(data: bytes, path: Path) -> dict[str, Any]:
    """``data``, read from ``path``, as a JSON object of this schema, every key as it stands there.

    Raises:
        BundleError: it is no JSON object.
        SchemaError: another kind or version, a feature is required that this version does not know, or it is nested too
            deeply.
    """
    found: dict[str, Any] = decode(data, dict[str, Any], what=_WHAT, path=path, mend=_MEND, deepest=_MOST_NESTED)
    kind, version = found.get("kind"), found.get("schema_version")
    if kind != "bundle" or version != SCHEMA_VERSION:
        raise SchemaError(
            f"{path.parent} is a {reprlib.repr(kind)} of schema version {reprlib.repr(version)}; this edgeadv "
            "reads bundles of version "
            f"{SCHEMA_VERSION}: use the edgeadv it was made with, or export it again"
        )
    required = convert(found.get("requires", []), tuple[Text, ...], what=_WHAT, path=path, mend=_MEND)
    if unknown := sorted(set(required) - FEATURES):
        raise SchemaError(f"{path} requires {reprlib.repr(unknown)}, which this edgeadv does not know: update edgeadv")
    return found


def parse(data: bytes, path: Path) -> Manifest:
    """``data``, read from ``path``, as a manifest.

    Raises:
        BundleError, SchemaError: as :func:`read_object`, or a value is not what it must be; the message names it.
        IntegrityError: its id is not that of what it says.
    """
    value = read_object(data, path)
    manifest = convert(value, Manifest, what=_WHAT, path=path, mend=_MEND)
    if manifest.bundle_id != bundle_id(value):
        raise IntegrityError(f"{path} was changed after export: its bundle_id does not fit; copy it again")
    return manifest
