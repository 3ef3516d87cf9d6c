"""What a probability is worth: temperature scaling, calibration error, and the threshold below which an answer is none.

Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks": dividing all logits by one number,
fitted on images that were not trained on, makes most of the difference between what a network says and how often it is
right. It changes no label, and it says nothing about images of another kind or under attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError

BINS = 15
"""Of the calibration error, as in Guo et al. 2017, table 1."""
# halving an interval this often leaves nothing of it in float64
_HALVINGS = 200
# (n + 1) * share may be a whole number but for the rounding of floats
_SLACK = 1e-9


def softmax(logits: NDArray[np.floating], *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of the last axis of ``logits / temperature``, in float64 so that large logits do not overflow."""
    shifted = (logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)) / temperature
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def first_is_right(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the label comes first; as in evaluation, a tie goes against the model.

    Args:
        logits: (n, classes).
        labels: int64 (n,).

    Returns:
        bool (n,).
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    right: NDArray[np.bool_] = (logits >= own).sum(axis=1) == 1
    return right


def nll(logits: NDArray[np.floating], labels: NDArray[np.int64], *, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the labels under ``softmax(logits / temperature)`` (Guo et al. 2017, section 2),
    in nats.

    Args:
        logits: finite, (n, classes), n >= 1.
        labels: int64 (n,).
        temperature: above 0.
    """
    z = logits.astype(np.float64) / temperature
    top = z.max(axis=1)
    partition = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return float((partition - np.take_along_axis(z, labels[:, None], axis=1)[:, 0]).mean())


@dataclass(frozen=True)
class Bin:
    """Images whose first label is given a probability in one of :data:`BINS` equal parts of (0, 1].

    Attributes:
        n: how many they are.
        confidence: mean probability of the first label; 0 without images.
        accuracy: share of them that are right; 0 without images.
    """

    n: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.floating], right: NDArray[np.bool_], *, bins: int = BINS) -> tuple[Bin, ...]:
    """Images by how sure the model is: bin m of M holds those in ((m - 1) / M, m / M] (Guo et al. 2017, section 2).

    Args:
        confidence: probability of the first label, (n,) in [0, 1].
        right: bool (n,).
        bins: M.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    n = np.bincount(place, minlength=bins)
    said = np.bincount(place, weights=confidence, minlength=bins) / np.maximum(n, 1)
    was = np.bincount(place, weights=right, minlength=bins) / np.maximum(n, 1)
    return tuple(Bin(int(count), float(a), float(b)) for count, a, b in zip(n, said, was, strict=True))


def ece(bins: tuple[Bin, ...]) -> float:
    """Expected calibration error: mean distance of accuracy and confidence, weighted by images (Guo et al. 2017, eq.
    3).

    Raises:
        ValueError: there are no images.
    """
    total = sum(each.n for each in bins)
    if not total:
        raise ValueError("a calibration error needs images")
    return sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / total


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature with the least :func:`nll` (Guo et al. 2017, section 4.2).

    In b = 1 / T the NLL is convex: its derivative, the mean of ``sum_k p_k z_k - z_label`` with ``p = softmax(b z)``,
    rises with b, so its one zero is bracketed by doubling and found by halving. Nothing can diverge or end beside the
    minimum.

    Args:
        logits: finite, (n, classes), n >= 1.
        labels: int64 (n,).

    Raises:
        DataError: there is no minimum: every label comes first, so that any smaller T is better, or the logits are no
            better than chance, so that any larger one is.
    """
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    own = np.take_along_axis(z, labels[:, None], axis=1)[:, 0]
    if (own >= 0).all():
        raise DataError(
            f"all {len(z)} images to fit the temperature on are right, so none says how sure is too sure: give "
            "more or harder images"
        )
    if float(z.mean(axis=1).mean()) >= float(own.mean()):
        raise DataError(
            f"on the {len(z)} images to fit the temperature on the logits are no better than chance: check that "
            "the labels are "
            "those of the model's classes"
        )

    def slope(b: float) -> float:
        weights = np.exp(b * z)
        return float(((weights * z).sum(axis=1) / weights.sum(axis=1) - own).mean())

    low = high = 1.0
    while slope(high) < 0:
        high *= 2
    while slope(low) > 0:
        low /= 2
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        if not low < middle < high:
            break
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def rejection_threshold(confidence: NDArray[np.floating], *, coverage: float) -> float:
    """The probability below which an answer counts as none, so that at least a share ``coverage`` is answered.

    The k-th smallest of n with ``k = floor((n + 1) (1 - coverage))``: a further image of the same kind falls below it
    with probability at most ``k / (n + 1)``, whatever the distribution (a one-sided tolerance limit, Wilks 1941; as in
    split conformal prediction, Lei et al. 2018). 0 where there are too few images for any.

    Args:
        confidence: probability of the first label, (n,).
        coverage: in (0, 1].

    Raises:
        InputError: ``coverage`` is out of range.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage is a share of the images in (0, 1], such as 0.95, not {coverage:g}")
    rank = floor((len(confidence) + 1) * (1 - coverage) + _SLACK)
    return float(np.sort(confidence)[rank - 1]) if rank else 0.0


@dataclass(frozen=True)
class Confidence:
    """What an application needs of the manifest's ``confidence``.

    Attributes:
        temperature: what logits are divided by before the softmax.
        threshold: probability of the first label below which an answer counts as none.
        coverage: the share of images that the threshold was set for.
    """

    temperature: float
    threshold: float
    coverage: float
