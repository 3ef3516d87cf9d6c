"""Which artefact to ship: what each keeps of the accuracy of fp32, how fast it is, and whether its figure may be
believed.

The sentences follow from the figures by the rules that :func:`choose` and the functions below it state; the page says
them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgeadv_runtime.records.bench import Bench, BenchRow
from edgeadv_runtime.records.evidence import ORDER
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, Comparison, Row

from .accuracy import Artefact, Group, Model

# a smaller drop is not worth a word, however sure it is
_SMALL = 0.01
# two medians closer than this share are no order: another run may turn them round
_CLEARLY = 0.05
# figures that the check doubts are no ground for a choice
_DOUBTED = ("SUSPECT", "MASKED")
_TRUST = {
    "MASKED": "No robust figure{} of this file may be trusted: the verdict is MASKED. Compare clean accuracy and "
    "latency only.",
    "SUSPECT": "Do not choose by the robust figures{}: the verdict is SUSPECT, and the true worst case may be lower "
    "than any of them.",
    "UNCHECKED": "Quote no robust figure{} of this file: the verdict is UNCHECKED, so they are upper bounds at best.",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One artefact as something to ship.

    Attributes:
        group: what was measured on it.
        worst: its worst case at the largest budget of the file.
        reason: the first sentence behind the verdict; None where a candidate before this one has the same.
        baseline: the fp32 that it is compared with; None for that one itself and where there is none.
        clean_drop: what it lost against the baseline without an attack; None where the file does not compare them.
        worst_drop: what it lost in the worst case.
        latencies: of one call of one image, one for each place where it was timed.
    """

    group: Group
    worst: Row | None
    reason: str | None
    baseline: Group | None
    clean_drop: Comparison | None
    worst_drop: Comparison | None
    latencies: tuple[BenchRow, ...]

    @property
    def artefact(self) -> Artefact:
        """What was scored."""
        return self.group.artefact

    @property
    def doubted(self) -> bool:
        """Whether its worst case is no ground for a choice."""
        return self.group.verdict in _DOUBTED


@dataclass(frozen=True)
class Choice:
    """The artefacts of one results file, and what follows.

    Attributes:
        eps: the largest budget; empty if nothing was attacked.
        candidates: in the order of the file.
        fastest: of those that lost nothing measurable; None where it is not clear.
        sentences: the one that counts first.
    """

    eps: str
    candidates: tuple[Candidate, ...]
    fastest: Candidate | None
    sentences: tuple[str, ...]

    @property
    def compared(self) -> bool:
        """Whether the file says what an artefact lost."""
        return any(one.clean_drop or one.worst_drop for one in self.candidates)

    @property
    def places(self) -> tuple[str, ...]:
        """Where the latencies were taken."""
        return tuple(dict.fromkeys(where(row) for one in self.candidates for row in one.latencies))


def where(row: BenchRow) -> str:
    """Device, threads, stage and mode of a latency: figures that differ in one of them do not compare."""
    threads = [] if row.threads is None else [f"{row.threads} thread{'s' if row.threads != 1 else ''}"]
    mode = row.mode if row.rate_hz is None else f"{row.mode} {row.rate_hz:g} Hz"
    return ", ".join([row.device, *threads, row.stage, mode])


def measurable(drop: Comparison | None) -> bool:
    """Whether an artefact lost something: the interval lies above 0, and the drop is at least 1 point."""
    return drop is not None and drop.interval[0] > 0 and drop.drop >= _SMALL


def milliseconds(value: float | None) -> str:
    """Three digits or so; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def choose(model: Model, benches: Iterable[Bench]) -> Choice:
    """What to say of the artefacts of ``model``.

    Args:
        model: one results file.
        benches: bench files, of which those of the same bundle count.
    """
    results, head = model.results, model.headline
    eps = head.line.worst.eps if head and head.line.worst else ""
    timed = [row for bench in benches if bench.bundle.id == results.bundle.id for row in bench.rows]
    candidates: list[Candidate] = []
    said: set[tuple[str, str | None]] = set()
    for group in model.groups:
        reason = _reason(model, group)
        # the group that this one is compared with; None for the one that all others are
        base_id = results.baseline_of(group.id)
        base = next((other for other in model.groups if other.id == base_id), None)
        clean_drop, worst_drop = (
            results.comparison(group.id, base.id, attack=attack, eps=at) if base else None
            for attack, at in ((CLEAN, "0"), (WORST_CASE, eps))
        )
        candidates.append(
            Candidate(
                group=group,
                worst=group.worst(eps),
                reason=None if (group.verdict, reason) in said else reason,
                baseline=base,
                clean_drop=clean_drop,
                worst_drop=worst_drop,
                latencies=_latencies(group, timed),
            )
        )
        said.add((group.verdict, reason))
    fastest, speed = _fastest(candidates)
    return Choice(eps, tuple(candidates), fastest, (*_trust(model, candidates, eps), *_losses(candidates, eps), *speed))


def _reason(model: Model, group: Group) -> str | None:
    """The first sentence that led to the verdict."""
    if group.verdict == ORDER[0]:
        return None
    rule = {finding.text for finding in model.findings if finding.finding == group.verdict}
    return next((text for text in group.reasons if text in rule), next(iter(group.reasons), None))


def _latencies(group: Group, timed: Sequence[BenchRow]) -> tuple[BenchRow, ...]:
    """One call with one image, back to back; of the whole path where inference alone was not timed."""
    own = [row for row in timed if row.artefact == group.id and row.batch == 1]
    for stage in ("inference", "end-to-end"):
        if rows := [row for row in own if row.stage == stage and row.mode == "back-to-back"]:
            return tuple(rows)
    return ()


def _trust(model: Model, candidates: Sequence[Candidate], eps: str) -> Iterator[str]:
    """Whether the robust figures of the file may be used, and which artefact is worse off than the file."""
    verdict = model.results.masking.verdict
    floor = _floor(candidates)
    # what is 0 cannot be lower, whatever the check says
    above = " above 0" if floor == "0.0%" else ""
    fallen = [f"No artefact withstands eps {eps}: the worst case is {floor} on each."] if floor else []
    trust = [_TRUST[verdict].format(above)] if verdict in _TRUST else []
    if not eps:
        yield "Nothing was attacked here: only clean accuracy can be compared."
    else:
        yield from trust + fallen if verdict in _DOUBTED else fallen + trust
    for worse in _DOUBTED:
        # those that are as bad as the file's own need no sentence of theirs
        names = [one.artefact for one in candidates if one.group.verdict == worse != verdict]
        if names:
            yield f"Do not trust the worst case of {_listed(names)}: the verdict on it is {worse}."


def _floor(candidates: Sequence[Candidate]) -> str | None:
    """How low the worst case is where no artefact has anything left to lose; None where one has."""
    scored = [one.worst for one in candidates if one.worst]
    if not scored or any(row.top1 >= _SMALL for row in scored):
        return None
    return f"below {_SMALL:.0%}" if any(row.correct_top1 for row in scored) else "0.0%"


def _losses(candidates: Sequence[Candidate], eps: str) -> Iterator[str]:
    """Who lost accuracy against fp32, and how much may have gone unseen.

    The worst case is left out of it where its figure is doubted, and where nothing is left to lose.
    """
    others = [one for one in candidates if one.clean_drop or one.worst_drop]
    if not others:
        if len(candidates) > 1:
            yield (
                "The file does not compare its artefacts image by image: whether one lost accuracy cannot be "
                "read off it."
            )
        return
    robust = not _floor(candidates) and any(one.worst_drop and not one.doubted for one in others)
    kinds = ["clean", *([f"in the worst case (eps {eps})"] if robust else [])]
    counted = {
        one.artefact: [
            (kind, drop) for kind, drop in zip(kinds, (one.clean_drop, one.worst_drop), strict=False) if drop
        ]
        for one in others
        if not (robust and one.doubted)
    }
    lost = {who: [part for part in parts if measurable(part[1])] for who, parts in counted.items()}
    kept = [who for who, parts in lost.items() if not parts]
    if kept:
        unseen = 100 * max(drop.interval[1] for who in kept for _, drop in counted[who])
        if len(kept) == len(others) > 1:
            said = f"No artefact loses clean {f'or worst-case accuracy (eps {eps})' if robust else 'accuracy'}"
        else:
            what = f"neither clean nor worst-case accuracy (eps {eps})" if robust else "no clean accuracy"
            said = f"{_listed(kept)} {'loses' if len(kept) == 1 else 'lose'} {what}"
        n = min(drop.n for who in kept for _, drop in counted[who])
        yield f"{said} measurably against fp32; with {n:,} images a loss of up to {unseen:.1f} points could go unseen."
    for who, parts in lost.items():
        if parts:
            losses = " and ".join(f"{100 * drop.drop:.1f} points {name}" for name, drop in parts)
            yield f"{who.label} loses {losses} against fp32."


def _fastest(candidates: Sequence[Candidate]) -> tuple[Candidate | None, tuple[str, ...]]:
    """The fastest of those that lost nothing measurable, fp32 among them, if all were timed at one place and it is
    clear."""
    places = {where(row) for one in candidates for row in one.latencies}
    fair = [
        (one.latencies[0].p50_ms, one)
        for one in candidates
        if one.latencies and not measurable(one.clean_drop) and (one.doubted or not measurable(one.worst_drop))
    ]
    if len(places) != 1 or len(fair) < 2:
        return None, ()
    (least, best), (second, _) = sorted(fair, key=lambda timed: timed[0])[:2]
    if least > (1 - _CLEARLY) * second:
        return None, ()
    full = [f" ({one.artefact.label}: {milliseconds(ms)} ms)" for ms, one in fair if one.group is best.baseline]
    return best, (
        f"Fastest of those without a measurable loss: {best.artefact.label}, {milliseconds(least)} ms{''.join(full)}.",
    )


def _listed(artefacts: Sequence[Artefact]) -> str:
    """Names with the backend said once: ``onnxruntime fp16 and int8-s8s8``."""
    names: list[str] = []
    for i, artefact in enumerate(artefacts):
        same = i > 0 and artefacts[i - 1].backend == artefact.backend
        names.append(artefact.variant if same else artefact.label)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
