"""What is kept of a batch once it is scored: for each image which artefact was right under which attack, not the
images.

Everything that a results file says is a function of these outcomes (:func:`edgeadv_runtime.evaluation.loop.summarise`),
so they can be made by several processes, or by one that is stopped and goes on, and the file does not show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from msgspec import to_builtins
from numpy.typing import NDArray

from ..arrays import Due, load_arrays
from ..attacks.base import CLEAN_KEY, EVIDENCE_TABLES, AttackInfo, Evidence, Key
from ..backends.base import Backend
from ..bundle.variants import base_of, takes_uint8
from ..decoding import Count, Sha256, decode
from ..errors import BundleError, StorageError
from ..files import atomic_file
from ..reading import decoded, read_bytes
from ..records.about import Example
from ..records.rows import BASELINE, ArtefactId, EngineInfo
from ..unfinished import PLAN_FILE, begin_partial, remove_folder

Hits = Mapping[Key, NDArray[np.bool_]]
"""For the clean images and each attack at each budget, whether the label was found, bool (n,)."""


@dataclass(frozen=True)
class Artefact:
    """What was scored, as result rows name it; see :class:`~edgeadv_runtime.Backend` for the attributes."""

    backend: str
    variant: str
    artifact_sha256: str
    provider: str
    device: str
    identity: str
    engine: EngineInfo | None = None
    float_sha256: str | None = None

    @classmethod
    def of(cls, backend: Backend) -> Artefact:
        """Describe ``backend``; its plan is described as it is now, so ask after the last call."""
        return cls(
            backend.name,
            backend.variant,
            backend.artifact_sha256,
            backend.provider,
            backend.device,
            backend.identity,
            backend.engine_info,
            backend.float_sha256,
        )

    @property
    def takes_uint8(self) -> bool:
        """Whether it was given 8-bit pixels, adversarial ones too."""
        return takes_uint8(self.variant)

    def has_gradients(self, sha256: str | None) -> bool:
        """Whether the gradients that belong to the artefact with this hash are its own; None is nobody's."""
        return sha256 is not None and sha256 in (self.artifact_sha256, self.float_sha256)

    @property
    def id(self) -> ArtefactId:
        """What a comparison says of it."""
        return ArtefactId(backend=self.backend, variant=self.variant, artifact_sha256=self.artifact_sha256)

    def binding(self) -> dict[str, Any]:
        """All that figures depend on, so that no outcomes of one artefact are taken for those of another."""
        plan = None if self.engine is None else self.engine.plan_sha256
        return {**to_builtins(self.id), "provider": self.provider, "device": self.device, "plan_sha256": plan}


@dataclass(frozen=True)
class LabelledExample:
    """An image for the report.

    Attributes:
        label: number of its true class, or of the frame in the track that is shown.
        entry: its entry in the results file.
    """

    label: int
    entry: Example


class _Rest(msgspec.Struct):
    """What of an outcome is no array."""

    keys: dict[str, list[Key]]
    artefacts: Count
    left_out: Count
    hashes: tuple[Sha256, ...]
    unreadable: tuple[str, ...]
    examples: tuple[LabelledExample, ...]


_PER_KEY = {"top1_*": "bool", "top5_*": "bool", "answers": "int64", "unrounded": "int64", "zero_gradient": "bool"}
_DUE = {
    **{name: Due.of("int64", None) for name in ("index", "labels")},
    **{name: Due.of("bool", None) for name in ("probabilities", "unstable", "unstable_*")},
    **{name: Due.of(kind, None, None) for name, kind in _PER_KEY.items()},
    **{name: Due.of("float32", None, None) for name in ("progress", "progress_*", "probability_*")},
    "given_*": Due.of("int64", None, None),
    "linearity": Due.of("float32", None, None, None),
    "rest": Due.of("uint8", None),
}


@dataclass(frozen=True)
class BatchOutcome:
    """What became of the images of one batch.

    Attributes:
        index: int64 (n,), positions in the data set.
        labels: int64 (n,).
        hashes: hex SHA-256 of each image's pixels.
        top1: for each artefact, whether the label came first.
        top5: for each artefact, whether the label was among the first five.
        evidence: what the reference model made of them.
        left_out: images of the batch that int8 was calibrated on; they are not among the ``n``.
        unreadable: messages of images that could not be decoded.
        examples: images that the report may show.
        progress: for each artefact and each key of noise and of a query attack, float32 (n,), as :class:`Evidence` has
            it.
        unstable: for each artefact, bool (n,): asked again it gave other logits.
        given: for each artefact and key the label that came first, int64 (n,); empty unless tracks are scored.
        probability: that of this label, at the bundle's temperature, float32 (n,); likewise.
    """

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    top1: tuple[Hits, ...]
    top5: tuple[Hits, ...]
    evidence: Evidence
    left_out: int = 0
    unreadable: tuple[str, ...] = ()
    examples: tuple[LabelledExample, ...] = ()
    progress: tuple[Mapping[Key, NDArray[np.float32]], ...] = ()
    unstable: tuple[NDArray[np.bool_], ...] = ()
    given: tuple[Mapping[Key, NDArray[np.int64]], ...] = ()
    probability: tuple[Mapping[Key, NDArray[np.float32]], ...] = ()

    @property
    def images(self) -> int:
        """Images that were asked for, unreadable ones and those left out included."""
        return len(self.labels) + self.left_out + len(self.unreadable)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` without pickles."""
        evidence, tables = self.evidence, self.evidence.tables
        for k, (first, among5, beyond) in enumerate(zip(self.top1, self.top5, self.progress, strict=True)):
            tables |= {f"top1_{k}": first, f"top5_{k}": among5, f"progress_{k}": beyond}
        tables |= {f"given_{k}": table for k, table in enumerate(self.given)}
        tables |= {f"probability_{k}": table for k, table in enumerate(self.probability)}
        rest = {
            "keys": {name: list(table) for name, table in tables.items()},
            "artefacts": len(self.top1),
            "left_out": self.left_out,
            "hashes": self.hashes,
            "unreadable": self.unreadable,
            "examples": to_builtins(self.examples),
        }
        arrays: dict[str, NDArray[Any]] = {
            "index": self.index,
            "labels": self.labels,
            "probabilities": evidence.probabilities,
            "unstable": evidence.unstable,
            "rest": np.frombuffer(json.dumps(rest, allow_nan=False).encode(), dtype=np.uint8),
        }
        arrays |= {f"unstable_{k}": flags for k, flags in enumerate(self.unstable)}
        arrays |= {name: np.stack(list(table.values())) for name, table in tables.items() if table}
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, *, n_classes: int) -> BatchOutcome:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            n_classes: labels are below it.

        Raises:
            BundleError: it is damaged, or its labels are out of range.
        """
        again = f"delete {path.parent} and evaluate again"
        data = read_bytes(path, what="outcome of a batch")
        with decoded(path, what="damaged", mend=again):
            arrays = load_arrays(data, _DUE)
            rest = decode(arrays["rest"].tobytes(), _Rest, what="outcome of a batch", path=path, mend=again)
            artefacts = range(rest.artefacts)

            def table(name: str) -> dict[Key, NDArray[Any]]:
                keys = rest.keys[name]
                return dict(zip(keys, arrays[name], strict=True)) if keys else {}

            tables: dict[str, Any] = {name: table(name) for name in EVIDENCE_TABLES}
            outcome = cls(
                arrays["index"],
                arrays["labels"],
                rest.hashes,
                tuple(table(f"top1_{k}") for k in artefacts),
                tuple(table(f"top5_{k}") for k in artefacts),
                Evidence(**tables, probabilities=arrays["probabilities"], unstable=arrays["unstable"]),
                rest.left_out,
                rest.unreadable,
                rest.examples,
                tuple(table(f"progress_{k}") for k in artefacts),
                tuple(arrays[f"unstable_{k}"] for k in artefacts),
                tuple(table(f"given_{k}") for k in artefacts if f"given_{k}" in rest.keys),
                tuple(table(f"probability_{k}") for k in artefacts if f"probability_{k}" in rest.keys),
            )
        n = len(outcome.labels)
        by_key = (*outcome.top1, *outcome.top5, *outcome.progress, *outcome.given, *outcome.probability)
        arrays_of_n = [outcome.index, *outcome.unstable, *(values for table in by_key for values in table.values())]
        fits = len(outcome.hashes) == n and all(values.shape == (n,) for values in arrays_of_n)
        if not (fits and outcome.evidence.fits(outcome.labels, n_classes)):
            raise BundleError(f"{path} is damaged (shapes or labels are wrong): {again}")
        return outcome


def rounding_lost(
    k: int, artefacts: Sequence[Artefact], scored: Sequence[AttackInfo], outcomes: Sequence[BatchOutcome]
) -> dict[Key, int]:
    """By attack, how many images artefact ``k`` gets right only because they were rounded to 8 bits; without what
    cannot be told.

    Where all artefacts were given rounded images, it is told by the reference model. Where this one alone was, as it
    takes no others, by the artefact with float input that is the same function, if it was scored too, or, of fp32, by
    the reference model.
    """
    own = artefacts[k]
    twin = next(
        (i for i, a in enumerate(artefacts) if (a.backend, a.artifact_sha256) == (own.backend, own.float_sha256)), None
    )
    lost: dict[Key, int] = {}
    for info in scored:
        key = info.key
        for outcome in outcomes:
            answers, labels, top1 = outcome.evidence.answers, outcome.labels, outcome.top1
            if key in outcome.evidence.unrounded:
                stands = (answers[CLEAN_KEY] == labels) & (answers[key] == labels)
                broken = outcome.evidence.unrounded[key] != labels
            elif info.params.uint8 or not own.takes_uint8:
                continue
            else:
                stands = top1[k][CLEAN_KEY] & top1[k][key]
                if twin is not None:
                    broken = top1[twin][CLEAN_KEY] & ~top1[twin][key]
                elif base_of(own.variant) == BASELINE and key in answers:
                    broken = (answers[CLEAN_KEY] == labels) & (answers[key] != labels)
                else:
                    continue
            lost[key] = lost.get(key, 0) + int((stands & broken).sum())
    return lost


class OutcomeStore:
    """Outcomes in a folder beside the results to come, one file a batch; what an interrupted evaluation goes on from.

    As a context it removes its folder when the block ends without anything in it to go on from, unless it is shared:
    another process may be about to write there.
    """

    def __init__(self, folder: Path, *, n_classes: int, shared: bool = False) -> None:
        """Name the folder; nothing is made yet.

        Args:
            folder: where the outcomes go.
            n_classes: of the model that is scored.
            shared: whether other processes write there too.
        """
        self._shared = shared
        self.folder = folder
        self._n_classes = n_classes

    def start(self, plan: Mapping[str, Any], *, resume: bool) -> None:
        """Begin, or go on, with an evaluation.

        Args:
            plan: JSON value of everything that outcomes depend on.
            resume: go on with what is there, if anything is.

        Raises:
            StorageError: there are outcomes and ``resume`` is false, or the folder cannot be written.
            InputError: they belong to another plan.
        """
        begin_partial(self.folder, PLAN_FILE, plan, what="evaluation", resume=resume)

    def put(self, number: int, outcome: BatchOutcome) -> None:
        """Keep the outcome of batch ``number``.

        Raises:
            StorageError: it cannot be written.
        """
        with atomic_file(self._file(number)) as temporary:
            outcome.save(temporary)

    def get(self, number: int) -> BatchOutcome:
        """The outcome of batch ``number``.

        Raises:
            BundleError: it is damaged or not there.
        """
        return BatchOutcome.load(self._file(number), n_classes=self._n_classes)

    def numbers(self) -> list[int]:
        """The batches that are there, ascending."""
        return sorted(int(file.stem.partition("-")[2]) for file in self.folder.glob("batch-*.npz"))

    def all(self, count: int) -> list[BatchOutcome]:
        """The outcomes of batches 0 to ``count - 1``.

        Raises:
            StorageError: some are not there, as when processes on several machines write to folders of their own.
            BundleError: one is damaged.
        """
        missing = sorted(set(range(count)) - set(self.numbers()))
        if missing:
            raise StorageError(
                f"{self.folder} lacks the outcomes of {len(missing)} of {count} batches, e.g. batch {missing[0]}: "
                "processes on several machines need one folder that all of them see; go on with `resume` there"
            )
        return [self.get(number) for number in range(count)]

    def remove(self) -> None:
        """Delete the folder."""
        remove_folder(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"batch-{number:06d}.npz"

    def __enter__(self) -> OutcomeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # an attack that was interrupted in the first batch has left its state
        if not self._shared and not self.numbers() and not any(self.folder.glob("square-*.npz")):
            self.remove()
