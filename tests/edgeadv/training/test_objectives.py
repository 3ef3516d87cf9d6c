"""Training at a temperature, against ordinary training and against formulas worked out in NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv.data.rng import RandomStream
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training.objectives import (
    DefensiveDistillation,
    HardLabels,
    Objective,
    SoftLabels,
    check_temperature,
    parameter_groups,
    scale_head,
    soft_labels,
)
from edgeadv_runtime.errors import InputError

CLASSES = 4


def network(seed: int = 0, *, bias: bool = True) -> PixelModel:
    """A small network with BatchNorm in double precision."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 16),
            nn.ReLU(),
            nn.Linear(16, CLASSES, bias=bias),
        )
    about = Architecture(name="small", source="timm", num_classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3)
    return PixelModel(net, about).double()


NONE = RandomStream(0, 0, np.empty(0, np.int64))  # nothing here draws


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(0)
    return [
        (torch.from_numpy(rng.random((12, 3, 8, 8))), torch.from_numpy(rng.integers(0, CLASSES, 12))) for _ in range(n)
    ]


def train(model: PixelModel, objective: Objective, *, steps: int = 5, scaled: bool = True) -> None:
    """As :func:`edgeadv.training.loop.fit` sets it up: SGD with Nesterov momentum and weight decay."""
    model.train()
    scale = objective.head_scale if scaled else 1.0
    scale_head(model, scale)
    groups = parameter_groups(model, lr=0.05, weight_decay=5e-3, head_scale=scale)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    for x, labels in batches(steps):
        optimizer.zero_grad()
        objective(model, x, labels, NONE).loss.backward()
        optimizer.step()


def logits(model: PixelModel) -> NDArray[np.float64]:
    with torch.no_grad():
        return model.eval()(batches(1)[0][0]).numpy()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [7.0, 40.0, 100.0])
def test_training_at_t_is_ordinary_training_of_u(temperature: float, bias: bool) -> None:
    """u = z / T follows the path of ordinary training step by step, weight decay and momentum included."""
    ordinary, hot = network(bias=bias), network(bias=bias)
    start = logits(copy.deepcopy(ordinary))
    train(ordinary, HardLabels())
    train(hot, HardLabels(temperature))
    expected = logits(ordinary)
    np.testing.assert_allclose(logits(hot) / temperature, expected, rtol=1e-9, atol=1e-11)
    # and it is a path: the network learned
    assert np.abs(expected - start).max() > 0.1
    assert np.abs(train_and_logits(temperature, bias, scaled=False) / temperature - expected).max() > 0.1


def train_and_logits(temperature: float, bias: bool, *, scaled: bool) -> NDArray[np.float64]:
    """Training at T without the scaled head hardly moves."""
    model = network(bias=bias)
    train(model, HardLabels(temperature), scaled=scaled)
    return logits(model)


def test_distillation_at_t_follows_distillation_at_1() -> None:
    """A student at T of a teacher whose logits are T times as large."""
    teacher, hot_teacher = network(seed=5).eval(), network(seed=5).eval()
    scale_head(hot_teacher, 40.0)
    ordinary, hot = network(), network()
    train(ordinary, DefensiveDistillation(teacher, 1.0))
    train(hot, DefensiveDistillation(hot_teacher, 40.0))
    # the teacher's probabilities pass through float32, as in training
    np.testing.assert_allclose(logits(hot) / 40, logits(ordinary), rtol=1e-4, atol=1e-6)


def test_only_the_head_is_scaled() -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    z = logits(model)
    scale_head(model, 10.0)
    np.testing.assert_allclose(logits(model), 10 * z, rtol=1e-9)
    for name, parameter in model.named_parameters():
        factor = 10 if name.startswith("net.6.") else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_every_parameter_is_in_one_group() -> None:
    model = network()
    body, head = parameter_groups(model, lr=0.1, weight_decay=0.01, head_scale=10.0)
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
    assert sorted(id(p) for p in [*body["params"], *head["params"]]) == sorted(id(p) for p in model.parameters())
    assert (body["lr"], body["weight_decay"]) == (0.1, 0.01)
    assert (head["lr"], head["weight_decay"]) == pytest.approx((10.0, 0.0001))


# The formulas, in NumPy


def log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


class Fixed(nn.Module):
    """A teacher that has learned its lesson by heart."""

    def __init__(self, z: NDArray[np.float64]) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.from_numpy(z))

    def forward(self, x: Tensor) -> Tensor:
        return self.z


@pytest.fixture
def z() -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(scale=5, size=(6, CLASSES))


@pytest.fixture
def teacher_z() -> NDArray[np.float64]:
    return np.random.default_rng(2).normal(scale=5, size=(6, CLASSES))


LABELS = np.array([0, 3, 1, 2, 2, 0])


def hard(z: NDArray[np.float64], temperature: float = 1.0) -> float:
    return float(-log_softmax(z / temperature)[np.arange(6), LABELS].mean())


def soft(z: NDArray[np.float64], teacher_z: NDArray[np.float64], temperature: float) -> float:
    return float(-(np.exp(log_softmax(teacher_z / temperature)) * log_softmax(z / temperature)).sum(axis=1).mean())


def value(objective: Objective, z: NDArray[np.float64]) -> float:
    """Of a network that answers ``z``."""
    outcome = objective(Fixed(z), torch.zeros(6, 3, 2, 2), torch.from_numpy(LABELS), NONE)
    np.testing.assert_allclose(outcome.logits.detach().numpy(), z, rtol=1e-6)
    return float(outcome.loss.detach())


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_hard_labels_at_a_temperature(z: NDArray[np.float64], temperature: float) -> None:
    assert value(HardLabels(temperature), z) == pytest.approx(hard(z, temperature), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_papernots_student(z: NDArray[np.float64], teacher_z: NDArray[np.float64], temperature: float) -> None:
    objective = DefensiveDistillation(Fixed(teacher_z), temperature)
    assert value(objective, z) == pytest.approx(soft(z, teacher_z, temperature), rel=1e-5)
    # the labels are not used
    other = objective(Fixed(z), torch.zeros(6, 3, 2, 2), torch.from_numpy(LABELS[::-1].copy()), NONE)
    assert float(other.loss) == value(objective, z)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_labels_mixed_with_hard_ones(
    z: NDArray[np.float64], teacher_z: NDArray[np.float64], temperature: float, alpha: float
) -> None:
    expected = alpha * temperature**2 * soft(z, teacher_z, temperature) + (1 - alpha) * hard(z)
    assert value(SoftLabels(Fixed(teacher_z), temperature, alpha), z) == pytest.approx(expected, rel=1e-5)
    assert SoftLabels(Fixed(teacher_z), temperature, alpha).head_scale == 1.0


def test_soft_labels_are_probabilities_without_a_gradient(teacher_z: NDArray[np.float64]) -> None:
    p = soft_labels(Fixed(teacher_z), torch.zeros(6, 3, 2, 2), 4.0)
    assert p.dtype == torch.float32 and not p.requires_grad
    np.testing.assert_allclose(p.numpy(), np.exp(log_softmax(teacher_z / 4)), rtol=1e-5)
    np.testing.assert_allclose(p.sum(dim=1).numpy(), 1, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.99, -1.0, 1.1e6, float("nan"), float("inf")])
def test_an_unusable_temperature_is_refused(temperature: float, teacher_z: NDArray[np.float64]) -> None:
    teacher = Fixed(teacher_z)
    for make in (
        lambda: check_temperature(temperature),
        lambda: HardLabels(temperature),
        lambda: DefensiveDistillation(teacher, temperature),
        lambda: SoftLabels(teacher, temperature, 0.5),
    ):
        with pytest.raises(InputError, match="temperature must be from 1 to 1e6"):
            make()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_unusable_alpha_is_refused(alpha: float, teacher_z: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match=r"alpha must be in \[0, 1\]"):
        SoftLabels(Fixed(teacher_z), 4.0, alpha)


def test_the_head_scale_is_the_temperature_where_the_student_is_deployed_at_1(teacher_z: NDArray[np.float64]) -> None:
    assert HardLabels(40).head_scale == DefensiveDistillation(Fixed(teacher_z), 40).head_scale == 40
    assert HardLabels().head_scale == 1
