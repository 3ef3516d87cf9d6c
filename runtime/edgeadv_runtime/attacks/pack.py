"""Attack packs: adversarial images made where the gradients are, scored where the device is.

A folder with ``pack.json`` and shards ``shard-00000.npz`` of at most 64 images. A pack belongs to the weights it was
made from; scoring it needs neither PyTorch nor the data set, and it carries the evidence for the masking verdict.
Shards are read one at a time, each checked against its hash first. ``docs/reference/pack.md`` describes the format.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays import Due, Dues, load_arrays
from ..bundle.batches import CleanBatch, DataInfo
from ..bundle.bundle import Bundle
from ..bundle.entries import Entry, FileEntry
from ..bundle.preprocess import Preprocess, to_tensor
from ..bundle.training_images import Overlap, check_overlap
from ..decoding import Count, Sha256, convert, read
from ..errors import BundleError, InputError, IntegrityError, SchemaError
from ..reading import available, decoded, read_bytes, read_checked
from ..records.about import Skipped
from ..records.eps import Eps
from ..records.rows import NORMS
from .base import CLEAN_KEY, AttackInfo, CraftedBatch, Evidence, Key, LazyImages
from .perturbation import check_crafted

SCHEMA_VERSION = 1
_WHAT, _MEND = "attack pack", "make or copy the pack again"
PACK_FILE = "pack.json"
SHARD_SIZE = 64
Size = tuple[int, int, int]
_SHARD = "shard of an attack pack"
# 64 float images of 299x299 under 20 attacks
_MOST_UNPACKED = 3 << 29
_TABLES = 64 << 20


class ShardEntry(FileEntry, frozen=True, kw_only=True):
    """One shard and how many images it holds."""

    n: Count


class PackManifest(Entry, frozen=True, kw_only=True):
    """What ``pack.json`` says; what has a default is not in older packs."""

    schema_version: Literal[1]
    kind: Literal["pack"]
    weights_sha256: str
    preprocess: dict[str, Any]
    class_ids: tuple[str, ...]
    data: DataInfo
    uint8: bool
    attacks: tuple[AttackInfo, ...]
    shards: tuple[ShardEntry, ...]
    bundle_id: str = ""
    created: str = ""
    edgeadv_version: str = ""
    data_sha256: Sha256 | None = None
    n: Count | None = None
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        for info in self.attacks:
            try:
                fits = Eps.parse(info.eps.text, norm=info.params.norm or NORMS[0]).value == info.eps.value
            except InputError as error:
                raise ValueError(str(error)) from error
            if not fits or info.params.norm not in (None, *NORMS):
                raise ValueError(f"attack {info.name!r} has an eps that is not the one written, or an unknown norm")


def info_to_json(info: AttackInfo) -> dict[str, Any]:
    """One attack at one budget, as ``pack.json`` holds it."""
    return {**asdict(info), "params": info.params.to_json()}


def save_shard(
    path: Path, batch: CraftedBatch, infos: list[AttackInfo], unreadable: tuple[str, ...], *, uint8: bool
) -> None:
    """Write one shard; adversarial images as uint8 NHWC, which must lose nothing, or as float32 NCHW."""
    evidence = batch.evidence
    arrays: dict[str, NDArray[Any]] = {
        "index": batch.clean.index,
        "labels": batch.clean.labels,
        "pixels": batch.clean.pixels,
        "unreadable": np.array(unreadable, dtype=np.str_),
        "reference_clean": evidence.answers[CLEAN_KEY],
        "probabilities": evidence.probabilities,
        "unstable": evidence.unstable,
    }
    tables = evidence.tables
    tables |= {"reference": tables.pop("answers"), "reference_float": tables.pop("unrounded")}
    for k, info in enumerate(infos):
        if not info.control:
            x_adv = batch.adversarial[info.key]
            arrays[f"x_adv_{k}"] = (
                np.rint(x_adv.transpose(0, 2, 3, 1) * np.float32(255)).astype(np.uint8) if uint8 else x_adv
            )
        arrays |= {f"{name}_{k}": table[info.key] for name, table in tables.items() if info.key in table}
    with path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _most(n: int | None, pixels: Size | None, infos: list[AttackInfo]) -> int:
    """Bytes that the arrays of a shard may have: those of its images as floats, clean and attacked, and tables beside
    them; never more than there is memory for."""
    if n is None or pixels is None:
        return _MOST_UNPACKED
    images = 4 * n * math.prod(pixels) * (len(infos) + 1)
    return min(images + _TABLES, max(_MOST_UNPACKED, available() // 2))


def _as_floats(x_adv: NDArray[Any]) -> NDArray[np.float32]:
    return to_tensor(x_adv) if x_adv.dtype == np.uint8 else x_adv


def load_shard(
    path: Path, infos: list[AttackInfo], *, entry: ShardEntry | None = None, pixels: Size | None = None
) -> tuple[CraftedBatch, tuple[str, ...]]:
    """Read what :func:`save_shard` wrote: the batch, and the messages of images that could not be decoded.

    Args:
        path: the file.
        infos: the attacks of the pack.
        entry: what the pack says of it: its hash, and how many images it must hold; None takes any.
        pixels: height, width and channels that they must have; None takes any.

    Raises:
        BundleError: it is not such a shard.
        IntegrityError: it is missing, or has another hash.
    """
    data = read_bytes(path, what=_SHARD) if entry is None else _read(path, entry)
    n = None if entry is None else entry.n
    with decoded(path, what=f"not a {_SHARD}", mend=_MEND):
        arrays = load_arrays(data, _due(n, pixels, infos), most=_most(n, pixels, infos))
        clean = _clean(arrays)

        def table(name: str) -> dict[Key, NDArray[Any]]:
            stored = {info.key: f"{name}_{k}" for k, info in enumerate(infos)}
            return {key: arrays[array] for key, array in stored.items() if array in arrays}

        def flags(name: str) -> NDArray[np.bool_]:
            # shards of older versions do not tell
            return arrays[name] if name in arrays else np.zeros(len(clean.labels), dtype=np.bool_)

        images = {info.key: arrays[f"x_adv_{k}"] for k, info in enumerate(infos) if not info.control}
        evidence = Evidence(
            {CLEAN_KEY: arrays["reference_clean"]} | {i.key: arrays[f"reference_{k}"] for k, i in enumerate(infos)},
            table("reference_float"),
            table("zero_gradient"),
            flags("probabilities"),
            flags("unstable"),
            table("progress"),
            table("linearity"),
        )
        messages = tuple(arrays["unreadable"].tolist())
    return CraftedBatch(clean, LazyImages(images, _as_floats), evidence), messages


def _read(path: Path, entry: ShardEntry) -> bytes:
    """The bytes of a shard, which have the hash that its pack names."""
    if not path.exists():
        raise IntegrityError(f"{path} is missing or damaged; copy the pack again")
    return read_checked(path, entry.sha256, what=_SHARD, mend="copy the pack again")


def _due(n: int | None, pixels: Size | None, infos: list[AttackInfo]) -> dict[str, Dues]:
    """What the arrays of a shard of ``n`` images must be: those of the attacks, and no others, are read."""
    height, width, channels = pixels or (None, None, None)
    labels, flags = Due.of("int64", n), Due.of("bool", n)
    due: dict[str, Dues] = _due_clean(n, pixels)
    due |= {"unreadable": Due.of("str", None), "reference_clean": labels, "probabilities": flags, "unstable": flags}
    x_adv = (Due.of("uint8", n, height, width, channels), Due.of("float32", n, channels, height, width))
    for k in range(len(infos)):
        due |= {f"reference_{k}": labels, f"reference_float_{k}": labels, f"zero_gradient_{k}": flags}
        due |= {
            f"x_adv_{k}": x_adv,
            f"progress_{k}": Due.of("float32", n),
            f"linearity_{k}": Due.of("float32", n, None),
        }
    return due


def _due_clean(n: int | None, pixels: Size | None) -> dict[str, Dues]:
    images = Due.of("uint8", n, *(pixels or (None, None, None)))
    return {"index": Due.of("int64", n), "labels": Due.of("int64", n), "pixels": images}


def _clean(arrays: Mapping[str, NDArray[Any]]) -> CleanBatch:
    return CleanBatch(arrays["index"], arrays["pixels"], arrays["labels"])


@dataclass(frozen=True)
class AttackPack:
    """An opened attack pack. Several threads may read one.

    Attributes:
        path: the folder.
        manifest: what ``pack.json`` says.
        infos: the attacks and budgets it holds, controls included.
        data: the images it was made from.
    """

    path: Path
    manifest: PackManifest
    infos: list[AttackInfo]
    data: DataInfo

    @classmethod
    def open(cls, path: str | Path, *, bundle: Bundle) -> AttackPack:
        """Open the pack at ``path`` for scoring ``bundle``.

        Raises:
            InputError: the pack was made from other weights, classes or preprocessing.
            SchemaError: another kind or version, or a value is not what it must be.
            BundleError: missing, damaged or cut short.
        """
        folder = Path(path)
        file = folder / PACK_FILE
        found = read(file, dict[str, Any], what=_WHAT, mend=_MEND)
        if found.get("kind") != "pack" or found.get("schema_version") != SCHEMA_VERSION:
            raise SchemaError(
                f"{folder} is a {reprlib.repr(found.get('kind'))} of schema version "
                f"{reprlib.repr(found.get('schema_version'))}; "
                f"this edgeadv reads attack packs of version {SCHEMA_VERSION}"
            )
        manifest = convert(found, PackManifest, what=_WHAT, path=file, mend=_MEND)
        for key, ours in (
            ("weights_sha256", bundle.weights_sha256),
            ("preprocess", bundle.preprocess.to_json()),
            ("class_ids", bundle.classes.ids),
        ):
            if getattr(manifest, key) != ours:
                raise InputError(
                    f"{folder} was made for another model ({key} differs from {bundle.path}); make a pack from "
                    "this bundle"
                )
        pack = cls(folder, manifest, list(manifest.attacks), manifest.data)
        if manifest.n not in (None, pack.n):
            raise BundleError(
                f"{folder} is cut short: its shards hold {pack.n} of {manifest.n} images; make or copy the pack again"
            )
        missing = [shard.file for shard in manifest.shards if not (folder / shard.file).is_file()]
        if missing:
            # before hours of work on those that are there
            raise IntegrityError(f"{folder / missing[0]} is missing or damaged; copy the pack again")
        return pack

    @property
    def n(self) -> int:
        """How many images it holds."""
        return sum(shard.n for shard in self.manifest.shards)

    @property
    def uint8(self) -> bool:
        """Whether its images were rounded to 8 bits."""
        return self.manifest.uint8

    @property
    def skipped(self) -> list[Skipped]:
        """Variants of the bundle that their own gradients do not attack, as results files tell it."""
        return list(self.manifest.skipped)

    @property
    def shards(self) -> int:
        """How many batches it holds."""
        return len(self.manifest.shards)

    def batches(self, unreadable: list[str], numbers: Sequence[int] | None = None) -> Iterator[CraftedBatch]:
        """The pack's images, shard by shard.

        Args:
            unreadable: gets the messages of images that could not be decoded when the pack was made.
            numbers: the shards to read, from 0; None reads all.

        Raises:
            IntegrityError: a shard is missing or damaged.
        """
        for number in range(self.shards) if numbers is None else numbers:
            shard = self.manifest.shards[number]
            file = self.path / shard.file
            batch, messages = load_shard(file, self.infos, entry=shard, pixels=self._pixels)
            self._check(batch, file, shard.n)
            unreadable += messages
            yield batch

    def check_training_images(self, bundle: Bundle, *, allowed: bool) -> None:
        """Look, before hours of scoring, whether too many of the images are ones that ``bundle`` was trained on.

        A bundle that knows its training images is asked, for a pack may be made by anybody; else the pack is believed.

        Args:
            bundle: what is to be scored.
            allowed: they may be.

        Raises:
            InputError: they are, and that was not allowed.
            BundleError: a shard cannot be read.
        """
        if allowed:
            return
        if bundle.training_images is None:
            check_overlap(self.data.training_images, self.n, name=str(self.path), allowed=False)
            return
        overlap = Overlap(bundle.training_images, bundle.calibration_images)
        for shard in self.manifest.shards:
            file = self.path / shard.file
            with decoded(file, what=f"not a {_SHARD}", mend=_MEND):
                # without unpacking what was made of them
                overlap.add(_clean(load_arrays(_read(file, shard), _due_clean(shard.n, self._pixels))).hashes)
        overlap.check(str(self.path), allowed=False)

    @property
    def _pixels(self) -> Size:
        return Preprocess.from_json(self.manifest.preprocess).pixel_shape

    def _check(self, batch: CraftedBatch, file: Path, stated: int) -> None:
        """Refuse a shard whose arrays do not fit together, or whose images are not within their eps."""
        clean, evidence = batch.clean, batch.evidence
        n, classes = len(clean.labels), len(self.manifest.class_ids)
        due = (n, *self._pixels)
        fits = n == stated and clean.pixels.shape == due and clean.pixels.dtype == np.uint8
        if not (fits and clean.index.shape == (n,) and evidence.fits(clean.labels, classes)):
            raise BundleError(f"{file} does not fit its pack: shapes or labels are wrong; make the pack again")
        x = to_tensor(clean.pixels)
        for info in self.infos:
            if info.control:
                continue
            try:
                check_crafted(batch.adversarial[info.key], x, info.name, info.eps, norm=info.params.norm)
            except InputError as error:
                raise BundleError(f"{file} does not hold what its pack says: {error}; make the pack again") from error
