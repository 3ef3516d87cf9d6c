"""One perturbation for a track: what a linear network obeys, and nothing of another track."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks.track import shared_patch, shared_perturbation, track_attack
from edgeadv_runtime.attacks.patches import check_covered, patch_shape
from edgeadv_runtime.attacks.perturbation import check_crafted
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.tracks import PATCH_TRACK, PGD_TRACK

SIDE = 8


class Linear(nn.Module):
    def __init__(self, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0)))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_on_a_linear_network_it_is_the_sign_of_the_weights() -> None:
    model = Linear(-100)
    x = torch.full((4, 3, SIDE, SIDE), 0.5)
    made = shared_perturbation(model, x, torch.zeros(4, dtype=torch.int64), eps=0.1)
    expected = 0.1 * model.weight.detach().sign().reshape(1, 3, SIDE, SIDE)
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)


def test_it_is_shared_by_a_track_and_by_no_other() -> None:
    rng = np.random.default_rng(0)
    budgets = [Eps.parse("2/255"), Eps.parse("8/255")]
    frames = [rng.uniform(0.2, 0.8, (n, 3, SIDE, SIDE)).astype(np.float32) for n in (3, 2)]
    labels = [np.zeros(3, np.int64), np.ones(2, np.int64)]
    attack = track_attack(
        Linear(0), zip(frames, labels, strict=True), budgets, gradients_sha256="a" * 64, gradients="torch fp32"
    )
    x, y = np.concatenate(frames)[[3, 0, 4, 1, 2]], np.concatenate(labels)[[3, 0, 4, 1, 2]]
    assert attack.name == PGD_TRACK
    for budget, made in zip(budgets, attack.craft(x, y), strict=True):
        check_crafted(made.x, x, PGD_TRACK, budget)
        moved = made.x - x
        np.testing.assert_allclose(moved[0], moved[2], atol=1e-6)
        np.testing.assert_allclose(moved[1], moved[3], atol=1e-6)
        # towards the other class each
        np.testing.assert_allclose(moved[0], -moved[1], atol=1e-6)
    # in another batch it is the same
    np.testing.assert_array_equal(attack.craft(x[1:2], y[1:2])[1].x[0], attack.craft(x, y)[1].x[1])


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_more_steps_break_no_fewer(steps: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.rand(12, 3, SIDE, SIDE)
    labels = net(x).argmax(dim=1)

    def broken(count: int) -> int:
        moved = shared_perturbation(net, x, labels, eps=0.1, steps=count)
        return int((net((x + moved).clamp(0, 1)).argmax(dim=1) != labels).sum())

    assert broken(1) <= broken(steps) <= 12


AREA = Eps.parse("25%", norm="area")


def test_a_patch_on_a_linear_network_is_its_best_corner_at_the_best_place() -> None:
    model = Linear(-100)
    shape = patch_shape(AREA, SIDE, SIDE)
    made = shared_patch(model, torch.full((4, 3, SIDE, SIDE), 0.5), torch.zeros(4, dtype=torch.int64), shape)[0]
    weight = model.weight.detach().reshape(3, SIDE, SIDE)
    # from grey, an end of the range gains half of each weight
    gains = [float(weight.abs()[:, torch.from_numpy(shape.at(place))].sum()) for place in shape.places()]
    covered = torch.from_numpy(shape.at(shape.places()[int(np.argmax(gains))]))
    assert torch.equal(~torch.isnan(made), covered.expand(3, -1, -1))
    torch.testing.assert_close(made[:, covered], (weight[:, covered] > 0).float(), atol=1e-6, rtol=0)


def test_a_patch_is_shared_by_a_track_and_by_no_other() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.uniform(0.2, 0.8, (n, 3, SIDE, SIDE)).astype(np.float32) for n in (3, 2)]
    labels = [np.zeros(3, np.int64), np.ones(2, np.int64)]
    tracks = zip(frames, labels, strict=True)
    attack = track_attack(Linear(0), tracks, [AREA], gradients_sha256="a" * 64, gradients="torch fp32", patch="round")
    x, y = np.concatenate(frames), np.concatenate(labels)
    (made,) = attack.craft(x, y)
    changed = (made.x != x).any(axis=1)
    check_covered(changed, PATCH_TRACK, AREA)
    assert attack.name == PATCH_TRACK and attack.params(AREA).norm == "area"
    for these in (slice(0, 3), slice(3, 5)):
        covered, images = changed[these], made.x[these]
        assert (covered == covered[0]).all() and (images == images[0])[:, :, covered[0]].all()
    assert not np.array_equal(made.x[0][:, changed[0]], made.x[3][:, changed[3]])
