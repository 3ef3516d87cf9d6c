"""What adversarial training is for: each recipe's network stands more than an undefended one, after seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeadv.data.datasets import ImageSet, open_data
from edgeadv.data.loading import loader
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import fit
from edgeadv.training.objectives import HardLabels
from edgeadv.training.prior_guided import PriorGuided
from edgeadv.training.selection import Standing, standing
from edgeadv.training.self_distillation import Adr
from edgeadv.training.weight_perturbation import Awp
from edgeadv_runtime.records.eps import Eps

EPS, CPU = Eps.parse("0.1"), torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    torch.set_num_threads(1)
    return open_data("mnist5k", split="train"), open_data("mnist5k", split="test")


def trained(objective: Any, digits: tuple[ImageSet, ImageSet], out: Path, **config: Any) -> Standing:
    """How a small network stands on 300 test images."""
    torch.manual_seed(0)
    about = Architecture(name="small", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(784, 10)
    )
    model = PixelModel(net, about)
    settings = TrainConfig(epochs=3, lr=0.05, holdout=200, **config)
    fit(model, objective, *digits, preprocess=digits[0].preprocess, config=settings, out=out, device=CPU)
    order = np.arange(0, 900, 3)
    return standing(model, loader(digits[1], order, digits[1].preprocess, CPU), order, EPS)


@pytest.fixture(scope="module")
def undefended(digits: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Standing:
    return trained(HardLabels(), digits, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize(
    ("objective", "config"),
    [
        (AdversarialTraining.n_fgsm(EPS), {}),
        (PriorGuided.at(EPS), {}),
        (PriorGuided.at(EPS), {"augment": "crop-flip", "no_mirror": True}),
        (Adr.at(EPS, 3), {}),
        (Awp.at(EPS, 3), {}),
    ],
    ids=lambda value: getattr(value, "recipe", "-".join(map(str, value)) if isinstance(value, dict) else None),
)
def test_it_stands_more_than_an_undefended_network(
    objective: Any, config: dict[str, Any], digits: tuple[ImageSet, ImageSet], undefended: Standing, tmp_path: Path
) -> None:
    found = trained(objective, digits, tmp_path / "run", **config)
    print(f"\n{objective.recipe} {config}: {found}; undefended {undefended}")
    assert undefended.clean > 0.9 and found.clean > 0.6
    assert found.worst_case > undefended.worst_case + 0.25
