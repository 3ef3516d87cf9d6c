"""From checked inputs to one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgeadv_runtime.errors import require
from edgeadv_runtime.evaluation.verdict import BADGES
from edgeadv_runtime.records.bench import BenchRow
from edgeadv_runtime.records.rows import engines
from edgeadv_runtime.records.suites import FGSM

from . import charts
from .accuracy import Artefact, Compared, compare, models, upper_bound
from .artefacts import choose, measurable, milliseconds
from .inputs import BenchFile, Inputs, Picture
from .phrases import MEANINGS, RULES, attack_label

_FOLDER = Path(__file__).parent
_TEMPLATE = "template.html.j2"
_STYLE = "style.css"
# a list of thousands would bury the rest
_LONGEST_LIST = 200


@dataclass(frozen=True)
class Panel:
    """One panel of the curves."""

    model: str
    svg: str


@dataclass(frozen=True)
class Timed:
    """One artefact's latencies within one bench file."""

    title: str
    artefact: Artefact
    threads: int | None
    plans: tuple[str, ...]
    rows: tuple[tuple[BenchRow, str], ...]


def fill(template: str, **values: Any) -> str:
    """A page from one of this folder's templates, with the style that its policy allows.

    Args:
        template: its file's name.
        values: what it asks for beside the style and the badges.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="report")
    # names of classes, models and files are other people's text: everything is escaped unless a template says otherwise
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        pct=_pct,
        interval=_interval,
        points=_points,
        p=_p,
        ms=_ms,
        count=_count,
        flat=_flat,
        attack=attack_label,
        picture=Picture.of,
        when=_when,
        engines=engines,
    )
    style = (_FOLDER / _STYLE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment.get_template(template).render(style=style, style_sha256=digest, badges=BADGES, **values)
    return str(page)


def render(inputs: Inputs) -> str:
    """The page as text; the same inputs give the same text.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    shown = models(inputs)
    compared = compare(shown)
    rows = [row for file in inputs.results for row in file.results.rows]
    classes = charts.attack_classes(row.attack for row in rows)
    eps_limit = max((row.eps_value for row in rows), default=0.0)
    timed_rows = [row for file in inputs.benches for row in file.bench.rows]
    energy_rows = [row for row in timed_rows if row.energy_mj_per_image is not None]
    scale = charts.LatencyScale.covering(timed_rows) if timed_rows else None
    return fill(
        _TEMPLATE,
        models=shown,
        subjects=[model.file.title for model in shown],
        benches=inputs.benches,
        title="Robustness report" if shown else "Latency report",
        created=max(
            (
                *(m.file.results.created for m in shown),
                *(b.bench.created for b in inputs.benches),
            ),
            default="",
        ),
        meanings=MEANINGS,
        choices={model.file.path: choose(model, inputs.benches) for model in shown},
        measurable=measurable,
        upper_bound=upper_bound,
        rules=RULES,
        fgsm=FGSM,
        strip=lambda row: charts.share_strip(row, classes[row.attack]),
        compared=compared,
        in_l2=" (L2)" if inputs.norm == "l2" else "",
        calibrated=any(model.file.results.bundle.confidence for model in shown),
        panels=[(entry.artefact, panels) for entry in compared if (panels := _panels(entry, classes, eps_limit))],
        scale=scale,
        axis=charts.latency_axis(scale) if scale else "",
        timed=[timed for file in inputs.benches for timed in _timed(file, scale)],
        includes=list(dict.fromkeys((row.stage, row.mode, row.includes) for row in timed_rows)),
        energy=bool(energy_rows),
        energy_sources=list(dict.fromkeys(row.energy_source for row in energy_rows if row.energy_source)),
        conditions=[(file, pairs) for file in inputs.benches if (pairs := _conditions(file))],
    )


def _panels(compared: Compared, classes: dict[str, str], eps_limit: float) -> list[Panel]:
    """Small multiples: one panel for each model that was attacked."""
    return [
        Panel(
            model.file.title,
            charts.curves(
                group.drawn,
                classes,
                title=f"Accuracy against eps: {model.file.title}, {compared.artefact.label}",
                eps_limit=eps_limit,
            ),
        )
        for model, group in compared.members
        if group.attacked
    ]


def _timed(file: BenchFile, scale: charts.LatencyScale | None) -> Iterator[Timed]:
    if scale is None:
        return

    def key(row: BenchRow) -> tuple[Artefact, int | None]:
        return Artefact.of(row), row.threads

    for artefact, threads in dict.fromkeys(key(row) for row in file.bench.rows):
        rows = [row for row in file.bench.rows if key(row) == (artefact, threads)]
        strips = tuple((row, charts.latency_strip(row, scale)) for row in rows)
        plans = tuple(str(engine) for _, engine in engines(rows))
        yield Timed(file.title, artefact, threads, plans, strips)


def _conditions(file: BenchFile) -> list[tuple[str, str, str]]:
    before, after = (dict(_flat(file.bench.conditions.get(when))) for when in ("before", "after"))
    return [(key, before.get(key, "–"), after.get(key, "–")) for key in dict.fromkeys((*before, *after))]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A record or nested JSON as pairs of a dotted key and a text."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, dict):
        stem = f"{prefix}." if prefix else ""
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{stem}{key}")]
    if isinstance(value, list | tuple) and any(isinstance(inner, dict | list) for inner in value[:_LONGEST_LIST]):
        pairs = [pair for i, inner in enumerate(value[:_LONGEST_LIST]) for pair in _flat(inner, f"{prefix}[{i}]")]
        return pairs + ([(prefix, f"… {len(value)} in all")] if len(value) > _LONGEST_LIST else [])
    if isinstance(value, list | tuple):
        more = f", … {len(value)} in all" if len(value) > _LONGEST_LIST else ""
        return [(prefix, (", ".join(_word(inner) for inner in value[:_LONGEST_LIST]) or "none") + more)]
    return [] if value is None and not prefix else [(prefix, _word(value))]


def _word(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pct(share: float) -> str:
    return f"{100 * share:.1f}%"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}%"


def _points(share: float) -> str:
    # a bound just below 0 stays −0.0: the sign says that the interval has 0 in it
    return f"{100 * share:.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _ms(value: float | None) -> str:
    return "–" if value is None else milliseconds(value)


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:,.1f}"


def _when(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC")
