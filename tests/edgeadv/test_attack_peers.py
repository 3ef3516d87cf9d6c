"""Our attacks and those of torchattacks, foolbox and ART make the same images of the same model.

Pixels agree but where a gradient is within rounding of zero, where each library may see either sign.
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
from edgeadv.torch_backend import TorchBackend
from edgeadv_runtime.attack import CallableAttack, CleanBatch, craft, infos
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluate import DataInfo, evaluate
from edgeadv_runtime.preprocess import to_tensor
from edgeadv_runtime.results import AttackParams

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


@pytest.fixture(scope="module")
def batch(tiny_bundle: Bundle) -> CleanBatch:
    pixels = tiny_bundle.golden().pixels
    labels = tiny_bundle.golden().logits["fp32"].argmax(axis=1)
    labels[-1] = (labels[-1] + 1) % 10
    return CleanBatch(np.arange(8), pixels, labels.astype(np.int64))


@pytest.mark.parametrize("uint8", [False, True])
def test_a_third_partys_attack_object_fits_the_evaluation(tiny_bundle: Bundle, batch: CleanBatch, uint8: bool) -> None:
    import torchattacks

    with TorchBackend(tiny_bundle, device=torch.device("cpu"), threads=1) as backend:
        theirs = torchattacks.PGD(backend.model, eps=EPS, alpha=2 / 255, steps=5)
        torch.manual_seed(0)
        attack = CallableAttack(
            lambda x, y: theirs(torch.from_numpy(x), torch.from_numpy(y)).numpy(), "torchattacks-pgd", Eps.parse("8/255"),
            gradients="torch fp32", gradients_sha256=tiny_bundle.weights_sha256,
            described=AttackParams(norm="linf", loss="cross-entropy", steps=5, step_size="2/255"),
        )  # fmt: skip
        batches = list(craft([batch], [attack], backend, uint8=uint8))
        results = evaluate(
            batches,
            infos([attack], uint8=uint8),
            bundle=tiny_bundle,
            backends=[backend],
            data=DataInfo("golden", "test", 8),
        )
        x_adv = batches[0].adversarial["torchattacks-pgd", "8/255"]
        right = backend.infer(x_adv).argmax(axis=1) == batch.labels
    moved = np.abs(x_adv - to_tensor(batch.pixels))
    assert EPS * 0.9 < moved.max() <= EPS + 1e-6
    if uint8:
        np.testing.assert_allclose(x_adv * 255, np.rint(x_adv * 255), atol=1e-4)
    clean, row, worst = results.rows
    assert clean.correct_top1 == 7
    assert (row.attack, row.threat, row.gradients, row.correct_top1) == (
        "torchattacks-pgd",
        "white-box",
        "torch fp32",
        right.sum(),
    )
    assert row.params == AttackParams(norm="linf", loss="cross-entropy", steps=5, step_size="2/255", uint8=uint8)
    assert row.zero_gradient_share is None
    assert worst.correct_top1 <= min(clean.correct_top1, row.correct_top1)
    assert right.sum() < 7
    # a foreign attack alone earns no verdict
    assert results.masking["verdict"] == "UNCHECKED"


def test_a_third_partys_attack_beyond_its_budget_is_caught(tiny_bundle: Bundle, batch: CleanBatch) -> None:
    import torchattacks

    with TorchBackend(tiny_bundle, device=torch.device("cpu"), threads=1) as backend:
        theirs = torchattacks.FGSM(backend.model, eps=16 / 255)
        attack = CallableAttack(
            lambda x, y: theirs(torch.from_numpy(x), torch.from_numpy(y)).numpy(),
            "torchattacks-fgsm",
            Eps.parse("8/255"),
        )
        with pytest.raises(InputError, match=r"attack torchattacks-fgsm moved a pixel by 0\.06"):
            list(craft([batch], [attack], backend, uint8=False))
