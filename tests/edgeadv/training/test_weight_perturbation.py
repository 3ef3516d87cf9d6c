"""Weights that are moved up the loss: how far by finite differences, what is left alone, and whose gradient trains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.data.rng import RandomStream
from edgeadv.training.config import TrainConfig
from edgeadv.training.objectives import Training
from edgeadv.training.weight_perturbation import Awp, weight_perturbation
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

CLASSES, EPS = 4, Eps.parse("0.1")


def pictures(n: int = 12) -> tuple[Tensor, Tensor, RandomStream]:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((n, 3, 4, 4)))
    return x, torch.from_numpy(rng.integers(0, CLASSES, n)), RandomStream(0, 0, np.arange(n))


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, CLASSES)).double()


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, CLASSES))
    return net.double().train()


def slope(weight: Tensor, loss: Callable[[], Tensor], step: float = 1e-5) -> Tensor:
    """The gradient of the loss by central differences."""
    found, flat = torch.zeros_like(weight), weight.data.view(-1)
    with torch.no_grad():
        for i in range(len(flat)):
            was, sides = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = was + sign * step
                sides.append(float(loss()))
            flat[i] = was
            found.view(-1)[i] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("gamma", [0.01, 0.5])
def test_each_layer_moves_up_the_loss_by_a_share_of_its_own_norm(gamma: float) -> None:
    net, (x, labels, _) = linear(), pictures()
    moves = weight_perturbation(net, x, lambda logits: functional.cross_entropy(logits, labels), gamma)
    assert set(moves) == {"1.weight", "2.weight"}  # and no bias
    for name, move in moves.items():
        weight = net.get_parameter(name)
        gradient = slope(weight, lambda: functional.cross_entropy(net(x), labels))
        torch.testing.assert_close(move, gamma * weight.norm() * gradient / gradient.norm(), rtol=1e-5, atol=1e-8)
        assert not move.requires_grad
        torch.testing.assert_close(move.norm(), gamma * weight.detach().norm())


def test_the_look_for_a_move_leaves_the_network_alone() -> None:
    """Statistics of BatchNorm, gradients and weights; parameters that are not trained are not moved."""
    net, (x, labels, _) = normed(), pictures()
    net[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    moves = weight_perturbation(net, x, lambda logits: functional.cross_entropy(logits, labels), 0.1)
    assert set(moves) == {"4.weight"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and net.training
    # and a loss that does not depend on the weights moves nothing
    nothing = weight_perturbation(net, x, lambda logits: 0 * logits.sum(), 0.1)
    assert not nothing["4.weight"].any()


def test_the_gradient_is_that_of_the_moved_weights() -> None:
    """Of the same images; BatchNorm keeps the statistics of the moved network, once."""
    net, (x, labels, stream) = normed(), pictures()
    objective = Awp.at(EPS, 2)
    made = objective.perturbation(net, x, labels, stream)
    moves = weight_perturbation(net, made, lambda logits: functional.cross_entropy(logits, labels), objective.gamma)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    outcome = objective(net, x, labels, stream)
    outcome.loss.backward()

    theirs = normed()
    with torch.no_grad():
        for name, move in moves.items():
            theirs.get_parameter(name).add_(move)
    functional.cross_entropy(theirs(made), labels).backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, weights[name])
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        torch.testing.assert_close(net.get_buffer(name), theirs.get_buffer(name))
    with torch.no_grad():
        assert float(outcome.loss) > float(functional.cross_entropy(normed()(made), labels))


def test_it_needs_the_network_for_itself() -> None:
    def training(processes: int = 1, compiled: bool = False) -> Training:
        return Training(TrainConfig(compile=compiled), processes, np.arange(3), None, lambda: 0.0)

    objective = Awp.at(EPS)
    assert objective.follow(training()) == objective and objective.to_json()["gamma"] == 0.01
    with pytest.raises(InputError, match="`recipe` awp trains in one process, not in 2"):
        objective.follow(training(2))
    with pytest.raises(InputError, match="`compile` does not go with awp"):
        objective.follow(training(compiled=True))
