"""Patches and corruptions on a card: of each artefact the figures, and the section that shows them."""

from __future__ import annotations

from collections.abc import Iterator

from edgeadv_runtime.records.card import Card, CardShift, CardShifts, CardSource, Figure
from edgeadv_runtime.records.eps import AREA
from edgeadv_runtime.records.measured_rows import accuracy_over
from edgeadv_runtime.records.release_shifts import in_words
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import WORST_CASE

from .card_tables import Cell, Section, Table, data_name, files_of, span


def shifts_of(results: Results, source: CardSource) -> CardShifts:
    """What a file of patches or of corruptions says."""
    made = _patches if results.norm == AREA else _corruptions
    findings = tuple(found for found in results.masking.evidence if found.matters)
    return CardShifts(source=source, data=results.data, rows=tuple(made(results)), findings=findings)


def _patches(results: Results) -> Iterator[CardShift]:
    for row in results.select(attack=WORST_CASE):
        figure = Figure.of(row.correct_top1, row.n)
        yield CardShift(
            backend=row.backend,
            variant=row.variant,
            artifact_sha256=row.artifact_sha256,
            case=f"worst of all patches of {row.eps}",
            n=row.n,
            share=figure.share,
            ci95=figure.ci95,
            verdict=row.verdict,
        )


def _corruptions(results: Results) -> Iterator[CardShift]:
    for artefact in results.artefacts:
        by_kind = results.corruptions(artefact)
        cases = [by_kind, *({kind: rows} for kind, rows in by_kind.items() if len(by_kind) > 1)]
        for case in cases:
            rows = [row for each in case.values() for row in each]
            yield CardShift(
                backend=artefact.backend,
                variant=artefact.variant,
                artifact_sha256=artefact.artifact_sha256,
                case=f"mean over {in_words(case)}",
                n=results.data.n,
                share=float(accuracy_over(rows)),
                ci95=None,
                verdict=None,
            )


def camera(card: Card) -> Section:
    """What the card shows of them."""
    tables = tuple(
        Table(
            ("artefact", "case", "right", "check", "images"),
            tuple(
                (
                    Cell(str(row)),
                    Cell(row.case),
                    Cell(
                        f"{'' if row.verdict is None else '≤ '}{row.share:.1%}",
                        "" if row.ci95 is None else span(row.ci95),
                    ),
                    Cell(row.verdict or "", verdict=row.verdict is not None),
                    Cell(f"{row.n:,}"),
                )
                for row in each.rows
            ),
            words=2,
            title=f"{data_name(each.data)}, {each.data.n:,} images: {each.source.name}",
        )
        for each in card.shifts
    )
    return Section(
        "camera",
        "Patches and corruptions",
        "A patch earns no PASS: nothing without gradients looks for a better one. Nobody chose the worst corruption."
        if tables
        else "Not measured.",
        tables=tables,
        points=tuple(dict.fromkeys(found.text for each in card.shifts for found in each.findings)),
        files=files_of(card.shifts),
    )
