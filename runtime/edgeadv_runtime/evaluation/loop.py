"""The one evaluation loop: clean and adversarial accuracy of what would ship.

Images stream through: crafted here by an attack, or read from a pack; either way each batch is scored on every artefact
and forgotten. What is kept is its outcome, a few bits an image, and the results file is a function of the outcomes.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..attacks.base import CLEAN_KEY, AttackInfo, CraftedBatch, Key, check_infos
from ..backends.base import Backend
from ..bundle.batches import DataDigest, DataInfo, check_readable
from ..bundle.bundle import Bundle
from ..bundle.training_images import Overlap, check_overlap
from ..device.facts import environment
from ..errors import DataError
from ..records.eps import Eps
from ..records.results import CLEAN, WORST_CASE, AttackParams, Results, Row, Threat
from ..records.statistics import mcnemar_p, paired_difference_interval
from ..records.suites import NOISE, WHOLE_STEP, base_name
from .outcomes import Artefact, BatchOutcome, rounding_lost
from .scoring import TOP, nothing_scored, score_batches
from .verdict import verdict_of
from .worst_images import first_examples

_THREATS: tuple[Threat, ...] = ("white-box", "query", "transfer")


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
    overlap: bool = False,
) -> Results:
    """Score every artefact on the same images.

    Images that int8 variants of the bundle were calibrated on are left out, for every artefact, and counted. What a ``-u8in``
    artefact is given is rounded to 8 bits within eps before, and its rows say so.

    Args:
        batches: what :func:`edgeadv_runtime.attacks.crafting.craft` or a pack yields.
        infos: what each of their keys is, and which controls ran.
        bundle: what is scored.
        backends: the artefacts, opened.
        data: what the images are.
        unreadable: messages of images that could not be decoded; read after the last batch, so it may be filled by the
            iterator.
        skipped: combinations that were asked for and cannot be, for the results file.
        examples: how many images to keep in the results file for the report.
        progress: called with the images done and the images there are.
        overlap: score a batch in a second thread while the next one is crafted; see :func:`score_batches`.

    Raises:
        DataError: no image could be scored, all were calibrated on, or more than 1% were unreadable and that was not
            allowed.
        InputError: two attacks share a name and a budget, or are measured in different norms, or a budget is too small for an
            artefact that takes 8-bit pixels; or more than 1% of the images are training images and that was not allowed.
        EdgeAdvError: whatever a backend or an attack raises.
    """
    check_infos(infos)
    outcomes: list[BatchOutcome] = []
    done = 0
    for outcome in score_batches(
        batches, infos, bundle=bundle, backends=backends, unreadable=unreadable, examples=examples, overlap=overlap
    ):
        outcomes.append(outcome)
        done += outcome.images
        if progress is not None:
            progress(done, data.total)
    told = sum(len(outcome.unreadable) for outcome in outcomes)
    if late := tuple(unreadable[told:]):
        outcomes.append(nothing_scored(infos, backends, late))
    artefacts = [Artefact.of(backend) for backend in backends]
    return summarise(outcomes, infos, artefacts, bundle=bundle, data=data, skipped=skipped, examples=examples)


@dataclass(frozen=True)
class _Scored:
    """One artefact on all images: by key, worst cases included, bool (n,) whether the label came first, or among five."""

    artefact: Artefact
    top1: dict[Key, NDArray[np.bool_]]
    top5: dict[Key, NDArray[np.bool_]]


def summarise(
    outcomes: Sequence[BatchOutcome],
    infos: Sequence[AttackInfo],
    artefacts: Sequence[Artefact],
    *,
    bundle: Bundle,
    data: DataInfo,
    skipped: Sequence[dict[str, str]] = (),
    examples: int = 6,
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
    masking, of_rows = verdict_of(infos, outcomes, artefacts)
    shares = {info.key: share for info in scored if (share := _zero_share(info.key, outcomes, n)) is not None}
    rows: list[Row] = []
    for k, (entry, verdict) in enumerate(zip(table, of_rows, strict=True)):
        lost = rounding_lost(k, artefacts, scored, outcomes)
        made = _rows(entry, scored, budgets, shares, lost, verdict, top5=len(bundle.classes) > TOP)
        rows += [replace(row, training_images=trained_on) for row in made]
    return Results(
        bundle={
            "id": bundle.id, "name": bundle.path.name, "title": bundle.manifest["title"], "weights_sha256": bundle.weights_sha256,
            "architecture": bundle.manifest["architecture"], "provenance": bundle.manifest["provenance"],
            **_confidence(bundle),
        },
        data={
            "name": data.name, "split": data.split, "n": n, "sha256": digest.hexdigest(), "unreadable": unreadable,
            "calibration_left_out": left_out, "classes": len(bundle.classes), "training_images": trained_on,
            "allow_training_images": data.allow_training_images,
        },
        environment=environment(), masking=masking, rows=tuple(rows), skipped=tuple(skipped),
        examples=first_examples((example for o in outcomes for example in o.examples), examples),
        comparisons=_comparisons(table, budgets), edgeadv_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def _confidence(bundle: Bundle) -> dict[str, Any]:
    """What the report shows of the bundle's probabilities, without the list of images; nothing where it has no temperature."""
    entry = bundle.manifest.get("confidence")
    return {} if entry is None else {"confidence": {key: value for key, value in entry.items() if key != "images"}}


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
    for hits in ([outcome.top1[k] for outcome in outcomes], [outcome.top5[k] for outcome in outcomes]):
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


def _zero_share(key: Key, outcomes: Sequence[BatchOutcome], n: int) -> float | None:
    told = [flags for o in outcomes if (flags := o.evidence.zero_gradient.get(key)) is not None]
    return sum(int(flags.sum()) for flags in told) / n if told else None


def _rows(
    entry: _Scored, scored: Sequence[AttackInfo], budgets: Sequence[Eps], shares: dict[Key, float], lost: dict[Key, int],
    masking: dict[str, Any], *, top5: bool,
) -> list[Row]:  # fmt: skip
    artefact = entry.artefact

    def row(
        key: Key, eps_value: float, params: AttackParams, threat: Threat | None, gradients: str | None, *, top5: bool = top5
    ) -> Row:  # fmt: skip
        first, among5 = entry.top1[key], entry.top5[key]
        return Row(
            variant=artefact.variant, artifact_sha256=artefact.artifact_sha256, backend=artefact.backend,
            provider=artefact.provider, device=artefact.device, attack=key[0], params=params, eps=key[1], eps_value=eps_value,
            threat=threat, gradients=gradients, n=len(first), correct_top1=int(first.sum()),
            correct_top5=int(among5.sum()) if top5 else None, zero_gradient_share=shares.get(key),
            masking=None if key == CLEAN_KEY else masking, engine=artefact.engine, rounding_lost=lost.get(key),
        )  # fmt: skip

    rows = [row(CLEAN_KEY, 0.0, AttackParams(), None, None)]
    for eps in budgets:
        within = [info for info in scored if info.eps.value <= eps.value]
        for info in scored:
            if info.eps == eps:
                params = replace(info.params, uint8=artefact.takes_uint8 or info.params.uint8)
                told = top5 and _tells_top5(info)
                rows.append(row(info.key, eps.value, params, _threat(info, artefact), info.gradients, top5=told))
        names = tuple(dict.fromkeys([CLEAN, *(info.name for info in within)]))
        uint8 = artefact.takes_uint8 or within[0].params.uint8
        params = AttackParams(norm=within[0].params.norm or "linf", uint8=uint8, attacks=names)
        threat = min((_threat(info, artefact) for info in within), key=_THREATS.index)
        sources = dict.fromkeys(info.gradients for info in within if info.gradients is not None)
        told = top5 and all(map(_tells_top5, within))
        rows.append(row((WORST_CASE, eps.text), eps.value, params, threat, ", ".join(sources) or None, top5=told))
    return rows


def _tells_top5(info: AttackInfo) -> bool:
    """Whether the attack is not content with an image whose label has become the second; of a third party's nobody knows."""
    name = base_name(info.name)
    return name in WHOLE_STEP or (name == NOISE and info.params.queries == 1)


def _threat(info: AttackInfo, artefact: Artefact) -> Threat:
    """White-box only where the gradients are those of the very artefact that is scored, query only where it was asked."""
    if artefact.has_gradients(info.gradients_sha256):
        return "white-box"
    return "query" if info.queried == artefact.identity else "transfer"


def _comparisons(table: Sequence[_Scored], budgets: Sequence[Eps]) -> tuple[dict[str, Any], ...]:
    """Each pair of artefacts, image by image, on the clean images and in the worst case at each budget."""
    found = []
    for baseline, other in combinations(table, 2):
        for key in (CLEAN_KEY, *((WORST_CASE, eps.text) for eps in budgets)):
            ours, theirs = baseline.top1[key], other.top1[key]
            n, lost, gained = len(ours), int((ours & ~theirs).sum()), int((~ours & theirs).sum())
            found.append(
                {
                    "attack": key[0], "eps": key[1], "baseline": baseline.artefact.to_json(), "artefact": other.artefact.to_json(),
                    "n": n, "lost": lost, "gained": gained, "drop": (lost - gained) / n,
                    "drop_ci95": list(paired_difference_interval(lost, gained, n)), "mcnemar_p": mcnemar_p(lost, gained),
                }
            )  # fmt: skip
    return tuple(found)
