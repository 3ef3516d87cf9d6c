"""The one evaluation loop: clean and adversarial accuracy of what would ship.

Images stream through: crafted here by an attack, or read from a pack; either way each batch is scored on every artefact
and forgotten. Only counts are kept, so memory does not grow with the data set.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._version import __version__
from .attack import CLEAN_KEY, AttackInfo, CleanBatch, CraftedBatch, Key
from .backends.base import Backend
from .bundle import Bundle
from .device import environment
from .errors import DataError
from .examples import ExamplePicker
from .preprocess import to_tensor
from .results import CLEAN, WORST_CASE, AttackParams, Results, Row, Threat
from .verdict import MaskingEvidence

MOST_UNREADABLE = 0.01
_TOP = 5


@dataclass(frozen=True)
class DataInfo:
    """What is scored, as the results file names it.

    Attributes:
        name: the ``--data`` that was given.
        split: which part.
        total: images asked for, unreadable ones included.
        allow_unreadable: accept more than 1% of unreadable images.
    """

    name: str
    split: str
    total: int
    allow_unreadable: bool = False


class DataDigest:
    """SHA-256 over every scored image and label, in order: the same for a pack and for the run that made it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, batch: CleanBatch) -> None:
        """Add one batch."""
        for index, pixels, label in zip(batch.index, batch.pixels, batch.labels, strict=True):
            self._digest.update(f"{index} {label} {hashlib.sha256(pixels.tobytes()).hexdigest()}\n".encode())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._digest.hexdigest()


class _Tally:
    """Counts of one artefact: right answers per attack and budget, and of the worst case per budget."""

    def __init__(self, backend: Backend, infos: Sequence[AttackInfo]) -> None:
        self.backend = backend
        self.infos = infos
        self.budgets = sorted({info.eps for info in infos}, key=lambda eps: (eps.value, eps.text))
        self.top1: Counter[Key] = Counter()
        self.top5: Counter[Key] = Counter()

    def add(self, batch: CraftedBatch, clean: NDArray[np.float32]) -> dict[Key, NDArray[np.float32]]:
        """Score one batch; returns the logits by key."""
        labels = batch.clean.labels
        logits = {CLEAN_KEY: self.backend.infer(clean)}
        logits |= {info.key: self.backend.infer(batch.adversarial[info.key]) for info in self.infos}
        hits = {key: _hits(values, labels) for key, values in logits.items()}
        for key, (first, among5) in hits.items():
            self._count(key, first, among5)
        # whatever works within a smaller budget works within a larger one
        first, among5 = hits[CLEAN_KEY]
        for eps in self.budgets:
            for info in self.infos:
                # by value: 8/255 and its decimals are one budget under two names
                if info.eps.value == eps.value:
                    first, among5 = first & hits[info.key][0], among5 & hits[info.key][1]
            self._count((WORST_CASE, eps.text), first, among5)
        return logits

    def _count(self, key: Key, first: NDArray[np.bool_], among5: NDArray[np.bool_]) -> None:
        self.top1[key] += int(first.sum())
        self.top5[key] += int(among5.sum())


def _hits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the label comes first, and among the first five; ties go against the model."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    rank = (logits >= own).sum(axis=1) - 1
    return rank < 1, rank < _TOP


def evaluate(
    batches: Iterable[CraftedBatch],
    infos: Sequence[AttackInfo],
    *,
    bundle: Bundle,
    backends: Sequence[Backend],
    data: DataInfo,
    unreadable: Sequence[str] = (),
    skipped: Sequence[dict[str, str]] = (),
    examples: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Score every artefact on the same images.

    Images that int8 variants of the bundle were calibrated on are left out, for every artefact, and counted.

    Args:
        batches: what :func:`edgeadv_runtime.attack.craft` or a pack yields.
        infos: what each of their keys is.
        bundle: what is scored.
        backends: the artefacts, opened.
        data: what the images are.
        unreadable: messages of images that could not be decoded; read after the last batch, so it may be filled by the
            iterator.
        skipped: combinations that were asked for and cannot be, for the results file.
        examples: how many images to keep in the results file for the report.
        progress: called with the images done and the images there are.

    Raises:
        DataError: no image could be scored, all were calibrated on, or more than 1% were unreadable and that was not
            allowed.
        EdgeAdvError: whatever a backend or an attack raises.
    """
    tallies = [_Tally(backend, infos) for backend in backends]
    evidence = MaskingEvidence(infos)
    digest = DataDigest()
    zero: Counter[Key] = Counter()
    picker = ExamplePicker(examples, infos, bundle.classes)
    n = left_out = 0
    for complete in batches:
        batch = _without(complete, bundle.calibration_images)
        left_out += len(complete.clean.labels) - len(batch.clean.labels)
        if not len(batch.clean.labels):
            continue
        digest.add(batch.clean)
        evidence.add(batch)
        zero.update({key: int(flags.sum()) for key, flags in batch.zero_gradient.items()})
        clean = to_tensor(batch.clean.pixels)
        for i, tally in enumerate(tallies):
            logits = tally.add(batch, clean)
            if i == len(tallies) - 1:
                picker.look(batch, clean, logits, artefact=f"{tally.backend.name} {tally.backend.variant}")
        n += len(batch.clean.labels)
        if progress is not None:
            progress(n + left_out + len(unreadable), data.total)
    if left_out and not n:
        raise DataError(
            f"{data.name}: int8 was calibrated on all {left_out} of these images; score other ones, or more (--limit)"
        )
    if not n:
        raise DataError(f"{data.name}: no image could be scored" + (f", e.g. {unreadable[0]}" if unreadable else ""))
    if len(unreadable) > MOST_UNREADABLE * data.total and not data.allow_unreadable:
        raise DataError(
            f"{data.name}: {len(unreadable)} of {data.total} images are unreadable, e.g. {unreadable[0]}; repair them or pass --allow-unreadable"
        )
    masking = evidence.verdict()
    # a row carries the sentences; the figures behind them stand once in the file
    sentences = [item["text"] for item in masking["evidence"] if item["finding"] or item["rule"] == "coverage"]
    for_rows = {"verdict": masking["verdict"], "evidence": sentences}
    zero_shares = {info.key: zero[info.key] / n for info in infos if info.key in zero}
    rows = [row for tally in tallies for row in _rows(tally, n, bundle, zero_shares, for_rows)]
    return Results(
        bundle={
            "id": bundle.id, "name": bundle.path.name, "title": bundle.manifest["title"], "weights_sha256": bundle.weights_sha256,
            "architecture": bundle.manifest["architecture"], "provenance": bundle.manifest["provenance"],
        },
        data={
            "name": data.name, "split": data.split, "n": n, "sha256": digest.hexdigest(), "unreadable": list(unreadable),
            "calibration_left_out": left_out, "classes": len(bundle.classes),
        },
        environment=environment(), masking=masking, rows=tuple(rows), skipped=tuple(skipped), examples=tuple(picker.examples),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), edgeadv_version=__version__,
    )  # fmt: skip


def _without(batch: CraftedBatch, images: frozenset[str]) -> CraftedBatch:
    """``batch`` without those ``images``, which are named by the SHA-256 of their pixels."""
    if not images:
        return batch
    known = [hashlib.sha256(pixels.tobytes()).hexdigest() in images for pixels in batch.clean.pixels]
    return batch.select(~np.array(known, dtype=np.bool_)) if any(known) else batch


def _rows(
    tally: _Tally, n: int, bundle: Bundle, zero_shares: dict[Key, float], masking: dict[str, object]
) -> list[Row]:
    backend, has_top5 = tally.backend, len(bundle.classes) > _TOP
    engine = backend.engine_info

    def row(key: Key, eps_value: float, params: AttackParams, threat: Threat | None, gradients: str | None) -> Row:
        return Row(
            variant=backend.variant, artifact_sha256=backend.artifact_sha256, backend=backend.name, provider=backend.provider,
            device=backend.device, attack=key[0], params=params, eps=key[1], eps_value=eps_value, threat=threat,
            gradients=gradients, n=n, correct_top1=tally.top1[key], correct_top5=tally.top5[key] if has_top5 else None,
            zero_gradient_share=zero_shares.get(key), masking=None if key == CLEAN_KEY else masking, engine=engine,
        )  # fmt: skip

    rows = [row(CLEAN_KEY, 0.0, AttackParams(), None, None)]
    for eps in tally.budgets:
        within = [info for info in tally.infos if info.eps.value <= eps.value]
        for info in tally.infos:
            if info.eps == eps:
                rows.append(row(info.key, eps.value, info.params, _threat(info, backend), info.gradients))
        names = tuple(dict.fromkeys([CLEAN, *(info.name for info in within)]))
        params = AttackParams(norm="linf", uint8=within[0].params.uint8, attacks=names)
        threats = {_threat(info, backend) for info in within}
        threat: Threat = "white-box" if threats == {"white-box"} else "transfer"
        rows.append(row((WORST_CASE, eps.text), eps.value, params, threat, within[0].gradients))
    return rows


def _threat(info: AttackInfo, backend: Backend) -> Threat:
    """White-box only where the gradients are those of the very artefact that is scored."""
    return "white-box" if info.gradients_sha256 == backend.artifact_sha256 else "transfer"
