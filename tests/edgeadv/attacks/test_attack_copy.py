"""The copy that attacks use: the same function, the same gradients, and fewer layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeadv.attacks import attack_copy, copies, fgsm, input_gradient, margin
from edgeadv.models.builder import Architecture, build

SIDE = 64


def trained(name: str) -> nn.Module:
    """A network whose BatchNorms have statistics, factors and shifts that are not those of the beginning."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(Architecture.find(name, num_classes=10)).train()
    for norm in norms(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, SIDE, SIDE))
    return model.eval()


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(n, 3, SIDE, SIDE), torch.randint(10, (n,))


@pytest.mark.parametrize(
    "name",
    ["regnet_y_400mf", "resnet18", "alexnet", "timm/test_resnet", "timm/efficientnet_lite0", "mobilenet_v3_small"],
)
def test_it_is_the_same_function_without_a_batchnorm(name: str) -> None:
    model, (x, labels) = trained(name), images()
    before = copy.deepcopy(model.state_dict())
    made = attack_copy(model, x[:2])
    assert not norms(made) and not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    # in float32 a unit that is at the kink of its ReLU can be on either side of it, and takes a part of a gradient with
    # it
    moved = [fgsm(each, x, labels, eps=8 / 255)[0].x for each in (made, model)]
    assert float(((moved[0] - moved[1]).abs() <= 1e-4).float().mean()) > 0.9
    # the model itself is as it was
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {parameter.requires_grad for parameter in model.parameters()} == {True}
    # in float64 the gradients are the same
    model, x = model.double(), x.double()
    folded = attack_copy(model, x[:2])
    assert not norms(folded)
    ours, theirs = (input_gradient(each, x, labels, margin).gradient for each in (folded, model))
    assert float((ours - theirs).abs().max()) < 1e-6 * float(theirs.abs().max())


class Odd(nn.Module):
    """A convolution that two look at, one that is called twice, and a BatchNorm of a kind that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.twice, self.alone = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm, self.after, self.foldable = (nn.BatchNorm2d(3) for _ in range(3))
        self.instant = nn.BatchNorm2d(3, track_running_stats=False)
        self.last = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x)
        x = self.norm(shared) + shared
        x = self.after(self.twice(self.twice(x)))
        x = self.foldable(self.alone(x))
        logits: Tensor = self.last(self.instant(x).relu().mean(dim=(2, 3)))
        return logits


def test_only_what_can_be_folded_is() -> None:
    torch.manual_seed(0)
    model, (x, _) = Odd().train(), images()
    model(x)
    made = attack_copy(model.eval(), x[:2])
    assert isinstance(made.foldable, nn.Identity)
    assert all(type(layer) is nn.BatchNorm2d for layer in (made.norm, made.after, made.instant))
    torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-6)


class Branching(nn.Module):
    """Decides by its values, so that it cannot be traced, if it is told to."""

    def __init__(self, *, decides: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.decides = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), decides

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.conv(x)).mean(dim=(2, 3))
        return -logits if self.decides and bool(logits.detach().sum() > 0) else logits


def test_what_cannot_be_traced_is_copied_as_it_is() -> None:
    model, (x, _) = Branching(decides=True).eval(), images()
    made = attack_copy(model, x[:2])
    assert type(made.norm) is nn.BatchNorm2d and made is not model
    torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-6)


def test_what_is_another_function_when_folded_is_copied_as_it_is() -> None:
    """Mean and shift that are large and equal: the sum of both in float32 is not what either gives alone."""
    model, (x, _) = Branching(decides=False).eval(), images()
    assert isinstance(attack_copy(model, x[:2]).norm, nn.Identity)
    model.norm.running_mean.fill_(1e7)
    model.norm.bias.data.fill_(1e7)
    made = attack_copy(model, x[:2])
    assert type(made.norm) is nn.BatchNorm2d
    torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_it_is_in_the_memory_order_of_its_device(monkeypatch: pytest.MonkeyPatch, order: torch.memory_format) -> None:
    monkeypatch.setattr(copies, "memory_order", lambda device: order)
    # a model that is trained or scored is in channels-last memory
    model, (x, labels) = trained("timm/test_resnet").to(memory_format=torch.channels_last), images()
    made = attack_copy(model, x[:2])
    wide = [p for p in made.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert wide and all(p.is_contiguous(memory_format=order) for p in wide)
    ours, theirs = (input_gradient(each, x, labels, margin).gradient for each in (made, model))
    assert float(((ours - theirs).abs() <= 1e-3 * theirs.abs().max()).float().mean()) > 0.99


def test_which_order_that_is() -> None:
    assert copies.memory_order(torch.device("cpu")) == torch.channels_last
    assert copies.memory_order(torch.device("cuda")) == torch.contiguous_format
