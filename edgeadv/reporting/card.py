"""A card of checked inputs and the bundle that they are of. Nothing is chosen among files that disagree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import sha256_bytes, sha256_file
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.card import (
    Card,
    CardAttack,
    CardBench,
    CardComparison,
    CardEvaluation,
    CardScore,
    CardSource,
    CardWorstCase,
    Figure,
)
from edgeadv_runtime.records.effort import effort_of
from edgeadv_runtime.records.evidence import least_believable
from edgeadv_runtime.records.measurement import WRITER
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, ArtefactRow, Row

from . import card_bundle as of_bundle
from .accuracy import Artefact, Group, Model, models, upper_bound
from .card_commands import commands
from .card_limits import limits
from .card_shifts import shifts_of
from .inputs import Inputs

_SHORT = 12


def make_card(inputs: Inputs, bundle: Bundle, *, public_key: Path | None = None) -> Card:
    """The card of a bundle; the same files give the same card.

    Args:
        inputs: results, those of patches and corruptions too, and bench files.
        bundle: that all of them are of.
        public_key: what the bundle was opened with, and so fits.

    Raises:
        InputError: there are no results, a file is of another bundle or of other artefacts, or two disagree.
        BundleError: the weights are no safetensors.
    """
    if not inputs.results:
        raise InputError("a card needs at least one results file of attacks within eps: name what evaluate wrote")
    files: dict[Path, Results | Bench] = {**inputs.results, **inputs.shifts, **inputs.benches}
    for path, file in files.items():
        _check_of(path, file, bundle)
    _check_agree(inputs)
    manifest = of_bundle.manifest_of(bundle)
    sources = {path: _source(path, file) for path, file in files.items()}
    evaluations = tuple(_evaluation(model, sources[model.path]) for model in models(inputs))
    about, training = of_bundle.model(bundle, manifest), of_bundle.training(bundle, manifest)
    signature = of_bundle.signed(bundle, manifest, public_key)
    return Card(
        edgeadv_version=WRITER,
        sources=(manifest, *sources.values()),
        model=about,
        training=training,
        evaluations=evaluations,
        benches=tuple(CardBench(source=sources[path], rows=bench.rows) for path, bench in inputs.benches.items()),
        limits=tuple(limits(inputs, bundle, evaluations, about, training, signature, sources)),
        commands=tuple(commands(inputs, bundle, training, sources)),
        signature=signature,
        shifts=tuple(shifts_of(results, sources[path]) for path, results in inputs.shifts.items()),
    )


def _source(path: Path, file: Results | Bench) -> CardSource:
    return CardSource(
        kind="results" if isinstance(file, Results) else "bench",
        name=path.name,
        sha256=sha256_file(path),
        created=file.created,
        edgeadv_version=file.edgeadv_version,
    )


def _check_of(path: Path, file: Results | Bench, bundle: Bundle) -> None:
    """Refuse a file that is not about the artefacts of ``bundle``."""
    if file.bundle.id != bundle.id:
        theirs = "an unknown one" if file.bundle.id is None else file.bundle.id[:_SHORT]
        again = "evaluate" if isinstance(file, Results) else "bench"
        raise InputError(
            f"{path} is of another bundle ({theirs}) than {bundle.path} ({bundle.id[:_SHORT]}): {again} this one, or "
            "name the bundle of that file"
        )
    for row in file.rows:
        if row.artifact_sha256 not in _hashes(bundle, row):
            raise InputError(
                f"{path} has figures of {row.artefact} with SHA-256 {row.artifact_sha256[:_SHORT]}, which is no "
                f"artefact of {bundle.path}: measure this bundle again"
            )


def _hashes(bundle: Bundle, row: ArtefactRow) -> set[str]:
    """What a row of a variant may be about: its file, or what a backend in PyTorch makes of the bundle."""
    variants = bundle.manifest.variants
    found = {variants[row.variant].sha256} if row.variant in variants else set()
    if row.backend.startswith("torch"):
        found |= {bundle.weights_sha256}
        found |= {sha256_bytes(f"fp16 of {entry.sha256}".encode()) for entry in variants.values()}
    return found


def _check_agree(inputs: Inputs) -> None:
    """Refuse two results files that both say what one artefact does on the same images at one budget, or of which the
    larger budget leaves more right than the smaller."""
    found: dict[Any, list[tuple[Path, Row]]] = {}
    for path, results in inputs.results.items():
        data = results.data
        images = data.sha256 or (data.name, data.split, data.n)
        for row in results.rows:
            if row.attack in (CLEAN, WORST_CASE):
                found.setdefault((Artefact.of(row), row.artifact_sha256, images), []).append((path, row))
    for entries in found.values():
        entries.sort(key=lambda entry: entry[1].eps_value)
        for i, (path, row) in enumerate(entries):
            for other, earlier in entries[:i]:
                _check_pair(other, earlier, path, row)


def _check_pair(other: Path, earlier: Row, path: Path, row: Row) -> None:
    """Two rows of one artefact on the same images, the second of no smaller budget."""
    if other == path or (earlier.attack == row.attack == CLEAN and earlier.correct_top1 == row.correct_top1):
        return
    what = f"{row.artefact} on the same images"
    if earlier.eps_value == row.eps_value:
        at = "without an attack" if row.attack == CLEAN else f"at eps {row.eps}"
        raise InputError(
            f"{other} and {path} both say what {what} does {at} ({earlier.correct_top1} and {row.correct_top1} of "
            f"{row.n} right): leave one out"
        )
    if row.correct_top1 > earlier.correct_top1:
        raise InputError(
            f"{what} has {earlier.correct_top1} right at eps {earlier.eps} in {other}, and more, {row.correct_top1}, "
            f"at eps {row.eps} in {path}: evaluate both in one run"
        )


def _evaluation(model: Model, source: CardSource) -> CardEvaluation:
    data = model.results.data
    # a message says where the image lies, behind its name
    unreadable = tuple(of_bundle.without_place(text.partition(": ")[0]) for text in data.unreadable)
    return CardEvaluation(
        source=source,
        data=replace(data, unreadable=unreadable),
        scores=tuple(_score(model.results, group) for group in model.groups),
        findings=model.findings,
        attacks=tuple(_attacks(model.results)),
        comparisons=tuple(_compared(model)),
    )


def _score(results: Results, group: Group) -> CardScore:
    clean, artefact = group.clean, group.artefact
    return CardScore(
        backend=artefact.backend,
        variant=artefact.variant,
        artifact_sha256=group.id.artifact_sha256,
        provider=artefact.provider,
        device=artefact.device,
        engine="; ".join(group.plans) or None,
        clean=None if clean is None else Figure.of(clean.correct_top1, clean.n),
        worst_cases=tuple(_worst(results, line.worst, group) for line in group.attacked if line.worst is not None),
        verdict=group.verdict,
        reasons=group.reasons,
    )


def _worst(results: Results, row: Row, group: Group) -> CardWorstCase:
    return CardWorstCase(
        eps=row.eps,
        eps_value=row.eps_value,
        norm=row.norm,
        figure=Figure.of(row.correct_top1, row.n),
        at_most=upper_bound(row, group.verdict),
        threat=row.threat,
        suite=effort_of(row, results.rows, classes=results.data.classes),
    )


def _attacks(results: Results) -> Iterator[CardAttack]:
    """Each attack once, whatever it was scored on and at which budgets."""
    found: dict[Any, list[Row]] = {}
    for row in results.rows:
        if row.attack not in (CLEAN, WORST_CASE):
            # a step is a share of the budget
            params = replace(row.params, step_size=None)
            found.setdefault((row.attack, params), []).append(row)
    for (attack, params), rows in found.items():
        ascending = sorted(rows, key=lambda row: row.eps_value)
        yield CardAttack(
            attack=attack,
            params=params,
            eps=tuple(dict.fromkeys(row.eps for row in ascending)),
            gradients=tuple(dict.fromkeys(row.gradients for row in rows if row.gradients is not None)),
            artefacts=tuple(dict.fromkeys(str(row.artefact) for row in rows)),
        )


def _compared(model: Model) -> Iterator[CardComparison]:
    """Each artefact against fp32, as the report compares them."""
    results, by_id = model.results, {group.id: group for group in model.groups}
    budgets = [(CLEAN, "0"), *((WORST_CASE, budget.text) for budget in results.budgets)]
    for group in model.groups:
        base = results.baseline_of(group.id)
        for attack, eps in budgets if base else ():
            assert base is not None
            pair = results.comparison(group.id, base, attack=attack, eps=eps)
            if pair is None:
                continue
            verdicts = [each.verdict for each in (group, by_id.get(base)) if each is not None]
            yield CardComparison(
                artefact=str(group.id),
                baseline=str(base),
                attack=attack,
                eps=eps,
                data=f"{results.data.name} ({results.data.split})" if results.data.split else results.data.name,
                n=pair.n,
                lost=pair.lost,
                gained=pair.gained,
                drop=pair.drop,
                drop_ci95=pair.interval,
                verdict=None if attack == CLEAN else least_believable(verdicts),
            )
