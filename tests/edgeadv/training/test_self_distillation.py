"""Self-distillation by the average of the weights: its labels by hand, whose they are, and when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.data.datasets import open_data
from edgeadv.data.rng import RandomStream
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import fit
from edgeadv.training.objectives import Training
from edgeadv.training.self_distillation import Adr, rectified
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

EPS = Eps.parse("0.1")


def network(seed: int = 0) -> PixelModel:
    torch.manual_seed(seed)
    about = Architecture(name="small", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(900, 10))
    return PixelModel(net, about)


def pictures(n: int = 12) -> tuple[Tensor, Tensor, RandomStream]:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((n, 3, 32, 32))).float()
    return x, torch.from_numpy(rng.integers(0, 10, n)), RandomStream(0, 0, np.arange(n))


def following(teacher: nn.Module | None, done: float = 0.0, steps: int = 2) -> Adr:
    training = Training(TrainConfig(), 1, np.arange(12), teacher, lambda: done)
    return Adr.at(EPS, steps).follow(training)


def test_the_label_by_hand() -> None:
    """Right, a little wrong, so wrong that nothing of the teacher is left, and undecided."""
    p = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.9, 0.0, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    truth = np.array([0, 1, 1, 2])
    found = rectified(torch.from_numpy(p), torch.from_numpy(truth), 0.7).numpy()
    for row, y, label in zip(p, truth, found, strict=True):
        weight = min(max(0.7 - (row.max() - row[y]), 0), 1)
        np.testing.assert_allclose(label, weight * row + (1 - weight) * np.eye(3)[y], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[0], [0.86, 0.07, 0.07])
    np.testing.assert_allclose(found[1], [0.25, 0.65, 0.1])
    assert found[2].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.sum(axis=1), 1)
    # of any teacher and any share the label is at most as far from the truth as the teacher, and gives it the most
    rng = np.random.default_rng(0)
    many, labels = torch.from_numpy(rng.dirichlet(np.full(5, 0.5), 500)), torch.from_numpy(rng.integers(0, 5, 500))
    made = rectified(many, labels, 0.95).gather(1, labels[:, None])
    assert bool((made >= many.gather(1, labels[:, None]) - 1e-12).all())


@pytest.mark.parametrize(("done", "temperature", "share"), [(0.0, 2.0, 0.7), (0.5, 1.5, 0.825), (1.0, 1.0, 0.95)])
def test_temperature_and_share_follow_half_a_cosine(done: float, temperature: float, share: float) -> None:
    """The teacher is in evaluation mode, and is left as it was."""
    teacher = network().train()
    x, labels, _ = pictures()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found = following(teacher, done).labels_of(x, labels)
    assert teacher.training and all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    with torch.no_grad():
        expected = rectified((teacher.eval()(x) / temperature).softmax(dim=1), labels, share)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_the_loss_and_the_search_take_the_rectified_labels() -> None:
    x, labels, stream = pictures()
    objective = following(network(2), 0.3)
    soft = objective.labels_of(x, labels)
    outcome = objective(network(1), x, labels, stream)
    net = network(1).eval()
    current = (x + EPS.value * stream.uniform(x)).clamp(0, 1)
    for _ in range(2):
        current.requires_grad_(True)
        loss = -(soft * net(current).log_softmax(dim=1)).sum()
        (gradient,) = torch.autograd.grad(loss, current)
        lower, upper = (x - EPS.value).clamp(0, 1), (x + EPS.value).clamp(0, 1)
        current = (current.detach() + 1.25 * EPS.value * gradient.sign()).clamp(lower, upper)
    logits = network(1)(current)
    torch.testing.assert_close(outcome.logits, logits)
    torch.testing.assert_close(outcome.loss, -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean())
    # hard labels find other images
    assert not torch.equal(current, objective.perturbation(net, x, labels, stream))


def test_the_teacher_is_the_average_of_the_updates_before(tmp_path: Path) -> None:
    """And the share of the training that is done is that of the updates."""
    seen: list[tuple[float, dict[str, Tensor], dict[str, Tensor]]] = []

    class Watched(Adr):
        def labels_of(self, x: Tensor, labels: Tensor) -> Tensor:
            assert self.training is not None and self.training.average is not None
            average = {k: v.clone() for k, v in self.training.average.state_dict().items()}
            seen.append((self.training.done(), average, {k: v.clone() for k, v in model.state_dict().items()}))
            return super().labels_of(x, labels)

    model, data = network(), (open_data("mnist5k", split="train"), open_data("mnist5k", split="test"))
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 64, "limit": 256, "holdout": 0}
    fit(
        model,
        Watched("adr", Adr.at(EPS, 1).perturbation),
        *data,
        preprocess=data[0].preprocess,
        config=TrainConfig(**settings),
        out=tmp_path / "run",
        device=torch.device("cpu"),
    )
    assert [done for done, _, _ in seen] == [i / 8 for i in range(8)]
    expected = seen[1][2]
    for n in range(1, 8):
        _, average, state = seen[n]
        if n > 1:
            share = min(0.995, n / (9 + n))
            expected = {k: share * v + (1 - share) * state[k] for k, v in expected.items()}
        for name, value in average.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, expected[name])


def test_it_needs_an_average() -> None:
    assert Adr.at(EPS).ema == 0.995
    with pytest.raises(InputError, match="`ema` 0 leaves adr without the average"):
        following(None)
    x, labels, _ = pictures()
    with pytest.raises(TypeError, match="see `follow`"):
        Adr.at(EPS).labels_of(x, labels)
    assert math.isclose(Adr.at(EPS).perturbation.step_size, 2.5 * 0.1 / 7)


def test_smoothing_is_of_the_rectified_labels() -> None:
    net, x_labels_stream = network(), pictures()
    objective = following(network(2)).smoothed(0.2)
    x, labels, stream = x_labels_stream
    outcome = objective(net, x, labels, stream)
    soft = 0.8 * objective.labels_of(x, labels) + 0.02
    torch.testing.assert_close(outcome.loss, functional.cross_entropy(outcome.logits, soft))
