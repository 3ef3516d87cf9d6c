"""Networks of digits that are really trained, and what the verdict measures on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgeadv.attacks import fgsm, pgd
from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.loading import to_model_input
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import fit
from edgeadv.training.objectives import HardLabels, Objective
from edgeadv.training.recipes import Task, distill, train
from edgeadv.training.runs import Run
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.records.suites import (
    SUITES,
)
from tests.edgeadv.verdicts.measuring import CPU, EPS, OVERFIT_EPS, ROBUST_EPS, Measured, N, Trainer, cnn, measured


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    torch.set_num_threads(1)
    return open_data("mnist5k", split="train"), open_data("mnist5k", split="test")


@pytest.fixture(scope="module")
def clean(digits: tuple[ImageSet, ImageSet]) -> list[CleanBatch]:
    order = balanced_subset(digits[1].labels, N)
    return [
        CleanBatch(b.index, b.pixels, b.labels)
        for b in batches(digits[1], digits[1].preprocess, batch_size=100, order=order)
    ]


@pytest.fixture(scope="module")
def measure(clean: list[CleanBatch]) -> Callable[..., Measured]:
    """:func:`~tests.edgeadv.verdicts.measuring.measured` on the same images of digits."""
    return partial(measured, clean)


@pytest.fixture(scope="module")
def task(digits: tuple[ImageSet, ImageSet]) -> Task:
    return Task(
        train_images=digits[0],
        test_images=digits[1],
        preprocess=digits[0].preprocess,
        config=TrainConfig(epochs=6),
        device=CPU,
    )


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return Architecture.find("timm/test_efficientnet", num_classes=10)


@pytest.fixture(scope="module")
def undefended_run(task: Task, architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(task, architecture, tmp_path_factory.mktemp("runs") / "undefended")


@pytest.fixture(scope="module")
def distilled_run(task: Task, architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "papernot"
    return distill(task, architecture, out, recipe="papernot", temperature=100.0)


@pytest.fixture(scope="module")
def robust_run(task: Task, architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "robust"
    # of 4,000 digits none to spare: the last epoch will do
    whole = replace(task, config=replace(task.config, holdout=0))
    return train(whole, architecture, out, defence=AdversarialTraining.pgd(ROBUST_EPS, steps=3))


@pytest.fixture(scope="module")
def trained_cnn(digits: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Trains a network of :func:`cnn`."""

    def run(objective: Objective) -> PixelModel:
        model, config = cnn(), TrainConfig(epochs=8, lr=0.05)
        out = tmp_path_factory.mktemp("runs") / "cnn"
        fit(model, objective, *digits, preprocess=digits[0].preprocess, config=config, out=out, device=CPU)
        return model.eval()

    return run


@pytest.fixture(scope="module")
def undefended_cnn(trained_cnn: Trainer) -> PixelModel:
    return trained_cnn(HardLabels())


@pytest.fixture(scope="module")
def overfitted_cnn(digits: tuple[ImageSet, ImageSet]) -> PixelModel:
    """Trained on plain FGSM at eps 0.3, without a random start, until FGSM no longer works and PGD does (Wong et al.
    2020)."""
    epochs, size = 30, 100
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * len(digits[0]) // size)
    held_out = next(batches(digits[1], digits[1].preprocess, batch_size=100, order=np.arange(3, 1000, 10)))
    x_held, y_held = (
        to_model_input(torch.from_numpy(held_out.pixels).permute(0, 3, 1, 2)),
        torch.from_numpy(held_out.labels),
    )

    def standing(x: Tensor) -> float:
        with torch.no_grad():
            return float((model.eval()(x).argmax(dim=1) == y_held).float().mean())

    for epoch in range(epochs):
        order = np.random.default_rng((0, epoch)).permutation(len(digits[0]))
        for batch in batches(digits[0], digits[0].preprocess, batch_size=size, order=order):
            x, labels = (
                to_model_input(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)),
                torch.from_numpy(batch.labels),
            )
            # a budget that grows, or it would never begin to learn
            x_adv = fgsm(model, x, labels, eps=OVERFIT_EPS * min(1.0, (epoch + 1) / 10))[0].x
            loss = functional.cross_entropy(model.train()(x_adv), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        plain = standing(fgsm(model, x_held, y_held, eps=OVERFIT_EPS)[0].x)
        strong = standing(pgd(model, x_held, y_held, eps=OVERFIT_EPS).x)
        if epoch >= 10 and plain > 0.7 and strong < 0.1 and standing(x_held) > 0.9:
            print(f"\noverfitted after {epoch + 1} epochs: fgsm {plain:.2f}, pgd {strong:.2f}")
            return model.eval()
    pytest.fail(f"training on FGSM did not overfit: fgsm {plain:.2f}, pgd {strong:.2f}")


@pytest.fixture(scope="module")
def undefended(undefended_run: Run, measure: Callable[..., Measured]) -> Measured:
    return measure(undefended_run.load_model(), "undefended test_efficientnet")


@pytest.fixture(scope="module")
def distilled(distilled_run: Run, measure: Callable[..., Measured]) -> Measured:
    return measure(distilled_run.load_model(), "papernot T=100 test_efficientnet")


@pytest.fixture(scope="module")
def robust(robust_run: Run, measure: Callable[..., Measured]) -> Measured:
    # 20 steps of plain PGD are too few here: smoothed gradients break 2% more, and the verdict says so
    standard = SUITES["standard"]
    return measure(
        robust_run.load_model(), "adversarially trained test_efficientnet", eps=[ROBUST_EPS], efforts=standard
    )


@pytest.fixture(scope="module")
def simple(undefended_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(undefended_cnn, "undefended cnn")


@pytest.fixture(scope="module")
def overfitted(overfitted_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(overfitted_cnn, "cnn overfitted to FGSM at eps 0.3", eps=EPS[-1:])
