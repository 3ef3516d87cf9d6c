"""The attack that knows the guard: its squeezers are the guard's, it keeps its budget, and it gets past what catches others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeadv.attacks import build_attacks
from edgeadv.data import balanced_subset, batches
from edgeadv.guard_attack import ADAPTIVE, AdaptiveAttack, _Aim, _Views, squeeze, wrong_classes
from edgeadv.pack import clean_batches
from edgeadv_export import ConfidencePlan, GuardPlan, confidence_images, data_frames, export_bundle
from edgeadv_runtime import guard as numpy_side
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.confidence import first_is_right
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.evaluate import DataInfo
from edgeadv_runtime.guard import Guard
from edgeadv_runtime.guard_file import GuardFile
from edgeadv_runtime.guard_measure import measure_guard
from edgeadv_runtime.preprocess import to_tensor
from edgeadv_runtime.stats import wilson_interval
from edgeadv_runtime.suites import Effort

EPS = Eps.parse("0.2")
STATED = 0.1


@pytest.mark.parametrize("name", ["bits-1", "bits-5", "bits-7", "median-2", "median-3"])
def test_squeezers_are_those_of_the_guard_to_the_bit(name):
    x = np.random.default_rng(0).random((2, 3, 8, 11), dtype=np.float32)
    for images in (x, (x * 255).round() / np.float32(255), x.round(1)):
        expected = numpy_side.squeeze(images, name)
        assert np.array_equal(squeeze(torch.from_numpy(images), name).numpy(), expected)
        assert np.allclose(squeeze(torch.from_numpy(images), name, straight=True).numpy(), expected, atol=1e-6)


def test_the_gradient_of_fewer_bits_is_straight_through_and_that_of_the_median_chooses():
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for name, straight in (("bits-2", False), ("median-2", True), ("median-3", True)):
        (gradient,) = torch.autograd.grad((squeeze(x, name, straight=straight) * weights).sum(), x)
        assert torch.equal(gradient, weights)
    for name in ("median-2", "median-3"):
        (gradient,) = torch.autograd.grad((squeeze(x, name) * weights).sum(), x)
        assert float(gradient.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)
        # by a small step in every direction: no two pixels are so close that another one is chosen
        step = torch.rand_like(x) * 1e-5
        moved = (squeeze(x + step, name) - squeeze(x, name)) * weights
        assert float(moved.detach().sum()) == pytest.approx(float((gradient * step).sum()), rel=0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, digits_model, digits_test):
    """The digits with a guard that was set on 500 of their test images."""
    images, order = confidence_images("mnist5k", digits_test.classes)
    plan = ConfidencePlan(
        images=images, order=order, guard=GuardPlan(false_alarms=STATED, squeezers=("bits-2", "median-2"))
    )
    return export_bundle(
        digits_model, tmp_path_factory.mktemp("guarded") / "digits.edgeadv", classes=digits_test.classes,
        preprocess=digits_test.preprocess, frames=data_frames(digits_test), variants=["fp32"], title="digits", provenance={},
        confidence=plan,
    )  # fmt: skip


def test_the_manifest_tells_how_the_guard_was_set(bundle):
    entry = bundle.manifest["guard"]
    assert (entry["n"], entry["n_held_out"], entry["false_alarms"]) == (500, 500, STATED)
    assert entry["temperature"] == bundle.manifest["confidence"]["temperature"]
    assert entry["flagged_ci95"] == list(wilson_interval(entry["flagged"], 500))
    assert abs(entry["flagged"] / 500 - STATED) < 4 * (STATED * (1 - STATED) * 2 / 500) ** 0.5
    assert Guard.of(bundle).squeezers == ("bits-2", "median-2")


def test_rank_is_above_0_only_past_the_guard_with_a_wrong_label(bundle, digits_model, digits_test):
    guard = Guard.of(bundle)
    everything = next(batches(digits_test, digits_test.preprocess, batch_size=300))
    x = np.clip(to_tensor(everything.pixels) + np.random.default_rng(0).normal(0, 0.2, (300, 3, 32, 32)), 0, 1)
    x = (x * 255).round().astype(np.float32) / np.float32(255)
    labels = torch.from_numpy(everything.labels)
    with torch.no_grad():
        out = _Views(digits_model, guard, straight=False)(torch.from_numpy(x))
    aim = _Aim(guard, 1.0)

    def infer(images):
        with torch.no_grad():
            return digits_model(torch.from_numpy(images)).numpy()

    checked = guard.judge(infer, x)
    np.testing.assert_allclose(aim.scores(out).numpy(), checked.scores, atol=1e-4)
    past = (checked.logits.argmax(axis=1) != everything.labels) & ~checked.flagged
    clear = np.abs(checked.scores - guard.threshold) > 1e-3
    assert np.array_equal((aim.rank(out, labels) > 0).numpy()[clear], past[clear])
    assert 0 < past.sum() < 300


def test_an_image_keeps_its_budget_and_does_not_depend_on_its_batch(bundle, digits_model, digits_test):
    attack = AdaptiveAttack(digits_model, Guard.of(bundle), "ab", [Eps.parse("13/255"), EPS], steps=4, restarts=3)
    everything = next(batches(digits_test, digits_test.preprocess, batch_size=6))
    x, y = to_tensor(everything.pixels), everything.labels
    together = attack.craft(x, y)
    for eps, crafted in zip(attack.eps, together, strict=True):
        assert crafted.x.dtype == np.float32 and crafted.x.min() >= 0 and crafted.x.max() <= 1
        assert np.abs(crafted.x - x).max() <= eps.grey_levels / 255 + 1e-6
    alone = [attack.craft(x[i : i + 1], y[i : i + 1]) for i in range(6)]
    for k in range(2):
        apart = np.concatenate([each[k].x for each in alone])
        # sums of a batch of another size may differ in the last bit, and turn a sign where a gradient is 0
        assert (np.abs(apart - together[k].x) > 1e-6).mean() < 0.01
    with pytest.raises(InputError, match="less than one grey level"):
        AdaptiveAttack(digits_model, Guard.of(bundle), "ab", [Eps.parse("0.001")])


def measure(bundle, model, images, order, *, attacks=("pgd-margin",), steps=40) -> GuardFile:
    made = build_attacks(
        model, [EPS], efforts={name: Effort(steps=20) for name in attacks}, classes=10, gradients_sha256=bundle.weights_sha256
    )  # fmt: skip
    adaptive = AdaptiveAttack(model, Guard.of(bundle), bundle.weights_sha256, [EPS], steps=steps, restarts=2)
    with OnnxRuntimeBackend(bundle, variant="fp32", threads=1) as backend:
        return measure_guard(
            clean_batches(images, bundle, order, unreadable=[]), made, adaptive=[adaptive], bundle=bundle, backends=[backend],
            data=DataInfo("mnist5k", "test", len(order)),
        )  # fmt: skip


def test_who_knows_the_guard_gets_past_what_it_catches_of_others(bundle, digits_model, digits_test):
    """Everything is counted on images that the guard was not set on, and the worst case is no better than any attack."""
    measured = measure(bundle, digits_model, digits_test, balanced_subset(digits_test.labels, 240))
    (clean,) = measured.clean
    assert clean.n + measured.data["fitted_left_out"] == 240 and clean.n == measured.data["n"]
    assert abs(clean.false_alarm_rate - STATED) < 4 * (STATED * (1 - STATED) * (1 / clean.n + 1 / 500)) ** 0.5
    rows = {row.attack: row for row in measured.rows}
    plain, adaptive, worst = rows["pgd-margin"], rows[ADAPTIVE], rows["worst-case"]
    assert plain.n == adaptive.n == worst.n == clean.right
    assert not plain.adaptive and adaptive.adaptive
    # measured: 100% broken without regard to the guard, of which it flags a part; all but a few get past when it is known
    assert plain.succeeded > 0.9 * plain.n and plain.detection_rate is not None
    assert adaptive.evasion_rate > plain.evasion_rate and adaptive.evasion_rate > 0.9
    assert worst.evaded >= max(plain.evaded, adaptive.evaded) and worst.succeeded >= plain.succeeded
    assert f"{worst.evasion_rate:.1%}" in measured.sentences[0] and "know the guard" in measured.sentences[0]
    # the worst case is counted per image, not added up
    assert worst.evaded <= worst.succeeded <= worst.n


@pytest.mark.slow
def test_restarts_towards_other_classes_find_what_the_leading_one_does_not(digits_model, digits_test):
    """At a budget where images stand."""
    guard, eps = Guard(("bits-5", "median-2"), threshold=0.55, temperature=1.24), Eps.parse("26/255")
    order = balanced_subset(digits_test.labels, 100)
    everything = next(batches(digits_test, digits_test.preprocess, batch_size=100, order=order))
    x, y = to_tensor(everything.pixels), everything.labels

    def infer(images):
        with torch.no_grad():
            return digits_model(torch.from_numpy(images)).numpy()

    def past(restarts: int) -> np.ndarray:
        made = AdaptiveAttack(digits_model, guard, "ab", [eps], steps=30, restarts=restarts).craft(x, y)[0].x
        checked = guard.judge(infer, made)
        return ~first_is_right(checked.logits, y) & ~checked.flagged

    one, four = past(1), past(4)
    assert not (one & ~four).any()
    assert 20 < one.sum() < four.sum() - 3


def test_wrong_classes_are_in_the_order_of_the_logits():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, -1.0, 2.0]])
    assert wrong_classes(logits, torch.tensor([2, 1])).tolist() == [[0, 1, 3], [3, 0, 2]]


@pytest.mark.parametrize(("name", "text"), [("pgd-large-eps", "pgd-large-eps is a control"), ("pgd-l2", "one norm")])
def test_controls_and_other_norms_are_refused(bundle, digits_model, digits_test, name, text):
    with pytest.raises(InputError, match=text):
        measure(bundle, digits_model, digits_test, balanced_subset(digits_test.labels, 120), attacks=(name,), steps=1)


def test_what_int8_was_calibrated_on_is_left_out_too(bundle, digits_model, digits_test):
    order = balanced_subset(digits_test.labels, 300)
    before = measure(bundle, digits_model, digits_test, order, attacks=("fgsm",), steps=1).data
    known = set(bundle.manifest["confidence"]["images"])
    hashes = [h for b in clean_batches(digits_test, bundle, order, unreadable=[]) for h in b.hashes]
    others = frozenset([h for h in hashes if h not in known][:7])
    calibrated = Bundle.open(bundle.path)
    calibrated.__dict__["calibration_images"] = others
    after = measure(calibrated, digits_model, digits_test, order, attacks=("fgsm",), steps=1).data
    assert after["fitted_left_out"] == before["fitted_left_out"] + 7 and after["n"] == before["n"] - 7


def test_images_that_the_guard_was_set_on_are_left_out_and_the_rest_must_be_enough(bundle, digits_model, digits_test):
    with pytest.raises(DataError, match=r"images are left to measure the guard on .* 100 are needed"):
        measure(bundle, digits_model, digits_test, balanced_subset(digits_test.labels, 120), attacks=("fgsm",), steps=1)
