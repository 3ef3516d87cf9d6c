"""From answers to frames to what an application would decide on a track."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..attacks.base import Key
from ..bundle.bundle import Bundle
from ..errors import DataError, InputError
from ..inference.classifier import Label
from ..inference.smoothing import Smoother
from ..records.rows import WORST_CASE
from ..records.tracks import RULES, Rule, TrackRow
from .outcomes import Artefact, BatchOutcome

Frames = NDArray[np.int64]


def track_of(name: str) -> str:
    """The track of a frame that is called ``TRACK_FRAME``, with or without folders and ending.

    Raises:
        InputError: the name has no frame.
    """
    folder, slash, file = name.rpartition("/")
    track, _, frame = file.rpartition("_")
    if not frame or not track:
        raise InputError("group", f"finds no frame in the name {name!r}: tracks have frames called TRACK_FRAME")
    return f"{folder}{slash}{track}"


def _order(name: str) -> tuple[int, str]:
    """Frames come by their number, with or without zeros before it; those that have none come last, by name."""
    frame = name.rpartition("_")[2].partition(".")[0]
    return (int(frame), name) if frame.isascii() and frame.isdigit() else (sys.maxsize, name)


def check_tracks(names: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Make sure that images make tracks: each of one label.

    Args:
        names: of all images.
        labels: of each, int64 (n,).

    Raises:
        InputError: a name has no frame, or a track has two labels.
    """
    first: dict[str, int] = {}
    for name, label in zip(names, labels.tolist(), strict=True):
        if first.setdefault(track_of(name), label) != label:
            raise InputError("group", f"{name!r} has another class than the frames of {track_of(name)!r} before it")


def tracks_of(index: NDArray[np.int64], names: Sequence[str]) -> list[Frames]:
    """Of each track the places of its frames among the scored images, in the order of their numbers.

    Args:
        index: of each scored image its position among ``names``, int64 (n,).
        names: of all images.

    Raises:
        InputError: a name has no frame.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for place, position in enumerate(index.tolist()):
        found.setdefault(track_of(names[position]), []).append((names[position], place))
    return [
        np.array([place for _, place in sorted(frames, key=lambda frame: _order(frame[0]))], dtype=np.int64)
        for _, frames in sorted(found.items())
    ]


def first_track(names: Sequence[str], most: int) -> list[int]:
    """Of the first track, at most ``most`` frames from its first to its last: their positions among ``names``."""
    frames = tracks_of(np.arange(len(names)), names)[0]
    chosen = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(np.int64)
    found: list[int] = frames[chosen].tolist()
    return found


def track_rows(
    outcomes: Sequence[BatchOutcome],
    artefacts: Sequence[Artefact],
    right: Sequence[Mapping[Key, NDArray[np.bool_]]],
    names: Sequence[str],
    bundle: Bundle,
) -> tuple[TrackRow, ...]:
    """One row for each artefact, attack, budget and rule, of the tracks whose frames were all scored.

    Args:
        outcomes: of all batches, with the labels that were given.
        artefacts: what answered.
        right: of each artefact, by key, whether the label came first, bool (n,), worst cases included.
        names: of all images, by their position.
        bundle: whose threshold decides what is confident; without one every frame is.

    Raises:
        InputError: a name has no frame.
        DataError: no track is whole.
    """
    labels = np.concatenate([each.labels for each in outcomes])
    index = np.concatenate([each.index for each in outcomes])
    frames_of = Counter(map(track_of, names))
    found = tracks_of(index, names)
    tracks = [frames for frames in found if len(frames) == frames_of[track_of(names[index[frames[0]]])]]
    if not tracks:
        raise DataError("of every track a frame was left out: int8 was calibrated on it, or it is unreadable")
    threshold = 0.0 if bundle.confidence is None else bundle.confidence.threshold
    rows = []
    for k, artefact in enumerate(artefacts):
        for key, hits in right[k].items():
            counts: dict[Rule, Counter[bool | None]] = {rule: Counter() for rule in RULES}
            counts["worst-frame"].update(bool(hits[frames].all()) for frames in tracks)
            if key[0] != WORST_CASE:
                given, probability = (
                    np.concatenate([table[k][key] for table in tables])
                    for tables in ([o.given for o in outcomes], [o.probability for o in outcomes])
                )
                for frames in tracks:
                    answers = list(zip(given[frames].tolist(), probability[frames].tolist(), strict=True))
                    for rule, decide in _RULES.items():
                        answer = decide(answers, threshold)
                        counts[rule][None if answer is None else answer == labels[frames[0]]] += 1
            rows += [
                TrackRow(
                    artefact=artefact.id,
                    attack=key[0],
                    eps=key[1],
                    rule=rule,
                    n=len(tracks),
                    correct=count[True],
                    undecided=count[None],
                    left_out=len(frames_of) - len(tracks),
                )
                for rule, count in counts.items()
                if count
            ]
    return tuple(rows)


def _majority(answers: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The label of most frames; None where two have as many."""
    (first, votes), *others = Counter(label for label, _ in answers).most_common(2)
    return None if others and others[0][1] == votes else first


def _smoothed(answers: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """What is shown after the last frame."""
    smoother, shown = Smoother(threshold=threshold), None
    for label, probability in answers:
        shown = smoother.update([Label(label, "", "", probability)]).label
    return None if shown is None else shown.index


def _last_confident(answers: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The label of the last frame above the threshold."""
    return next((label for label, probability in reversed(answers) if probability >= threshold), None)


_RULES: Mapping[Rule, Callable[[Sequence[tuple[int, float]], float], int | None]] = {
    "majority": _majority,
    "smoother": _smoothed,
    "last-confident": _last_confident,
}
