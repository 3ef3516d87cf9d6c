"""What a card says, in sections: the one content of its page and of its Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from edgeadv_runtime.evaluation.verdict import BADGES
from edgeadv_runtime.records.bench import SPINS, BenchRow
from edgeadv_runtime.records.card import (
    Card,
    CardComparison,
    CardEvaluation,
    Said,
    Setting,
)
from edgeadv_runtime.records.rows import CLEAN

from .artefacts import milliseconds
from .card_shifts import camera
from .card_tables import NOT_MEASURED, Cell, Section, Table, data_name, files_of, measured
from .phrases import MEANINGS

SEVERAL = (
    "The artefact with the lowest worst case at the largest eps, or with the lowest clean accuracy where none was "
    "attacked; the verdict is the least believable of all."
)
NOT_KNOWN = "not known"
_MOST_CLASSES = 200
_MEGABYTE = 1_000_000
_SIGNATURES = {
    "none": "none",
    "unchecked": "there is one; whose it is was not checked",
    "fits": "fits the public key that was given",
}


def what_worst(card: Card) -> str:
    """What the figure under attack is called: a robust accuracy only after a PASS."""
    worst = card.headline.worst_case
    if worst is None:
        return "worst case under attack"
    name = "worst-case robust accuracy" if card.headline.verdict == "PASS" else "worst case, not a robust accuracy"
    return f"{name}, at eps {worst.eps}{_norm(worst.norm)}"


def sections(card: Card) -> tuple[Section, ...]:
    """All sections below the headline, in the order of the page."""
    return (
        _model(card),
        Section(
            "robustness",
            "Clean and worst case",
            "Shares of all scored images whose first label is right, with 95% intervals. The worst case is per image, "
            "over the clean image and every attack within eps. ≤: an upper bound, because no attack followed gradients "
            "of that very artefact, or the masking check did not pass.",
            tables=tuple(map(_scores, card.evaluations)),
            files=files_of(card.evaluations),
        ),
        camera(card),
        _verdict(card),
        _attacks(card.evaluations),
        _comparisons(card),
        _timings(card),
        _training(card),
        Section("limits", "Known limits", points=_lines(card.limits), files=files_of(card.limits)),
        _files_section(card),
        Section(
            "commands",
            "Commands",
            "Recorded settings as the commands that take them. They are partial: what no file records, such as a "
            "folder, stands in capitals or is left out.",
            code=_lines(card.commands),
            files=files_of(card.commands),
        ),
    )


def _lines(said: Sequence[Said]) -> tuple[str, ...]:
    return tuple(line for each in said for line in each.lines)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    """Terms and what they are."""
    return Table(("", ""), tuple((Cell(key), Cell(value)) for key, value in pairs), words=2)


def _norm(norm: str) -> str:
    return "" if norm == "linf" else " (L2)"


def _model(card: Card) -> Section:
    model = card.model
    channels, height, width = model.input_shape
    names = ", ".join(model.classes[:_MOST_CLASSES])
    more = f", … {len(model.classes):,} in all" if len(model.classes) > _MOST_CLASSES else ""
    pairs = (
        ("architecture", model.architecture),
        ("parameters", NOT_KNOWN if model.parameters is None else f"{model.parameters:,}"),
        ("input", f"{width} × {height} pixels, {channels} channel{'' if channels == 1 else 's'}"),
        ("preprocessing", model.preprocess),
        ("classes", f"{len(model.classes):,}: {names}{more}"),
    )
    rows = tuple(
        (
            Cell(entry.variant, "" if entry.carried else "left out of this copy"),
            Cell(entry.input),
            Cell(f"{entry.bytes / _MEGABYTE:.2f}"),
            Cell(NOT_MEASURED)
            if entry.parity_frames is None
            else Cell(f"{entry.parity_same:,} of {entry.parity_frames:,}", "at the export"),
        )
        for entry in model.artefacts
    )
    table = Table(("artefact", "input tensor", "MB", "same first label"), rows, words=2)
    return Section("model", "What it is", tables=(_pairs(pairs), table), files=files_of([model]))


def _scores(evaluation: CardEvaluation) -> Table:
    """The artefacts of one file, without an attack and at each budget."""
    data = evaluation.data
    rows: list[tuple[Cell, ...]] = []
    for score in evaluation.scores:
        where = Cell(str(score), ", ".join(filter(None, (score.provider, score.device, score.engine))))
        n = "" if score.clean is None else f"{score.clean.n:,}"
        rows.append((where, Cell("clean"), Cell(""), measured(score.clean), Cell(""), Cell(n)))
        rows += [
            (
                where,
                Cell(f"worst at eps {worst.eps}{_norm(worst.norm)}", f"suite {worst.suite or 'none'}"),
                Cell(worst.threat or ""),
                measured(worst.figure, at_most=worst.at_most),
                Cell(score.verdict, verdict=True),
                Cell(f"{worst.figure.n:,}"),
            )
            for worst in score.worst_cases
        ]
    return Table(
        ("artefact", "case", "closest attack", "right", "masking check", "images"),
        tuple(rows),
        words=3,
        title=f"{data_name(data)}, {data.n:,} images: {evaluation.source.name}",
    )


def _verdict(card: Card) -> Section:
    findings = [found for each in card.evaluations for found in each.findings]
    rows = tuple(
        (
            Cell(found.rule),
            Cell(found.artefact or "the weights"),
            Cell(found.finding, verdict=True) if found.finding else Cell("not checked"),
            Cell(found.text),
        )
        for found in findings
    )
    verdict, said = card.headline.verdict, {found.text for found in findings}
    return Section(
        "verdict",
        "Masking verdict",
        f"{BADGES[verdict]}. {MEANINGS[verdict]}",
        tables=_tables(("rule", "of", "finding", "evidence"), rows, words=4),
        points=tuple(dict.fromkeys(text for score in card.scores for text in score.reasons if text not in said)),
        files=files_of(card.evaluations),
    )


def _tables(headings: tuple[str, ...], rows: tuple[tuple[Cell, ...], ...], *, words: int) -> tuple[Table, ...]:
    """A table, where it has rows."""
    return (Table(headings, rows, words),) if rows else ()


def _attacks(evaluations: Sequence[CardEvaluation]) -> Section:
    rows = tuple(
        (
            Cell(entry.attack, entry.params.library or ""),
            Cell(", ".join(entry.eps)),
            Cell("; ".join(entry.gradients) or "no gradients"),
            Cell("all" if set(entry.artefacts) == set(map(str, each.scores)) else ", ".join(entry.artefacts)),
            *(Cell(_number(count)) for count in (entry.params.steps, entry.params.restarts, entry.params.queries)),
        )
        for each in evaluations
        for entry in each.attacks
    )
    return Section(
        "attacks",
        "Attacks that were run",
        "" if rows else "None.",
        tables=_tables(("attack", "eps", "gradients of", "scored on", "steps", "restarts", "queries"), rows, words=4),
        files=files_of(evaluations),
    )


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".replace("-", "−")


def _comparisons(card: Card) -> Section:
    def row(pair: CardComparison, beside: str) -> tuple[Cell, ...]:
        return (
            Cell(pair.artefact, f"against {pair.baseline}"),
            Cell("clean" if pair.attack == CLEAN else f"worst at eps {pair.eps}", beside),
            Cell(pair.data),
            Cell(_points(pair.drop), f"{_points(pair.drop_ci95[0])} to {_points(pair.drop_ci95[1])}"),
            Cell(pair.verdict or "", verdict=pair.verdict is not None),
            Cell(f"{_number(pair.lost)} / {_number(pair.gained)}"),
            Cell(f"{pair.n:,}"),
        )

    rows = tuple(row(pair, "") for each in card.evaluations for pair in each.comparisons)
    rows += tuple(row(pair, "gate of the export") for pair in card.model.gates)
    headings = ("artefact", "case", "data", "points lost", "masking check", "lost / gained", "images")
    sources = [each for each in card.evaluations if each.comparisons]
    return Section(
        "compared",
        "Against fp32, image by image",
        "Points of accuracy lost on the same images, with 95% intervals; negative where the artefact is better."
        if rows
        else "Not measured.",
        tables=_tables(headings, rows, words=3),
        files=files_of([*sources, *([card.model] if card.model.gates else [])]),
    )


def _timings(card: Card) -> Section:
    timed = [row for bench in card.benches for row in bench.rows]
    meters = dict.fromkeys(row.energy_source for row in timed if row.energy_mj_per_image is not None)
    headings = ("artefact", "stage", "p50 ms", "p90 ms", "p99 ms", "max ms", "CPU ms/image", "J/image", "calls")
    return Section(
        "latency",
        "Latency and energy",
        "Times are those of one call with its whole batch; nothing is trimmed." if timed else "Not measured.",
        tables=_tables(headings, tuple(map(_timing, timed)), words=2),
        points=tuple(f"Energy: {meter}." for meter in meters if meter),
        files=files_of(card.benches),
    )


def _timing(row: BenchRow) -> tuple[Cell, ...]:
    threads = "" if row.threads is None else f"{row.threads} thread{'' if row.threads == 1 else 's'}"
    pace = "" if row.rate_hz is None else f" {row.rate_hz:g} Hz{SPINS[row.spin]}"
    times = (row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms, row.cpu_ms_per_image)
    energy = row.energy_mj_per_image
    return (
        Cell(str(row.artefact), ", ".join(filter(None, (row.provider, row.device, threads)))),
        Cell(row.stage, f"{row.mode}{pace}, batch {row.batch}"),
        *(Cell(NOT_MEASURED if ms is None else milliseconds(ms)) for ms in times),
        Cell(NOT_MEASURED if energy is None else f"{energy / 1000:.3g}"),
        Cell(f"{row.n:,}"),
    )


def _training(card: Card) -> Section:
    about = card.training
    known: dict[str, Setting] = {
        "data": about.data or NOT_KNOWN,
        "images": NOT_KNOWN if about.images is None else f"{about.images:,}",
        "recipe": about.recipe.get("recipe") or NOT_KNOWN,
        "seed": about.config.get("seed"),
        **{key.replace("_", " "): value for key, value in about.stage.items()},
        "held out by": about.holdout_list,
        "list of training images": "no" if about.listed_images is None else f"yes, {about.listed_images:,} by hash",
    }
    for what, settings in (
        ("settings of the recipe", {key: value for key, value in about.recipe.items() if key != "recipe"}),
        ("hyper-parameters", about.config),
        ("versions", about.versions),
    ):
        said = (f"{key} {_setting(value)}" for key, value in settings.items() if value is not None)
        known[what] = ", ".join(said) or None
    pairs = tuple((key, _setting(value)) for key, value in known.items() if value is not None)
    return Section("training", "Trained on what", tables=(_pairs(pairs),), files=files_of([about]))


def _setting(value: Setting) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _files_section(card: Card) -> Section:
    signature = card.signature
    state = _SIGNATURES[signature.state]
    if signature.public_key_sha256 is not None:
        state += f", SHA-256 {signature.public_key_sha256}"
    pairs = (
        ("bundle id", card.model.bundle_id),
        *((f"{source.kind}: {source.name}", f"{source.sha256} {source.created}") for source in card.sources),
        *((entry.file, entry.sha256) for entry in card.model.artefacts),
        ("signature", state),
    )
    return Section(
        "files",
        "Files and hashes",
        "SHA-256 of every file that this card is made of, and of the artefacts as the manifest has them.",
        tables=(_pairs(pairs),),
        files=card.sources,
    )
