"""From single answers to one that an application can show: a vote over the last frames, with hysteresis and
``unknown``.

A camera sees the same thing in frame after frame, and a classifier that is right nine times in ten still flickers. This
trades a delay of a few frames for a label that stands still. It makes no answer more robust to an attack: who can
change one frame can change them all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..bundle.bundle import Bundle
from ..errors import InputError
from .classifier import Label


@dataclass(frozen=True)
class Smoothed:
    """What is to be shown after a frame.

    Attributes:
        label: the answer, as the last frame of the window that voted for it gave it; after its votes have left the
            window, as it was last given. None is unknown.
        votes: how many frames of the window voted for this answer.
        frames: how many frames are in the window.
        changed: whether this frame changed the answer.
    """

    label: Label | None
    votes: int
    frames: int
    changed: bool


class Smoother:
    """A vote over the last ``window`` answers; not for several threads at once, one for each camera.

    Every frame votes for its first label, or for unknown where that is less probable than ``threshold``.
    The answer shown, unknown at first, changes only when one answer has at least ``margin`` votes more than every
    other, the one that is shown included.

    Example::

        smoother = Smoother.of(classifier.bundle)
        while frame := camera.read():
            shown = smoother.update(classifier.classify(frame, color_order="bgr"))
            print(shown.label.name if shown.label else "unknown")
    """

    def __init__(self, *, threshold: float, window: int = 7, margin: int = 2) -> None:
        """Begin with no frames and the answer unknown.

        Args:
            threshold: probability in [0, 1] below which a frame votes for unknown; 0 takes every answer.
            window: how many frames vote, at least 1.
            margin: by how many votes an answer must lead every other to be shown, 1 to ``window``. An answer that
                suddenly is the only one is shown after at most ``(window + margin + 1) // 2`` frames.

        Raises:
            InputError: an argument is out of range.
        """
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is a probability in [0, 1], not {threshold:g}")
        if window < 1 or not 1 <= margin <= window:
            raise InputError(
                f"window must be at least 1 frame and margin from 1 to window, not window {window} and margin {margin}"
            )
        self.threshold = threshold
        self.window = window
        self.margin = margin
        self.reset()

    @classmethod
    def of(cls, bundle: Bundle, *, threshold: float | None = None, window: int = 7, margin: int = 2) -> Smoother:
        """A smoother with the rejection threshold of ``bundle``, unless another is given.

        Raises:
            InputError: an argument is out of range, or the bundle has no threshold and none is given.
        """
        if threshold is None:
            if bundle.confidence is None:
                raise InputError(
                    f"{bundle.path} has no rejection threshold: export it with `confidence_data`, or give threshold="
                )
            threshold = bundle.confidence.threshold
        return cls(threshold=threshold, window=window, margin=margin)

    def reset(self) -> None:
        """Forget all frames, as when the camera was moved: the answer is unknown again."""
        self._votes: deque[int | None] = deque(maxlen=self.window)
        self._shown: int | None = None
        self._labels: dict[int, Label] = {}

    def update(self, labels: Sequence[Label]) -> Smoothed:
        """Let one frame vote.

        Args:
            labels: what :meth:`~edgeadv_runtime.Classifier.classify` gave, most probable first.

        Raises:
            InputError: there are no labels.
        """
        if not labels:
            raise InputError("a frame votes with the labels that classify gave, and there are none")
        best = labels[0]
        vote = None if best.probability < self.threshold else best.index
        self._votes.append(vote)
        if vote is not None:
            self._labels[vote] = best
        counts = Counter(self._votes)
        before, leader = self._shown, counts.most_common(1)[0][0]
        others = [votes for answer, votes in counts.items() if answer != leader]
        # the one that is shown competes even when nobody votes for it any more: with 0 votes
        if counts[leader] - max(others, default=0) >= self.margin:
            self._shown = leader
        # what nobody votes for is forgotten, unless it is still shown
        self._labels = {
            index: label for index, label in self._labels.items() if index in counts or index == self._shown
        }
        label = None if self._shown is None else self._labels[self._shown]
        return Smoothed(label, counts[self._shown], len(self._votes), self._shown != before)
