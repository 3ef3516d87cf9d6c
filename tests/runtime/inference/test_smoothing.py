"""A vote with hysteresis: sequences written out by hand, and what must hold for any."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.inference.classifier import Classifier, Label
from edgeadv_runtime.inference.smoothing import Smoother


def said(letter: str, probability: float = 0.9) -> list[Label]:
    index = ord(letter) - ord("a")
    return [Label(index, f"id-{letter}", letter, probability), Label(index + 1, "next", "next", 1 - probability)]


def run(smoother: Smoother, sequence: str) -> str:
    """A letter a frame, ``?`` for an answer that is not sure; what is shown, in the same way."""
    shown = ""
    for letter in sequence:
        answer = smoother.update(said("z", 0.1) if letter == "?" else said(letter))
        shown += answer.label.name if answer.label else "?"
    return shown


@pytest.mark.parametrize(
    ("window", "margin", "sequence", "shown"),
    [
        # without a window every frame counts for itself
        (1, 1, "aab?ba", "aab?ba"),
        # two frames before anything is shown, and a single other frame changes nothing
        (5, 2, "aaabaaa", "?aaaaaa"),
        # a: 3 votes; after three b in a window of five b leads 3 to 2, after four 4 to 1
        (5, 2, "aaaaabbbb", "?aaaaaaab"),
        (5, 1, "aaaaabbbb", "aaaaaaabb"),
        (5, 5, "aaaaabbbbb", "????aaaaab"),
        # answers that take turns never lead by two
        (4, 2, "abababab", "????????"),
        (4, 1, "abababab", "aaaaaaaa"),
        # a third one that leads the shown answer, but not the second by the margin, is not shown yet
        (5, 2, "aabbcccc", "?aaaaaac"),
        # unknown is an answer like any other: it must lead as well, and be led
        (5, 2, "aaaaa????aaaa", "?aaaaaaa????a"),
        (3, 1, "??a?a", "????a"),
    ],
)
def test_by_hand(window, margin, sequence, shown):
    assert run(Smoother(threshold=0.5, window=window, margin=margin), sequence) == shown


def test_votes_frames_and_change_are_told():
    smoother = Smoother(threshold=0.5, window=3, margin=2)
    told = [smoother.update(said(letter)) for letter in "aabbb"]
    assert [(each.votes, each.frames, each.changed) for each in told] == [
        (0, 1, False),
        (2, 2, True),
        (2, 3, False),
        (1, 3, False),
        (3, 3, True),
    ]


def test_the_label_is_the_one_that_was_given_last():
    smoother = Smoother(threshold=0.5, window=3, margin=1)
    smoother.update(said("a", 0.8))
    assert smoother.update(said("a", 0.7)).label == said("a", 0.7)[0]
    assert smoother.update(said("b", 0.99)).label == said("a", 0.7)[0]
    assert smoother.update(said("c")).label == said("a", 0.7)[0]
    # its votes have left the window, and nobody leads: it stays
    kept = smoother.update(said("d"))
    assert kept.label == said("a", 0.7)[0] and kept.votes == 0


def test_a_threshold_is_not_below_itself():
    smoother = Smoother(threshold=0.5, window=1, margin=1)
    assert smoother.update(said("a", 0.5)).label is not None
    assert smoother.update(said("a", 0.4999)).label is None
    assert Smoother(threshold=0, window=1, margin=1).update(said("a", 0.0)).label is not None


def test_after_a_reset_nothing_is_left():
    smoother = Smoother(threshold=0.5, window=5, margin=2)
    first = run(smoother, "aaabbb")
    smoother.reset()
    assert run(smoother, "aaabbb") == first


@pytest.mark.parametrize(("window", "margin"), [(w, m) for w in range(1, 6) for m in range(1, w + 1)])
def test_for_every_sequence_of_seven_answers(window, margin):
    for letters in product("ab?", repeat=7):
        sequence, smoother = "".join(letters), Smoother(threshold=0.5, window=window, margin=margin)
        shown = run(smoother, sequence)
        before = "?"
        for i, now in enumerate(shown):
            votes = sequence[max(0, i - window + 1) : i + 1]
            lead = votes.count(now) - max(votes.count(other) for other in "ab?" if other != now)
            # it changes if and only if another one leads every other by the margin
            assert now == before or lead >= margin
            leads = [x for x in "ab?" if votes.count(x) - max(votes.count(y) for y in "ab?" if y != x) >= margin]
            assert leads in ([], [now])
            before = now


def test_a_new_answer_comes_within_the_stated_delay():
    for window in range(1, 12):
        for margin in range(1, window + 1):
            smoother = Smoother(threshold=0.5, window=window, margin=margin)
            run(smoother, "a" * window)
            delay = run(smoother, "b" * (window + 1)).index("b") + 1
            assert delay == (window + margin + 1) // 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"threshold": 1.1}, "threshold is a probability"),
        ({"threshold": float("nan")}, "threshold is a probability"),
        ({"threshold": 0, "window": 0}, "window must be at least 1"),
        ({"threshold": 0, "margin": 0}, "margin from 1"),
        ({"threshold": 0, "window": 3, "margin": 4}, "not window 3 and margin 4"),
    ],
)
def test_what_cannot_be_is_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        Smoother(**arguments)
    with pytest.raises(InputError, match="there are none"):
        Smoother(threshold=0).update([])


def test_with_a_bundle(tiny_bundle, photographs):
    with pytest.raises(InputError, match="has no rejection threshold: export it with `confidence_data`"):
        Smoother.of(tiny_bundle)
    smoother = Smoother.of(tiny_bundle, threshold=0.0, window=3, margin=2)
    with Classifier.open(tiny_bundle.path, variant="fp32", threads=1) as classifier:
        labels = classifier.classify(photographs[0], color_order="rgb")
        assert smoother.update(labels).label is None
        assert smoother.update(labels).label == labels[0]
    assert np.isclose(smoother.threshold, 0)
