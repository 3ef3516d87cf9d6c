"""What is checked of an attack before it is scored, and the rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.attacks.base import CLEAN_KEY, Attack, CallableAttack, Crafted, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.perturbation import check_crafted, round_to_uint8
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams

EPS = Eps.parse("8/255")


class Brightness(Backend):
    """Two classes: dark and bright. Counts its images."""

    name, variant, provider, device, artifact_sha256 = "brightness", "fp32", "numpy", "test", "a" * 64
    input_shape, n_classes = (3, 4, 4), 2

    def __init__(self) -> None:
        self.images = 0

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.images += len(x)
        mean = x.mean(axis=(1, 2, 3))
        return np.stack([0.5 - mean, mean - 0.5], axis=1).astype(np.float32)


def batch_of(pixels: NDArray[np.uint8], first: int = 0) -> CleanBatch:
    labels = (pixels.mean(axis=(1, 2, 3)) > 127.5).astype(np.int64)
    return CleanBatch(np.arange(first, first + len(pixels)), pixels, labels)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def test_every_grey_level_survives_the_way_to_a_tensor_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    x = to_tensor(pixels)
    assert x.dtype == np.float32 and x.shape == (1, 3, 16, 16) and x.min() == 0 and x.max() == 1
    np.testing.assert_array_equal(round_to_uint8(x, pixels, Eps.parse("1/255")), pixels)


@pytest.mark.parametrize("text", ["1/255", "1.5/255", "0.01", "8/255", "0.031", "0.3", "254/255", "1"])
def test_rounding_stays_within_eps_and_finds_the_nearest_level(text: str) -> None:
    eps = Eps.parse(text)
    rng = np.random.default_rng(int(eps.value * 1e6))
    for _ in range(20):
        pixels = rng.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
        x = to_tensor(pixels).astype(np.float64)
        noise = rng.choice([-1.0, 1.0, rng.uniform(-1, 1)], size=x.shape)
        x_adv = np.clip(x + noise * eps.value, 0, 1)
        rounded = round_to_uint8(x_adv.astype(np.float32), pixels, eps)
        assert rounded.dtype == np.uint8 and rounded.shape == pixels.shape
        moved = np.abs(rounded.astype(int) - pixels.astype(int))
        # in whole levels, so that no rounding of floats is in the comparison
        assert moved.max() <= np.floor(eps.value * 255 + 1e-4)
        # by brute force: no allowed level is nearer
        wanted = x_adv.transpose(0, 2, 3, 1) * 255
        levels = np.arange(256)
        allowed = np.abs(levels - pixels[..., None].astype(int)) <= np.floor(eps.value * 255 + 1e-4)
        distance = np.where(allowed, np.abs(levels - wanted[..., None]), np.inf)
        assert (np.abs(rounded - wanted) <= distance.min(axis=-1) + 1e-3).all()


@pytest.mark.parametrize("k", [1, 2, 8, 77, 255])
def test_rounding_loses_nothing_where_eps_is_whole_levels(k: int) -> None:
    rng = np.random.default_rng(k)
    pixels = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    step = np.float32(Eps.parse(f"{k}/255").value)
    sign = rng.choice([-1, 1], size=(2, 3, 16, 16)).astype(np.float32)
    x_adv = np.clip(to_tensor(pixels) + step * sign, 0, 1)
    expected = np.clip(pixels.astype(int) + k * sign.transpose(0, 2, 3, 1).astype(int), 0, 255)
    rounded = round_to_uint8(x_adv, pixels, Eps.parse(f"{k}/255"))
    np.testing.assert_array_equal(rounded, expected)
    assert np.abs(to_tensor(rounded) - x_adv).max() < 1e-6


@pytest.mark.parametrize("uint8", [False, True])
def test_a_function_is_an_attack(pixels: NDArray[np.uint8], uint8: bool) -> None:
    seen: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def darken(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append((x, y))
        return np.maximum(x - np.float32(EPS.value * 0.9), 0)

    attack = CallableAttack(darken, "darken", EPS, gradients="none")
    (crafted,) = craft([batch_of(pixels)], [attack], Brightness(), uint8=uint8)
    np.testing.assert_array_equal(seen[0][0], to_tensor(pixels))
    np.testing.assert_array_equal(seen[0][1], batch_of(pixels).labels)
    key = ("darken", "8/255")
    made = crafted.adversarial[key]
    if uint8:
        # 0.9 * 8 levels is 7.2: the nearest level is 7 down
        np.testing.assert_array_equal(made, to_tensor(np.maximum(pixels.astype(int) - 7, 0).astype(np.uint8)))
    else:
        np.testing.assert_array_equal(made, np.maximum(to_tensor(pixels) - np.float32(EPS.value * 0.9), 0))
    np.testing.assert_array_equal(crafted.evidence.answers[CLEAN_KEY], batch_of(pixels).labels)
    # the reference sees what is scored: the rounded images where they are rounded
    np.testing.assert_array_equal(crafted.evidence.answers[key], (made.mean(axis=(1, 2, 3)) > 0.5).astype(np.int64))
    assert key not in crafted.evidence.zero_gradient


def _more_images(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([x, x])


def _one_nan(x: NDArray[np.float32]) -> NDArray[np.float32]:
    x = x.copy()
    x[-1, -1, -1, -1] = np.nan
    return x


def _one_too_far(x: NDArray[np.float32]) -> NDArray[np.float32]:
    moved = x.copy()
    value = moved[0, 0, 0, 0]
    moved[0, 0, 0, 0] = value + 9 / 255 if value < 0.5 else value - 9 / 255
    return moved


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_more_images, r"returned float32 \(10, 3, 4, 4\) for float32 \(5, 3, 4, 4\)"),
        (lambda x: x.transpose(0, 2, 3, 1), "returned float32"),
        (_one_nan, "not finite"),
        (lambda x: np.where(x == x.max(), np.inf, x), "not finite"),
        (lambda x: (x - 0.45) / 0.22, r"left the range \[0, 1\]"),
        (lambda x: x - 0.01, r"left the range \[0, 1\]"),
        (lambda x: x + 0.01, r"left the range \[0, 1\]"),
        (_one_too_far, "moved a pixel by 0.0352.*more than eps 8/255"),
    ],
    ids=["shape", "layout", "nan", "inf", "normalised", "below", "above", "eps"],
)
def test_a_broken_attack_is_named(
    pixels: NDArray[np.uint8], broken: Callable[[NDArray[np.float32]], NDArray[np.float32]], message: str
) -> None:
    pixels[0, 0, 0], pixels[1, 1, 1] = 0, 255
    attack = CallableAttack(lambda x, y: broken(x), "crook", EPS)
    with pytest.raises(InputError, match=message) as caught:
        list(craft([batch_of(pixels)], [attack], Brightness(), uint8=False))
    assert "attack crook" in str(caught.value)


@dataclass(frozen=True)
class Two:
    """An attack of two budgets that returns what it is given to return."""

    returned: Sequence[NDArray[np.floating]]
    name: str = "two"
    eps: Sequence[Eps] = (Eps.parse("1/255"), EPS)
    gradients: str | None = None
    gradients_sha256: str | None = None
    queried: str | None = None
    control: bool = False

    def params(self, eps: Eps) -> AttackParams:
        return AttackParams(norm="linf", step_size=eps.text)

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        return [Crafted(x + delta, np.arange(len(x)) == k) for k, delta in enumerate(self.returned)]


def test_budgets_keep_their_order_and_their_flags(pixels: NDArray[np.uint8]) -> None:
    pixels = pixels // 2 + 20
    deltas = [np.float32(1 / 255), np.float32(8 / 255)]
    (crafted,) = craft([batch_of(pixels)], [Two(deltas)], Brightness(), uint8=True)
    np.testing.assert_array_equal(crafted.adversarial["two", "1/255"], to_tensor(pixels + np.uint8(1)))
    np.testing.assert_array_equal(crafted.adversarial["two", "8/255"], to_tensor(pixels + np.uint8(8)))
    assert crafted.evidence.zero_gradient["two", "1/255"].tolist() == [True, False, False, False, False]
    assert crafted.evidence.zero_gradient["two", "8/255"].tolist() == [False, True, False, False, False]


def test_the_smaller_budget_is_held_to_its_own_eps(pixels: NDArray[np.uint8]) -> None:
    swapped = Two([np.float32(8 / 255), np.float32(1 / 255)])
    with pytest.raises(InputError, match="more than eps 1/255"):
        list(craft([batch_of(pixels // 2 + 20)], [swapped], Brightness(), uint8=False))


def test_double_precision_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="float64"):
        list(
            craft(
                [batch_of(pixels // 2)],
                [Two([np.zeros((), np.float64) + np.zeros((5, 3, 4, 4)), np.float32(0)])],
                Brightness(),
                uint8=False,
            )
        )


def test_batches_are_made_one_at_a_time(pixels: NDArray[np.uint8]) -> None:
    backend = Brightness()
    stream = craft(
        (batch_of(pixels, first=5 * i) for i in range(1000)),
        [CallableAttack(lambda x, y: x, "none", EPS)],
        backend,
        uint8=False,
    )
    next(stream)
    # clean and attacked images twice: an answer that changes is noticed
    assert backend.images == 20


def test_a_batch_without_images_goes_through(pixels: NDArray[np.uint8]) -> None:
    """All images of a batch may be unreadable: the last batch of 129 images is one image."""
    empty = CleanBatch(np.empty(0, np.int64), np.empty((0, 4, 4, 3), np.uint8), np.empty(0, np.int64))
    attack = CallableAttack(lambda x, y: x, "none", EPS)
    first, second = craft([empty, batch_of(pixels)], [attack], Brightness(), uint8=True)
    assert len(first.clean.labels) == 0 and first.adversarial["none", "8/255"].shape == (0, 3, 4, 4)
    assert first.evidence.answers[CLEAN_KEY].shape == first.evidence.answers["none", "8/255"].shape == (0,)
    assert len(second.clean.labels) == 5


def test_infos_say_how_each_budget_is_run() -> None:
    one, two = infos([Two([])], uint8=True)
    assert (one.key, two.key) == (("two", "1/255"), ("two", "8/255"))
    assert one.params == AttackParams(norm="linf", step_size="1/255", uint8=True)
    assert infos([Two([])], uint8=False)[1].params.uint8 is False


def test_two_attacks_of_one_name_and_budget_are_refused() -> None:
    with pytest.raises(InputError, match="two attacks are called two at eps 1/255"):
        infos([Two([]), Two([])], uint8=False)
    other: list[Attack] = [Two([]), Two([], name="other")]
    assert len(infos(other, uint8=False)) == 4


def test_less_than_a_grey_level_needs_floats() -> None:
    attack = CallableAttack(lambda x, y: x, "small", Eps.parse("0.5/255"))
    assert len(infos([attack], uint8=False)) == 1
    with pytest.raises(InputError, match="less than one grey level"):
        infos([attack], uint8=True)


@pytest.mark.parametrize("text", ["0.01", "8.5/255", "0.3"])
def test_between_two_grey_levels_needs_floats(text: str) -> None:
    """An attack is content with what works at 2.55 levels; cut back to 2, most of it would not, and the model would
    look robust."""
    attack = CallableAttack(lambda x, y: x, "between", Eps.parse(text))
    assert len(infos([attack], uint8=False)) == 1
    with pytest.raises(InputError, match="8-bit images hold whole ones"):
        infos([attack], uint8=True)


@pytest.mark.parametrize("text", ["8/255", "0.2", "1", "0.0313725", "0.03137255"])
def test_a_whole_number_of_grey_levels_fits_8_bits(text: str) -> None:
    assert len(infos([CallableAttack(lambda x, y: x, "whole", Eps.parse(text))], uint8=True)) == 1


# norms

L2 = AttackParams(norm="l2")


def _length(delta: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.sqrt((delta.reshape(len(delta), -1).astype(np.float64) ** 2).sum(axis=1))


@pytest.mark.parametrize("side", [4, 32, 224])
@pytest.mark.parametrize("eps", [Eps.parse("0.1"), Eps.parse("1")])
def test_an_l2_budget_limits_the_length_of_each_image(eps: Eps, side: int) -> None:
    rng = np.random.default_rng(side)
    x = rng.uniform(0.3, 0.7, (2, 3, side, side)).astype(np.float32)
    direction = rng.choice([-1.0, 1.0], size=x.shape)
    direction /= _length(direction)[:, None, None, None]
    # far beyond eps in one pixel is allowed, in sum it is not
    reach = (x + eps.value * direction).astype(np.float32)
    check_crafted(reach, x, "a", eps, norm="l2")
    one = x.copy()
    one[:, 0, 0, 0] += np.float32(min(eps.value, 0.3))
    check_crafted(one, x, "a", eps, norm="l2")
    with pytest.raises(InputError, match=f"attack a moved an image by .*more than eps {eps.text}"):
        check_crafted((x + 1.001 * eps.value * direction).astype(np.float32), x, "a", eps, norm="l2")
    # only one of two images
    with pytest.raises(InputError, match="moved an image"):
        check_crafted(
            np.stack([x[0], (x[1] + 1.001 * eps.value * direction[1]).astype(np.float32)]), x, "a", eps, norm="l2"
        )


@pytest.mark.parametrize("side", [4, 32, 224])
@pytest.mark.parametrize("text", ["0.05", "0.5", "1"])
def test_rounding_in_l2_uses_the_length_up_and_keeps_the_direction(text: str, side: int) -> None:
    eps, rng = Eps.parse(text), np.random.default_rng(side)
    pixels = rng.integers(40, 216, (6, side, side, 3), dtype=np.uint8)
    x = to_tensor(pixels)
    direction = rng.normal(size=x.shape) ** 3
    direction /= _length(direction)[:, None, None, None]
    # the first half goes all the way, the second has room for the rounding
    reach = np.array([1.0, 1.0, 1.0, 0.2, 0.2, 0.2])[:, None, None, None] * eps.value
    x_adv = np.clip(x + reach * direction, 0, 1).astype(np.float32)
    rounded = round_to_uint8(x_adv, pixels, eps, norm="l2")
    assert rounded.dtype == np.uint8 and rounded.shape == pixels.shape
    moved = rounded.astype(int) - pixels.astype(int)
    assert (_length(moved / 255) <= eps.value * (1 + 1e-6)).all()
    check_crafted(to_tensor(rounded), x, "a", eps, norm="l2")
    wanted = x_adv.transpose(0, 2, 3, 1).astype(np.float64) * 255 - pixels
    # a level beside each move, and on its side
    assert (np.abs(moved - wanted) < 1 + 1e-4).all() and (moved * wanted >= -1e-3).all()
    for ours, exact in zip(moved, wanted, strict=True):
        size, between = np.abs(exact), np.abs(exact - np.rint(exact)) > 1e-4
        raised, cost = np.abs(ours) > size, 2 * np.floor(size) + 1
        if (between & ~raised).any():
            # what is next would be too long, and nothing that was raised follows the perturbation less for what it
            # costs
            left = (255 * eps.value) ** 2 - (ours**2).sum()
            gain = size / cost
            following = gain[between & ~raised].max()
            assert left < cost[between & ~raised & (gain == following)].max() * (1 + 1e-6) + 1e-3
            assert not raised.any() or gain[raised].min() >= following - 1e-9


def test_rounding_in_l2_does_not_erase_a_perturbation_of_less_than_half_a_level() -> None:
    """Of 224 x 224 pixels, 0.5 is a third of a level for each: the nearest level is none."""
    eps, rng = Eps.parse("0.5"), np.random.default_rng(0)
    pixels = rng.integers(40, 216, (2, 224, 224, 3), dtype=np.uint8)
    direction = rng.normal(size=(2, 3, 224, 224))
    direction *= 0.5 / _length(direction)[:, None, None, None]
    rounded = round_to_uint8((to_tensor(pixels) + direction).astype(np.float32), pixels, eps, norm="l2")
    moved = (rounded.astype(float) - pixels).transpose(0, 3, 1, 2) / 255
    assert (_length(moved) > 0.499).all()
    # along the direction: nearly 0.7 of what the floats go
    assert ((moved * direction).sum(axis=(1, 2, 3)) > 0.65 * 0.5**2).all()


def test_rounding_in_l2_loses_nothing_where_moves_are_whole_levels() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 236, (3, 8, 8, 3), dtype=np.uint8)
    levels = rng.integers(-9, 10, pixels.shape)
    length = float(_length(levels / 255).max())
    x_adv = to_tensor((pixels + levels).astype(np.uint8))
    for value in (length, length * 0.5):
        rounded = round_to_uint8(x_adv, pixels, Eps(str(value), value), norm="l2")
        # also where the nearest level is out of reach: towards the original is no way off a whole level
        np.testing.assert_array_equal(rounded, pixels + levels)


def test_an_attack_in_l2_goes_through_crafting(pixels: NDArray[np.uint8]) -> None:
    pixels = pixels // 2 + 60

    def one_pixel(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
        moved = x.copy()
        moved[:, 0, 0, 0] += np.float32(0.1)
        return moved

    attack = CallableAttack(one_pixel, "one", EPS, described=L2)
    with pytest.raises(InputError, match=r"attack one moved an image by 0\.100000, more than eps 8/255"):
        list(craft([batch_of(pixels)], [attack], Brightness(), uint8=False))
    wide = CallableAttack(one_pixel, "one", Eps.parse("0.1"), described=L2)
    (crafted,) = craft([batch_of(pixels)], [wide], Brightness(), uint8=True)
    # 25.5 levels: 26 would be too far
    np.testing.assert_array_equal(
        crafted.adversarial["one", "0.1"][:, 0, 0, 0], to_tensor(pixels)[:, 0, 0, 0] + np.float32(25 / 255)
    )


def test_one_run_has_one_norm() -> None:
    flat, round_ = CallableAttack(lambda x, y: x, "a", EPS), CallableAttack(lambda x, y: x, "b", EPS, described=L2)
    with pytest.raises(InputError, match="a in linf and b in l2 is two: run them one after the other"):
        infos([flat, round_], uint8=False)
    assert len(infos([round_, CallableAttack(lambda x, y: x, "c", EPS, described=L2)], uint8=True)) == 2
    # a control is no row: it is measured as it is measured
    assert len(infos([flat, CallableAttack(lambda x, y: x, "b", EPS, described=L2, control=True)], uint8=False)) == 2
    with pytest.raises(InputError, match="attack d is measured in 'l1': choose from linf, l2"):
        infos([CallableAttack(lambda x, y: x, "d", EPS, described=AttackParams(norm="l1"))], uint8=False)


# what the reference model says


def _a_little_darker(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
    return x - np.float32(0.4 / 255)


def test_controls_are_shown_to_the_reference_and_forgotten(pixels: NDArray[np.uint8]) -> None:
    inverse = CallableAttack(lambda x, y: 1 - x, "inverse", Eps.parse("1"), control=True)
    (info,) = infos([inverse], uint8=True)
    assert info.control
    (crafted,) = craft([batch_of(pixels)], [inverse], Brightness(), uint8=True)
    assert list(crafted.adversarial) == []
    np.testing.assert_array_equal(crafted.evidence.answers["inverse", "1"], 1 - batch_of(pixels).labels)
    empty = CleanBatch(np.empty(0, np.int64), np.empty((0, 4, 4, 3), np.uint8), np.empty(0, np.int64))
    (nothing,) = craft([empty], [inverse], Brightness(), uint8=True)
    assert list(nothing.adversarial) == [] and nothing.evidence.answers["inverse", "1"].shape == (0,)


def test_what_rounding_costs_is_known_of_attacks_on_the_reference_itself() -> None:
    """An image that is just above the middle: 0.4 levels down flip it, and rounding takes them back."""
    pixels = np.full((1, 4, 4, 3), 127, np.uint8)
    pixels[0].reshape(-1)[:25] = 128
    ours, foreign = "a" * 64, "b" * 64
    attacks = [
        CallableAttack(_a_little_darker, "white", EPS, gradients_sha256=ours),
        CallableAttack(_a_little_darker, "asked", EPS, queried=Brightness().identity),
        CallableAttack(_a_little_darker, "foreign", EPS, gradients_sha256=foreign),
        CallableAttack(_a_little_darker, "asked another", EPS, queried=f"brightness fp16 {foreign}"),
        CallableAttack(_a_little_darker, "blind", EPS),
        CallableAttack(_a_little_darker, "control", EPS, gradients_sha256=ours, control=True),
    ]
    clean = CleanBatch(np.arange(1), pixels, np.ones(1, np.int64))
    x = to_tensor(pixels)
    assert x.mean() > 0.5 > _a_little_darker(x, clean.labels).mean()
    (crafted,) = craft([clean], attacks, Brightness(), uint8=True)
    assert {key: labels.tolist() for key, labels in crafted.evidence.unrounded.items()} == {
        ("white", "8/255"): [0],
        ("asked", "8/255"): [0],
    }
    assert {labels.tolist()[0] for labels in crafted.evidence.answers.values()} == {1}
    (floats,) = craft([clean], attacks, Brightness(), uint8=False)
    assert floats.evidence.unrounded == {}


class Softmax(Brightness):
    """Probabilities in the place of logits, for dark images only."""

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = super()._infer(x)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.where(logits[:, :1] > 0, shares, logits).astype(np.float32)


class Moody(Brightness):
    """Every other call answers differently: by less than one may, but for bright images by more."""

    calls = 0

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        logits = super()._infer(x)
        bright = logits[:, 1:] > 0
        change = np.ptp(logits, axis=1, keepdims=True) * np.where(bright, 2e-3, 5e-4) * (self.calls % 2)
        return (logits + change).astype(np.float32)


def test_a_model_that_returns_probabilities_is_noticed(pixels: NDArray[np.uint8]) -> None:
    batch = batch_of(np.concatenate([pixels, 255 - pixels]))
    (honest,) = craft([batch], [], Brightness(), uint8=False)
    assert not honest.evidence.probabilities.any() and not honest.evidence.unstable.any()
    (told,) = craft([batch], [], Softmax(), uint8=False)
    np.testing.assert_array_equal(told.evidence.probabilities, batch.labels == 0)
    assert 0 < told.evidence.probabilities.sum() < 10


def test_a_model_that_answers_the_same_question_in_two_ways_is_noticed(pixels: NDArray[np.uint8]) -> None:
    batch = batch_of(np.concatenate([pixels, 255 - pixels]))
    (told,) = craft([batch], [], Moody(), uint8=False)
    np.testing.assert_array_equal(told.evidence.unstable, batch.labels == 1)
    assert 0 < told.evidence.unstable.sum() < 10
    # and an image keeps its flags
    some = told.select(batch.labels == 1)
    assert some.evidence.unstable.all() and len(some.evidence.probabilities) == len(some.clean.labels)
