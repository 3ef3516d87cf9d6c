"""Adversarial training: the perturbation against closed forms, what it must leave alone, and that it makes a network
robust."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.attacks import cross_entropy, fgsm, margin, pgd
from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.loading import to_model_input
from edgeadv.data.rng import RandomStream
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.models.checkpoints import read_weights
from edgeadv.training.adversarial import AdversarialTraining, Defence, Trades, ascend, divergence, random_start
from edgeadv.training.checkpoint import STATE_FILE
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import Progress, fit
from edgeadv.training.prior_guided import PriorGuided
from edgeadv.training.recipes import Task, train
from edgeadv.training.runs import Run
from edgeadv.training.self_distillation import Adr
from edgeadv.training.weight_perturbation import Awp
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

CPU = torch.device("cpu")
CLASSES = 4
EPS = Eps.parse("8/255")


def pictures(n: int = 12, side: int = 8) -> tuple[Tensor, Tensor]:
    """Some pixels are black, some white, so that the clipping to [0, 1] matters."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((n, 3, side, side))).float().mul(1.2).sub(0.1).clamp(0, 1)
    return x, torch.from_numpy(rng.integers(0, CLASSES, n))


def stream(x: Tensor, seed: int = 0) -> RandomStream:
    """Of as many images as ``x`` holds."""
    return RandomStream(seed, 0, np.arange(len(x)))


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))


def normed() -> nn.Sequential:
    """With BatchNorm whose running statistics are not those of a batch, and dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(54, CLASSES),
    )
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(pictures()[0])
    return net


# The perturbation


def test_a_random_start_fills_the_ball_and_stays_in_range() -> None:
    x, _ = pictures(200)
    noise = random_start(x, 0.1, stream(x)) - x
    assert float(noise.abs().max()) <= 0.1 + 1e-6
    inside = noise[(x > 0.1) & (x < 0.9)] / 0.1
    # uniform in [-1, 1]: mean 0, variance 1/3, each tenth as full as any other
    assert float(inside.mean()) == pytest.approx(0, abs=0.02) and float(inside.var()) == pytest.approx(1 / 3, abs=0.01)
    assert float(torch.histc(inside, 10, -1, 1).div(len(inside)).sub(0.1).abs().max()) < 0.01
    start = random_start(x, 0.1, stream(x, seed=1))
    assert not torch.equal(start - x, noise) and float(start.min()) >= 0 and float(start.max()) <= 1


def linear_direction(net: nn.Sequential, x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of a linear model's cross-entropy, written out: W' (softmax(z) - onehot)."""
    weight = net[1].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        residual = net(x).softmax(dim=1) - functional.one_hot(labels, CLASSES)
        return (residual @ weight).sign().view_as(x)


@pytest.mark.parametrize("reach", [0.5, 1.25, 3.0])
def test_one_step_on_a_linear_model_is_the_closed_form(reach: float) -> None:
    net, (x, labels), eps = linear(), pictures(), 0.1
    start = random_start(x, eps, stream(x))
    made = ascend(net, x, labels, start=start, eps=eps, steps=1, step_size=reach * eps)
    noise = start - x + reach * eps * linear_direction(net, start, labels)
    expected = (x + noise.clamp(-eps, eps)).clamp(0, 1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_many_steps_on_two_classes_reach_the_corner_that_is_worst() -> None:
    """A linear model of two classes has one direction everywhere: the maximum of the ball is known."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    x, labels = pictures()
    labels = labels % 2
    towards = (net[1].weight[1] - net[1].weight[0]).sign().view(1, 3, 8, 8).detach()
    towards = torch.where(labels[:, None, None, None] == 1, -towards, towards)
    objective = AdversarialTraining.pgd(Eps.parse("0.1"), steps=3)
    expected = (x + 0.1 * towards).clamp(0, 1)
    torch.testing.assert_close(objective.perturbation(net, x, labels, stream(x)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", [AdversarialTraining.fgsm(EPS), AdversarialTraining.pgd(EPS, 3)])
def test_images_stay_within_eps_and_range_and_raise_the_loss(objective: AdversarialTraining) -> None:
    net, (x, labels) = normed(), pictures(200)
    made = objective.perturbation(net, x, labels, stream(x))
    assert made.shape == x.shape and made.dtype == torch.float32 and not made.requires_grad
    assert float((made - x).abs().max()) <= EPS.value + 1e-6
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    net.eval()
    with torch.no_grad():
        clean, noisy, adversarial = (
            float(functional.cross_entropy(net(images), labels))
            for images in (x, random_start(x, EPS.value, stream(x)), made)
        )
    assert adversarial > max(clean, noisy) + 0.01


def test_the_steps_are_those_of_our_own_attack() -> None:
    """One step from the image itself is FGSM; on two classes of a linear model PGD's best iterate is its last."""
    net, (x, labels) = normed(), pictures()
    one = ascend(net, x, labels, start=x, eps=0.1, steps=1, step_size=0.1)
    torch.testing.assert_close(one, fgsm(net, x, labels, eps=0.1)[0].x, rtol=0, atol=1e-7)
    flat, eps = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), 0.1
    start = random_start(x, eps, stream(x))
    many = ascend(flat, x, labels % 2, start=start, eps=eps, steps=4, step_size=0.3 * eps)
    theirs = pgd(
        flat, x, labels % 2, eps=eps, steps=4, step_size=0.3 * eps, start=start - x, loss=cross_entropy, leave=math.inf
    )
    torch.testing.assert_close(many, theirs.x, rtol=0, atol=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    """Statistics, gradients, what is trained, modes, and the random numbers of dropout; the attack sees the network to
    deploy."""
    net, (x, labels) = normed(), pictures()
    net[0].requires_grad_(False)
    net[3].eval()
    net(x).sum().backward()
    modes = [m.training for m in net.modules()]
    trained = [p.requires_grad for p in net.parameters()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    start = random_start(x, 0.1, stream(x))
    random = torch.get_rng_state()
    made = ascend(net, x, labels, start=start, eps=0.1, steps=3, step_size=0.05)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or parameter.grad is None or torch.equal(parameter.grad, gradient)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == trained
    torch.testing.assert_close(
        made, ascend(net.eval(), x, labels, start=start, eps=0.1, steps=3, step_size=0.05), rtol=0, atol=0
    )
    # and no image's perturbation depends on the batch that it is in
    alone = ascend(net, x[:1], labels[:1], start=start[:1], eps=0.1, steps=1, step_size=0.05)
    together = ascend(net, x, labels, start=start, eps=0.1, steps=1, step_size=0.05)
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-6)


def test_a_gradient_that_is_no_number_moves_nothing() -> None:
    """The loss of such a network is no number either: training stops on that."""
    net, (x, labels) = linear(), pictures()
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    assert torch.equal(ascend(net, x, labels, start=x, eps=0.1, steps=1, step_size=0.1), x)
    assert AdversarialTraining.pgd(EPS)(net, x, labels, stream(x)).loss.isnan()


# The recipes


def test_the_recipes_are_those_of_the_papers() -> None:
    fast, madry = AdversarialTraining.fgsm(EPS), AdversarialTraining.pgd(EPS)

    def how(objective: AdversarialTraining) -> tuple[int, float]:
        return objective.perturbation.steps, objective.perturbation.step_size

    assert how(fast) == (1, pytest.approx(1.25 * 8 / 255))
    assert how(madry) == (7, pytest.approx(2.5 * 8 / 255 / 7))
    assert how(AdversarialTraining.pgd(EPS, 3)) == (3, pytest.approx(2.5 * 8 / 255 / 3))
    assert (fast.title, madry.title) == ("at-fgsm eps 8/255", "at-pgd eps 8/255")
    for steps in (0, -1):
        with pytest.raises(InputError, match="at least 1 step"):
            AdversarialTraining.pgd(EPS, steps)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_perturbed_images(smoothing: float) -> None:
    net, (x, labels) = linear(), pictures()
    objective = AdversarialTraining.pgd(EPS, 2).smoothed(smoothing)
    outcome = objective(net, x, labels, stream(x))
    logits = net(objective.perturbation(net, x, labels, stream(x)))
    assert torch.equal(outcome.logits, logits)
    wanted = (1 - smoothing) * functional.one_hot(labels, CLASSES) + smoothing / CLASSES
    expected = -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(outcome.loss, expected)
    assert objective.head_scale == 1 and objective.budget == EPS
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="label smoothing must be in"):
            objective.smoothed(wrong)


def test_n_fgsm_adds_its_step_to_the_noise_without_projection() -> None:
    """De Jorge et al. 2022, algorithm 1, on a linear model: x + noise + eps * sign, clipped to [0, 1] only."""
    net, (x, labels) = linear(), pictures()
    objective = AdversarialTraining.n_fgsm(Eps.parse("0.1"))
    made = objective.perturbation(net, x, labels, stream(x))
    start = random_start(x, 0.2, stream(x))
    expected = (start + 0.1 * linear_direction(net, start, labels)).clamp(0, 1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
    assert 0.2 < float((made - x).abs().max()) <= 0.3 + 1e-6


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(dim=1)


def test_the_divergence_by_its_definition() -> None:
    torch.manual_seed(0)
    logits, other = (
        torch.randn(6, CLASSES, dtype=torch.float64),
        torch.randn(6, CLASSES, dtype=torch.float64).softmax(1),
    )
    torch.testing.assert_close(divergence(logits, other), kl(other, logits.softmax(dim=1)))
    torch.testing.assert_close(divergence(logits, logits.softmax(dim=1)), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_trades_in_closed_form(beta: float) -> None:
    """Equation 5 of the paper, and the gradient of it through both networks' answers."""
    net, (x, labels) = linear(), pictures()
    objective = Trades.at(EPS, 3, beta=beta)
    outcome = objective(net, x, labels, stream(x))
    (found,) = torch.autograd.grad(outcome.loss, net[1].weight)
    fixed = net(x).softmax(dim=1).detach()
    made = objective.perturbation(net, x, labels, stream(x), lambda logits, _: divergence(logits, fixed))
    clean, perturbed = net(x), net(made)
    expected = functional.cross_entropy(clean, labels) + beta * kl(clean.softmax(1), perturbed.softmax(1)).mean()
    torch.testing.assert_close(outcome.loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, net[1].weight)[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outcome.logits, perturbed)
    assert float((made - x).abs().max()) <= EPS.value + 1e-6


@pytest.mark.parametrize("gap", [50.0, 200.0, 1e4])
def test_trades_has_a_gradient_where_a_probability_is_nothing(gap: float) -> None:
    """In float32 a softmax is 0 from a gap of 104 on."""
    net, (x, labels) = linear().float(), [part.float() if part.is_floating_point() else part for part in pictures()]
    with torch.no_grad():
        net[1].bias[0] += gap
    outcome = Trades.at(EPS, 2)(net, x, labels, stream(x))
    (found,) = torch.autograd.grad(outcome.loss, net[1].weight)
    assert bool(outcome.loss.isfinite()) and bool(found.isfinite().all())


def test_trades_looks_for_the_divergence_and_lets_batch_norm_see_both(tmp_path: Path) -> None:
    net, (x, labels) = normed(), pictures(64)
    net[3].eval()
    objective = Trades.at(Eps.parse("0.1"), 5)
    with torch.no_grad():
        net.eval()
        fixed = net(x).softmax(dim=1)
        near = float(divergence(net((x + 0.001 * stream(x).normal(x)).clamp(0, 1)), fixed).mean())
        net.train()
    made = objective.perturbation(net, x, labels, stream(x), lambda logits, _: divergence(logits, fixed))
    with torch.no_grad():
        assert float(divergence(net.eval()(made), fixed).mean()) > 20 * near
    before = int(net.train()[1].num_batches_tracked)
    objective(net, x, labels, stream(x))
    assert int(net[1].num_batches_tracked) == before + 2
    with pytest.raises(InputError, match="beta of TRADES"):
        Trades.at(EPS, beta=-1)


# Runs


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    """All digits to train on (a limit takes 256 of them), 100 to test."""
    torch.set_num_threads(1)
    test = open_data("mnist5k", split="test")
    index = list(range(0, 1000, 10))
    some = replace(
        test, labels=test.labels[index], names=[test.names[i] for i in index], image=lambda i: test.image(index[i])
    )
    return open_data("mnist5k", split="train"), some


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    """With BatchNorm."""
    return Architecture.find("timm/test_resnet", num_classes=10)


def task(digits: tuple[ImageSet, ImageSet], **more: Any) -> Task:
    return Task(
        train_images=digits[0],
        test_images=digits[1],
        preprocess=digits[0].preprocess,
        config=TrainConfig(epochs=3, batch_size=64, limit=256, augment="crop-flip"),
        device=CPU,
        **more,
    )


DEFENCES: list[Defence] = [
    AdversarialTraining.pgd(EPS, 2),
    AdversarialTraining.fgsm(EPS),
    PriorGuided.at(EPS),
    Adr.at(EPS, 2),
    Awp.at(EPS, 2),
]


@pytest.fixture(scope="module", params=DEFENCES, ids=lambda defence: defence.recipe)
def finished(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    digits: tuple[ImageSet, ImageSet],
    architecture: Architecture,
) -> tuple[Defence, Run]:
    """An uninterrupted run of each recipe. Shared: tests must not change it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return request.param, train(task(digits), architecture, out, defence=request.param)


def test_a_run_says_what_it_was_trained_on(finished: tuple[Defence, Run]) -> None:
    defence, run = finished
    assert run.title == f"test_resnet, {defence.title}"
    kept = json.loads((run.path / "run.json").read_text())["recipe"]
    assert kept == run.provenance["recipe"]
    assert kept == {
        **defence.to_json(),
        "start_weights": "none",
        "weights_map": "by-name",
    }


def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path,
    finished: tuple[Defence, Run],
    digits: tuple[ImageSet, ImageSet],
    architecture: Architecture,
) -> None:
    """The random starts go on where they were. ``test_loop.py`` stops in every epoch."""
    defence, whole = finished

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(task(digits, report=stop), architecture, tmp_path / "run", defence=defence)
    assert (tmp_path / "run" / STATE_FILE).exists()
    torch.rand(7)
    run = train(task(digits, resume=True), architecture, tmp_path / "run", defence=defence)
    ours, theirs = (read_weights(r.path / "weights.safetensors") for r in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_not_taken_for_one_of_another_recipe(
    tmp_path: Path,
    finished: tuple[Defence, Run],
    digits: tuple[ImageSet, ImageSet],
    architecture: Architecture,
) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    defence, whole = finished
    with pytest.raises(KeyboardInterrupt):
        train(task(digits, report=stop), architecture, tmp_path / "cut", defence=defence)
    others = [
        None,
        AdversarialTraining.pgd(EPS, 3),
        replace(defence, perturbation=replace(defence.perturbation, eps=Eps.parse("4/255"))),
        *DEFENCES,
    ]
    for other in others:
        if other != defence:
            with pytest.raises(InputError, match=r"other settings \(.*recipe\)"):
                train(task(digits, resume=True), architecture, tmp_path / "cut", defence=other)
            with pytest.raises(InputError, match="finished run with other settings"):
                train(task(digits, resume=True), architecture, whole.path, defence=other)
    assert train(task(digits, resume=True), architecture, whole.path, defence=defence) == whole


def test_an_update_is_what_madry_says(tmp_path: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    """One epoch written out: SGD on the cross-entropy of images perturbed against the network as it is."""
    config = TrainConfig(epochs=1, batch_size=64, limit=256, lr=0.01, holdout=0, ema=0.0)
    about = Architecture(name="small", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)

    def network() -> PixelModel:
        torch.manual_seed(3)
        return PixelModel(
            nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(900, 10)), about
        )

    ours, theirs, eps, steps = network(), network(), 0.1, 2
    fit(
        ours,
        AdversarialTraining.pgd(Eps.parse("0.1"), steps),
        *digits,
        preprocess=digits[0].preprocess,
        config=config,
        out=tmp_path / "run",
        device=CPU,
    )
    chosen = balanced_subset(digits[0].labels, 256, seed=0)
    order = np.random.default_rng((0, 0)).permutation(chosen)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=4, cycle_momentum=False)
    for batch in batches(digits[0], digits[0].preprocess, batch_size=64, order=order):
        x, labels = to_model_input(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)), torch.from_numpy(batch.labels)
        theirs.eval()
        delta = eps * RandomStream(0, 0, batch.index).uniform(x)
        delta = (x + delta).clamp(0, 1) - x
        for _ in range(steps):
            delta.requires_grad_(True)
            functional.cross_entropy(theirs(x + delta), labels).backward()
            assert delta.grad is not None
            delta = (delta + 2.5 * eps / steps * delta.grad.sign()).clamp(-eps, eps).detach()
            delta = (x + delta).clamp(0, 1) - x
        theirs.train()
        optimizer.zero_grad()
        functional.cross_entropy(theirs(x + delta), labels).backward()
        optimizer.step()
        schedule.step()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


# What it is for


@pytest.mark.slow
def test_adversarial_training_makes_a_network_robust(tmp_path: Path) -> None:
    """Clean accuracy is kept, and what PGD at eps 0.2 leaves of it is most of it, not nothing."""
    torch.set_num_threads(1)
    train_images, test_images = open_data("mnist5k", split="train"), open_data("mnist5k", split="test")
    held_out = next(batches(test_images, test_images.preprocess, batch_size=250, order=np.arange(0, 1000, 4)))
    x, labels = (
        to_model_input(torch.from_numpy(held_out.pixels).permute(0, 3, 1, 2)).contiguous(),
        torch.from_numpy(held_out.labels),
    )

    def share(model: PixelModel, images: Tensor) -> float:
        with torch.no_grad():
            return float((model(images).argmax(dim=1) == labels).float().mean())

    eps = Eps.parse("0.2")
    clean, standing = {}, {}
    for defence in (None, AdversarialTraining.pgd(eps, 3)):
        settings = Task(
            train_images=train_images,
            test_images=test_images,
            preprocess=train_images.preprocess,
            config=TrainConfig(epochs=6, lr=0.05),
            device=CPU,
        )
        name = "undefended" if defence is None else defence.recipe
        architecture = Architecture.find("timm/test_efficientnet", num_classes=10)
        model = train(settings, architecture, tmp_path / name, defence=defence).load_model().eval()
        clean[name] = share(model, x)
        by_loss = [share(model, pgd(model, x, labels, eps=eps.value, loss=loss).x) for loss in (cross_entropy, margin)]
        standing[name] = min(by_loss)
        print(
            f"\n{name}: clean {clean[name]:.3f}, pgd on cross-entropy {by_loss[0]:.3f}, on the margin {by_loss[1]:.3f}"
        )
    assert min(clean.values()) > 0.9
    assert standing["undefended"] < 0.1
    assert standing["at-pgd"] > 0.5
