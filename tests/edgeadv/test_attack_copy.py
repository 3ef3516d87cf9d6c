"""The copy that attacks use: the same function, the same gradients, and fewer layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeadv.attacks import attack_copy, fgsm, input_gradient, margin, pgd
from edgeadv.attacks.copies import compiled_copy, worth_compiling
from edgeadv.models import Architecture, build
from edgeadv_runtime.errors import BackendError

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
    # in float32 a unit that is at the kink of its ReLU can be on either side of it, and takes a part of a gradient with it
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


# --- compiled


def test_only_a_long_job_is_compiled() -> None:
    photograph, small = torch.empty(1, 3, 224, 224), torch.empty(1, 3, 112, 112)
    assert worth_compiling(200_000, photograph) and not worth_compiling(199_999, photograph)
    assert worth_compiling(800_000, small) and not worth_compiling(799_999, small)


@pytest.mark.slow
def test_the_compiled_network_attacks_as_the_copy_does() -> None:
    """Batches shrink while images are broken, so it must take any size; labels and flags are those of the copy."""
    torch.compiler.reset()
    copied, (x, labels) = attack_copy(trained("timm/test_resnet"), images()[0]), images(7)
    compiled = compiled_copy(copied, x)
    for n in (7, 3, 1):
        ours, theirs = (input_gradient(each, x[:n], labels[:n], margin) for each in (compiled, copied))
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            ours.gradient, theirs.gradient, rtol=1e-2, atol=1e-4 * float(theirs.gradient.abs().max())
        )
    found = [pgd(each, x, labels, eps=4 / 255, steps=5) for each in (compiled, copied)]
    answers = [copied(adversarial.x).argmax(dim=1) for adversarial in found]
    assert torch.equal(*answers)
    assert float((found[0].x - found[1].x).abs().max()) <= 8.01 / 255


def test_a_compiled_network_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, (x, _) = attack_copy(trained("timm/test_resnet"), images()[0]), images(4)
    other = attack_copy(trained("timm/test_resnet"), x)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: other)
    with pytest.raises(BackendError, match="other logits or gradients"):
        compiled_copy(copied, x)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: copied)
    assert compiled_copy(copied, x) is copied


def test_what_stops_the_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, (x, _) = attack_copy(trained("timm/test_resnet"), images()[0]), images(4)

    def broken(*_: object) -> None:
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(BackendError, match="no compiler"):
        compiled_copy(copied, x)
