"""What is checked of an attack before it is scored, and the rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.attack import CLEAN_KEY, Attack, CallableAttack, CleanBatch, Crafted, craft, infos, round_to_uint8
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.preprocess import to_tensor
from edgeadv_runtime.results import AttackParams

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
)  # fmt: skip
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
    # the clean images twice: an answer that changes is noticed
    assert backend.images == 15


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
