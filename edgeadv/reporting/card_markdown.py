"""A card as Markdown, with the front matter that Hugging Face reads of a model card."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from edgeadv_runtime.bundle.variants import precision_of
from edgeadv_runtime.errors import plain
from edgeadv_runtime.records.card import Card, CardEvaluation, Figure
from edgeadv_runtime.records.evidence import Verdict
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE

from .card_sections import SEVERAL, sections, what_worst
from .card_tables import Cell, Section, measured, span
from .phrases import MEANINGS

_TASK = "image-classification"
# what Markdown would take for more than letters
_MEANT = re.compile(r"([\\`*_{}\[\]|#~!])")
# what may stand in a list of data sets of a hub
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?")


def markdown(card: Card) -> str:
    """The card as text; the same card gives the same text."""
    lines = [
        "---",
        # JSON is YAML, and takes no text for something else
        json.dumps(_front_matter(card), indent=2, ensure_ascii=False),
        "---",
        "",
        f"# {_text(card.model.title or card.model.architecture)}",
        "",
    ]
    lines += [*_headline(card), ""]
    for section in sections(card):
        lines += [*_section(section), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _headline(card: Card) -> Iterator[str]:
    head = card.headline
    worst = head.worst_case
    under_attack = measured(None) if worst is None else measured(worst.figure, at_most=worst.at_most)
    clean = "clean accuracy"
    yield f"| {clean} | {_text(what_worst(card))} | masking verdict |"
    yield "|---|---|---|"
    cells = (_cell(measured(head.clean)), _cell(under_attack), f"**{head.verdict}**")
    yield f"| {' | '.join(cells)} |"
    yield ""
    if len(card.scores) > 1:
        yield SEVERAL
        yield ""
    data = head.data
    split = f" ({data.split})" if data.split else ""
    yield _text(f"{head.artefact} on {data.n:,} images of {data.name}{split}. {MEANINGS[head.verdict]}")
    if data.overlap:
        yield ""
        yield f"**{_text(data.overlap[0].upper() + data.overlap[1:])}.**"


def _section(section: Section) -> Iterator[str]:
    yield f"## {_text(section.title)}"
    if section.lead:
        yield ""
        yield _text(section.lead)
    for table in section.tables:
        if table.title:
            yield ""
            yield f"### {_text(table.title)}"
        yield ""
        yield f"| {' | '.join(map(_text, table.headings))} |"
        yield "|" + "|".join("---" if i < table.words else "---:" for i in range(len(table.headings))) + "|"
        yield from (f"| {' | '.join(map(_cell, row))} |" for row in table.rows)
    if section.points:
        yield ""
        yield from (f"- {_text(point)}" for point in section.points)
    if section.code:
        yield ""
        # four spaces make code of whatever stands behind them
        yield from (f"    {plain(line)}" for line in section.code)
    if section.files:
        yield ""
        yield f"Source: {', '.join(f'{_text(file.name)} ({file.sha256[:12]})' for file in section.files)}"


def _cell(cell: Cell) -> str:
    text = f"**{_text(cell.text)}**" if cell.verdict and cell.text else _text(cell.text)
    return f"{text} ({_text(cell.beside)})" if cell.beside else text


def _text(text: str) -> str:
    """``text`` in one line in which nothing is markup."""
    return _MEANT.sub(r"\\\1", html.escape(plain(text), quote=False))


def _front_matter(card: Card) -> dict[str, Any]:
    precisions = dict.fromkeys(precision_of(entry.variant) for entry in card.model.artefacts)
    data = card.training.data
    metrics: dict[Any, list[dict[str, Any]]] = {}
    for each in card.evaluations:
        named = plain(each.data.name), plain(each.data.split)
        metrics.setdefault(named, []).extend(_metrics(each, card.headline.verdict))
    found: dict[str, Any] = {
        "library_name": "edgeadv",
        "pipeline_tag": _TASK,
        "tags": [_TASK, "onnx", "adversarial-robustness", "edge", *precisions],
    }
    if data is not None and _DATASET.fullmatch(data):
        found["datasets"] = [data]
    if any(metrics.values()):
        found["model-index"] = [
            {
                "name": plain(card.model.title or card.model.architecture),
                "results": [
                    {
                        "task": {"type": _TASK},
                        "dataset": {"name": name, "type": name, **({"split": split} if split else {})},
                        "metrics": entries,
                    }
                    for (name, split), entries in metrics.items()
                    if entries
                ],
            }
        ]
    return found


def _metrics(evaluation: CardEvaluation, whole: Verdict) -> Iterator[dict[str, Any]]:
    """Figures by a name that says all that must be known of them: a hub shows the two, and no more.

    Args:
        evaluation: a results file.
        whole: the verdict of all of them.
    """
    overlap = f", {evaluation.data.overlap}" if evaluation.data.overlap else ""

    def entry(figure: Figure, name: str) -> dict[str, Any]:
        text = f"{name}, n = {figure.n}, 95% interval {span(figure.ci95)}{overlap}"
        return {"type": "accuracy", "value": figure.share, "name": plain(text)}

    for score in evaluation.scores:
        if score.clean is not None:
            yield entry(score.clean, f"{CLEAN} accuracy, {score}")
        passed = score.verdict == whole == "PASS"
        others = f", of all files {whole}" if whole != score.verdict else ""
        for worst in score.worst_cases:
            name = "robust accuracy" if passed else "not a robust accuracy"
            yield entry(
                worst.figure,
                f"masking check {score.verdict}{others}: {WORST_CASE}, {'at most, ' * worst.at_most}{name}, {score}, "
                f"eps {worst.eps} ({worst.norm})",
            )
