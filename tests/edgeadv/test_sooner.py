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
from edgeadv_runtime.errors import InputError
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


def left(reference: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> list[int]:
    """What FGSM leaves, what PGD does, and what both do, at every budget, counted anew."""
    counts = []
    for eps in EPS:
        found = fgsm(model, x, labels, eps=eps.value)[0], pgd(model, x, labels, eps=eps.value, steps=10)
        stands = [reference(each.x).argmax(dim=1) == labels for each in found]
        counts += [int(flags.sum()) for flags in (*stands, stands[0] & stands[1])]
    return counts


def test_as_strong_and_sooner_it_is_float16(digits_model, copied, digits, gain):
    made = soonest(digits_model, copied, *digits, EPS)
    by_half, by_exact = (
        left(digits_model, HalfCopy(copied, digits[0][:16]), *digits),
        left(digits_model, copied, *digits),
    )
    # seeds and kernels are what they are: on these images the copy is as strong
    assert all(few <= many for few, many in zip(by_half, by_exact, strict=True)) and 0 < sum(by_exact) < 6 * len(
        digits[0]
    )
    assert made.words == HALF and isinstance(made.model, HalfCopy)
    assert made.said.endswith(f"as strong as float32's on {len(digits[0])} images")


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
    assert f"at eps 0.05 FGSM leaves {left(digits_model, Weak(copied, digits[0][:16]), *digits)[0]} of 120" in made.said


@pytest.mark.parametrize("attack", [sooner._FGSM, sooner._PGD, sooner._WORST])
def test_no_attack_makes_up_for_another(digits_model, copied, digits, gain, monkeypatch, attack):
    def counts(reference, model, x, labels, eps, part):
        by = dict.fromkeys((sooner._FGSM, sooner._PGD, sooner._WORST), 50)
        if isinstance(model, HalfCopy):
            by = dict.fromkeys(by, 40) | {attack: 51}
        return by

    monkeypatch.setattr(sooner, "_left", counts)
    made = soonest(digits_model, copied, *digits, EPS)
    assert made.model is copied
    assert made.said.endswith(f"at eps 0.05 {attack} leaves 51 of 120 images standing by float16's, 50 by float32's")


def test_without_the_memory_it_is_float32(digits_model, copied, digits, gain, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sooner, "_race", full)
    made = soonest(digits_model, copied, *digits, EPS)
    assert made.model is copied and "there is not the memory" in made.said


def test_with_few_right_images_there_is_no_check(digits_model, copied, digits, gain):
    x, labels = digits
    made = soonest(digits_model, copied, x, (labels + 1) % 10, EPS)
    assert made.model is copied and "too few to check float16's on" in made.said


class Large(nn.Module):
    """Up to where float16 has every second number only, and back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x) + 4096 - 4096
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


def test_what_was_followed_and_does_not_run_is_an_error(digits_model, digits):
    wrapped = PixelModel(Stubborn(digits_model.net), Architecture(name="own", source="timm", num_classes=10)).eval()
    with pytest.raises(InputError, match="--gradients float32"):
        soonest(wrapped, wrapped, *digits, EPS, checked=True)
