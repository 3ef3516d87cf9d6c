"""Cumulative attacks run on what stands, and what each finds is told apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.attacks.base import CLEAN_KEY, CallableAttack, Crafted, CumulativeAttack, infos
from edgeadv_runtime.attacks.crafting import WorstVersions, answers_of, craft, extend, progress_of
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams
from edgeadv_runtime.records.suites import CUMULATIVE, QUERY_ATTACKS, SUITES, base_name, order_of

SMALL, LARGE = Eps.parse("10/255"), Eps.parse("40/255")


class Bright(Backend):
    """Class 1 where the first pixel is above ``least``, else class 0; the margin is the distance."""

    name, variant, provider, device, artifact_sha256 = "torch", "fp32", "cpu", "test", "a" * 64
    input_shape, n_classes = (3, 2, 2), 2

    def __init__(self, least: float = 0.5, variant: str = "fp32") -> None:
        self.least, self.variant = least, variant
        self.asked: list[int] = []

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.asked.append(len(x))
        value = x[:, 0, 0, 0] - np.float32(self.least)
        return np.stack([-value, value], axis=1).astype(np.float32)


def brighter(by: float):  # type: ignore[no-untyped-def]
    return lambda x, y: np.clip(x + np.float32(by), 0, 1)


@dataclass
class Adding:
    """A cumulative attack that makes what it is given brighter, and remembers what it was given."""

    by: float
    name: str = "mi-fgsm"
    eps: tuple[Eps, ...] = (SMALL, LARGE)
    asked: Backend | None = None
    control: bool = False
    gradients: str | None = "torch fp32"
    gradients_sha256: str | None = "a" * 64
    queried: str | None = None
    given: list[tuple[str, list[float], list[float]]] = field(default_factory=list)

    def params(self, eps: Eps) -> AttackParams:
        return AttackParams(norm="linf")

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        raise AssertionError("a cumulative attack is given images that stand")

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        self.given.append((eps.text, x[:, 0, 0, 0].round(3).tolist(), start[:, 0, 0, 0].round(3).tolist()))
        return Crafted(np.clip(x + np.float32(self.by * eps.value), 0, 1), np.ones(len(x), np.bool_))


def batch(*levels: int) -> CleanBatch:
    pixels = np.zeros((len(levels), 2, 2, 3), np.uint8)
    pixels[:, 0, 0, 0] = levels
    return CleanBatch(np.arange(len(levels)), pixels, np.zeros(len(levels), np.int64))


def test_it_runs_on_what_stands_from_the_worst_version_so_far() -> None:
    # image 0 is wrong as it is, 1 falls at the small budget, 2 at the large one, 3 and 4 stand
    images, reference = batch(200, 125, 100, 60, 10), Bright()
    plain = (
        CallableAttack(brighter(SMALL.value), "pgd-ce", SMALL),
        CallableAttack(brighter(LARGE.value), "pgd-ce", LARGE),
    )
    adding = Adding(0.5)
    (crafted,) = craft([images], [adding, *plain], reference, uint8=False)
    x = to_tensor(images.pixels)[:, 0, 0, 0].round(3)
    small, large = adding.given
    for given, eps, first in ((small, SMALL, 2), (large, LARGE, 3)):
        text, clean, start = given
        assert text == eps.text
        np.testing.assert_allclose(clean, x[first:], atol=2e-3)
        np.testing.assert_allclose(start, x[first:] + eps.value, atol=2e-3)
    made = crafted.adversarial["mi-fgsm", "10/255"][:, 0, 0, 0]
    # what fell keeps the version that broke it, the wrong one itself; the others have the attack's own
    expected = [x[0] + SMALL.value, x[1] + SMALL.value, *(x[2:] + SMALL.value / 2)]
    np.testing.assert_allclose(made, expected, atol=1e-3)
    answers = crafted.evidence.answers
    assert (answers["mi-fgsm", "10/255"] == 0).tolist() == [False, False, True, True, True]
    assert crafted.evidence.zero_gradient["mi-fgsm", "40/255"].tolist() == [False, False, False, True, True]
    assert all(info.cumulative == info.params.cumulative is True for info in infos([adding], uint8=False))


def test_the_clean_images_are_asked_about_twice_and_by_one_step_attacks_once_for_both() -> None:
    class Counted(Bright):
        gradients = "torch fp32"

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[NDArray[np.float32]] = []

        def infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            self.asked.append(x)
            return super().infer(x)

    @dataclass
    class Step(Adding):
        name: str = "fgsm"
        eps: tuple[Eps, ...] = (SMALL,)
        off: float = 0.0

        def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
            return [Crafted(x + np.float32(0.01), None, logits=Bright().infer(x) + np.float32(self.off))]

        craft_from = None  # type: ignore[assignment]

    images = batch(100, 60, 10)
    for step, clean, unstable in (
        (Step(1.0), 1, False),
        (Step(1.0, off=0.5), 1, True),
        # what follows another model, or is another library's, is no second answer of this one
        (Step(1.0, gradients="torch fp32, in float16", off=0.5), 2, False),
        (Step(1.0, name="theirs", off=0.5), 2, False),
    ):
        reference = Counted()
        (crafted,) = craft([images], [step], reference, uint8=False)
        assert sum(np.array_equal(x, to_tensor(images.pixels)) for x in reference.asked) == clean, step
        assert crafted.evidence.unstable.any() == unstable, step


def test_a_version_that_is_wrong_already_is_not_lost_to_a_weaker_one() -> None:
    """Just across the boundary an image stays in, for an artefact may see it otherwise; what fails on it changes
    nothing."""

    class Loud(Bright):
        n_classes = 3

        def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.pad(super()._infer(x), ((0, 0), (0, 1)), constant_values=-1)

    images, reference = batch(120, 60), Loud()
    plain = CallableAttack(brighter(SMALL.value), "pgd-ce", SMALL)
    weaker, stronger = Adding(0.1, eps=(SMALL,)), Adding(1.0, name="apgd-t", eps=(SMALL,))
    (crafted,) = craft([images], [plain, weaker, stronger], reference, uint8=False)
    answers = crafted.evidence.answers
    assert len(weaker.given[0][1]) == 2
    assert [answers[name, "10/255"].tolist() for name in ("pgd-ce", "mi-fgsm", "apgd-t")] == [[1, 0]] * 3


def test_an_artefact_is_asked_which_images_stand_on_it() -> None:
    """What breaks the reference may leave another artefact standing, and there Square has to look."""
    images, reference, other = batch(100, 60), Bright(), Bright(0.9, "int8-u8s8")
    plain = CallableAttack(brighter(LARGE.value), "pgd-ce", LARGE)
    adding = Adding(1.0, name="square@other", eps=(LARGE,), asked=other, queried=other.identity)
    list(craft([images], [plain, adding], reference, uint8=False))
    assert len(adding.given[0][1]) == 2
    # and what has fallen on it already is not asked about again
    weak = Bright(0.3, "fp16")
    adding = Adding(1.0, eps=(LARGE,), asked=weak)
    list(craft([images], [plain, adding], reference, uint8=False))
    assert adding.given == []


def test_what_other_libraries_break_hides_nothing_from_ours() -> None:
    """They run last, and on a device too their images do not keep Square from asking."""
    images, reference = batch(100, 60), Bright()
    theirs = CallableAttack(brighter(LARGE.value), "theirs", LARGE)
    adding = Adding(0.1, eps=(LARGE,))
    (crafted,) = craft([images], [theirs, adding], reference, uint8=False)
    assert len(adding.given[0][1]) == 2 and list(crafted.adversarial) == [("mi-fgsm", "40/255"), ("theirs", "40/255")]
    device, asking = Bright(variant="fp16"), Adding(0.1, name="square", eps=(LARGE,))
    asking.asked = device
    list(extend([crafted], [asking], infos([theirs, adding], uint8=False), uint8=False))
    assert len(asking.given[0][1]) == 2


def test_where_nothing_stands_nobody_is_asked() -> None:
    adding = Adding(1.0)
    (crafted,) = craft([batch(250, 200)], [adding], Bright(), uint8=True)
    assert adding.given == [] and crafted.adversarial["mi-fgsm", "40/255"].shape == (2, 3, 2, 2)
    assert ("mi-fgsm", "40/255") not in crafted.evidence.zero_gradient


def test_images_of_a_pack_are_attacked_where_they_stand_on_the_device() -> None:
    images, device = batch(125, 100, 10), Bright(variant="fp16")
    plain = CallableAttack(brighter(SMALL.value), "pgd-ce", SMALL)
    packed = list(craft([images], [plain], Bright(), uint8=True))
    adding = Adding(0.5, eps=(SMALL,), asked=device)
    (found,) = extend(packed, [adding], infos([plain], uint8=True), uint8=True)
    assert len(adding.given[0][1]) == 2 and set(found.adversarial) == {("pgd-ce", "10/255"), ("mi-fgsm", "10/255")}
    np.testing.assert_array_equal(found.adversarial["mi-fgsm", "10/255"][0], found.adversarial["pgd-ce", "10/255"][0])


def test_ties_go_against_the_model() -> None:
    logits = np.array([[1, 1, 0], [0, 2, 2], [3, 1, 0], [0, 1, 1]], np.float32)
    assert answers_of(logits, np.array([0, 1, 0, 0])).tolist() == [1, 2, 0, 1]


def test_progress_is_the_gain_over_that_of_the_best_attack_with_gradients() -> None:
    margins = {
        CLEAN_KEY: [-4, -4, -4, -4],
        ("pgd-margin", "10/255"): [-2, -4, -5, -1],
        ("fgsm", "10/255"): [-3, -4, -4, -3],
        ("pgd-smoothed", "10/255"): [0, 0, 0, 0],
        ("pgd-margin", "40/255"): [9, 9, 9, 9],
        ("square", "10/255"): [-1, -4, -3, -5],
    }
    reached = {key: np.array(values, np.float32) for key, values in margins.items()}
    budgets = {key: SMALL if key[1] == SMALL.text else LARGE for key in reached}
    found = progress_of(("square", "10/255"), reached, budgets)
    assert found.tolist() == [1.5, 0.0, np.inf, 0.0]


@pytest.mark.parametrize("change", [0.0, 0.2])
def test_answers_that_change_under_attack_are_noticed(change: float) -> None:
    class Moody(Bright):
        def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = super()._infer(x)
            # only an image that was moved gets another answer every time
            moved = x[:, 1, 0, 0] > 0
            logits[moved] += np.float32(change * len(self.asked))
            return logits

    plain = CallableAttack(brighter(SMALL.value), "pgd-ce", SMALL)
    (crafted,) = craft([batch(100, 60)], [plain], Moody(), uint8=False)
    assert crafted.evidence.unstable.all() == (change > 0)


def test_the_worst_version_is_that_with_the_largest_margin_within_the_budget() -> None:
    images, reference = batch(100), Bright()
    standing = WorstVersions(reference, images)
    for eps, by in ((SMALL, 0.01), (SMALL, 0.03), (LARGE, 0.02), (LARGE, 0.1)):
        moved = standing.clean + np.float32(by)
        standing.add(eps, moved)
    first = standing.clean[0, 0, 0, 0]
    assert standing.worst(SMALL)[0, 0, 0, 0] == pytest.approx(first + 0.03)
    assert standing.worst(LARGE)[0, 0, 0, 0] == pytest.approx(first + 0.1)
    assert standing.rows(LARGE).all()
    assert isinstance(Adding(1.0), CumulativeAttack)


def test_no_attack_hides_what_another_would_find() -> None:
    """Attacks that go on from the worst version run before noise and queries, and the control looks at what gradients
    left."""
    names = [name for name in SUITES["full"] if name not in QUERY_ATTACKS]
    names += ["noise", "square", "transfer@0a1b2c3d", "pgd-margin@int8-u8s8", "theirs"]
    ordered = sorted(names, key=lambda name: order_of(name, cumulative=base_name(name) in CUMULATIVE))
    place = {name: ordered.index(name) for name in ordered}
    for earlier, later in (
        ("apgd-dlr", "mi-fgsm"),
        ("apgd-t", "linearity"),
        ("mi-fgsm", "linearity"),
        ("pgd-large-eps", "mi-fgsm"),
        ("linearity", "noise"),
        ("noise", "pgd-smoothed"),
        ("noise", "transfer@0a1b2c3d"),
        ("noise", "square"),
        ("linearity", "pgd-smoothed"),
        ("linearity", "square"),
        ("linearity", "transfer@0a1b2c3d"),
        ("linearity", "pgd-margin@int8-u8s8"),
        ("square", "theirs"),
    ):
        assert place[earlier] < place[later], (earlier, later)
