"""Tracks: which frames belong together, and what is decided on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadv_runtime import Bundle
from edgeadv_runtime.attacks.base import CLEAN_KEY, Evidence
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome
from edgeadv_runtime.evaluation.tracks import check_tracks, track_of, track_rows, tracks_of

FP32 = Artefact("onnxruntime", "fp32", "a" * 64, "cpu", "a CPU", "one", None, None)
FOG, WORST = ("fog", "3"), ("worst-case", "3")


@pytest.mark.parametrize(
    ("name", "track"),
    [("00000/00003_00012.jpg", "00000/00003"), ("a_b_7", "a_b"), ("x/y_z/1_2.png", "x/y_z/1")],
)
def test_a_track_is_what_stands_before_the_frame(name: str, track: str) -> None:
    assert track_of(name) == track


@pytest.mark.parametrize("name", ["00001.jpg", "00000/12.jpg", "frame_", "_7", "x/_7", "no_entry/img1.png"])
def test_a_name_without_a_frame_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="finds no frame in the name"):
        track_of(name)


def test_frames_come_in_the_order_of_their_names_whatever_the_order_of_scoring() -> None:
    names = ["b/1_02.png", "a/1_00.png", "b/1_00.png", "b/1_01.png", "a/1_01.png"]
    found = tracks_of(np.array([4, 0, 3, 1, 2]), names)
    assert [[names[[4, 0, 3, 1, 2][place]] for place in frames] for frames in found] == [
        ["a/1_00.png", "a/1_01.png"],
        ["b/1_00.png", "b/1_01.png", "b/1_02.png"],
    ]


def test_frames_come_by_their_number() -> None:
    names = ["T_1.png", "T_10.png", "T_9.png", "T_09b.png"]
    (frames,) = tracks_of(np.arange(4), names)
    assert [names[place] for place in frames] == ["T_1.png", "T_9.png", "T_10.png", "T_09b.png"]


def test_a_track_has_one_label() -> None:
    check_tracks(["a_1", "a_2", "b_1"], np.array([0, 0, 1]))
    with pytest.raises(InputError, match="'a_2' has another class than the frames of 'a' before it"):
        check_tracks(["a_1", "a_2"], np.array([0, 1]))


def test_a_torn_track_is_left_out_and_counted(tiny_bundle: Bundle) -> None:
    one = outcome([1, 1, 0], [0.9] * 3, [], 0)
    # the last frame of track 2 was not scored
    names = ["c/1_0.png", "c/1_1.png", "c/2_0.png", "c/2_1.png"]
    hits = {CLEAN_KEY: np.array([True, True, False])}
    rows = track_rows([one], [FP32], [hits], names, tiny_bundle)
    assert {(row.n, row.left_out) for row in rows} == {(1, 1)}
    assert {row.correct for row in rows} == {1} and "1 tracks, 1 of which a frame" in rows[0].tracks
    with pytest.raises(DataError, match="of every track a frame was left out"):
        track_rows(
            [one], [FP32], [hits], [f"c/{track}_{frame}" for frame in (0, 1) for track in (1, 2, 3)], tiny_bundle
        )


def outcome(given: list[int], probability: list[float], worst: list[bool], first: int) -> BatchOutcome:
    """Frames of class 1, the first of them at position ``first``."""
    n = len(given)
    index, labels = np.arange(first, first + n), np.ones(n, np.int64)
    right = np.array(given) == 1
    table: Any = {CLEAN_KEY: right, FOG: right}
    answers = {CLEAN_KEY: np.array(given), FOG: np.array(given)}
    sure = {key: np.array(probability, np.float32) for key in answers}
    flags = np.zeros(n, np.bool_)
    evidence = Evidence({}, {}, {}, flags, flags)
    return BatchOutcome(index, labels, ("h",) * n, (table,), (table,), evidence, given=(answers,), probability=(sure,))


def decided(given: list[int], probability: list[float], bundle: Bundle) -> dict[str, tuple[int, int]]:
    """One track in two batches: for each rule whether it is right, and whether it is undecided."""
    half = len(given) // 2
    worst = np.array(given) == 1
    parts = [
        outcome(given[:half], probability[:half], [], 0),
        outcome(given[half:], probability[half:], [], half),
    ]
    names = [f"c/1_{i:02d}.png" for i in range(len(given))]
    right = {CLEAN_KEY: worst, FOG: worst, WORST: worst}
    rows = track_rows(parts, [FP32], [right], names, bundle)
    assert {row.n for row in rows} == {1} and [row.rule for row in rows if row.attack == "worst-case"] == [
        "worst-frame"
    ]
    assert {row.eps for row in rows if row.attack == "fog"} == {"3"}
    return {row.rule: (row.correct, row.undecided) for row in rows if row.attack == "clean"}


def test_each_rule_decides_as_it_says(tiny_bundle: Bundle) -> None:
    # without a threshold every frame counts
    assert tiny_bundle.confidence is None
    sure = [0.9] * 8
    assert decided([1] * 8, sure, tiny_bundle) == {
        "majority": (1, 0), "smoother": (1, 0), "last-confident": (1, 0), "worst-frame": (1, 0)
    }  # fmt: skip
    assert decided([1, 1, 1, 1, 1, 1, 1, 0], sure, tiny_bundle) == {
        "majority": (1, 0), "smoother": (1, 0), "last-confident": (0, 0), "worst-frame": (0, 0)
    }  # fmt: skip
    # as many of each: nobody decides, and the last seven frames are 3 to 4, a lead of one
    assert decided([1, 0, 1, 0, 1, 0, 1, 0], sure, tiny_bundle) == {
        "majority": (0, 1), "smoother": (0, 1), "last-confident": (0, 0), "worst-frame": (0, 0)
    }  # fmt: skip
    assert decided([0, 0, 0, 0, 0, 0, 1, 1], sure, tiny_bundle)["majority"] == (0, 0)
