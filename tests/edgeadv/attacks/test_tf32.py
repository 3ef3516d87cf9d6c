"""A network in TF32: here it is seen when the switch is on, for no processor rounds to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import apgd, fgsm, input_gradient, margin, tf32
from edgeadv.attacks.averaged import Averaged
from edgeadv.attacks.tf32 import Tf32Copy
from edgeadv.models import device
from edgeadv.models.builder import Architecture, build

cudnn = torch.backends.cudnn


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The processor's tensors take a GPU's switches, which are off outside; those are as before afterwards."""
    switch = device.arithmetic
    monkeypatch.setattr(tf32, "arithmetic", lambda _, **asked: switch(torch.device("cuda"), **asked))
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    yield
    assert cudnn.allow_tf32 is False
    cudnn.allow_tf32 = before


class Seen(torch.autograd.Function):
    """The same numbers; notes in ``found`` whether convolutions may round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: list[tuple[str, bool]]) -> Tensor:
        ctx.found = found
        found.append(("forward", cudnn.allow_tf32))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.found.append(("backward", cudnn.allow_tf32))
        return gradient, None


class Looking(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.found: list[tuple[str, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = Seen.apply(self.net(x), self.found)
        return logits


def network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build(Architecture.find("timm/test_resnet", num_classes=10)).eval().requires_grad_(False)
    return model, torch.rand(4, 3, 32, 32), torch.randint(10, (4,))


def test_both_passes_are_in_tf32_and_nothing_else() -> None:
    model, x, labels = network()
    looking = Tf32Copy(Looking(model))
    ours, theirs = (input_gradient(each, x, labels, margin) for each in (looking, model))
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-3, atol=1e-5)
    found = looking.net.found
    assert found == [("forward", True), ("backward", True)]
    with torch.no_grad():
        torch.testing.assert_close(looking(x), theirs.logits)
    assert found[2:] == [("forward", True)] and not cudnn.allow_tf32


@pytest.mark.parametrize("wrap", [lambda net: net, partial(Averaged, draws=2, deviation=0.01)], ids=["plain", "mean"])
def test_attacks_are_those_of_the_network(wrap: Any) -> None:
    model, x, labels = network()
    ours, theirs = wrap(Tf32Copy(model)), wrap(model)
    for attack in (partial(fgsm, eps=[0.03]), partial(apgd, eps=0.03, steps=4, leave=float("inf"))):
        found, expected = attack(ours, x, labels), attack(theirs, x, labels)
        made, due = (each[0].x if isinstance(each, list) else each.x for each in (found, expected))
        # a sign may turn where a gradient is next to nothing
        assert float((made - due).abs().gt(1e-4).float().mean()) < 0.01
        assert float((made - x).abs().max()) <= 0.0301


def test_the_switch_is_off_again_after_an_error_on_the_way_back() -> None:
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("too large")

    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = Failing.apply(x.flatten(1))
            return logits

    _, x, labels = network()
    # the very error on which a batch is halved
    with pytest.raises(torch.OutOfMemoryError):
        input_gradient(Tf32Copy(Large()), x, labels, margin)
    assert not cudnn.allow_tf32


def test_a_network_without_a_path_to_its_pixels_has_no_gradient() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1)[:, :10] > 0.5).float()

    _, x, labels = network()
    assert not input_gradient(Tf32Copy(Steps()), x, labels, margin).gradient.any()
