"""The bundle: the only thing that crosses from training to the device.

A folder with a ``manifest.json`` and the files it names::

    model.<variant>.onnx   dynamic batch; input "image", float32 or (-u8in) uint8, output "logits" float32
    weights.safetensors    the same weights in PyTorch's names, to train on; none where ONNX came in
    golden.npz             real frames with the tensors and logits they must give
    training-images.npy    hashes of the images that the network was trained on, where they are known

The manifest always names every file of the full bundle with its hash; ``left_out`` names those that a slim copy does
not carry. ``bundle_id`` is the SHA-256 of the manifest without ``left_out`` and itself, so a slim bundle keeps the id.

Hashes stop corruption. Somebody who can change a file can also change the manifest: only an expected manifest hash
(``expected_sha256``) or a public key for its signature (``public_key``), which came by another way, stops tampering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from ..errors import InputError, IntegrityError, StorageError
from ..files import atomic_folder, check_free, ensure_writable, sha256_bytes, write_bytes, write_json
from ..reading import file_hash, read_checked, usable
from . import signature
from .confidence import Confidence
from .golden import Golden
from .manifest import MANIFEST, Manifest, parse, read_manifest, read_object
from .preprocess import Preprocess
from .training_images import TrainingImages
from .variants import INT8, precision_of

FLOAT = "Float"
_HASHED_AT_ONCE = 4
# plans that were built elsewhere are laid into a bundle's folder, with their records: docs/how-to/tensorrt.md
_PLAN, _RECORD = ".plan", ".json"
_WRITTEN_IN = {"fp32": [FLOAT], "fp16": ["Half"], INT8: ["Int8", FLOAT]}


def check_replaceable(out: Path) -> None:
    """Refuse to let ``--overwrite`` replace anything but a bundle.

    Raises:
        StorageError: ``out`` exists and is something else.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise StorageError(f"{out} exists and is not a bundle: it is not replaced; choose another `out`")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a bundle at ``out`` that could not be written after it.

    Raises:
        StorageError: ``out`` exists and ``overwrite`` is false, it is no bundle, or its folder cannot be written.
    """
    ensure_writable(out.absolute().parent)
    check_free(out, check_replaceable if overwrite else None)


def new_bundle(out: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """The folder to fill with a bundle that will be ``out``; see :func:`edgeadv_runtime.files.atomic_folder`."""
    return atomic_folder(out, replaceable=check_replaceable if overwrite else None)


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
    """An opened bundle: every file that is there has the hash its manifest names. Several threads may share one.

    Attributes:
        path: the folder.
        manifest: what ``manifest.json`` says.
    """

    path: Path
    manifest: Manifest

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
            IntegrityError: a hash differs, a file is missing that was not left out, one is there that the manifest
                does not name, or the signature is missing or wrong.
            SchemaError: the manifest is of another kind or version.
            BundleError: there is no bundle, the manifest is damaged, or it names a path outside the bundle.
            InputError: the public key cannot be used.
            MissingDependencyError: a public key was given and cryptography is not installed.
        """
        if not isinstance(path, str | Path):
            raise InputError("bundle", f"is the path of a bundle, not a {type(path).__name__}")
        folder = Path(path)
        # the bytes that are checked are the bytes that are parsed: the file is read once
        with usable(folder, what="bundle"):
            data = read_manifest(folder / MANIFEST)
            if public_key is not None:
                signature.check(data, folder / MANIFEST, Path(public_key))
            if expected_sha256 is not None and sha256_bytes(data) != expected_sha256.lower():
                raise IntegrityError(
                    f"{folder / MANIFEST} is not the manifest you expect: its SHA-256 differs from the one given"
                )
            bundle = cls(folder, parse(data, folder / MANIFEST))
            bundle._check_files()
        return bundle

    def _check_files(self) -> None:
        present = [self.path / name for name in self.files]
        present = [file for file in present if file.exists() or file.name not in self.manifest.left_out]
        for file in present:
            if file.is_symlink() or not file.is_file():
                raise IntegrityError(f"{file} is missing from the bundle or not a plain file; copy the bundle again")
        # side by side: the hash of what a backend is given is taken once more, and opening is not to take longer for it
        with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            digests = list(pool.map(partial(file_hash, what="file of the bundle"), present))
        for file, digest in zip(present, digests, strict=True):
            if digest != self.files[file.name]:
                raise IntegrityError(f"{file} is damaged: its SHA-256 is not the manifest's; copy the bundle again")
        there = {entry.name for entry in self.path.iterdir()}
        known = {*self.files, MANIFEST, signature.signature_path(self.path / MANIFEST).name}
        for name in sorted(there - known):
            is_plan = name.endswith(_PLAN) or (name.endswith(_RECORD) and name.removesuffix(_RECORD) + _PLAN in there)
            # hidden ones are left by file managers and by copies that were cut off, and nothing reads them
            if not is_plan and not name.startswith("."):
                raise IntegrityError(
                    f"{self.path / name} is not named by the manifest, so no hash covers it: take it out of the bundle"
                )

    def read(self, name: str) -> bytes:
        """The bytes of a file of the bundle, read once: these have the manifest's hash, whatever became of the file
        since :meth:`open`.

        Args:
            name: of the file, one of :attr:`files`.

        Raises:
            IntegrityError: it has another hash by now.
            BundleError: it is gone, or no plain file.
        """
        file = self.path / name
        return read_checked(file, self.files[name], what="file of the bundle", mend="copy the bundle again")

    def onnx(self, variant: str) -> bytes:
        """The bytes of the ONNX file of ``variant``, as :meth:`read` gives them: what a backend is given.

        Raises:
            InputError: this bundle does not carry it.
            BundleError: as :meth:`read`.
        """
        return self.read(self.onnx_path(variant).name)

    @property
    def id(self) -> str:
        """``bundle_id``: the same for a bundle and its slim copies."""
        return self.manifest.bundle_id

    @property
    def signed(self) -> bool:
        """Whether a signature lies beside the manifest; only :meth:`open` with a public key tells whose it is."""
        return signature.signature_path(self.path / MANIFEST).is_file()

    def sign(self, private_key: str | Path) -> Path:
        """Sign the manifest, and with it every file that it names; returns the path of the signature.

        Args:
            private_key: an unencrypted PEM file with an Ed25519 private key, as ``openssl genpkey -algorithm ed25519``
                makes.

        Raises:
            InputError: the key is not such a key.
            StorageError: the signature cannot be written.
            MissingDependencyError: cryptography is not installed.
        """
        return signature.sign(self._manifest_bytes(), self.path / MANIFEST, Path(private_key))

    def _manifest_bytes(self) -> bytes:
        """Those of ``manifest.json``, which say what was checked when the bundle was opened."""
        data = read_manifest(self.path / MANIFEST)
        if parse(data, self.path / MANIFEST) != self.manifest:
            raise IntegrityError(f"{self.path / MANIFEST} was changed since the bundle was opened: open it again")
        return data

    @cached_property
    def files(self) -> dict[str, str]:
        """Name and SHA-256 of every file of the full bundle."""
        return self.manifest.files

    @cached_property
    def preprocess(self) -> Preprocess:
        """How a frame becomes the model's input."""
        return self.manifest.preprocess.preprocess

    @cached_property
    def classes(self) -> Classes:
        """Class ids and names in logit order."""
        entries = self.manifest.classes
        return Classes(tuple(entry.id for entry in entries), tuple(entry.name for entry in entries))

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights: what an attack pack is bound to. Where there are none, of the ONNX file that came in."""
        manifest = self.manifest
        return (manifest.weights or next(iter(manifest.variants.values()))).sha256

    @cached_property
    def calibration_images(self) -> frozenset[str]:
        """Hex SHA-256 of the preprocessed pixels of every image that int8 was calibrated on: not to be scored again."""
        entry = self.manifest.calibration
        return frozenset() if entry is None else frozenset(entry.images)

    @cached_property
    def training_images(self) -> TrainingImages | None:
        """Images that the network was trained on, under :attr:`preprocess`; None where the export was given none.

        Raises:
            BundleError: the file is not such a list.
        """
        entry = self.manifest.training_images
        if entry is None:
            return None
        return TrainingImages.parse(self.read(entry.file), self.path / entry.file, count=entry.count)

    @cached_property
    def confidence(self) -> Confidence | None:
        """Temperature and rejection threshold, fitted on the reference logits; None where the export had no images for
        them."""
        entry = self.manifest.confidence
        if entry is None:
            return None
        return Confidence(entry.temperature, entry.rejection.threshold, entry.rejection.coverage)

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants whose ONNX file is here."""
        left_out = self.manifest.left_out
        return tuple(name for name, entry in self.manifest.variants.items() if entry.file not in left_out)

    def onnx_path(self, variant: str) -> Path:
        """The ONNX file of ``variant``.

        Raises:
            InputError: this bundle does not carry it.
        """
        if variant not in self.variants:
            have = ", ".join(self.variants) or "none"
            if variant in self.manifest.variants:
                raise InputError(
                    f"{self.path} is a slim copy with no variant {variant!r} (it has: {have}); slim the full "
                    "bundle again with it"
                )
            raise InputError(f"{self.path} carries no variant {variant!r} (it has: {have}); {self.how_to_add(variant)}")
        return self.path / self.manifest.variants[variant].file

    def how_to_add(self, wanted: str) -> str:
        """What makes such a bundle with a precision, or one of several, in words."""
        if self.manifest.weights is None:
            return "it was imported from an ONNX file, which is one variant"
        return f"export it with `precisions` {wanted}"

    def artifact_sha256(self, variant: str) -> str:
        """Hash of the ONNX file of ``variant``; present or left out."""
        return self.manifest.variants[variant].sha256

    def float_sha256(self, variant: str) -> str | None:
        """Hash of the graph with float input that a ``-u8in`` ``variant`` was made from, carried or not; None for any
        other."""
        made_from = self.manifest.variants[variant].made_from
        return None if made_from is None else made_from.sha256

    def written_in(self, variant: str) -> frozenset[str]:
        """Types that convolutions and matrix products of ``variant`` may be written in: ``"Float"``, ``"Half"``,
        ``"Int8"``, ...

        Bundles of an older edgeadv do not list them: of those it is what the precision allows.
        """
        compute = self.manifest.variants[variant].compute
        return frozenset(_WRITTEN_IN[precision_of(variant)] if compute is None else compute.values())

    def fixed_batch(self, variant: str) -> bool:
        """Whether the graph of ``variant`` takes one image a call, and no more; backends ask it once for each."""
        return self.manifest.variants[variant].batch is not None

    def no_gradients(self, variant: str) -> str | None:
        """Why the export could not follow the graph of ``variant`` in PyTorch; None where it could, or did not try."""
        entry = self.manifest.variants[variant]
        if entry.gradients is not None:
            return entry.gradients.missing
        return None if entry.surrogate is None else entry.surrogate.not_made

    def tolerance(self, variant: str) -> float:
        """Largest accepted logit error of ``variant``, as a share of the largest absolute logit."""
        return self.manifest.variants[variant].tolerance

    @property
    def weights_path(self) -> Path:
        """The weights in PyTorch's names, to train on.

        Raises:
            InputError: they were left out of this slim bundle, or there never were any.
        """
        if self.manifest.weights is None:
            raise InputError(
                f"{self.path} was imported from ONNX and has no PyTorch weights: export the network from PyTorch"
            )
        file = self.manifest.weights.file
        if file in self.manifest.left_out:
            raise InputError(f"{self.path} is a slim bundle without weights: give the full one")
        return self.path / file

    def golden(self) -> Golden:
        """The frames of the self-test.

        Raises:
            BundleError: the file does not hold them.
        """
        entry = self.manifest.golden
        golden = Golden.parse(self.read(entry.file), self.path / entry.file)
        golden.check_fits(
            self.path / entry.file, pixels=self.preprocess.pixel_shape, classes=len(self.classes), count=entry.count
        )
        return golden

    def slim(self, out: Path, *, variants: Sequence[str], weights: bool, overwrite: bool = False) -> Bundle:
        """Copy this bundle without the variants not named, and without weights unless ``weights``. Same bundle id.

        A bundle that never had weights is copied without them either way.

        The copy has a manifest of its own, so a signature does not fit it and stays behind: sign the copy.

        Raises:
            InputError: a variant is not here.
            StorageError: ``out`` cannot be written.
        """
        if not variants:
            raise InputError("a slim bundle needs at least one variant")
        keep = {self.onnx_path(variant).name for variant in variants} | self.manifest.always
        if weights:
            keep |= {self.weights_path.name} if self.manifest.weights else set()
        document = read_object(self._manifest_bytes(), self.path / MANIFEST)
        with new_bundle(out, overwrite=overwrite) as folder:
            for name in sorted(keep):
                write_bytes(folder / name, self.read(name))
            # keys that this version does not know count in the id
            write_json(folder / MANIFEST, {**document, "left_out": sorted(set(self.files) - keep)})
        return Bundle.open(out)
