"""One patch for all pictures: where it lies, and that training it finds what a linear network obeys."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks.universal_patch import MovedPatch, Transforms, drawn, placed, universal_patch
from edgeadv_runtime.attacks.patches import check_covered, patch_shape
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

AREA = Eps.parse("10%", norm="area")
SIDE = 24


def upright(row: float, column: float, *, angle: float = 0, scale: float = 1, brightness: float = 1) -> Transforms:
    return Transforms(*(torch.tensor([value]) for value in (row, column, angle, scale, brightness)))


@pytest.fixture
def patch() -> Tensor:
    side = len(patch_shape(AREA, SIDE, SIDE).mask)
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))


def test_upright_it_is_pasted_pixel_by_pixel(patch: Tensor) -> None:
    shape = patch_shape(AREA, SIDE, SIDE)
    side = len(shape.mask)
    x = torch.zeros(1, 3, SIDE, SIDE)
    made = placed(x, patch, torch.from_numpy(shape.mask), upright(3 + (side - 1) / 2, 5 + (side - 1) / 2))
    expected = x.clone()
    expected[0, :, 3 : 3 + side, 5 : 5 + side] = patch
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_numpys(patch: Tensor) -> None:
    shape = patch_shape(AREA, SIDE, SIDE)
    side, middle = len(shape.mask), (SIDE - 1) / 2
    # a side of even length lies evenly around the middle
    patch, mask = patch[:, : side - side % 2, : side - side % 2], torch.ones(side - side % 2, side - side % 2).bool()
    x = torch.zeros(1, 3, SIDE, SIDE)
    plain = placed(x, patch, mask, upright(middle, middle))
    turned = placed(x, patch, mask, upright(middle, middle, angle=math.pi / 2))
    either = [torch.rot90(plain, k, (2, 3)) for k in (1, 3)]
    assert min(float((turned - each).abs().max()) for each in either) < 1e-4


def test_a_smaller_one_covers_less_and_brightness_scales(patch: Tensor) -> None:
    shape = patch_shape(AREA, SIDE, SIDE, "round")
    side = len(shape.mask)
    content, mask = torch.full((3, side, side), 0.5), torch.from_numpy(shape.mask)
    x = torch.zeros(1, 3, SIDE, SIDE)
    whole = placed(x, content, mask, upright(12, 12))
    small = placed(x, content, mask, upright(12, 12, scale=0.7, brightness=1.2))
    assert 0.35 < float((small > 0).sum() / (whole > 0).sum()) < 0.65
    assert float(small.max()) == pytest.approx(0.6)


def test_drawn_places_keep_the_patch_inside() -> None:
    shape = patch_shape(AREA, SIDE, SIDE)
    how = drawn(500, shape, np.random.default_rng(0))
    reach = (len(shape.mask) - 1) / 2
    for each in (how.row, how.column):
        assert float(each.min()) >= reach and float(each.max()) <= SIDE - 1 - reach


class Sum(nn.Module):
    """Class 1 is red, class 2 is green; class 0 wins where there is little of either."""

    def forward(self, x: Tensor) -> Tensor:
        red, green = x[:, 0].mean(dim=(1, 2)), x[:, 1].mean(dim=(1, 2))
        return torch.stack([torch.full_like(red, 0.02), red - green, green - red], dim=1) * 100


@pytest.mark.parametrize(("target", "bright", "dark"), [(1, 0, 1), (2, 1, 0)])
def test_a_target_is_called_up(target: int, bright: int, dark: int) -> None:
    shape = patch_shape(AREA, SIDE, SIDE)
    x = torch.full((70, 3, SIDE, SIDE), 0.3)
    labels = torch.zeros(70, dtype=torch.int64)
    found = universal_patch(Sum(), x, labels, shape, target=target, passes=20)
    # all of one colour and nothing of the other
    assert float(found[bright].min()) > 0.95 and float(found[dark].max()) < 0.05
    how = drawn(70, shape, np.random.default_rng(1))
    assert (Sum()(placed(x, found, torch.from_numpy(shape.mask), how)).argmax(dim=1) == target).all()
    assert torch.equal(found, universal_patch(Sum(), x, labels, shape, target=target, passes=20))


def test_without_pictures_or_passes_there_is_none() -> None:
    shape = patch_shape(AREA, SIDE, SIDE)
    with pytest.raises(InputError, match="needs pictures, and at least 1 pass"):
        universal_patch(Sum(), torch.empty(0, 3, SIDE, SIDE), torch.empty(0, dtype=torch.int64), shape)


def test_as_a_camera_sees_it_each_picture_has_its_own_place_and_light() -> None:
    shape = patch_shape(AREA, SIDE, SIDE, "round")
    content = np.full((*shape.mask.shape, 3), 200, np.uint8)
    attack = MovedPatch((AREA,), content, "round")
    x = np.random.default_rng(0).random((6, 3, SIDE, SIDE), dtype=np.float32)
    labels = np.zeros(6, np.int64)
    (made,) = attack.craft(x, labels)
    changed = (made.x != x).any(axis=1)
    check_covered(changed, attack.name, AREA)
    assert changed.any(axis=(1, 2)).all()
    light = [float(image[:, covered].mean()) for image, covered in zip(made.x, changed, strict=True)]
    assert all(0.75 * 200 / 255 - 1e-5 <= each <= 1 for each in light) and len(set(light)) == 6
    assert len({tuple(np.argwhere(covered)[0]) for covered in changed}) > 1
    # drawn by the picture, and by nothing else
    np.testing.assert_array_equal(attack.craft(x[4:5], labels[:1])[0].x[0], made.x[4])
