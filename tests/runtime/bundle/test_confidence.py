"""Temperature, calibration error and rejection threshold against closed forms and another optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.confidence import (
    Bin,
    Confidence,
    ece,
    first_is_right,
    fit_temperature,
    nll,
    rejection_threshold,
    reliability,
    softmax,
)
from edgeadv_runtime.errors import BundleError, DataError, InputError
from edgeadv_runtime.inference.classifier import Classifier

REJECTION = {
    "coverage": 0.95,
    "threshold": 0.4,
    "n": 9,
    "answered": 8,
    "answered_ci95": [0.5, 1.0],
    "wrong": 1,
    "wrong_answered": 0,
    "error_answered_ci95": None,
}
TOLD = {
    "temperature": 2.0,
    "n": 9,
    "n_held_out": 9,
    "nll_before": 1.0,
    "nll_after": 0.9,
    "ece_before": 0.2,
    "ece_after": 0.1,
    "rejection": REJECTION,
    "data": {"name": "photos", "split": "test"},
    "reliability": {"before": [], "after": []},
}


def too_sure(n: int, classes: int, *, times: float, seed: int = 0):
    """Logits ``times`` as large as those whose softmax is right as often as it says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits)])
    return (logits * times).astype(np.float32), labels.astype(np.int64)


def test_nll_of_logits_that_say_nothing_is_the_logarithm_of_the_number_of_classes():
    assert nll(np.zeros((5, 7), np.float32), np.arange(5)) == pytest.approx(math.log(7))


def test_nll_in_closed_form_of_two_classes():
    # softmax of (0, d) gives the second class 1 / (1 + exp(-d))
    logits = np.array([[0.0, 3.0], [0.0, -1.0]], np.float32)
    expected = (math.log1p(math.exp(-3)) + math.log1p(math.exp(1))) / 2
    assert nll(logits, np.array([1, 1])) == pytest.approx(expected)
    expected = (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(0.5))) / 2
    assert nll(logits, np.array([1, 1]), temperature=2) == pytest.approx(expected)


def test_nll_does_not_overflow():
    assert nll(np.array([[1e30, 0.0]], np.float32), np.array([0])) == 0
    assert nll(np.array([[1e4, 0.0]], np.float32), np.array([1])) == pytest.approx(1e4)


def test_calibration_error_by_hand():
    # five images say 0.85 and 3 are right: 0.25 off; five say 0.65 and 4 are right: 0.15 off
    confidence = np.array([0.85] * 5 + [0.65] * 5)
    right = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 0], bool)
    bins = reliability(confidence, right, bins=10)
    assert bins[8] == Bin(5, pytest.approx(0.85), 0.6) and bins[6] == Bin(5, pytest.approx(0.65), 0.8)
    assert sum(each.n for each in bins) == 10
    assert ece(bins) == pytest.approx(0.5 * 0.25 + 0.5 * 0.15)


def test_a_bin_holds_its_upper_end_and_not_its_lower():
    bins = reliability(np.array([0.0, 0.25, 0.5, 0.5000001, 1.0]), np.ones(5, bool), bins=4)
    assert [each.n for each in bins] == [2, 1, 1, 1]
    assert len(reliability(np.array([0.5]), np.array([True]))) == 15


def test_a_model_that_is_right_as_often_as_it_says_has_no_error():
    assert ece(reliability(np.full(4, 0.75), np.array([1, 1, 1, 0], bool))) == 0
    assert ece(reliability(np.ones(4), np.zeros(4, bool))) == 1
    with pytest.raises(ValueError, match="needs images"):
        ece(reliability(np.empty(0), np.empty(0, bool)))


def test_temperature_in_closed_form():
    # all logits (0, 1), a share q of the labels 1: the best probability is q, so 1 / T is its logit
    q = 0.8
    logits = np.tile(np.array([[0.0, 1.0]], np.float32), (10, 1))
    labels = np.array([1] * 8 + [0] * 2)
    assert fit_temperature(logits, labels) == pytest.approx(1 / math.log(q / (1 - q)), rel=1e-12)


@pytest.mark.parametrize("times", [0.01, 0.5, 1.0, 3.0, 40.0, 1e5])
def test_temperature_is_that_of_another_optimiser(times):
    logits, labels = too_sure(3000, 10, times=times)
    found = fit_temperature(logits, labels)
    other = minimize_scalar(
        lambda log_t: nll(logits, labels, temperature=math.exp(log_t)),
        bounds=(math.log(times) - 3, math.log(times) + 3),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # near its minimum a function is flat: half the digits of its argument
    assert found == pytest.approx(math.exp(other.x), rel=1e-6)
    assert nll(logits, labels, temperature=found) <= other.fun + 1e-12
    assert found == pytest.approx(times, rel=0.1)
    for beside in (0.99, 1.01):
        assert nll(logits, labels, temperature=found * beside) > nll(logits, labels, temperature=found)


def test_temperature_follows_the_scale_of_the_logits_and_not_their_shift():
    logits, labels = too_sure(500, 5, times=2)
    found = fit_temperature(logits, labels)
    assert fit_temperature(logits * 64, labels) == pytest.approx(64 * found, rel=1e-9)
    assert fit_temperature(logits.astype(np.float64) + 100, labels) == pytest.approx(found, rel=1e-9)


def test_temperature_makes_a_model_that_is_too_sure_believable():
    logits, labels = too_sure(4000, 10, times=5)
    fit, other = slice(0, 2000), slice(2000, 4000)
    t = fit_temperature(logits[fit], labels[fit])
    right = first_is_right(logits[other], labels[other])
    before, after = (ece(reliability(softmax(logits[other], temperature=each).max(axis=1), right)) for each in (1.0, t))
    assert before > 0.15 and after < 0.04


def test_no_temperature_without_a_wrong_image_or_without_knowledge():
    logits = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match="all 4 images to fit the temperature on are right"):
        fit_temperature(logits, np.arange(4))
    with pytest.raises(DataError, match="no better than chance"):
        fit_temperature(logits, np.array([1, 2, 3, 0]))
    with pytest.raises(DataError, match="no better than chance"):
        fit_temperature(np.tile(np.array([[1.0, 0.0]], np.float32), (4, 1)), np.array([0, 1, 0, 1]))


def test_a_tie_goes_against_the_model():
    logits = np.array([[1, 1], [2, 1], [1, 2]], np.float32)
    assert first_is_right(logits, np.array([0, 0, 0])).tolist() == [False, True, False]


def test_threshold_by_hand():
    confidence = np.array([0.9, 0.5, 0.7, 0.6, 0.8, 0.95, 0.99, 0.4, 0.3])
    # of 9 images and a further one, 20% of 10 are two: below the second smallest lies at most one in five
    assert rejection_threshold(confidence, coverage=0.8) == 0.4
    assert rejection_threshold(confidence, coverage=0.9) == 0.3
    assert rejection_threshold(confidence, coverage=0.91) == 0
    assert rejection_threshold(confidence, coverage=1) == 0
    for wrong in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="coverage is a share"):
            rejection_threshold(confidence, coverage=wrong)


def test_threshold_keeps_its_coverage_on_other_images():
    rng = np.random.default_rng(3)
    rejected = []
    for _ in range(400):
        confidence = rng.beta(5, 1, size=100)
        threshold = rejection_threshold(confidence[:99], coverage=0.9)
        rejected.append(confidence[99] < threshold)
    # at most one in ten, and here 10 of 100 ranks exactly: four standard errors
    assert abs(np.mean(rejected) - 0.09) < 4 * math.sqrt(0.09 * 0.91 / 400)


def test_a_bundle_without_confidence_opens_as_before(tiny_bundle):
    assert tiny_bundle.manifest.confidence is None and tiny_bundle.confidence is None
    assert tiny_bundle.manifest.schema_version == 1


def test_the_classifier_uses_the_temperature_of_its_bundle(tiny_bundle, rewritten, photographs):
    path = rewritten(confidence={**TOLD, "a key of tomorrow": 1})
    assert Bundle.open(path).confidence == Confidence(2.0, 0.4, 0.95)
    with (
        Classifier.open(tiny_bundle.path, variant="fp32", threads=1) as plain,
        Classifier.open(path, variant="fp32", threads=1) as fitted,
    ):
        for frame in photographs[:4]:
            before = plain.classify(frame, color_order="rgb", top=10)
            after = fitted.classify(frame, color_order="rgb", top=10)
            assert [label.index for label in before] == [label.index for label in after]
            # p ** (1 / T), made to add up to 1 again
            powers = np.sqrt([label.probability for label in before])
            assert [label.probability for label in after] == pytest.approx((powers / powers.sum()).tolist())


@pytest.mark.parametrize(
    "value",
    [
        3,
        {},
        {**TOLD, "temperature": 0},
        {**TOLD, "temperature": "warm"},
        {**TOLD, "temperature": "inf"},
        {**TOLD, "rejection": {**REJECTION, "threshold": 1.5}},
        {**TOLD, "rejection": {**REJECTION, "coverage": 0}},
    ],
)
def test_a_damaged_confidence_is_refused(rewritten, value):
    with pytest.raises(BundleError, match=r"manifest.json is not a complete bundle manifest \(confidence"):
        Bundle.open(rewritten(confidence=value))
