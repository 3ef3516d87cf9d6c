"""When compiling pays, and that what is compiled is the same network; here on the processor, by its real compiler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeadv.attacks import cross_entropy, input_gradient, pgd
from edgeadv.attacks.compiled import MOST_SIZES, PAYS_AFTER, BySize, compile_for, sizes_that_pay
from edgeadv.attacks.float16 import HalfCopy
from edgeadv.gradients.graph import GraphModule
from edgeadv.gradients.read_onnx import nodes_of
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv_export.to_onnx import to_onnx


def half() -> tuple[HalfCopy, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    model = PixelModel(net, Architecture(name="own", source="timm", num_classes=5)).eval()
    exact = GraphModule(nodes_of(to_onnx(model, (3, 16, 16))), "own").eval()
    x = torch.rand(8, 3, 16, 16)
    return HalfCopy(exact, x[:3]), x, torch.arange(8) % 5


@pytest.mark.parametrize(
    ("gradients", "largest", "sizes"),
    [
        (0, 64, []),
        (PAYS_AFTER - 1, 64, []),
        (PAYS_AFTER, 64, [64]),
        (3 * PAYS_AFTER + 1, 64, [64, 32, 16]),
        (10**12, 64, [64, 32, 16, 8]),
        (10**12, 2, [2, 1]),
        (10**12, 1, [1]),
    ],
)
def test_a_size_is_compiled_where_the_job_pays_for_it(gradients: int, largest: int, sizes: list[int]) -> None:
    assert sizes_that_pay(gradients, largest) == sizes and len(sizes) <= MOST_SIZES


def test_what_is_compiled_has_the_networks_gradients_at_its_size_alone() -> None:
    network, x, labels = half()
    sizes = {size: input_gradient(network, x[:size], labels[:size], cross_entropy) for size in (8, 4)}
    before = pgd(network, x, labels, eps=0.03, steps=3, leave=float("inf")).x
    assert compile_for(network, [8], x[:3]) is None
    assert isinstance(network.net, BySize) and list(network.net.made) == [8]
    calls: list[int] = []
    for size, made in list(network.net.made.items()):
        network.net.made[size] = lambda given, size=size, made=made: calls.append(size) or made(given)
    for size, due in sizes.items():
        found = input_gradient(network, x[:size], labels[:size], cross_entropy)
        torch.testing.assert_close(found.logits, due.logits, rtol=0.01, atol=0.01)
        torch.testing.assert_close(found.gradient, due.gradient, rtol=0.02, atol=0.02 * float(due.gradient.abs().max()))
    assert calls == [8]
    with torch.no_grad():
        network(x)
    assert calls == [8]
    made = pgd(network, x, labels, eps=0.03, steps=3, leave=float("inf")).x
    assert calls == [8, 8, 8, 8]
    assert float(((made - before).abs() > 1e-3).float().mean()) < 0.02
    assert network.repaired == 0


def test_other_gradients_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, _ = half()
    plain = network.net
    monkeypatch.setattr("edgeadv.attacks.compiled._compiled", lambda *_: lambda given: plain(given.flip(3)))
    assert compile_for(network, [8], x) == "its gradients are others for batches of 8"
    assert network.net is plain


def test_what_does_not_compile_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, _ = half()
    plain = network.net
    monkeypatch.setattr(torch, "compile", _unable)
    assert compile_for(network, [8], x) == "no compiler here: install one"
    assert network.net is plain


def _unable(*_: object, **__: object) -> None:
    raise RuntimeError("no compiler here:\n install one")
