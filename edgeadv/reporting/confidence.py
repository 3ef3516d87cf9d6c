"""What a results file says of the bundle's probabilities, checked before the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from edgeadv_runtime.bundle.confidence import Bin, Confidence, ece
from edgeadv_runtime.records.statistics import wilson_interval


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Temperature, calibration error without and with it, and the rejection threshold; ``bundle.confidence`` of a results file.

    Attributes:
        confidence: temperature and threshold.
        fitted: images that they were set on.
        measured: other images, on which everything below was measured.
        data: name and part of the images.
        nll_before: without the temperature.
        nll_after: with it.
        before: bins of equal width, without the temperature.
        after: the same with it.
        answered: images at or above the threshold.
        wrong: images whose first label is wrong.
        wrong_answered: those of them at or above the threshold.
    """

    confidence: Confidence
    fitted: int
    measured: int
    data: str
    nll_before: float
    nll_after: float
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]
    answered: int
    wrong: int
    wrong_answered: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibrated:
        """Read it.

        Raises:
            KeyError, TypeError, ValueError: it is not complete, or does not fit together.
        """
        rejection, data = value["rejection"], value["data"]
        tables = [tuple(_bin(each) for each in value["reliability"][when]) for when in ("before", "after")]
        counts = [
            value["n"],
            value["n_held_out"],
            rejection["answered"],
            rejection["wrong"],
            rejection["wrong_answered"],
        ]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"{counts} are not numbers of images")
        n, measured, answered, wrong, wrong_answered = counts
        if any(sum(each.n for each in table) != measured or len(table) != len(tables[0]) for table in tables):
            raise ValueError("the bins of the calibration error do not hold the images that were measured")
        if not (answered <= measured and wrong <= measured and wrong_answered <= min(answered, wrong) and measured):
            raise ValueError(f"{answered} answered and {wrong_answered} of {wrong} wrong do not fit {measured} images")
        found = cls(
            confidence=Confidence.from_json(value), fitted=n, measured=measured, data=f"{data['name']} ({data['split']})",
            nll_before=float(value["nll_before"]), nll_after=float(value["nll_after"]), before=tables[0], after=tables[1],
            answered=answered, wrong=wrong, wrong_answered=wrong_answered,
        )  # fmt: skip
        if not (isfinite(found.nll_before) and isfinite(found.nll_after)):
            raise ValueError("a negative log-likelihood is not a number")
        return found

    @property
    def ece_before(self) -> float:
        """Calibration error without the temperature."""
        return ece(self.before)

    @property
    def ece_after(self) -> float:
        """Calibration error with it."""
        return ece(self.after)

    @property
    def answered_interval(self) -> tuple[float, float]:
        """Wilson 95% interval of the share that is answered."""
        return wilson_interval(self.answered, self.measured)

    @property
    def rows(self) -> list[tuple[str, Bin, Bin]]:
        """The bins that hold an image without or with the temperature, by their range in words."""
        width = 1 / len(self.before)
        pairs = enumerate(zip(self.before, self.after, strict=True))
        return [(f"{i * width:.0%} to {(i + 1) * width:.0%}", a, b) for i, (a, b) in pairs if a.n or b.n]


def _bin(value: Mapping[str, Any]) -> Bin:
    found = Bin(value["n"], float(value["confidence"]), float(value["accuracy"]))
    if type(found.n) is not int or found.n < 0 or not (0 <= found.confidence <= 1 and 0 <= found.accuracy <= 1):
        raise ValueError(f"{found} is not a bin of a calibration error")
    return found
