"""Our attacks and those of torchattacks, foolbox and ART make the same images of the same model.

Pixels agree but where a gradient is within rounding of zero, where each library may see either sign. That attack objects of
theirs run through our evaluation is tested in ``test_adapters.py``.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv.attacks import cross_entropy, fgsm, pgd
from edgeadv_runtime.preprocess import to_tensor

EPS = 8 / 255
STEPS, STEP_SIZE = 5, 2 / 255


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small seeded convolutional network with BatchNorm, in evaluation mode."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16 * 16, 10),
        )  # fmt: skip
    return net.eval()


@pytest.fixture(scope="module")
def x(photographs: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(to_tensor(np.stack([frame[10:42, 10:42] for frame in photographs])))


@pytest.fixture(scope="module")
def labels(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says, for half of the images; another class for the others."""
    with torch.no_grad():
        return (model(x).argmax(dim=1) + torch.arange(len(x)) % 2) % 10


def assert_same_images(ours: Tensor, theirs: Tensor, x: Tensor) -> None:
    assert ours.shape == theirs.shape == x.shape
    assert float(((ours - theirs).abs() <= 1e-6).float().mean()) >= 0.999
    # and they are attacked: most pixels go most of the way
    assert float(((ours - x).abs() > 0.5 * EPS).float().mean()) > 0.6


def our_fgsm(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return fgsm(model, x, labels, eps=EPS)[0].x


def our_pgd(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The peers return the last iterate and ours the best: so short a way that the loss rises all along it."""
    last = pgd(model, x, labels, eps=EPS, steps=STEPS, step_size=STEP_SIZE, loss=cross_entropy).x
    before = pgd(model, x, labels, eps=EPS, steps=STEPS - 1, step_size=STEP_SIZE, loss=cross_entropy).x
    with torch.no_grad():
        assert (cross_entropy(model(last), labels) > cross_entropy(model(before), labels)).all()
    return last


def test_fgsm_is_torchattacks(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    import torchattacks

    assert_same_images(our_fgsm(model, x, labels), torchattacks.FGSM(model, eps=EPS)(x, labels), x)


def test_pgd_is_torchattacks(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=False)
    assert_same_images(our_pgd(model, x, labels), attack(x, labels), x)


def test_fgsm_is_foolboxs(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    import foolbox

    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, labels, epsilons=EPS)
    assert_same_images(our_fgsm(model, x, labels), theirs, x)


def test_pgd_is_foolboxs(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, labels, epsilons=EPS)
    assert_same_images(our_pgd(model, x, labels), theirs, x)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_art_makes_the_same(
    model: nn.Module, x: Tensor, labels: Tensor, attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it writes its settings into the home folder when it is imported
    monkeypatch.setenv("HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 32, 32),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    if attack == "fgsm":
        theirs = FastGradientMethod(classifier, eps=EPS, batch_size=12).generate(x.numpy(), y=labels.numpy())
        ours = our_fgsm(model, x, labels)
    else:
        generator = ProjectedGradientDescent(
            classifier, eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=0, batch_size=12, verbose=False
        )
        theirs = generator.generate(x.numpy(), y=labels.numpy())
        ours = our_pgd(model, x, labels)
    assert_same_images(ours, torch.from_numpy(theirs), x)


def test_our_pgd_is_at_least_as_strong_as_theirs(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    """With steps that overshoot, the best iterate is never worse than the last, and sometimes better."""
    import torchattacks

    ours = pgd(model, x, labels, eps=EPS, steps=10, step_size=EPS, loss=cross_entropy).x
    theirs = torchattacks.PGD(model, eps=EPS, alpha=EPS, steps=10, random_start=False)(x, labels)
    with torch.no_grad():
        mine, other = cross_entropy(model(ours), labels), cross_entropy(model(theirs), labels)
    assert (mine >= other - 1e-4).all()
