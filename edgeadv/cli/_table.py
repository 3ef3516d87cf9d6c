"""What ``edgeadv evaluate`` prints of a results file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgeadv_runtime import Results, Row
from edgeadv_runtime.bundle.variants import takes_uint8
from edgeadv_runtime.evaluation.verdict import BADGES
from edgeadv_runtime.records.about import NO_GRADIENTS
from edgeadv_runtime.records.eps import SEVERITY
from edgeadv_runtime.records.measured_rows import accuracy_over
from edgeadv_runtime.records.rows import BASELINE, CLEAN, WORST_CASE, engines
from edgeadv_runtime.records.suites import FGSM
from edgeadv_runtime.records.tracks import RULES, TrackRow

from ..reporting.accuracy import strongest
from ._fields import as_options
from ._shared import VERDICT, print_table


def print_results(results: Results) -> None:
    """The table on the terminal, a line for each artefact and budget, and under it what one must know to believe it."""
    if results.norm == SEVERITY:
        _print_corruptions(results)
        return
    tell = print_table(
        ("artefact", "eps", CLEAN, FGSM, "by gradients", "by queries", WORST_CASE, VERDICT),
        _rows(results),
        left=2,
        bold=(WORST_CASE, VERDICT),
        title=f"{results.bundle.heading} on {results.data.name} ({results.data.split}), {results.data.n} images",
    )
    for name, engine in engines(results.rows):
        tell(f"{name}: {engine}")
    for line in (*_compared(results), *_rounding(results)):
        tell(line)
    _print_tracks(results)
    tell(BADGES[results.overall_verdict], style="bold")
    for item in results.masking.evidence:
        if item.matters:
            tell(f"  {item.finding or 'note'}: {item.text}")
    _print_images(results, tell)


def _print_tracks(results: Results) -> None:
    """A line for each artefact and attack: what an application would decide on tracks, by each rule."""
    if not results.tracks:
        return

    def cell_of(row: TrackRow | None) -> str:
        if row is None:
            return ""
        return f"{row.share:.1%}" + (f" ({row.undecided} undecided)" if row.undecided else "")

    print_table(
        ("artefact", "budget", "attack", *RULES),
        (
            [str(artefact), eps, attack, *(cell_of(found.get(rule)) for rule in RULES)]
            for (artefact, attack, eps), found in results.decisions.items()
        ),
        left=3,
        title=f"{results.tracks[0].tracks}: decided right",
    )


def _print_images(results: Results, tell: Callable[..., None]) -> None:
    """What was not scored, and what is to be known of the images."""
    for entry in results.skipped:
        what = entry.variant if entry.backend in NO_GRADIENTS else f"not scored: {entry.backend} {entry.variant}"
        tell(as_options(f"{what}: {entry.reason}"))
    data = results.data
    if data.overlap:
        tell(data.overlap, style="bold" if data.flatters else "")
    if data.calibration_left_out:
        tell(f"{data.calibration_left_out} images that int8 was calibrated on were left out")
    if data.unreadable:
        tell(f"{len(data.unreadable)} unreadable images were left out; the file lists them")


def _print_corruptions(results: Results) -> None:
    """A line for each artefact and corruption: accuracy at each severity, and their mean."""
    severities = [budget.text for budget in results.budgets]
    rows: list[list[str]] = []
    for artefact in results.artefacts:
        for kind, found in results.corruptions(artefact).items():
            mean = f"{float(accuracy_over(found)):.1%}"
            rows.append([str(artefact), kind, *(f"{row.top1:.1%}" for row in found), mean])
        worst = results.select(artefact=artefact, attack=WORST_CASE)
        rows.append([str(artefact), "worst of these", *(f"{row.top1:.1%}" for row in worst), ""])
    tell = print_table(
        ("artefact", "corruption", *(f"severity {text}" for text in severities), "mean"),
        rows,
        left=2,
        bold=("mean",),
        title=f"{results.bundle.heading} on {results.data.name} ({results.data.split}), {results.data.n} images",
    )
    for artefact in results.artefacts:
        which = {"variant": artefact.variant, "backend": artefact.backend}
        clean = results.clean(**which)
        tell(f"{artefact}: clean {clean.top1:.1%}, mean over all corruptions {results.corrupted(**which):.1%}")
    _print_tracks(results)
    _print_images(results, tell)


def _rows(results: Results) -> Iterator[list[str]]:
    for artefact in results.artefacts:
        rows = results.select(artefact=artefact)
        clean = _cell(next((row for row in rows if row.attack == CLEAN), None))
        worst_rows = [row for row in rows if row.attack == WORST_CASE]
        if not worst_rows:
            yield [str(artefact), "", clean]
        for worst in worst_rows:
            attacks = [row for row in rows if row.eps == worst.eps and row.attack != WORST_CASE]
            low, high = worst.top1_ci95
            yield [
                str(artefact),
                worst.eps,
                clean,
                _cell(next((row for row in attacks if row.attack == FGSM), None)),
                _strongest([row for row in attacks if row.gradients is not None]),
                _strongest([row for row in attacks if row.gradients is None]),
                f"{worst.top1:.1%} [{low:.1%}, {high:.1%}]",
                worst.verdict,
            ]


def _strongest(rows: Sequence[Row]) -> str:
    """The attack that leaves the fewest images right, with its name and its threat. One that met only what stood has no
    accuracy of its own: it says what is left after it."""
    row = strongest(rows)
    if row is None:
        return ""
    after = " after" if row.broken_in_addition is not None else ""
    cumulative = ", cumulative" if row.params.cumulative and not after else ""
    name = row.attack.removesuffix(f"@{row.backend}-{row.variant}").removesuffix(f"@{row.variant}")
    return f"{_cell(row)}{after} {name} ({row.threat}{cumulative})"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    hidden = f" ({row.zero_gradient_share:.0%} not attacked)" if row.zero_gradient_share else ""
    return f"{row.top1:.1%}{hidden}"


def _compared(results: Results) -> Iterator[str]:
    """What each artefact loses against fp32 in the worst case at the largest eps, against fp32 of the same backend if
    it ran."""
    for artefact in results.artefacts if results.budgets else ():
        base, eps = results.baseline_of(artefact), results.budgets[-1].text
        if base is None or artefact.variant == BASELINE:
            continue
        if pair := results.comparison(artefact, base, attack=WORST_CASE, eps=eps):
            low, high = pair.interval
            yield (
                f"{artefact} against {base}, worst case at eps {eps}: drop {100 * pair.drop:.1f} points "
                f"[{100 * low:.1f}, {100 * high:.1f}], McNemar's p = {pair.p:.2g}"
            )


def _rounding(results: Results) -> Iterator[str]:
    """What rounding to 8 bits costs the attack that it costs most: on the reference model, or on each artefact that
    takes 8 bits."""
    known = [row for row in results.rows if row.rounding_lost is not None]
    shared = any(not takes_uint8(row.variant) for row in known)
    by_model: dict[str, list[Row]] = {}
    for row in known:
        by_model.setdefault("the reference model" if shared else str(row.artefact), []).append(row)
    for model, rows in by_model.items():
        row = max(rows, key=lambda row: row.rounding_lost or 0)
        if row.rounding_lost:
            yield (
                f"rounding to 8 bits costs {row.attack} at eps {row.eps} {row.rounding_lost} of {row.n} images on "
                f"{model}, and no other attack more"
            )
        else:
            yield f"rounding to 8 bits costs no attack an image on {model}"
