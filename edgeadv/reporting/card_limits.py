"""Where a card ends: what its files do not show, and what weakens what they show. Each limit is read off a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.records.about import NO_GRADIENTS
from edgeadv_runtime.records.bench import Bench, BenchRow
from edgeadv_runtime.records.card import CardEvaluation, CardModel, CardSignature, CardSource, CardTraining, Said
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import WORST_CASE, ArtefactRow, Row

from .inputs import Inputs

_NORMS = {"linf": "L-infinity (the largest move of a pixel)", "l2": "L2 (the length over an image)"}
_DOUBT = {
    "UNCHECKED": "what ran cannot show whether the attacks saw gradients worth following",
    "SUSPECT": "there are signs of hidden or false gradients",
    "MASKED": "attacks that follow the plain gradient fail because it is missing or misleads",
}
_Limits = Iterator[tuple[str] | tuple[str, str]]
"""Sentences, and of one that is true of several artefacts, its end without the stop, one of them."""


def limits(
    inputs: Inputs,
    bundle: Bundle,
    evaluations: Sequence[CardEvaluation],
    model: CardModel,
    training: CardTraining,
    signature: CardSignature,
    sources: Mapping[Path, CardSource],
) -> Iterator[Said]:
    """Limits, those of accuracy and robustness first, then those of the bundle, then those of latency.

    Args:
        inputs: results and bench files.
        bundle: that they are of.
        evaluations: what the card says of accuracy.
        model: what it says of the bundle.
        training: and of training.
        signature: and of the signature.
        sources: the files of ``inputs``.
    """
    for each, results in zip(evaluations, inputs.results.values(), strict=True):
        yield _said(each.source, _of_scores(each), _of_results(results), _of_gates(results, bundle))
    for path, results in inputs.shifts.items():
        yield _said(sources[path], _of_data(results), _of_gates(results, bundle))
    files: tuple[Results | Bench, ...] = (*inputs.results.values(), *inputs.benches.values())
    rows = [row for file in files for row in file.rows]
    whole = _of_artefacts(model, rows, timed=bool(inputs.benches)), _of_bundle(bundle, training, signature)
    yield _said(model.source, *whole)
    for path, bench in inputs.benches.items():
        yield _said(sources[path], _of_bench(bench))


def _said(source: CardSource, *parts: _Limits) -> Said:
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        for text, *names in part:
            found.setdefault(text, {}).update(dict.fromkeys(names))
    lines = (f"{text}: {', '.join(names)}." if names else text for text, names in found.items())
    return Said(source=source, lines=tuple(lines))


def _reason(text: str) -> str:
    """Other people's words, for the end of a sentence."""
    return text.rstrip(".")


def _of_scores(evaluation: CardEvaluation) -> _Limits:
    widest = 0.0
    for score in evaluation.scores:
        name = str(score)
        if score.verdict in _DOUBT and score.worst_cases:
            yield (
                f"{score.verdict} means that {_DOUBT[score.verdict]}; a worst case with it is no robust accuracy, and "
                "the true one may be lower",
                name,
            )
        figures = [score.clean, *(worst.figure for worst in score.worst_cases)]
        widest = max([widest, *(figure.ci95[1] - figure.ci95[0] for figure in figures if figure is not None)])
        if not score.worst_cases:
            yield "Scored and not attacked", name
        for worst in score.worst_cases:
            if worst.suite in (None, "fast"):
                covered = "no suite" if worst.suite is None else "the suite fast only"
                yield f"The attacks at eps {worst.eps} cover {covered}", name
            if worst.threat != "white-box":
                yield f"No attack at eps {worst.eps} followed own gradients, the worst case is an upper bound", name
    n = evaluation.data.n
    yield (f"Accuracies rest on {n:,} images: their 95% intervals are up to {100 * widest:.1f} points wide.",)


def _of_results(results: Results) -> _Limits:
    if not results.budgets:
        yield ("Nothing was attacked: this file says nothing about robustness.",)
    else:
        eps = ", ".join(budget.text for budget in results.budgets)
        yield (
            f"Only perturbations of the model's input in {_NORMS[results.norm]} were tried, at eps {eps}: nothing is "
            "said of larger budgets, other norms, patches, blur, weather, or of a scene before the camera.",
        )
    yield from _of_data(results)


def _of_data(results: Results) -> _Limits:
    """What weakens every figure of a file."""
    data = results.data
    if data.overlap:
        yield (f"{data.overlap[0].upper()}{data.overlap[1:]}.",)
    elif data.trained_on is None:
        yield ("Nobody knows how many of the scored images were trained on.",)
    if data.unreadable:
        yield (f"{len(data.unreadable)} images could not be read and were left out.",)
    if data.calibration_left_out:
        yield (f"{data.calibration_left_out} images that int8 was calibrated on were left out.",)
    for entry in results.skipped:
        what = f"{entry.variant} was not attacked by gradients of its own"
        if entry.backend not in NO_GRADIENTS:
            what = f"{entry.backend} {entry.variant} was not scored"
        yield (f"{what}: {_reason(entry.reason)}.",)
    for library in dict.fromkeys(row.params.library for row in results.rows if row.params.library):
        yield (f"Some attacks are those of {library}, of which nobody says how hard they try.",)
    yield from _of_engines(results.rows)


def _of_gates(results: Results, bundle: Bundle) -> _Limits:
    """Where int8 is scored on what let it through."""
    data = results.data
    for variant in dict.fromkeys(row.variant for row in results.rows):
        entry = bundle.manifest.variants.get(variant)
        gate = None if entry is None else entry.gate
        if gate is None:
            continue
        if data.sha256 == gate.data.sha256:
            yield "The export let int8 through on these very images, quote its accuracy on others", variant
        elif (data.name, data.split) == (gate.data.name, gate.data.split or ""):
            what = f"The export let int8 through on images of {data.name} ({data.split}) too"
            yield f"{what}, whether some of them are scored here cannot be told", variant


def _of_engines(rows: Sequence[ArtefactRow]) -> _Limits:
    for row in rows:
        if row.engine is not None and row.engine.precision != "verified":
            yield "The precision is declared and was not verified", f"{row.artefact} with {row.provider}"


def _of_artefacts(model: CardModel, rows: Sequence[ArtefactRow], *, timed: bool) -> _Limits:
    """What no other file says of the ONNX files: PyTorch runs their graphs, and not them."""
    for entry in model.artefacts:
        own = [row for row in rows if row.artifact_sha256 == entry.sha256]
        ran = [row for row in own if not row.backend.startswith("torch")]
        scored = [row for row in ran if isinstance(row, Row)]
        if not any(isinstance(row, Row) for row in own):
            yield "In the bundle, and scored by no results file", entry.variant
        elif not scored:
            yield "In the bundle, and scored by PyTorch alone, which runs its graph and not the file", entry.variant
        elif not any(row.attack == WORST_CASE for row in scored):
            yield "In the bundle, and attacked in no results file", entry.variant
        if timed and not any(isinstance(row, BenchRow) for row in ran):
            yield "In the bundle, and timed by no bench file", entry.variant
        if not entry.carried:
            yield "Left out of this copy of the bundle", entry.variant
        if entry.no_gradients is not None:
            why = _reason(entry.no_gradients)
            yield (f"{entry.variant} has no gradients of its own for attacks to follow: {why}.",)
        if entry.parity_frames is None:
            yield "Not compared with what it was made from", entry.variant
    if not timed:
        yield ("Latency and energy were not measured: no bench file was given.",)


def _of_bundle(bundle: Bundle, training: CardTraining, signature: CardSignature) -> _Limits:
    for entry in bundle.manifest.variants.values():
        if entry.parity is not None:
            where = f"{entry.parity.runtime} against {entry.parity.reference}"
            yield "The golden results were made at the export, `edgeadv verify` tells for another place", where
    if training.listed_images is None:
        yield ("The bundle has no list of its training images: whether scored images are among them cannot be told.",)
    if not training.recipe and training.data is None:
        yield ("The bundle does not say how the network was trained, nor on what.",)
    for variant, why in bundle.manifest.refused.items():
        yield (f"{variant} was refused at the export: {_reason(why)}.",)
    if bundle.manifest.confidence is None:
        yield ("Its probabilities were not calibrated, and there is no threshold below which it gives no answer.",)
    if signature.state == "none":
        yield ("The bundle is not signed: its hashes stop damage, and nobody vouches for them.",)
    elif signature.state == "unchecked":
        yield ("The bundle is signed, and whose signature it is was not checked.",)


def _of_bench(bench: Bench) -> _Limits:
    yield from _of_engines(bench.rows)
    for warning in bench.warnings:
        yield (f"While it was timed: {_reason(warning)}.",)
    for entry in bench.skipped:
        yield (f"{entry.backend} {entry.variant} was not timed: {_reason(entry.reason)}.",)
    if not any(row.energy_mj_per_image is not None for row in bench.rows):
        yield ("Energy was not measured.",)
