"""Gradients through float16: float32's but for rounding, however small or large they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks import apgd, cross_entropy, fgsm, input_gradient, margin, pgd
from edgeadv.attacks.float16 import HalfCopy
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_export.to_onnx import to_onnx

SIDE = 64


def exact(net: nn.Module | str) -> GraphModule:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if isinstance(net, str):
        model = build(Architecture.find(net, num_classes=10))
        with torch.no_grad():
            model.train()(torch.rand(16, 3, SIDE, SIDE))
    else:
        model = PixelModel(net, Architecture(name="own", source="timm", num_classes=10))
    return GraphModule(nodes_of(to_onnx(model.eval(), (3, SIDE, SIDE))), "net").eval()


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(n, 3, SIDE, SIDE), torch.randint(10, (n,))


def errors(found: Tensor, expected: Tensor) -> Tensor:
    """Of each image's gradient, relative to its norm."""
    return (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet", "regnet_y_400mf"])
def test_logits_and_gradients_are_float32s_but_for_rounding(name):
    model, (x, labels) = exact(name), images()
    half = HalfCopy(model, x)
    ours, theirs = (input_gradient(each, x, labels, margin) for each in (half, model))
    assert ours.logits.dtype == ours.gradient.dtype == torch.float32
    assert float((ours.logits - theirs.logits).abs().max()) < 0.01 * float(theirs.logits.abs().max())
    # a unit at the kink of its ReLU can be on either side of it, and takes a part of a gradient with it
    assert float(errors(ours.gradient, theirs.gradient).max()) < 0.15
    assert half.repaired == 0
    with torch.no_grad():
        assert torch.equal(half(x), ours.logits)


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1, 1e10, 1e30])
def test_a_loss_of_any_size_has_the_same_direction(size):
    model, (x, labels) = exact("timm/test_efficientnet"), images()
    half = HalfCopy(model, x)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        # each image's of its own size
        return cross_entropy(logits, y) * size * torch.logspace(-2, 2, len(y))

    ours, theirs = (input_gradient(each, x, labels, loss).gradient for each in (half, model))
    assert float(errors(ours.double(), theirs.double()).max()) < 0.05
    assert half.repaired == 0


def test_without_a_scale_small_gradients_would_be_lost():
    model, (x, labels) = exact("timm/test_efficientnet"), images()
    half = HalfCopy(model, x)

    class Plain(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = half.net(half.prepared(pixels).half()).float()
            return logits

    lost = input_gradient(Plain(), x, labels, lambda logits, y: 1e-10 * cross_entropy(logits, y)).gradient
    assert not lost.any()


def test_no_gradient_is_made_where_the_softmax_has_none():
    model, (x, labels) = exact("timm/test_efficientnet"), images()
    half = HalfCopy(model, x)

    def saturated(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(1e9 * logits, logits.argmax(dim=1))

    assert not input_gradient(half, x, labels, saturated).gradient.any()
    assert half.repaired == 0


class Loud(nn.Module):
    """Ten sums of the pixels, and where an image is bright, a large part of its brightness on top."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.quiet = nn.Linear(3 * SIDE * SIDE, 10)
        self.bright = nn.Conv2d(3, 1, SIDE)
        self.loud, self.louder = nn.Linear(1, 10), nn.Linear(10, 10)
        with torch.no_grad():
            self.bright.weight.fill_(1 / (3 * SIDE * SIDE))
            self.bright.bias.fill_(-2.0)
            for layer in (self.loud, self.louder):
                layer.weight.fill_(2e4)
                layer.bias.zero_()
            self.louder.weight[::2] *= -1

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.relu(self.bright(x)).flatten(1)
        # its gradient overflows in float16, its logits do not
        logits: Tensor = self.quiet(x.flatten(1)) + self.louder(1e-3 * self.loud(1e-4 * bright))
        return logits


def test_an_image_whose_gradient_overflows_has_float32s():
    model, (x, labels) = exact(Loud()), images()
    x = 0.5 * x
    x[2] = 1
    half = HalfCopy(model, x[[0, 1, 3, 4, 5]])
    labels[2] = model(x)[2].argmin()
    # a loss that has the same gradient at slightly other logits
    ours, theirs = (input_gradient(each, x, labels, margin).gradient for each in (half, model))
    assert half.repaired == 1
    assert torch.equal(ours[2], theirs[2])
    rest = [0, 1, 3, 4, 5]
    assert float(errors(ours[rest], theirs[rest]).max()) < 0.05


def test_gradients_that_overflow_at_every_scale_are_float32s():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4, bias=False), nn.Linear(4, 10, bias=False))
    with torch.no_grad():
        for layer in (net[1], net[2]):
            layer.weight.mul_(3e4 / layer.weight.abs().max())
    model, (x, labels) = exact(net), images()
    half = HalfCopy(model, x)
    ours, theirs = (
        input_gradient(each, x, labels, lambda logits, y: logits.sum(dim=1)).gradient for each in (half, model)
    )
    assert half.repaired >= len(x)
    assert torch.equal(ours, theirs)


class Far(nn.Module):
    """Ten sums of the pixels, by way of numbers that float16 does not have where an image is bright."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.quiet = nn.Linear(3 * SIDE * SIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.relu(x.mean(dim=(1, 2, 3), keepdim=True) - 2)
        logits: Tensor = self.quiet(x.flatten(1)) * (1 + (1e3 * bright * 1e3 * 1e-3).flatten(1))
        return logits


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
def test_an_image_whose_logits_overflow_is_attacked_with_float32s(attack):
    model, (x, labels) = exact(Far()), images()
    x = 0.5 * x
    x[2] = 1
    half = HalfCopy(model, x[[0, 1, 3, 4, 5]])
    with torch.no_grad():
        labels = model(x).argmax(dim=1)
        raw = half.net(half.prepared(x).half())
        assert not raw[2].isfinite().all() and raw[[0, 1, 3, 4, 5]].isfinite().all()
        torch.testing.assert_close(half(x)[2], model(x)[2], rtol=1e-5, atol=1e-3)
    run = {
        "fgsm": lambda network: fgsm(network, x, labels, eps=0.3, loss=margin)[0],
        "pgd": lambda network: pgd(network, x, labels, eps=0.3, steps=5),
        "apgd": lambda network: apgd(network, x, labels, eps=0.3, steps=5, loss=margin),
    }[attack]
    ours, theirs = run(half), run(model)
    assert half.repaired > 0 and not ours.zero_gradient.any()
    # another size of batch sums in another order
    assert float(((ours.x[2] - theirs.x[2]).abs() < 1e-4).float().mean()) > 0.99
    assert float((ours.x[2] - x[2]).abs().max()) > 0.1


def test_gradients_that_are_lost_in_part_are_float32s():
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * SIDE * SIDE, 64, bias=False),
        nn.Linear(64, 64, bias=False),
        nn.Linear(64, 10, bias=False),
    )
    for layer in net[1:]:
        nn.init.uniform_(layer.weight, -1e-4, 1e-4)
    model, (x, labels) = exact(net), images()
    half = HalfCopy(model, x)
    # the logits themselves are zero in float16: a loss that does not look at which is the largest
    ours, theirs = (input_gradient(each, x, labels, lambda z, y: z[:, 0] - z[:, 1]).gradient for each in (half, model))
    assert torch.equal(ours == 0, theirs == 0)
    assert float((ours.sign() == theirs.sign()).float().mean()) > 0.99


class Faint(nn.Module):
    """Ten sums of the pixels, where an image is dark a thousand-millionth of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.sums = nn.Linear(3 * SIDE * SIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        dark = (x.mean(dim=(1, 2, 3)) < -1).to(x.dtype)[:, None]
        logits: Tensor = self.sums(x.flatten(1)) * (1 - dark * (1 - 2.0**-14)) * (1 - dark * (1 - 2.0**-14))
        return logits


def test_an_image_with_a_faint_gradient_does_not_set_the_scale_of_the_others():
    model, (x, labels) = exact(Faint()), images()
    x = 0.5 + 0.5 * x
    bright = HalfCopy(model, x)
    x[3] = 0.1 * x[3]
    half = HalfCopy(model, x)
    assert half._exponent == bright._exponent
    ours, theirs = (input_gradient(each, x, labels, lambda z, y: z[:, 0] - z[:, 1]).gradient for each in (half, model))
    assert half.repaired == 1
    assert float(errors(ours.double(), theirs.double()).max()) < 0.05


class NoLogits(nn.Module):
    """A network that answers some images with NaN."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :10] * 1.0
        return torch.where(x[:, 0, 0, 0, None] > 0.5, logits * float("nan"), logits)


def test_an_image_without_logits_was_not_attacked():
    x, labels = images()
    x[:, 0, 0, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    found = pgd(NoLogits(), x, labels, eps=0.01, steps=2)
    assert found.zero_gradient[[2, 4]].all()
    assert torch.equal(found.x[[2, 4]], x[[2, 4]])
