"""Where patches lie, how large they are, and what one does that nobody trained."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadv_runtime import Bundle, OnnxRuntimeBackend
from edgeadv_runtime.attacks.margins import margins
from edgeadv_runtime.attacks.patch_controls import GRAY, NOISE, PatchControl
from edgeadv_runtime.attacks.patches import drawn_places, patch_shape
from edgeadv_runtime.attacks.perturbation import check_crafted
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

AREAS = [Eps.parse(text, norm="area") for text in ("2%", "5%", "10%", "50%")]


@pytest.mark.parametrize("kind", ["square", "round"])
@pytest.mark.parametrize("area", AREAS, ids=str)
def test_a_patch_is_the_largest_within_its_area(area: Eps, kind: str) -> None:
    shape = patch_shape(area, 48, 48, kind)
    covered = shape.mask.sum()
    assert covered <= area.value * 48 * 48
    side = len(shape.mask)
    # one pixel more a side is too much
    at = np.arange(side + 1) - side / 2
    larger = (np.hypot(at[:, None], at) <= (side + 1) / 2) | (kind == "square")
    assert larger.sum() > area.value * 48 * 48
    assert kind == "square" or 0.7 < covered / side**2 < 0.9


def test_places_reach_every_edge_and_stay_inside() -> None:
    shape = patch_shape(AREAS[1], 40, 60)
    places = shape.places()
    assert len(places) == 9 and places[0] == (0, 0) and places[-1] == (40 - 10, 60 - 10)
    for place in places:
        assert shape.at(place).sum() == shape.mask.sum()
    # where there is one place, it is tried once
    assert patch_shape(Eps.parse("99%", norm="area"), 10, 10).places() == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_place_is_drawn_by_the_image() -> None:
    x = np.random.default_rng(0).random((200, 3, 8, 8), dtype=np.float32)
    places = patch_shape(AREAS[2], 8, 8).places()
    drawn = drawn_places(x, places)
    np.testing.assert_array_equal(drawn_places(x[17:30], places), drawn[17:30])
    assert set(drawn.tolist()) == set(range(9))


def test_a_patch_that_is_larger_than_its_area_is_refused() -> None:
    x = np.zeros((2, 3, 10, 10), np.float32)
    made = x.copy()
    made[1, 0, :2, :5] = 1
    check_crafted(made, x, "theirs", Eps.parse("10%", norm="area"), norm="area")
    with pytest.raises(InputError, match=r"theirs changed 10\.00% of an image, more than an area of 9%"):
        check_crafted(made, x, "theirs", Eps.parse("9%", norm="area"), norm="area")


@pytest.mark.parametrize("name", [GRAY, NOISE])
def test_a_control_takes_the_worst_of_all_places(tiny_bundle: Bundle, name: str) -> None:
    x = np.random.default_rng(1).random((6, 3, *tiny_bundle.preprocess.input_shape[1:]), dtype=np.float32)
    with OnnxRuntimeBackend(tiny_bundle, variant="fp32") as backend:
        y = backend.infer(x).argmax(axis=1)
        (worst,) = PatchControl(name, AREAS[2:3], backend).craft(x, y)
        (drawn,) = PatchControl(name, AREAS[2:3], backend, place="random").craft(x, y)
        shape = patch_shape(AREAS[2], *x.shape[2:])
        if name == GRAY:
            grey = [np.where(shape.at(place), np.float32(128 / 255), x) for place in shape.places()]
            every = np.stack([margins(backend.infer(each), y) for each in grey])
            np.testing.assert_allclose(margins(backend.infer(worst.x), y), every.max(axis=0), atol=1e-5)
        assert (margins(backend.infer(worst.x), y) >= margins(backend.infer(drawn.x), y) - 1e-5).all()
    for made in (worst.x, drawn.x):
        check_crafted(made, x, name, AREAS[2], norm="area")


@pytest.mark.parametrize("place", ["worst", "random"])
def test_more_draws_of_noise_are_no_weaker(tiny_bundle: Bundle, place: str) -> None:
    x = np.random.default_rng(1).random((12, 3, *tiny_bundle.preprocess.input_shape[1:]), dtype=np.float32)
    with OnnxRuntimeBackend(tiny_bundle, variant="fp32") as backend:
        y = backend.infer(x).argmax(axis=1)
        one, many = (PatchControl(NOISE, AREAS[2:3], backend, place=place, draws=draws) for draws in (1, 20))
        assert many.queried == backend.identity and many.params(AREAS[2]).restarts == 20
        reached = [margins(backend.infer(each.craft(x, y)[0].x), y) for each in (one, many)]
    # what is clearly broken stays where it is
    still = reached[0] < 0
    assert (reached[1][still] >= reached[0][still] - 1e-5).all() and (reached[1] > reached[0] + 1e-5).any()
    assert (reached[1][~still] >= 0).all()
