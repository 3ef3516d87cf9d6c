"""One step from where the last epoch's ended: the perturbations by hand, and that they follow their images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.data.augment import crop_flip
from edgeadv.data.rng import RandomStream
from edgeadv.training.config import TrainConfig
from edgeadv.training.objectives import Training
from edgeadv.training.prior_guided import PriorGuided
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

CLASSES, SIDE, EPS = 4, 16, Eps.parse("0.1")


def pictures(n: int = 12) -> tuple[Tensor, Tensor]:
    """Some pixels are black, some white, so that the clipping to [0, 1] matters."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((n, 3, SIDE, SIDE))).float().mul(1.2).sub(0.1).clamp(0, 1)
    return x, torch.from_numpy(rng.integers(0, CLASSES, n))


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))


def following(images: Any, **config: Any) -> PriorGuided:
    training = Training(TrainConfig(**config), 1, np.asarray(images), None, lambda: 0.0)
    return PriorGuided.at(EPS).follow(training)


def direction(net: nn.Sequential, x: Tensor, labels: Tensor) -> Tensor:
    """The sign of the gradient of a linear model's cross-entropy: W' (softmax(z) - onehot)."""
    weight = net[1].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        residual = net(x).softmax(dim=1) - functional.one_hot(labels, CLASSES)
        return (residual @ weight).sign().view_as(x)


def test_two_epochs_by_hand() -> None:
    """The second begins where the first ended; the loss holds the answers of both images together."""
    net, (x, labels) = linear(), pictures()
    images = np.arange(0, 120, 10)
    objective = following(images)
    noise = RandomStream(0, 0, images).uniform(x)
    d = noise.sign()
    for epoch in (0, 1, 2):
        outcome = objective(net, x, labels, RandomStream(0, epoch, images))
        start = (x + 0.1 * d).clamp(0, 1)
        d = (d + direction(net, start, labels)).clamp(-1, 1)
        made = (x + 0.1 * d).clamp(0, 1)
        apart = ((net(made) - net(start)) ** 2).mean()
        expected = functional.cross_entropy(net(made), labels) + 10 * apart
        torch.testing.assert_close(outcome.loss, expected)
        torch.testing.assert_close(outcome.logits, net(made))
        for found, wanted in zip(
            *(torch.autograd.grad(loss, net[1].weight) for loss in (outcome.loss, expected)), strict=True
        ):
            torch.testing.assert_close(found, wanted)
        signs = objective.memory["signs"]
        assert signs.dtype == torch.int8 and torch.equal(signs.float(), d)
    assert set(d.unique().tolist()) == {-1, 0, 1}


def test_images_keep_their_own_and_those_not_seen_keep_theirs() -> None:
    net, (x, labels) = linear(), pictures()
    images = np.arange(0, 240, 10)
    objective = following(images)
    # from the second half of them, not in order
    order = np.array([23, 12, 17])
    objective(net, x[:3], labels[:3], RandomStream(0, 0, images[order]))
    after = objective.memory["signs"].clone()
    drawn = RandomStream(0, 0, images).uniform(x).sign()
    others = np.setdiff1d(np.arange(24), order)
    assert torch.equal(after[others].float(), drawn[others])
    start = drawn[order]
    expected = (start + direction(net, (x[:3] + 0.1 * start).clamp(0, 1), labels[:3])).clamp(-1, 1)
    assert torch.equal(after[order].float(), expected)


def test_they_are_drawn_anew_every_forty_epochs_and_after_a_pause_as_before() -> None:
    net, (x, labels) = linear(), pictures()
    images = np.arange(12)
    objective, resumed = following(images), following(images)

    def epoch(of: PriorGuided, number: int) -> Tensor:
        of(net, x, labels, RandomStream(0, number, images))
        return of.memory["signs"].clone()

    epoch(objective, 38)
    resumed.memory.update({name: tensor.clone() for name, tensor in objective.memory.items()})
    assert torch.equal(epoch(objective, 39), epoch(resumed, 39))
    resumed = following(images)
    resumed.memory.update({name: tensor.clone() for name, tensor in objective.memory.items()})
    afresh = epoch(following(images), 40)
    assert torch.equal(epoch(objective, 40), afresh) and torch.equal(epoch(resumed, 40), afresh)
    assert not torch.equal(epoch(following(images), 0), afresh)


@pytest.mark.parametrize("mirror", [True, False])
def test_a_perturbation_follows_its_image(mirror: bool) -> None:
    """What the image shows of it in one epoch, it shows at the same places in the next, shifted and mirrored
    otherwise."""
    net, (x, labels) = linear(), pictures(40)
    images = np.arange(40)
    objective = following(images, augment="crop-flip", no_mirror=not mirror)
    first, second = (RandomStream(0, epoch, images) for epoch in (0, 1))

    def seen(stream: RandomStream) -> Tensor:
        return crop_flip(objective.memory["signs"], stream, mirror=mirror)

    drawn = RandomStream(0, 0, images).uniform(x).sign().to(torch.int8)
    start = crop_flip(drawn, first, mirror=mirror)
    objective(net, crop_flip(x, first, mirror=mirror), labels, first)
    step = direction(net, (crop_flip(x, first, mirror=mirror) + 0.1 * start).clamp(0, 1), labels).to(torch.int8)
    expected = (start + step).clamp(-1, 1)
    # at most a strip of two on two sides is a reflection of what lies beside it
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.equal(seen(first)[inner], expected[inner])
    # written out in the frame of the image: an image marks each of its places
    places = torch.arange(SIDE * SIDE).view(1, 1, SIDE, SIDE).expand(40, 3, -1, -1)
    then, now = crop_flip(places, first, mirror=mirror)[inner], crop_flip(places, second, mirror=mirror)
    perturbation = seen(second)
    for i in range(40):
        where = {
            int(place): value
            for place, value in zip(then[i, 0].flatten(), expected[inner][i, 0].flatten(), strict=True)
        }
        for place, value in zip(now[i, 0].flatten(), perturbation[i, 0].flatten(), strict=True):
            assert int(place) not in where or where[int(place)] == value


def test_batch_norm_sees_both_and_a_gradient_of_nothing_moves_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, CLASSES))
    (x, labels), images = pictures(), np.arange(12)
    following(images)(net, x, labels, RandomStream(0, 0, images))
    assert int(net[1].num_batches_tracked) == 2
    flat = linear()
    with torch.no_grad():
        flat[1].weight.zero_()
    objective = following(images)
    objective(flat, x, labels, RandomStream(0, 0, images))
    assert torch.equal(objective.memory["signs"].float(), RandomStream(0, 0, images).uniform(x).sign())


def test_what_cannot_be_followed_or_remembered_is_refused() -> None:
    for augment in ("resized-crop", "affine", "trivial"):
        with pytest.raises(InputError, match="cannot follow: none or crop-flip"):
            following(range(3), augment=augment)
    training = Training(TrainConfig(), 2, np.arange(3), None, lambda: 0.0)
    with pytest.raises(InputError, match="`recipe` fgsm-pgi trains in one process"):
        PriorGuided.at(EPS).follow(training)
    (x, labels), many = pictures(), np.arange(2_000_000)
    with pytest.raises(InputError, match=r"of 2000000 images, 1\.4 GiB, and takes at most 1: use `limit`") as raised:
        following(many)(linear(), x, labels, RandomStream(0, 0, np.arange(12)))
    assert len(str(raised.value)) <= 300
    with pytest.raises(InputError, match=r"beta of fgsm-pgi must be in \[0, 1000\]"):
        PriorGuided.at(EPS, beta=-1)
    assert PriorGuided.at(EPS).to_json()["beta"] == 10
    with pytest.raises(TypeError, match="see `follow`"):
        PriorGuided.at(EPS)(linear(), x, labels, RandomStream(0, 0, np.arange(12)))
