"""What the page shows of patches and corruptions: their budgets are no eps, so they have sections of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from edgeadv_runtime.records.eps import AREA, SEVERITY
from edgeadv_runtime.records.measured_rows import accuracy_over
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import ArtefactId, Row

from . import charts
from .accuracy import Artefact, models
from .inputs import Inputs


@dataclass(frozen=True)
class Corruption:
    """One kind on one artefact.

    Attributes:
        name: of the kind.
        mean: accuracy over the severities.
        rows: one of each severity, ascending.
    """

    name: str
    mean: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Corrupted:
    """One artefact under corruptions.

    Attributes:
        title: of the model.
        artefact: what was scored.
        clean: accuracy without any.
        mean: accuracy over all kinds and severities.
        severities: as written.
        kinds: in the order of the file.
        drop: points of the mean below that of fp32 on the same images; None for fp32, and where there is none.
        images: how many.
    """

    title: str
    artefact: Artefact
    clean: float
    mean: float
    severities: tuple[str, ...]
    kinds: tuple[Corruption, ...]
    drop: float | None
    images: int


def corrupted(inputs: Inputs) -> Iterator[Corrupted]:
    """Each artefact of each file of corruptions."""
    for path, results in inputs.shifts.items():
        if results.norm != SEVERITY:
            continue
        for artefact in results.artefacts:
            kinds = results.corruptions(artefact)
            base, mean = results.baseline_of(artefact), partial(_mean, results)
            yield Corrupted(
                inputs.titles[path],
                Artefact.of(next(iter(kinds.values()))[0]),
                results.clean(variant=artefact.variant, backend=artefact.backend).top1,
                mean(artefact),
                tuple(budget.text for budget in results.budgets),
                tuple(Corruption(name, float(accuracy_over(rows)), tuple(rows)) for name, rows in kinds.items()),
                None if base is None or artefact.variant == base.variant else 100 * (mean(base) - mean(artefact)),
                results.data.n,
            )


def tracked(inputs: Inputs) -> list[tuple[str, Results]]:
    """Each file whose frames were scored as tracks, with the model's title."""
    files = (*inputs.results.items(), *inputs.shifts.items())
    return [(inputs.titles[path], results) for path, results in files if results.tracks]


def _mean(results: Results, artefact: ArtefactId) -> float:
    return results.corrupted(variant=artefact.variant, backend=artefact.backend)


def patched(inputs: Inputs) -> list[tuple[str, Artefact, charts.Panel]]:
    """A curve over the area for each artefact of each file of patches, with the model's title."""
    chosen = {path: results for path, results in inputs.shifts.items() if results.norm == AREA}
    shown = models(Inputs(chosen, {}, inputs.titles))
    rows = [row for results in chosen.values() for row in results.rows]
    classes = charts.attack_classes(row.attack for row in rows)
    limit = max((row.eps_value for row in rows), default=0.0)
    return [
        (
            model.title,
            group.artefact,
            charts.accuracy(
                group,
                classes,
                title=f"Accuracy against the area of a patch: {model.title}, {group.artefact.label}",
                eps_limit=limit,
                every=True,
            ),
        )
        for model in shown
        for group in model.groups
    ]
