"""Recorded settings as the commands that take them. No file records a command line: what none records, such as a
folder, stands in capitals, or behind the command as what it lacks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeadv_runtime.backends.onnxruntime import CPU, PROVIDERS
from edgeadv_runtime.bundle.batches import MOST_UNREADABLE
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.card import CardSource, CardTraining, Said
from edgeadv_runtime.records.effort import effort_of
from edgeadv_runtime.records.eps import SEVERITY
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, ArtefactRow, Row
from edgeadv_runtime.records.suites import CONTROLS, SQUARE, SUITES, TARGETABLE, TRANSFER, base_name, is_ours

from .inputs import Inputs

_BUNDLE, _DATA, _RUN = "BUNDLE", "DATA", "RUN"
_ADVERSARIAL = ("eps", "label_smoothing")
OPTIONS = {
    "undefended": (),
    "at-fgsm": _ADVERSARIAL,
    "n-fgsm": _ADVERSARIAL,
    "fgsm-pgi": (*_ADVERSARIAL, "beta"),
    "at-pgd": (*_ADVERSARIAL, "steps"),
    "trades": (*_ADVERSARIAL, "steps", "beta"),
    "adr": (*_ADVERSARIAL, "steps"),
    "awp": (*_ADVERSARIAL, "steps"),
    "papernot": ("temperature",),
    "soft-label": ("temperature", "alpha"),
    "ard": ("temperature", "alpha", "eps", "steps"),
    "rslad": ("temperature", "alpha", "eps", "steps"),
}
"""What each recipe lets one choose."""
_ARCHITECTURES = {"torchvision": "", "timm": "timm/", "module": ""}
_OPTION = re.compile("[a-z_]+")
# nobody who repeats a training sees them, or they are written from elsewhere
_LEFT_OUT = ("workers", "compile", "limit_seed", "holdout_list")
# what rows call the arithmetic of gradients, and options
_ARITHMETIC = ("tf32", "float16")


def commands(
    inputs: Inputs, bundle: Bundle, training: CardTraining, sources: Mapping[Path, CardSource]
) -> Iterator[Said]:
    """The commands, in the order in which they are run.

    Args:
        inputs: results and bench files.
        bundle: that they are of.
        training: what it says of its training.
        sources: the files of ``inputs``.
    """
    for source, made in (
        (training.source, (_training(bundle, training), _export(bundle, training))),
        *((sources[path], (_evaluate(results, bundle),)) for path, results in inputs.results.items()),
        *((sources[path], (_shifted(results),)) for path, results in inputs.shifts.items()),
        *((sources[path], _bench(bench)) for path, bench in inputs.benches.items()),
    ):
        if lines := tuple(line for line in made if line is not None):
            yield Said(source=source, lines=lines)


def _line(command: str, *arguments: str, **options: Any) -> str:
    """A command; an option that is None is left out, and one that is True stands alone."""
    parts = [f"edgeadv {command}", *map(shlex.quote, arguments)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        parts.append(f"--{name.replace('_', '-')}")
        if value is not True:
            whole = isinstance(value, float) and value.is_integer()
            parts.append(shlex.quote(str(int(value) if whole else value)))
    return " ".join(parts)


def _unless(default: Any, value: Any) -> Any:
    """``value``, or None where it is the default."""
    return None if value == default else value


def _partial(command: str, *missing: str | None) -> str:
    """``command``, and in a comment what it lacks because no file records it."""
    lacks = ", ".join(filter(None, missing))
    return f"{command} # partial: {lacks} not recorded" if lacks else command


def _network(bundle: Bundle) -> dict[str, Any]:
    """Options that make the network again."""
    architecture = bundle.manifest.architecture
    normalize = "/".join(",".join(map(repr, each)) for each in (architecture.mean, architecture.std))
    return {
        "arch": _ARCHITECTURES[architecture.source] + architecture.name,
        "upsample": _unless(1, architecture.upsample),
        "preprocess": str(bundle.preprocess),
        "normalize": normalize if architecture.mean else "none",
    }


def _training(bundle: Bundle, training: CardTraining) -> str | None:
    """What trains such a network, None where the bundle is of no run."""
    recipe = training.recipe.get("recipe")
    if recipe not in OPTIONS or bundle.manifest.architecture.source not in _ARCHITECTURES or not training.config:
        return None
    config = {
        name: value for name, value in training.config.items() if _OPTION.fullmatch(name) and name not in _LEFT_OUT
    }
    about = {name: training.recipe.get(name) for name in OPTIONS[recipe]}
    about["label_smoothing"] = _unless(0, about.get("label_smoothing"))
    weights = training.recipe.get("start_weights", "none")
    distils = "temperature" in about
    return _line(
        "distill" if distils else "train",
        data=training.data or _DATA,
        recipe=recipe,
        **_network(bundle),
        **about,
        weights=_unless("none", weights if weights in ("none", "default") else "WEIGHTS"),
        weights_map=_unless("by-name", training.recipe.get("weights_map")),
        teacher="TEACHER" if distils else None,
        holdout_list=None if training.holdout_list is None else "TRACKS",
        **config,
        out=_RUN,
    )


def _export(bundle: Bundle, training: CardTraining) -> str | None:
    """What exports such a bundle; None of one that was imported, or of a network in memory."""
    manifest = bundle.manifest
    if training.recipe:
        run, network = [_RUN], {}
    elif manifest.architecture.source in _ARCHITECTURES and "weights" in manifest.provenance:
        run, network = [], {**_network(bundle), "weights": "WEIGHTS", "classes": "CLASSES", "golden": "FRAMES"}
    else:
        return None
    gate = next((entry.gate for entry in manifest.variants.values() if entry.gate is not None), None)
    calibration, confidence = manifest.calibration, manifest.confidence
    options: dict[str, Any] = {}
    if calibration is not None and gate is not None:
        of_run = training.recipe and calibration.split == "train"
        options = {
            "calibration_data": None if of_run else "CALIBRATION",
            "calibration_count": calibration.count,
            "calibration_seed": _unless(0, calibration.seed),
            "max_drop": gate.max_drop,
            "gate_data": None if training.recipe and gate.data.split == "test" else "GATE",
            "gate_limit": None if gate.data.calibration_left_out or gate.data.unreadable else gate.data.n,
            "gate_eps": None if gate.worst is None else gate.worst.eps,
        }
    if confidence is not None:
        of_test = training.recipe and confidence.data.split == "test"
        options["confidence_data"] = "test" if of_test else "LABELLED"
        options["coverage"] = confidence.rejection.coverage
    command = _line("export", *run, **network, precision=_listed(manifest.variants), **options, out=_BUNDLE)
    return _partial(command, "calibration-list" if calibration else None, "confidence-limit" if confidence else None)


def _shifted(results: Results) -> str:
    """What measures patches, or corruptions, so."""
    rows, data = results.rows, results.data
    kinds = dict.fromkeys(row.attack for row in rows if row.norm == SEVERITY and row.attack != WORST_CASE)
    budgets = _listed(budget.text for budget in results.budgets)
    left_out = len(data.unreadable) + data.calibration_left_out
    command = _line(
        "evaluate",
        _BUNDLE,
        data=_DATA,
        patch=None if kinds else budgets,
        corruptions=_listed(kinds) or None,
        severities=budgets if kinds else None,
        limit=None if left_out or results.tracks else data.n,
        group="track" if results.tracks else None,
        provider=_provider(rows),
        backend=_listed(each.backend for each in results.artefacts),
        precision=_listed(each.variant for each in results.artefacts),
        out="SHIFTS.json",
    )
    return _partial(command, "limit" if left_out else None, None if kinds else "patch-shape, patch-place, patch-file")


def _evaluate(results: Results, bundle: Bundle) -> str | None:
    """What evaluates so: the whole suite that the attacks are, or their names; None where they are not ours."""
    rows, data = results.rows, results.data
    bases = dict.fromkeys(base_name(row.attack) for row in rows if row.attack not in (CLEAN, WORST_CASE))
    if not all(map(is_ours, bases)):
        return None
    attacks = [name for name in bases if name != TRANSFER]
    worst = [row for row in rows if row.attack == WORST_CASE]
    suites = {effort_of(row, rows, classes=data.classes) for row in worst}
    suite = next(iter(suites)) if len(suites) == 1 else None
    whole = suite is not None and set(attacks) == set(SUITES[suite]) - CONTROLS
    queries = {row.params.queries for row in rows if base_name(row.attack) == SQUARE}
    aims = {row.params.target for row in rows if base_name(row.attack) in TARGETABLE}
    left_out = len(data.unreadable), data.calibration_left_out
    provider = _provider(rows)
    command = _line(
        "evaluate",
        _BUNDLE,
        data=_DATA,
        eps=_listed(budget.text for budget in results.budgets) or None,
        suite=suite if whole else None,
        attack=None if whole else _listed(attacks) or None,
        queries=None if whole or len(queries) != 1 else next(iter(queries)),
        target=next((each for i, each in enumerate(bundle.classes.ids) if str(i) in aims), None),
        transfer_from="OTHER" if TRANSFER in bases else None,
        gradients=_gradients(rows, provider),
        # of more images it chooses the same, and of as many all
        limit=None if any(left_out) else data.n,
        provider=provider,
        backend=_listed(each.backend for each in results.artefacts),
        precision=_listed(each.variant for each in results.artefacts),
        uint8=all(row.params.uint8 for row in worst) if worst else None,
        allow_unreadable=left_out[0] > MOST_UNREADABLE * (data.n + left_out[0]),
        allow_training_images=data.allow_training_images,
        out="RESULTS.json",
    )
    return _partial(command, "limit" if any(left_out) else None, "queries" if not whole and len(queries) > 1 else None)


def _gradients(rows: Sequence[Row], provider: str | None) -> str | None:
    """Of a GPU the arithmetic of the gradients that attacks followed; a processor knows one."""
    if provider is None:
        return None
    said = {row.gradients.rpartition(" ")[2].lower() for row in rows if row.gradients}
    return next((name for name in _ARITHMETIC if name in said), "float32" if said else None)


def _provider(rows: Sequence[ArtefactRow]) -> str | None:
    """What all of ``rows`` ran on, by the name that commands have for it; None for the default."""
    names = {there: name for name, there in PROVIDERS.items()}
    found = {names.get(row.provider, row.provider) for row in rows if row.backend != "tensorrt"} - {CPU}
    return next(iter(found)) if len(found) == 1 and found <= PROVIDERS.keys() else None


def _bench(bench: Bench) -> tuple[str, ...]:
    rows = bench.rows
    back = [row for row in rows if row.mode == "back-to-back"]
    if not rows:
        return ()
    threads = {row.threads for row in rows}
    command = _line(
        "bench",
        _BUNDLE,
        backend=_listed(row.backend for row in rows),
        precision=_listed(row.variant for row in rows),
        batch=_listed(str(row.batch) for row in back) or None,
        rate=next((row.rate_hz for row in rows if row.rate_hz is not None), None),
        runs=max((row.n for row in back), default=None),
        warm_up=max(row.warm_up for row in rows),
        threads=next(iter(threads)) if len(threads) == 1 else None,
        provider=_provider(rows),
        out="BENCH.json",
    )
    return (command,)


def _listed(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names))
