"""On a GPU a batch shrinks in powers of two only: the images are attacked all the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import apgd, apgd_targeted, build_attacks, cross_entropy, iterate, mi_fgsm, pgd
from edgeadv.attacks.batching import at_once
from edgeadv.data.datasets import batches
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import Effort

ATTACKS = {
    "pgd": lambda model, x, y: pgd(model, x, y, eps=0.1, steps=8),
    "pgd, restarts": lambda model, x, y: pgd(model, x, y, eps=0.1, steps=4, restarts=3),
    "pgd, targeted": lambda model, x, y: pgd(model, x, (y + 1) % 10, eps=0.15, steps=8, targeted=True),
    "pgd, no leaving": lambda model, x, y: pgd(model, x, y, eps=0.1, steps=4, loss=cross_entropy, leave=float("inf")),
    "mi-fgsm": lambda model, x, y: mi_fgsm(model, x, y, eps=0.1),
    "apgd": lambda model, x, y: apgd(model, x, y, eps=0.1, steps=12),
    "apgd, targeted": lambda model, x, y: apgd_targeted(model, x, y, eps=0.1, steps=4, targets=3),
}


class Watched(nn.Module):
    """A network in float64, so that a batch's size changes no bit that counts, and the sizes that it was called
    with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.sizes = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.model(x.double())
        return logits


@pytest.fixture(scope="module")
def network(digits_model):
    import copy

    return copy.deepcopy(digits_model).double()


@pytest.fixture(scope="module")
def images(digits_test) -> tuple[Tensor, Tensor]:
    batch = next(batches(digits_test, digits_test.preprocess, batch_size=44))
    return torch.from_numpy(to_tensor(batch.pixels)), torch.from_numpy(batch.labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_does_not_notice(network, images, monkeypatch, name):
    at_once, in_steps = Watched(network), Watched(network)
    expected = ATTACKS[name](at_once, *images)
    monkeypatch.setattr(iterate, "_in_steps", lambda device: True)
    found = ATTACKS[name](in_steps, *images)
    assert torch.equal(found.zero_gradient, expected.zero_gradient)
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-6)
    if name == "apgd, targeted":
        # it asks the network once what to move towards
        assert in_steps.sizes.pop(0) == at_once.sizes.pop(0) == 44
    assert all(size & (size - 1) == 0 for size in in_steps.sizes)
    assert max(in_steps.sizes) == 64 and max(at_once.sizes) in range(44, 65)
    assert all(2 * few > many for few, many in zip(at_once.sizes, in_steps.sizes, strict=True))
    if "no leaving" not in name:
        assert len(set(in_steps.sizes)) > 1 and any(size & (size - 1) for size in at_once.sizes[1:])


def test_no_image_at_all(network, monkeypatch):
    monkeypatch.setattr(iterate, "_in_steps", lambda device: True)
    found = pgd(network, torch.empty(0, 3, 28, 28), torch.empty(0, dtype=torch.int64), eps=0.1, steps=2)
    assert found.x.shape == (0, 3, 28, 28)


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (2, 2), (3, 4), (33, 64), (64, 64), (65, 128)])
def test_sizes_on_a_gpu(count, size):
    assert iterate._size(count, torch.device("cuda")) == size
    assert iterate._size(count, torch.device("cpu")) == count


class Small(nn.Module):
    """A network on a device whose memory holds ``most`` images."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most, self.sizes = model, most, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.model(x)
        return logits


def test_what_does_not_fit_is_attacked_in_smaller_parts(digits_model, images):
    x, labels = (tensor.numpy() for tensor in images)

    def made(network: nn.Module) -> Any:
        effort = {"pgd-margin": Effort(steps=3)}
        (attack,) = build_attacks(network, [Eps.parse("0.1")], efforts=effort, classes=10, gradients_sha256=None)
        return attack.craft(x, labels)

    small = Small(digits_model, 12)
    (found,), (expected,) = made(small), made(digits_model)
    np.testing.assert_allclose(found.x, expected.x, atol=1e-6)
    # half as many each time: 44, 22, and 11 fit
    assert [size for size in small.sizes if size > 12] == [44, 22]
    with pytest.raises(torch.OutOfMemoryError):
        made(Small(digits_model, 0))


@pytest.mark.parametrize("name", ["apgd-t", "pgd-smoothed"])
def test_several_points_at_once_are_no_more_than_fit(digits_model, images, name):
    """Of few images many copies are in the network at once, but not where so many did not fit."""
    x, labels = (tensor.numpy() for tensor in images)

    def made(network: nn.Module) -> Any:
        effort = {name: Effort(steps=2, targets=4)}
        (attack,) = build_attacks(network, [Eps.parse("0.02")], efforts=effort, classes=10, gradients_sha256=None)
        return attack.craft_from(x[:6], labels[:6], x[:6], Eps.parse("0.02"))

    small, whole = Small(digits_model, 5), Small(digits_model, 1000)
    np.testing.assert_allclose(made(small).x, made(whole).x, atol=1e-5)
    assert max(whole.sizes) >= 24 and max(small.sizes[-5:]) <= 3


@pytest.mark.parametrize(
    ("memory_gib", "side", "expected"), [(80, 224, 64), (8, 224, 16), (80, 32, 2048), (8, 2000, 1)]
)
def test_a_gpu_attacks_a_power_of_two_at_once(monkeypatch, memory_gib, side, expected):
    properties = SimpleNamespace(total_memory=memory_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    x = torch.empty(1, 3, 1, 1).expand(1, 3, side, side)
    assert at_once(x, torch.device("cuda")) == expected
    assert at_once(torch.empty(1, 3, 1, 1).expand(1, 3, 224, 224), torch.device("cpu")) == 19
