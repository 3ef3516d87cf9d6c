"""The one evaluation loop: clean and adversarial accuracy of what would ship.

Images stream through: crafted here by an attack, or read from a pack; either way each batch is scored on every artefact
and forgotten. What is kept is its outcome, a few bits an image, and the results file is a function of the outcomes.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..attacks.base import CLEAN_KEY, AttackInfo, CraftedBatch, Key, check_infos
from ..attacks.pack import AttackPack
from ..backends.base import Backend
from ..bundle.batches import DataDigest, DataInfo, Progress, check_readable
from ..bundle.bundle import Bundle
from ..bundle.training_images import Overlap, check_overlap
from ..decoding import convert
from ..device.facts import environment
from ..errors import DataError, InputError
from ..records.about import Calibration, ScoredData, Skipped, Subject
from ..records.eps import AREA, SEVERITY, Eps
from ..records.evidence import RowMasking
from ..records.machine import Environment
from ..records.measurement import WRITER
from ..records.results import Results
from ..records.rows import CLEAN, WORST_CASE, AttackParams, Comparison, Row, Threat
from ..records.suites import NOISE, WHOLE_STEP, base_name, order_of
from .outcomes import Artefact, BatchOutcome, rounding_lost
from .patch_verdict import patch_verdict
from .scoring import TOP, score_batches
from .source import Source
from .tracks import track_rows
from .verdict import no_verdict, verdict_of
from .worst_images import first_examples

_THREATS: tuple[Threat, ...] = ("white-box", "query", "transfer")


def evaluate(
    bundle: Bundle,
    images: AttackPack | Iterable[CraftedBatch],
    *,
    backends: Sequence[Backend],
    infos: Sequence[AttackInfo] = (),
    data: DataInfo | None = None,
    unreadable: Sequence[str] = (),
    skipped: Sequence[Skipped] = (),
    examples: int = 6,
    overlap: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Score every artefact on the same images, keeping nothing on the way.

    Images that int8 variants of the bundle were calibrated on are left out, for every artefact, and counted. What a
    ``-u8in`` artefact is given is rounded to 8 bits within eps before, and its rows say so::

        with OnnxRuntimeBackend(bundle, variant="fp16") as backend:
            results = evaluate(bundle, AttackPack.open("signs.pack", bundle=bundle), backends=[backend])

    Args:
        bundle: what is scored.
        images: a pack, or batches of your own, as :func:`edgeadv_runtime.attacks.crafting.craft` yields them.
        backends: the artefacts, opened.
        infos: of batches of your own what each of their keys is, and which controls ran.
        data: of batches of your own what the images are.
        unreadable: of batches of your own messages of images that could not be decoded; read after the last batch, so
            it may be filled by the iterator.
        skipped: combinations that were asked for and cannot be, for the results file.
        examples: how many images to keep in the results file for the report.
        overlap: score a batch in a second thread while the next one is crafted; see :func:`score_batches`.
        progress: called with the images done, the images there are, and ``"scoring"``.

    Raises:
        DataError: no image could be scored, all were calibrated on, or more than 1% were unreadable and that was not
            allowed.
        InputError: two attacks share a name and a budget, or are measured in different norms, or a budget is too small
            for an artefact that takes 8-bit pixels; or more than 1% of the images are training images and that was not
            allowed.
        EdgeAdvError: whatever a backend or an attack raises.
    """
    if isinstance(images, AttackPack):
        source = Source.of_pack(images)
        variants = {backend.variant for backend in backends}
        skipped = [*skipped, *(entry for entry in images.skipped if entry.variant in variants)]
    elif data is None:
        raise InputError("data", "says what batches of your own are: give a DataInfo")
    else:
        source = Source.of_batches(images, infos, data, unreadable)
    check_infos(source.infos)
    outcomes: dict[int, BatchOutcome] = {}
    score_source(
        source,
        bundle=bundle,
        backends=backends,
        kept={},
        keep=outcomes.__setitem__,
        examples=examples,
        overlap=overlap,
        progress=progress,
    )
    return summarise(
        list(outcomes.values()),
        source.infos,
        [Artefact.of(backend) for backend in backends],
        bundle=bundle,
        data=source.data,
        skipped=skipped,
        examples=examples,
    )


def score_source(
    source: Source,
    *,
    bundle: Bundle,
    backends: Sequence[Backend],
    kept: Mapping[int, BatchOutcome],
    keep: Callable[[int, BatchOutcome], None],
    share: tuple[int, int] = (0, 1),
    examples: int = 6,
    overlap: bool = False,
    progress: Progress | None = None,
) -> None:
    """Score those batches of this process that are not kept yet: the one loop, whoever keeps the outcomes.

    Args:
        source: the images.
        bundle: what is scored.
        backends: the artefacts, opened.
        kept: outcomes that are there, by the number of their batch.
        keep: given each number and its outcome as soon as it is scored.
        share: number of this process, from 0, and how many processes share the batches.
        examples: how many images the results file is to show.
        overlap: as for :func:`score_batches`.
        progress: called with the images done, those there are, and ``"scoring"``; scaled up from this share to all.

    Raises:
        EdgeAdvError: as :func:`evaluate`.
    """
    rank, world = share
    if not source.data.allow_unreadable:
        # an image that could not be read may have been mended since
        kept = {number: outcome for number, outcome in kept.items() if not outcome.unreadable}
    mine: Sequence[int] = range(rank, source.count, world)
    done = sum(outcome.images for number, outcome in kept.items() if number in mine)
    if kept:
        mine = [number for number in mine if number not in kept]
    # of what is there, only what comes before this process's batches says what need not be shown again
    before = [outcome for number, outcome in kept.items() if mine and number < mine[0]]
    seen = {example.label for outcome in before for example in outcome.examples}
    unreadable: list[str] = []
    outcomes = score_batches(
        source.read(mine, unreadable),
        source.infos,
        bundle=bundle,
        backends=backends,
        unreadable=unreadable,
        examples=examples,
        seen=seen,
        overlap=overlap,
        keep=lambda position, outcome: keep(mine[position], outcome),
        names=source.names,
    )
    for outcome in outcomes:
        done += outcome.images
        if progress is not None:
            progress(min(done * world, source.data.total), source.data.total, "scoring")


@dataclass(frozen=True)
class _Scored:
    """One artefact on all images: by key, worst cases included, bool (n,) whether the label came first, or among
    five."""

    artefact: Artefact
    top1: dict[Key, NDArray[np.bool_]]
    top5: dict[Key, NDArray[np.bool_]]

    def added(self, infos: Sequence[AttackInfo]) -> dict[Key, int]:
        """Of each cumulative attack among ``infos`` the images that it broke and every attack before it left."""
        ran = sorted(infos, key=lambda info: order_of(info.name, cumulative=info.cumulative))
        found: dict[Key, int] = {}
        for place, info in enumerate(ran):
            if info.cumulative:
                before = [other.key for other in ran[:place] if other.eps.value <= info.eps.value]
                left = np.logical_and.reduce([self.top1[key] for key in (CLEAN_KEY, *before)])
                found[info.key] = int((left & ~self.top1[info.key]).sum())
        return found


def summarise(
    outcomes: Sequence[BatchOutcome],
    infos: Sequence[AttackInfo],
    artefacts: Sequence[Artefact],
    *,
    bundle: Bundle,
    data: DataInfo,
    skipped: Sequence[Skipped] = (),
    examples: int = 6,
    names: Sequence[str] = (),
) -> Results:
    """What a results file says of ``outcomes``, which depends on nothing else but for the time and the environment.

    Args:
        outcomes: of all batches, in the order of the data.
        infos: the attacks, controls included: they are evidence and nothing more.
        artefacts: what was scored, in the order of ``top1`` and ``top5`` of each outcome.
        bundle: what they are from.
        data: what the images are.
        skipped: combinations that were asked for and cannot be.
        examples: how many images to show.
        names: of all images by their position, where tracks of them are scored; else empty.

    Raises:
        DataError, InputError: as :func:`evaluate`.
    """
    check_infos(infos)
    digest, overlap = DataDigest(), Overlap(bundle.training_images)
    for outcome in outcomes:
        digest.add(outcome)
        overlap.add(outcome.hashes)
    n, left_out = sum(len(o.labels) for o in outcomes), sum(o.left_out for o in outcomes)
    unreadable = [message for o in outcomes for message in o.unreadable]
    _check_images(n, left_out, unreadable, data)
    trained_on = data.training_images if overlap.known is None else overlap.known
    check_overlap(trained_on, n, name=data.name, allowed=data.allow_training_images)
    scored = [info for info in infos if not info.control]
    budgets = sorted({info.eps for info in scored}, key=lambda eps: (eps.value, eps.text))
    table = [_gathered(k, artefact, outcomes, scored, budgets) for k, artefact in enumerate(artefacts)]
    norm = scored[0].params.norm if scored else None
    if norm == SEVERITY:
        masking, of_rows = no_verdict(n, len(artefacts))
    else:
        judge = patch_verdict if norm == AREA else verdict_of
        masking, of_rows = judge(infos, outcomes, artefacts)
    shares = _zero_shares(outcomes, scored, n)
    rows: list[Row] = []
    for k, (entry, verdict) in enumerate(zip(table, of_rows, strict=True)):
        lost = rounding_lost(k, artefacts, scored, outcomes)
        made = _rows(entry, scored, budgets, shares, lost, verdict, top5=len(bundle.classes) > TOP)
        rows += [replace(row, training_images=trained_on) for row in made]
    return Results(
        bundle=Subject(
            id=bundle.id,
            name=bundle.path.name,
            title=bundle.manifest.title,
            weights_sha256=bundle.weights_sha256,
            architecture=bundle.manifest.architecture.to_json(),
            provenance=bundle.manifest.provenance,
            confidence=_confidence(bundle),
        ),
        data=ScoredData(
            name=data.name,
            split=data.split,
            n=n,
            sha256=digest.hexdigest(),
            unreadable=tuple(unreadable),
            calibration_left_out=left_out,
            classes=len(bundle.classes),
            training_images=trained_on,
            allow_training_images=data.allow_training_images,
        ),
        environment=convert(environment(), Environment, what="description of this machine"),
        masking=masking,
        rows=tuple(rows),
        skipped=tuple(skipped),
        examples=first_examples((example for o in outcomes for example in o.examples), examples),
        comparisons=_comparisons(table, budgets),
        tracks=track_rows(outcomes, artefacts, [entry.top1 for entry in table], names, bundle) if names else (),
        edgeadv_version=WRITER,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _confidence(bundle: Bundle) -> Calibration | None:
    """What the report shows of the bundle's probabilities, without the list of images; None where it has no
    temperature."""
    if (entry := bundle.manifest.confidence) is None:
        return None
    value = replace(entry, images=None).to_json()
    return convert(value, Calibration, what="confidence of a bundle", mend="export it again")


def _check_images(n: int, left_out: int, unreadable: Sequence[str], data: DataInfo) -> None:
    if (seen := n + left_out + len(unreadable)) != data.total:
        raise DataError(
            f"{data.name}: outcomes of {seen} images are there, {data.total} were asked for; evaluate again"
        )
    if left_out and not n:
        raise DataError(
            f"{data.name}: int8 was calibrated on all {left_out} of these images; score other ones, or more (`limit`)"
        )
    if not n:
        raise DataError(f"{data.name}: no image could be scored" + (f", e.g. {unreadable[0]}" if unreadable else ""))
    check_readable(unreadable, data)


def _gathered(
    k: int, artefact: Artefact, outcomes: Sequence[BatchOutcome], scored: Sequence[AttackInfo], budgets: Sequence[Eps]
) -> _Scored:
    """What artefact ``k`` was right about, over all batches, and in the worst case at each budget."""
    keys = [CLEAN_KEY, *(info.key for info in scored)]
    tables = []
    for hits in ([each.top1[k] for each in outcomes], [each.top5[k] for each in outcomes]):
        table = {key: np.concatenate([part[key] for part in hits]) for key in keys}
        worst = table[CLEAN_KEY]
        for eps in budgets:
            # whatever works within a smaller budget works within a larger one
            for info in scored:
                # by value: 8/255 and its decimals are one budget under two names
                if info.eps.value == eps.value:
                    worst = worst & table[info.key]
            table[WORST_CASE, eps.text] = worst
        tables.append(table)
    return _Scored(artefact, *tables)


def _zero_shares(outcomes: Sequence[BatchOutcome], scored: Sequence[AttackInfo], n: int) -> dict[Key, float]:
    """Of the attacks that tell, the share of images without a gradient."""
    tables = [outcome.evidence.zero_gradient for outcome in outcomes]
    known = [info.key for info in scored if any(info.key in table for table in tables)]
    return {key: sum(int(table[key].sum()) for table in tables if key in table) / n for key in known}


def _rows(
    entry: _Scored,
    scored: Sequence[AttackInfo],
    budgets: Sequence[Eps],
    shares: dict[Key, float],
    lost: dict[Key, int],
    masking: RowMasking,
    *,
    top5: bool,
) -> list[Row]:
    artefact, added = entry.artefact, entry.added(scored)

    def row(
        key: Key, eps_value: float, params: AttackParams, threat: Threat | None, gradients: str | None, *, known: bool
    ) -> Row:
        first, among5 = entry.top1[key], entry.top5[key]
        return Row(
            variant=artefact.variant,
            artifact_sha256=artefact.artifact_sha256,
            backend=artefact.backend,
            provider=artefact.provider,
            device=artefact.device,
            attack=key[0],
            params=params,
            eps=key[1],
            eps_value=eps_value,
            threat=threat,
            gradients=gradients,
            n=len(first),
            correct_top1=int(first.sum()),
            correct_top5=int(among5.sum()) if top5 and known else None,
            zero_gradient_share=shares.get(key),
            masking=None if key == CLEAN_KEY else masking,
            engine=artefact.engine,
            rounding_lost=lost.get(key),
            broken_in_addition=added.get(key),
        )

    rows = [row(CLEAN_KEY, 0.0, AttackParams(), None, None, known=True)]
    for eps in budgets:
        within = [info for info in scored if info.eps.value <= eps.value]
        for info in scored:
            if info.eps == eps:
                params = replace(info.params, uint8=artefact.takes_uint8 or info.params.uint8)
                threat, known = _threat(info, artefact), _tells_top5(info)
                rows.append(row(info.key, eps.value, params, threat, info.gradients, known=known))
        names = tuple(dict.fromkeys([CLEAN, *(info.name for info in within)]))
        uint8 = artefact.takes_uint8 or within[0].params.uint8
        params = AttackParams(norm=within[0].params.norm or "linf", uint8=uint8, attacks=names)
        threats = [found for info in within if (found := _threat(info, artefact)) is not None]
        threat = min(threats, key=_THREATS.index, default=None)
        sources = dict.fromkeys(info.gradients for info in within if info.gradients is not None)
        known, gradients = all(map(_tells_top5, within)), ", ".join(sources) or None
        rows.append(row((WORST_CASE, eps.text), eps.value, params, threat, gradients, known=known))
    return rows


def _tells_top5(info: AttackInfo) -> bool:
    """Whether the attack is not content with an image whose label has become the second; of a third party's nobody
    knows."""
    name = base_name(info.name)
    return name in WHOLE_STEP or info.params.norm == SEVERITY or (name == NOISE and info.params.queries == 1)


def _threat(info: AttackInfo, artefact: Artefact) -> Threat | None:
    """White-box only where the gradients are those of the very artefact that is scored, query only where it was asked;
    a corruption is none."""
    if info.params.norm == SEVERITY:
        return None
    if artefact.has_gradients(info.gradients_sha256):
        return "white-box"
    return "query" if info.queried == artefact.identity else "transfer"


def _comparisons(table: Sequence[_Scored], budgets: Sequence[Eps]) -> tuple[Comparison, ...]:
    """Each pair of artefacts, image by image, on the clean images and in the worst case at each budget."""
    found = []
    for baseline, other in combinations(table, 2):
        for key in (CLEAN_KEY, *((WORST_CASE, eps.text) for eps in budgets)):
            ours, theirs = baseline.top1[key], other.top1[key]
            found.append(
                Comparison(
                    attack=key[0],
                    eps=key[1],
                    baseline=baseline.artefact.id,
                    artefact=other.artefact.id,
                    n=len(ours),
                    lost=int((ours & ~theirs).sum()),
                    gained=int((~ours & theirs).sum()),
                )
            )
    return tuple(found)
