"""When gradients may be float16's: here on a processor, which computes the same if not sooner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import attack_copy, fgsm, pgd, sooner
from edgeadv.attacks.half import HalfCopy
from edgeadv.attacks.sooner import HALF, soonest
from edgeadv.attacks.suite import GRADIENTS
from edgeadv.data import batches
from edgeadv.models import Architecture, PixelModel
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.preprocess import to_tensor

EPS = [Eps.parse("0.05"), Eps.parse("0.1")]


@pytest.fixture(scope="module")
def digits(digits_test) -> tuple[Tensor, Tensor]:
    batch = next(batches(digits_test, digits_test.preprocess, batch_size=120))
    return torch.from_numpy(to_tensor(batch.pixels)), torch.from_numpy(batch.labels)


@pytest.fixture(scope="module")
def copied(digits_model) -> PixelModel:
    made = attack_copy(digits_model, torch.rand(2, 3, 28, 28))
    assert isinstance(made, PixelModel)
    return made


@pytest.fixture
def gain(monkeypatch) -> None:
    """As if float16 were the faster one."""
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 0.0)


def left(reference: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> int:
    """What FGSM and PGD leave, counted anew."""
    count = 0
    for eps in EPS:
        for found in (fgsm(model, x, labels, eps=eps.value)[0], pgd(model, x, labels, eps=eps.value, steps=10)):
            count += int((reference(found.x).argmax(dim=1) == labels).sum())
    return count


def test_as_strong_and_sooner_it_is_float16(digits_model, copied, digits, gain):
    made = soonest(digits_model, copied, *digits, EPS)
    assert made.words == HALF and isinstance(made.model, HalfCopy)
    by_half, by_exact = (left(digits_model, model, *digits) for model in (made.model, copied))
    assert 0 < by_half <= by_exact + 0.001 * 4 * len(digits[0]) and by_exact < 4 * len(digits[0])
    assert f"leave {by_half} of {4 * len(digits[0])} images standing by float16's gradients, {by_exact} by" in made.said


def test_what_comes_no_sooner_is_not_used(digits_model, copied, digits, monkeypatch):
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 1e9)
    made = soonest(digits_model, copied, *digits, EPS)
    assert (made.model, made.words) == (copied, GRADIENTS)
    assert made.said == "gradients are float32's: float16's come no sooner"


class Weak(HalfCopy):
    """A copy whose gradients have their sign turned on every eighth image."""

    def forward(self, x: Tensor) -> Tensor:
        wrong = (torch.arange(len(x)) % 8 == 0)[:, None, None, None]
        turned: Tensor = super().forward(torch.where(wrong, 2 * x.detach() - x, x))
        return turned


def test_what_is_weaker_is_not_used(digits_model, copied, digits, gain, monkeypatch):
    monkeypatch.setattr(sooner, "HalfCopy", Weak)
    made = soonest(digits_model, copied, *digits, EPS)
    assert (made.model, made.words) == (copied, GRADIENTS)
    assert f"{left(digits_model, copied, *digits)} by float32's" in made.said


def test_with_few_right_images_there_is_no_check(digits_model, copied, digits, gain):
    x, labels = digits
    made = soonest(digits_model, copied, x, (labels + 1) % 10, EPS)
    assert made.model is copied and "too few to check float16 on" in made.said


class Large(nn.Module):
    """Twice what float16 can hold, and back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x) * 131072 / 131072
        return logits


class Stubborn(nn.Module):
    """A network that computes in float32 only."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x) + torch.nn.functional.linear(x.flatten(1)[:, :10], torch.zeros(10, 10))
        return logits


@pytest.mark.parametrize(
    ("wrap", "why"), [(Large, "in float16 its logits are others"), (Stubborn, "in float16 it does not run")]
)
def test_a_network_that_float16_cannot_hold(digits_model, digits, gain, wrap, why):
    model = PixelModel(wrap(digits_model.net), Architecture(name="own", source="timm", num_classes=10)).eval()
    made = soonest(model, model, *digits, EPS)
    assert made.model is model and why in made.said and "\n" not in made.said


def test_what_was_checked_is_not_checked_again(digits_model, copied, digits, monkeypatch):
    monkeypatch.setattr(sooner, "_LEAST_GAIN", 1e9)
    made = soonest(digits_model, copied, *digits, EPS, checked=True)
    assert made.words == HALF and isinstance(made.model, HalfCopy)
