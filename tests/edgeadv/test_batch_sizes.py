"""On a GPU a batch shrinks in powers of two only: the images are attacked all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import apgd, apgd_targeted, cross_entropy, iterate, mi_fgsm, pgd
from edgeadv.data import batches
from edgeadv_runtime.preprocess import to_tensor

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
    """A network in float64, so that a batch's size changes no bit that counts, and the sizes that it was called with."""

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
    assert max(in_steps.sizes) == 64 and max(at_once.sizes) == 44
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
