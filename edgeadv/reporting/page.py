"""From checked inputs to one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgeadv_runtime.errors import plain, require
from edgeadv_runtime.evaluation.verdict import BADGES
from edgeadv_runtime.records.about import png_size
from edgeadv_runtime.records.bench import SPINS, Bench, BenchRow
from edgeadv_runtime.records.eps import AREA
from edgeadv_runtime.records.rows import EngineInfo, engines
from edgeadv_runtime.records.suites import FGSM
from edgeadv_runtime.records.tracks import RULES as TRACK_RULES

from . import charts
from .accuracy import Artefact, Compared, compare, models, upper_bound
from .artefacts import choose, measurable, milliseconds, where
from .drawing import Seen
from .inputs import Inputs
from .phrases import MEANINGS, RULES, attack_label
from .shifts import corrupted, patched, tracked

_FOLDER = Path(__file__).parent
_TEMPLATE = "template.html.j2"
_STYLE = "style.css"
# a list of thousands would bury the rest
_LONGEST_LIST = 200


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
        pct="{:.1%}".format,
        px="{:.1f}".format,
        place="{:.2%}".format,
        interval=interval,
        points=_points,
        p=_p,
        ms=milliseconds,
        count=_count,
        flat=_flat,
        attack=attack_label,
        png_size=png_size,
        when=_when,
        engines=engines,
    )
    style = (_FOLDER / _STYLE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment.get_template(template).render(style=style, style_sha256=digest, badges=BADGES, **values)
    # a name from elsewhere turns no letters round, and is no half of a surrogate pair, which no file can hold
    return "\n".join(map(plain, str(page).split("\n")))


def render(inputs: Inputs, *, seen: Sequence[Seen] = ()) -> str:
    """The page as text; the same inputs give the same text.

    Args:
        inputs: what the page is about.
        seen: drawings of what models see.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    shown = models(inputs)
    shifted = models(Inputs(inputs.shifts, {}, inputs.titles))
    compared = compare(shown)
    rows = [row for results in inputs.results.values() for row in results.rows]
    timed_rows = [row for bench in inputs.benches.values() for row in bench.rows]
    classes = charts.attack_classes(row.attack for row in rows)
    return fill(
        _TEMPLATE,
        models=shown,
        subjects=[model.title for model in shown],
        benches=inputs.benches,
        seen=seen,
        titles=inputs.titles,
        title="Robustness report" if shown or inputs.shifts else "Latency report",
        created=max(
            file.created for files in (inputs.results, inputs.benches, inputs.shifts) for file in files.values()
        ),
        corrupted=list(corrupted(inputs)),
        patched=patched(inputs),
        tracked=tracked(inputs),
        rules_of_tracks=TRACK_RULES,
        shifts=inputs.shifts,
        shifted=shifted,
        # no verdict is given on corruptions, which nobody chose
        judged=[*shown, *(model for model in shifted if model.results.norm == AREA)],
        meanings=MEANINGS,
        choices={model.path: choose(model, inputs.benches.values()) for model in shown},
        measurable=measurable,
        upper_bound=upper_bound,
        where=where,
        rules=RULES,
        fgsm=FGSM,
        classes=classes,
        compared=compared,
        in_l2=" (L2)" if inputs.norm == "l2" else "",
        calibrated=any(model.results.bundle.confidence for model in shown),
        panels=list(_panels(compared, classes, eps_limit=max((row.eps_value for row in rows), default=0.0))),
        scale=charts.LatencyScale.covering(timed_rows) if timed_rows else None,
        timed=[(inputs.titles[path], *timed) for path, bench in inputs.benches.items() for timed in _timed(bench)],
        includes=list(dict.fromkeys((row.stage, row.mode, row.includes) for row in timed_rows)),
        spins=SPINS,
        cpu=any(row.cpu_ms_per_image is not None for row in timed_rows),
        energy=any(row.energy_mj_per_image is not None for row in timed_rows),
        energy_sources=list(
            dict.fromkeys(
                row.energy_source for row in timed_rows if row.energy_mj_per_image is not None and row.energy_source
            )
        ),
        conditions=[(path, pairs) for path, bench in inputs.benches.items() if (pairs := _conditions(bench))],
    )


def _panels(
    compared: Sequence[Compared], classes: dict[str, str], *, eps_limit: float
) -> Iterator[tuple[Artefact, list[tuple[str, charts.Panel]]]]:
    """Small multiples: of each artefact one panel for each model that was attacked, with the model's title."""
    for entry in compared:
        panels = []
        for model, group in entry.members:
            if group.attacked:
                title = f"Accuracy against eps: {model.title}, {entry.artefact.label}"
                panel = charts.accuracy(group, classes, title=title, eps_limit=eps_limit)
                panels.append((model.title, panel))
        if panels:
            yield entry.artefact, panels


def _timed(bench: Bench) -> Iterator[tuple[Artefact, int | None, list[EngineInfo], list[BenchRow]]]:
    """Artefact, threads, plans and rows of each artefact that one bench file times."""
    found: dict[tuple[Artefact, int | None], list[BenchRow]] = {}
    for row in bench.rows:
        found.setdefault((Artefact.of(row), row.threads), []).append(row)
    for (artefact, threads), rows in found.items():
        yield artefact, threads, [engine for _, engine in engines(rows)], rows


def _conditions(bench: Bench) -> list[tuple[str, str, str]]:
    before, after = (dict(_flat(bench.conditions.get(when))) for when in ("before", "after"))
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


def interval(bounds: tuple[float, float]) -> str:
    """Two shares in per cent."""
    return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}%"


def _points(share: float) -> str:
    # a bound just below 0 stays −0.0: the sign says that the interval has 0 in it
    return f"{100 * share:.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:,.1f}"


def _when(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC")
