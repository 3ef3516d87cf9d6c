"""Noise is uniform, belongs to the image, and of several draws the strongest is kept."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadv.data.datasets import balanced_subset, batches
from edgeadv_runtime import NoiseAttack
from edgeadv_runtime.attacks.base import CumulativeAttack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.margins import margins
from edgeadv_runtime.attacks.noise import CumulativeNoise
from edgeadv_runtime.attacks.perturbation import check_crafted
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.draws import image_rng
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

EPS = Eps.parse_list("8/255,0.3")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((6, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def backend(digits_bundle):
    with OnnxRuntimeBackend(digits_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def digits(digits_test):
    return next(
        batches(digits_test, digits_test.preprocess, batch_size=40, order=balanced_subset(digits_test.labels, 40))
    )


def test_one_draw_is_uniform_and_keeps_the_contract(x):
    y = np.zeros(6, np.int64)
    for eps, crafted in zip(EPS, NoiseAttack(EPS).craft(x, y), strict=True):
        check_crafted(crafted.x, x, "noise", eps)
        assert crafted.zero_gradient is None
        assert (np.abs(crafted.x.astype(np.float64) - x) <= eps.value).all()
        inside = (x > eps.value) & (x < 1 - eps.value)
        share = ((crafted.x - x)[inside] / eps.value + 1) / 2
        counts, _ = np.histogram(share, bins=10, range=(0, 1))
        expected = inside.sum() / 10
        # chi-squared with 9 degrees of freedom: above 27.9 once in a thousand seeds
        assert ((counts - expected) ** 2 / expected).sum() < 27.9
        # what would leave [0, 1] lies on its edge
        assert (crafted.x[(x < 0.01)] == 0).any() and (crafted.x[(x > 0.99)] == 1).any()


def test_on_what_stands_it_is_the_same_noise(backend, digits):
    x, y = to_tensor(digits.pixels), digits.labels
    everywhere = NoiseAttack(EPS, queries=5, backend=backend)
    adding = CumulativeNoise(EPS, queries=5, backend=backend)
    assert isinstance(adding, CumulativeAttack) and not isinstance(everywhere, CumulativeAttack)
    assert (
        adding.asked is backend
        and adding.name == everywhere.name
        and adding.params(EPS[0]) == everywhere.params(EPS[0])
    )
    for eps, made in zip(EPS, everywhere.craft(x, y), strict=True):
        np.testing.assert_array_equal(adding.craft_from(x[7:20], y[7:20], x[7:20], eps).x, made.x[7:20])


def test_noise_belongs_to_the_image(x):
    y = np.zeros(6, np.int64)
    together = NoiseAttack(EPS).craft(x, y)
    for i in range(6):
        for whole, alone in zip(together, NoiseAttack(EPS).craft(x[i : i + 1], y[:1]), strict=True):
            assert (whole.x[i] == alone.x[0]).all()
    assert (NoiseAttack(EPS, seed=1).craft(x, y)[0].x != together[0].x).any()


def test_budgets_differ_in_size_only(x):
    small, large = NoiseAttack(EPS).craft(x, np.zeros(6, np.int64))
    inside = (x > 0.3) & (x < 0.7)
    ratio = ((large.x - x)[inside] / 0.3) - ((small.x - x)[inside] / (8 / 255))
    assert np.abs(ratio).max() < 1e-5


def test_no_images(x):
    for crafted in NoiseAttack(EPS).craft(x[:0], np.zeros(0, np.int64)):
        assert crafted.x.shape == (0, 3, 32, 32) and crafted.x.dtype == np.float32


def test_one_draw_needs_no_model_and_says_so(backend):
    for attack in (NoiseAttack(EPS), NoiseAttack(EPS, backend=backend)):
        assert (attack.name, attack.gradients, attack.gradients_sha256, attack.queried) == ("noise", None, None, None)
        assert attack.control is False
        assert attack.params(EPS[0]).to_json() == {"norm": "linf", "seed": 0, "queries": 1}


def test_several_draws_keep_the_strongest(backend, digits):
    x, y = to_tensor(digits.pixels), digits.labels
    attack = NoiseAttack(EPS, queries=5, backend=backend)
    assert attack.queried == backend.identity and attack.name == "noise@onnxruntime-fp32"
    assert attack.params(EPS[0]).to_json() == {"norm": "linf", "loss": "logit margin", "seed": 0, "queries": 5}
    crafted = attack.craft(x, y)
    for eps, result in zip(EPS, crafted, strict=True):
        check_crafted(result.x, x, attack.name, eps)
        rngs = [image_rng("noise", 0, image) for image in x]
        drawn = []
        for _ in range(5):
            unit = np.stack([rng.random((3, 32, 32), dtype=np.float32) * 2 - 1 for rng in rngs])
            drawn.append(margins(backend.infer(np.clip(x + np.float32(eps.value) * unit, 0, 1)), y))
        found = margins(backend.infer(result.x), y)
        assert np.abs(found - np.max(drawn, axis=0)).max() < 1e-4
        assert len(set(np.argmax(drawn, axis=0))) > 1
        one = NoiseAttack([eps]).craft(x, y)[0].x
        kept_first = np.argmax(drawn, axis=0) == 0
        assert (result.x[kept_first] == one[kept_first]).all()


def test_through_the_evaluation_loop(backend, digits):
    clean = CleanBatch(digits.index, digits.pixels, digits.labels)
    attacks = [NoiseAttack(EPS), NoiseAttack(EPS, queries=3, backend=backend)]
    (batch,) = craft([clean], attacks, backend, uint8=False)
    keys = [info.key for info in infos(attacks, uint8=False)]
    assert keys == [(name, eps.text) for name in ("noise", "noise@onnxruntime-fp32") for eps in EPS]
    assert all(
        (batch.evidence.answers[key] == backend.infer(batch.adversarial[key]).argmax(axis=1)).all() for key in keys
    )


def test_bad_input():
    with pytest.raises(InputError, match="5 draws of noise need a backend"):
        NoiseAttack(EPS, queries=5)
    with pytest.raises(InputError, match="at least 1 and the seed not negative, not 0 and 0"):
        NoiseAttack(EPS, queries=0)
    with pytest.raises(InputError, match="not 1 and -1"):
        NoiseAttack(EPS, seed=-1)
