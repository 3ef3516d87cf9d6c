"""The guard: its squeezers against scipy and by hand, its threshold, and what it says with a real backend."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import median_filter

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.classifier import Classifier
from edgeadv_runtime.confidence import softmax
from edgeadv_runtime.errors import BundleError, InputError
from edgeadv_runtime.guard import Guard, fit_threshold, squeeze
from edgeadv_runtime.preprocess import to_tensor


@pytest.fixture
def x():
    return np.random.default_rng(0).integers(0, 256, (3, 3, 9, 12)).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("side", [2, 3])
def test_the_median_is_scipys(x, side):
    for images in (x, np.round(x, 1)):  # with many ties too
        expected = median_filter(images, size=(1, 1, side, side), mode="nearest")
        assert np.array_equal(squeeze(images, f"median-{side}"), expected)


def test_fewer_bits_by_hand():
    x = np.array([0, 0.2, 0.49, 0.51, 0.84, 1], np.float32).reshape(1, 1, 1, 6)
    assert squeeze(x, "bits-1").ravel().tolist() == [0, 0, 0, 1, 1, 1]
    assert (squeeze(x, "bits-2").ravel() * 3).round(5).tolist() == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_squeezed_image_stays_where_it_is(x, bits):
    once = squeeze(x, f"bits-{bits}")
    assert len(np.unique(once)) <= 2**bits and once.dtype == np.float32
    assert np.array_equal(squeeze(once, f"bits-{bits}"), once)
    assert np.abs(once - x).max() <= 0.5 / (2**bits - 1) + 1e-6


def test_a_flat_image_is_its_own_median():
    flat = np.full((1, 3, 5, 5), 0.3, np.float32)
    assert np.array_equal(squeeze(flat, "median-2"), flat) and np.array_equal(squeeze(flat, "median-3"), flat)


def test_threshold_by_hand():
    scores = np.arange(19) / 10
    # of 19 clean frames and a further one, 5% is one: it may lie above the largest
    assert fit_threshold(scores, false_alarms=0.05) == 1.8
    assert fit_threshold(scores, false_alarms=0.1) == pytest.approx(1.7)
    assert fit_threshold(scores, false_alarms=0.5) == pytest.approx(0.9)
    with pytest.raises(InputError, match=r"19 clean images cannot set a rate of 0\.04 false alarms: give 24 or more"):
        fit_threshold(scores, false_alarms=0.04)
    for wrong in (0, 1, -1, float("nan")):
        with pytest.raises(InputError, match="rate of false alarms"):
            fit_threshold(scores, false_alarms=wrong)


def test_threshold_keeps_its_rate_on_other_frames():
    rng = np.random.default_rng(1)
    alarms = [scores[99] > fit_threshold(scores[:99], false_alarms=0.1) for scores in rng.exponential(size=(500, 100))]
    assert abs(np.mean(alarms) - 0.1) < 4 * (0.1 * 0.9 / 500) ** 0.5


def test_scores_are_the_largest_distance_of_probabilities(x):
    weights = np.random.default_rng(2).normal(size=(3 * 9 * 12, 4)).astype(np.float32)

    def infer(images):
        return images.reshape(len(images), -1) @ weights

    guard = Guard(("bits-2", "median-3"), threshold=0.5, temperature=3.0)
    checked = guard.judge(infer, x)
    p = [softmax(infer(images), temperature=3.0) for images in (x, squeeze(x, "bits-2"), squeeze(x, "median-3"))]
    expected = np.maximum(np.abs(p[1] - p[0]).sum(axis=1), np.abs(p[2] - p[0]).sum(axis=1))
    np.testing.assert_allclose(checked.scores, expected, rtol=1e-4)
    np.testing.assert_allclose(checked.logits, infer(x), rtol=1e-4)
    assert checked.flagged.tolist() == (checked.scores > 0.5).tolist() and (checked.scores <= 2).all()
    # a score that is the threshold is not above it
    assert not Guard(guard.squeezers, float(checked.scores[0]), 3.0).judge(infer, x[:1]).flagged[0]


@pytest.mark.parametrize("names", [(), ("bits-8",), ("bits-0",), ("median-4",), ("bits-5", "bits-5"), ("blur",), (5,)])
def test_unknown_squeezers_are_refused(names):
    with pytest.raises(InputError, match="squeezers are one or more of bits-1 to bits-7"):
        Guard(names, 1.0)


@pytest.mark.parametrize(
    ("threshold", "temperature"), [(-0.1, 1), (2.1, 1), (float("nan"), 1), (1, 0), (1, float("inf"))]
)
def test_impossible_numbers_are_refused(threshold, temperature):
    with pytest.raises(InputError, match="threshold is in"):
        Guard(("bits-5",), threshold, temperature)


def test_with_a_bundle_and_a_backend(tiny_bundle, rewritten, photographs):
    with pytest.raises(InputError, match="has no guard: export it with --confidence-data and --guard-false-alarms"):
        Guard.of(tiny_bundle)
    entry = {"squeezers": ["bits-3", "median-2"], "threshold": 0.01, "temperature": 0.5, "of tomorrow": 1}
    bundle = Bundle.open(rewritten(guard=entry))
    guard = Guard.of(bundle)
    assert guard == Guard(("bits-3", "median-2"), 0.01, 0.5)
    with Classifier(bundle, OnnxRuntimeBackend(bundle, variant="fp32", threads=1)) as classifier:
        seen = [guard.classify(classifier, frame, color_order="rgb", top=3) for frame in photographs[:6]]
        pixels = np.stack([bundle.preprocess(frame, color_order="rgb") for frame in photographs[:6]])
        together = guard.check(classifier.backend, to_tensor(pixels))
        for frame, one, score in zip(photographs, seen, together.scores, strict=False):
            plain = classifier.classify(frame, color_order="rgb", top=3)
            assert [label.index for label in one.labels] == [label.index for label in plain]
            assert one.score == pytest.approx(score, abs=1e-4)
            assert one.flagged == (one.score > 0.01)
    for damaged in ({}, {**entry, "threshold": "high"}, {**entry, "squeezers": ["blur"]}, 7):
        with pytest.raises(BundleError, match="is damaged"):
            Guard.of(Bundle.open(rewritten(guard=damaged)))
