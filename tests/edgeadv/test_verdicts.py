"""The masking verdict on networks that were really trained: which figures may be believed is known beforehand.

Networks that hide nothing must pass, robust or not; hidden gradients, probabilities and chance must not; and the size
of the logits must not matter. ``pytest -s`` prints what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.attacks import build_attacks, fgsm, pgd
from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.loading import loader, to_model_input
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import accuracy, fit
from edgeadv.training.objectives import DefensiveDistillation, HardLabels, Objective
from edgeadv.training.recipes import Task, distill, train
from edgeadv.training.runs import Run
from edgeadv_runtime.attacks.base import CLEAN_KEY, Attack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.noise import NoiseAttack
from edgeadv_runtime.attacks.square_attack import SquareAttack
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.evaluation.verdict import FEWEST_QUERIES, MaskingEvidence
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import Finding
from edgeadv_runtime.records.suites import (
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    LARGE_EPS,
    NOISE,
    PGD_CE,
    PGD_MARGIN,
    PGD_SMOOTHED,
    SUITES,
    TRANSFER,
    Effort,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
EPS = Eps.parse_list("0.1,0.2,0.3")
OVERFIT_EPS = 0.3
ROBUST_EPS = Eps.parse("0.2")
N = 400
FACTOR = 1e5
SHA256 = "a" * 64


class Reference(Backend):
    """Any model of 32 x 32 pixels, under a backend's contract."""

    name, variant, provider, device, artifact_sha256 = "torch", "fp32", "cpu", "test", SHA256
    input_shape, n_classes = (3, 32, 32), 10

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = self.model(torch.from_numpy(x)).numpy()
        return logits


class Changed(nn.Module):
    """A model whose logits, or whose images, something is done to first."""

    def __init__(
        self,
        model: nn.Module,
        *,
        logits: Callable[[Tensor], Tensor] | None = None,
        images: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.logits, self.images = model, logits, images

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x if self.images is None else self.images(x))
        return logits if self.logits is None else self.logits(logits)


def louder(model: nn.Module) -> Changed:
    """A model whose logits are ``FACTOR`` times as large. It decides nothing differently."""
    return Changed(model, logits=lambda logits: logits * FACTOR)


EFFORTS = {**SUITES["fast"], PGD_SMOOTHED: Effort(steps=10)}


def attacks_on(
    model: nn.Module,
    eps: Sequence[Eps],
    reference: Backend,
    sha256: str = SHA256,
    draws: int = 1,
    efforts: Mapping[str, Effort] = EFFORTS,
) -> list[Attack]:
    """All that a verdict needs, and no more."""
    attacks = build_attacks(model, eps, efforts=efforts, classes=10, gradients_sha256=sha256, draws=draws)
    noise = NoiseAttack(eps, queries=efforts[NOISE].queries, backend=reference)
    return [*attacks, noise, SquareAttack(reference, eps, FEWEST_QUERIES)]


@dataclass(frozen=True)
class Measured:
    """What the attacks made of a model.

    Attributes:
        verdict: the masking verdict over all budgets.
        evidence: its evidence.
        clean: accuracy without an attack.
        standing: images of ``N`` that stand, by attack and eps.
        worst: images of ``N`` that stand all attacks within the budget, by eps.
        images: the adversarial images, by attack and eps.
    """

    verdict: str
    evidence: Sequence[Finding]
    clean: float
    standing: dict[tuple[str, str], int]
    worst: dict[str, int]
    images: dict[tuple[str, str], NDArray[np.float32]]

    def lower_bound(self, rule: str) -> float:
        return max(item.lower_bound or 0.0 for item in self.evidence if item.rule == rule)

    @property
    def found(self) -> set[tuple[str, str]]:
        """Rules that fired, and as what."""
        return {(item.rule, item.finding) for item in self.evidence if item.finding}


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
    """Runs on a model what a verdict needs."""

    def run(
        model: nn.Module,
        title: str,
        *,
        eps: Sequence[Eps] = EPS,
        other: nn.Module | None = None,
        draws: int = 1,
        efforts: Mapping[str, Effort] = EFFORTS,
    ) -> Measured:
        model.eval()
        reference = Reference(model)
        attacks = attacks_on(model, eps, reference, draws=draws, efforts=efforts)
        if other is not None:
            efforts = {TRANSFER: Effort(steps=20)}
            attacks += build_attacks(
                other, eps, efforts=efforts, classes=10, gradients_sha256="b" * 64, suffix="@other"
            )
        listed = infos(attacks, uint8=False)
        evidence = MaskingEvidence(listed)
        crafted = list(craft(clean, attacks, reference, uint8=False))
        for batch in crafted:
            evidence.add(batch.clean.labels, batch.evidence)
        labels = np.concatenate([b.labels for b in clean])
        right = {
            key: np.concatenate([b.evidence.answers[key] for b in crafted]) == labels
            for key in [CLEAN_KEY, *(i.key for i in listed)]
        }
        result = evidence.verdict()
        worst, standing = {}, right[CLEAN_KEY]
        for budget in eps:
            standing = np.all([standing, *(right[i.key] for i in listed if i.eps == budget)], axis=0)
            worst[budget.text] = int(standing.sum())
        measured = Measured(
            verdict=result.verdict,
            evidence=result.evidence,
            clean=float(right[CLEAN_KEY].mean()),
            standing={i.key: int(right[i.key].sum()) for i in listed},
            worst=worst,
            images={i.key: np.concatenate([b.adversarial[i.key] for b in crafted]) for i in listed if not i.control},
        )
        show(title, measured)
        return measured

    return run


def show(title: str, measured: Measured) -> None:
    print(
        f"\n{title}: {measured.verdict}, clean {measured.clean:.3f}, at eps 1 "
        f"{measured.standing[LARGE_EPS, '1'] / N:.3f}"
    )
    for eps, worst in measured.worst.items():
        shares = "  ".join(f"{name} {n / N:.3f}" for (name, at), n in measured.standing.items() if at == eps)
        print(f"  eps {eps}: {shares}  worst {worst / N:.3f}")
    for item in measured.evidence:
        if (item.lower_bound or 0) > 0 or item.finding:
            bound = "" if item.lower_bound is None else f" lower bound {item.lower_bound:.3f}"
            print(f"  {item.rule} {item.finding}:{bound} ({item.text})")


def cnn() -> PixelModel:
    """A small network without BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    return PixelModel(net, Architecture(name="cnn", source="timm", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3))


# Networks


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


Trainer = Callable[[Objective], PixelModel]


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


# Verdicts


def test_undefended_networks_pass_although_nothing_stands(undefended: Measured, simple: Measured) -> None:
    for measured in (undefended, simple):
        assert measured.verdict == "PASS" and not measured.found
        assert measured.clean > 0.93
        assert measured.worst["0.3"] <= 0.02 * N


def test_an_adversarially_trained_network_passes_and_much_of_it_stands(robust: Measured) -> None:
    assert robust.verdict == "PASS" and not robust.found
    assert robust.clean > 0.9
    assert robust.worst[ROBUST_EPS.text] > 0.5 * N
    # nothing withstands eps 1
    assert robust.standing[LARGE_EPS, "1"] <= 0.02 * N


def test_defensive_distillation_is_masked(undefended: Measured, distilled: Measured) -> None:
    """Plain FGSM says robust; its images have no gradient, and both remedies break what it left."""
    assert distilled.verdict == "MASKED"
    for eps in ("0.1", "0.2", "0.3"):
        assert distilled.standing[FGSM, eps] > 0.85 * N
        assert distilled.standing[FGSM_RESCALED, eps] < 0.5 * N
        # it is no more robust than what it was distilled from
        assert distilled.worst[eps] <= undefended.worst[eps] + 0.05 * N
    assert {("zero-gradient", "MASKED"), ("rescaled-logits", "MASKED"), ("margin", "MASKED")} <= distilled.found


@pytest.mark.parametrize("temperature", [10.0, 40.0, 100.0])
def test_distillation_at_any_temperature_never_passes(
    temperature: float, trained_cnn: Trainer, measure: Callable[..., Measured]
) -> None:
    teacher = trained_cnn(HardLabels(temperature))
    student = trained_cnn(DefensiveDistillation(teacher, temperature))
    measured = measure(student, f"papernot T={temperature:g} cnn")
    assert measured.clean > 0.93
    assert measured.verdict == "MASKED"
    assert measured.worst["0.3"] <= 0.02 * N


def test_distillation_costs_no_clean_accuracy(
    undefended_run: Run, distilled_run: Run, digits: tuple[ImageSet, ImageSet]
) -> None:
    """Well trained, at equal epochs: it is the gradients that are hidden, and not a network that learned nothing."""
    shares = []
    for run in (undefended_run, distilled_run):
        correct, n = accuracy(run.load_model(), loader(digits[1], np.arange(len(digits[1])), run.preprocess, CPU))
        shares.append(correct / n)
    print(f"\nclean accuracy on {n}: undefended {shares[0]:.3f}, distilled {shares[1]:.3f}")
    assert shares[0] > 0.94
    assert shares[1] > shares[0] - 0.02


def test_overfitting_to_fgsm_never_passes(overfitted: Measured) -> None:
    assert overfitted.standing[FGSM, "0.3"] > 0.6 * N
    assert overfitted.standing[PGD_MARGIN, "0.3"] < 0.15 * N
    assert overfitted.verdict in ("SUSPECT", "MASKED")


@pytest.mark.parametrize("which", ["undefended", "simple", "distilled", "overfitted", "robust"])
def test_the_size_of_the_logits_changes_no_decision_and_hides_nothing(
    which: str, request: pytest.FixtureRequest, measure: Callable[..., Measured]
) -> None:
    """1e5 times as large, the softmax of any network saturates: plain FGSM is blind, and the verdict must say so."""
    before: Measured = request.getfixturevalue(which)
    if which in ("simple", "overfitted"):
        model = request.getfixturevalue("undefended_cnn" if which == "simple" else "overfitted_cnn")
    else:
        model = request.getfixturevalue(f"{which}_run").load_model()
    eps = tuple(e for e in EPS if e.text in before.worst)
    efforts = SUITES["standard"] if which == "robust" else EFFORTS
    after = measure(louder(model), f"{which}, logits * {FACTOR:g}", eps=eps, efforts=efforts)
    assert after.clean == before.clean
    for e in eps:
        # signs of gradients within rounding of zero may turn, and with them a few of twenty steps
        for name, share in ((FGSM_RESCALED, 0.999), (PGD_MARGIN, 0.95)):
            agree = float((np.abs(after.images[name, e.text] - before.images[name, e.text]) < 1e-6).mean())
            print(f"  {name} at {e.text}: {agree:.5f} of the pixels agree")
            assert agree > share
            assert abs(after.standing[name, e.text] - before.standing[name, e.text]) <= 2
        assert after.standing[NOISE, e.text] == before.standing[NOISE, e.text]
        # what only the cross-entropy had found is lost
        assert abs(after.worst[e.text] - before.worst[e.text]) <= 0.05 * N
        assert after.standing[FGSM, e.text] >= 0.98 * after.clean * N
    assert after.standing[LARGE_EPS, "1"] == before.standing[LARGE_EPS, "1"]
    assert after.verdict == "MASKED"
    assert after.lower_bound("zero-gradient") > 0.9


def test_probabilities_for_logits_are_suspect(
    simple: Measured, undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    softmax = Changed(undefended_cnn, logits=partial(torch.softmax, dim=1))
    measured = measure(softmax, "undefended cnn with a softmax", eps=EPS[:2])
    assert measured.clean == simple.clean
    assert ("probabilities", "SUSPECT") in measured.found
    assert measured.verdict != "PASS"


@pytest.mark.parametrize(
    "images",
    [partial(functional.dropout, p=0.1, training=True), lambda x: x + 0.05 * torch.randn_like(x)],
    ids=["dropout", "noise"],
)
def test_a_network_that_throws_dice_is_found(
    images: Callable[[Tensor], Tensor], undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    torch.manual_seed(0)
    measured = measure(Changed(undefended_cnn, images=images), "cnn at random", eps=EPS[:1])
    assert ("unstable", "MASKED") in measured.found
    assert measured.verdict == "MASKED"


# Gradients that are there and lie: each rule fires on a network that does, and is silent on one that does so little


def waves(x: Tensor) -> Tensor:
    """A wave of each class along a random direction, far shorter than any budget."""
    size = x[0].numel()
    w = torch.randn(size, 10, generator=torch.Generator().manual_seed(0)) / size**0.5
    return torch.sin(3000 * x.flatten(1) @ w)


class Waved(nn.Module):
    """A network with waves on its logits: at 0.3 their slope is a hundred times its own, and they change no
    decision."""

    def __init__(self, model: nn.Module, amplitude: float) -> None:
        super().__init__()
        self.model, self.amplitude = model, amplitude

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + self.amplitude * waves(x)


LYING_EPS = (Eps.parse("0.05"),)


@pytest.fixture(scope="module")
def lying(undefended_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(Waved(undefended_cnn, 0.3), "cnn under waves", eps=LYING_EPS, other=undefended_cnn)


@pytest.fixture(scope="module")
def faint(undefended_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(Waved(undefended_cnn, 1e-4), "cnn under faint waves", eps=LYING_EPS, other=undefended_cnn)


@pytest.mark.parametrize("rule", ["linearity", "progress", "noise", "transfer"])
def test_a_lying_gradient_is_found_and_a_faint_lie_is_none(rule: str, lying: Measured, faint: Measured) -> None:
    assert lying.verdict == "MASKED" and faint.verdict == "PASS"
    assert rule in {name for name, _ in lying.found}
    # a restart more may find an image more
    assert faint.lower_bound(rule) <= 0.005
    # its own gradients leave far more standing than images of the network without the waves
    assert lying.standing[PGD_MARGIN, "0.05"] > faint.standing[PGD_MARGIN, "0.05"] + 0.05 * N


@pytest.mark.parametrize(("amplitude", "finding"), [(0.02, True), (0.0005, False)])
def test_gradients_of_the_surroundings_see_through_shattered_ones(
    amplitude: float, finding: bool, undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    shattered = Changed(undefended_cnn, images=lambda x: x + amplitude * torch.sin(250 * x))
    measured = measure(shattered, f"cnn, pixels in waves of {amplitude}", eps=EPS[:1])
    assert ("smoothed" in {name for name, _ in measured.found}) == finding
    assert (measured.verdict == "PASS") == (not finding)


@pytest.mark.parametrize("levels", [4, 100_000])
def test_without_a_path_for_gradients_queries_tell(
    levels: int, undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    """Comparisons have none: zero gradients end MASKED, and Square finds what they left."""
    coarse = Changed(undefended_cnn, images=lambda x: torch.round(x * levels) / levels)
    measured = measure(coarse, f"cnn, {levels} levels", eps=EPS[1:2])
    assert {("zero-gradient", "MASKED"), ("linearity", "MASKED")} <= measured.found and measured.verdict == "MASKED"
    assert "query" in {name for name, _ in measured.found}
    assert measured.worst["0.2"] < measured.standing[PGD_MARGIN, "0.2"] - 0.1 * N


def test_gradients_of_a_random_network_are_averaged(
    undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    """The mean of ten draws breaks what single ones leave; the verdict still says that figures depend on the throw."""
    torch.manual_seed(0)
    noisy = Changed(undefended_cnn, images=lambda x: x + 0.3 * torch.randn_like(x))
    single = measure(noisy, "cnn in noise, one draw", eps=EPS[:1])
    averaged = measure(noisy, "cnn in noise, ten draws", eps=EPS[:1], draws=10)
    assert averaged.standing[FGSM, "0.1"] < single.standing[FGSM, "0.1"]
    assert averaged.verdict == "MASKED" and ("unstable", "MASKED") in averaged.found


# What a figure depends on


def test_what_is_measured_does_not_depend_on_what_else_runs(
    undefended_cnn: PixelModel, simple: Measured, measure: Callable[..., Measured]
) -> None:
    """One budget alone gives the figures that it gives among three."""
    alone = measure(undefended_cnn, "undefended cnn, eps 0.1 alone", eps=EPS[:1])
    for name in (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_CE, PGD_MARGIN, NOISE):
        np.testing.assert_array_equal(alone.images[name, "0.1"], simple.images[name, "0.1"])
    assert alone.worst["0.1"] == simple.worst["0.1"]


def test_the_bundle_of_a_run_gives_the_same_verdict(
    distilled_run: Run, distilled: Measured, digits: tuple[ImageSet, ImageSet], clean: list[CleanBatch], tmp_path: Path
) -> None:
    """Through the whole line: export, the torch backend, the evaluation loop, its results file."""
    from edgeadv.backends.pytorch import TorchBackend
    from edgeadv_export import Origin, export_bundle
    from edgeadv_runtime.bundle.batches import DataInfo
    from edgeadv_runtime.evaluation.loop import evaluate

    frames = [np.asarray(digits[1].image(i).convert("RGB")) for i in range(8)]
    bundle = export_bundle(
        distilled_run.load_model().eval(),
        tmp_path / "d.edgeadv",
        classes=distilled_run.classes,
        preprocess=distilled_run.preprocess,
        frames=frames,
        origin=Origin(title=distilled_run.title, provenance=distilled_run.provenance),
        variants=["fp32"],
    )
    with TorchBackend(bundle, device=CPU, threads=1) as backend:
        attacks = attacks_on(backend.model, EPS[:1], backend, backend.gradients_sha256)
        results = evaluate(
            bundle,
            craft(clean, attacks, backend, uint8=False),
            infos=infos(attacks, uint8=False),
            backends=[backend],
            data=DataInfo("mnist5k", "test", N),
        )
    assert results.masking.verdict == distilled.verdict == "MASKED"
    worst = results.select(attack="worst-case", eps="0.1")[0]
    assert worst.threat == "white-box"
    assert abs(worst.correct_top1 - distilled.worst["0.1"]) <= 2
    fgsm_row = results.select(attack=FGSM, eps="0.1")[0]
    assert fgsm_row.zero_gradient_share is not None and fgsm_row.zero_gradient_share > 0.8
    assert not results.select(attack=LARGE_EPS)
