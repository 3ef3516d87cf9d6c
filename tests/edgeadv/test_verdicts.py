"""The masking verdict on networks that were really trained: which figures may be believed is known beforehand.

Undefended networks must pass, hidden gradients must not, and the size of the logits must not matter. ``pytest -s`` prints what
was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.attacks import NAMES, fgsm, pgd, standard_attacks
from edgeadv.data import ImageSet, balanced_subset, batches, open_data
from edgeadv.distill import Task, distill, train
from edgeadv.models import Architecture, PixelModel
from edgeadv.objectives import HardLabels
from edgeadv.runs import Run
from edgeadv.train import TrainConfig, accuracy, fit, to_model_input
from edgeadv_runtime.attack import CLEAN_KEY, CleanBatch, craft, infos
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.verdict import MaskingEvidence

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
EPS = Eps.parse_list("0.05,0.1,0.2,0.3")
OVERFIT_EPS = 0.3
N = 400
FACTOR = 1e5


class Reference(Backend):
    """Any model of 32 x 32 pixels, under a backend's contract."""

    name, variant, provider, device, artifact_sha256 = "torch", "fp32", "cpu", "test", "a" * 64
    input_shape, n_classes = (3, 32, 32), 10

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = self.model(torch.from_numpy(x)).numpy()
        return logits


class Louder(nn.Module):
    """A model whose logits are ``FACTOR`` times as large. It decides nothing differently."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x) * FACTOR
        return logits


@dataclass(frozen=True)
class Measured:
    """What the attacks made of a model.

    Attributes:
        verdict: the masking verdict over all budgets.
        evidence: its evidence.
        clean: accuracy without an attack.
        standing: images of ``N`` that stand, by attack and eps.
        worst: images of ``N`` that stand all attacks, by eps.
        images: the adversarial images, by attack and eps.
    """

    verdict: str
    evidence: list[dict[str, Any]]
    clean: float
    standing: dict[tuple[str, str], int]
    worst: dict[str, int]
    images: dict[tuple[str, str], NDArray[np.float32]]

    def lower_bound(self, rule: str) -> float:
        return max(item["lower_bound"] for item in self.evidence if item["rule"] == rule)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    torch.set_num_threads(1)
    return open_data("mnist5k", split="train"), open_data("mnist5k", split="test")


@pytest.fixture(scope="module")
def measure(digits: tuple[ImageSet, ImageSet]) -> Callable[..., Measured]:
    """Runs all attacks on a model, at all budgets."""
    order = balanced_subset(digits[1].labels, N)
    clean = [
        CleanBatch(b.index, b.pixels, b.labels)
        for b in batches(digits[1], digits[1].preprocess, batch_size=100, order=order)
    ]

    def run(model: nn.Module, title: str, *, eps: tuple[Eps, ...] = EPS) -> Measured:
        model.eval()
        attacks = standard_attacks(model, eps, gradients_sha256="a" * 64)  # type: ignore[arg-type]
        listed = infos(attacks, uint8=False)
        evidence = MaskingEvidence(listed)
        crafted = list(craft(clean, attacks, Reference(model), uint8=False))
        for batch in crafted:
            evidence.add(batch.clean.labels, batch.evidence)
        labels = np.concatenate([b.labels for b in clean])
        right = {
            key: np.concatenate([b.evidence.answers[key] for b in crafted]) == labels
            for key in [CLEAN_KEY, *(i.key for i in listed)]
        }
        result = evidence.verdict()
        measured = Measured(
            verdict=result["verdict"], evidence=result["evidence"], clean=float(right[CLEAN_KEY].mean()),
            standing={i.key: int(right[i.key].sum()) for i in listed},
            worst={e.text: int(np.all([right[CLEAN_KEY], *(right[i.key] for i in listed if i.eps == e)], axis=0).sum()) for e in eps},
            images={i.key: np.concatenate([b.adversarial[i.key] for b in crafted]) for i in listed},
        )  # fmt: skip
        show(title, measured)
        return measured

    return run


def show(title: str, measured: Measured) -> None:
    print(f"\n{title}: {measured.verdict}, clean {measured.clean:.3f}")
    for eps, worst in measured.worst.items():
        shares = "  ".join(f"{name} {measured.standing[name, eps] / N:.3f}" for name in NAMES)
        bounds = "  ".join(
            f"{i['rule']}({i['attack']}) {i['lower_bound']:.3f}"
            for i in measured.evidence
            if i["eps"] == eps and i["lower_bound"] > 0
        )
        print(f"  eps {eps}: {shares}  worst {worst / N:.3f} | lower bounds: {bounds or 'none above 0'}")


def cnn() -> PixelModel:
    """A small network without BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(),
        nn.Linear(100, 10),
    )  # fmt: skip
    return PixelModel(net, Architecture(name="cnn", source="timm", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3))


@pytest.fixture(scope="module")
def task(digits: tuple[ImageSet, ImageSet]) -> Task:
    return Task(
        train_images=digits[0],
        test_images=digits[1],
        preprocess=digits[0].preprocess,
        config=TrainConfig(epochs=8),
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
    return distill(
        task, architecture, tmp_path_factory.mktemp("runs") / "papernot", recipe="papernot", temperature=100.0
    )


@pytest.fixture(scope="module")
def undefended_cnn(digits: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> PixelModel:
    model = cnn()
    config = TrainConfig(epochs=12, lr=0.05)
    out = tmp_path_factory.mktemp("runs") / "cnn"
    fit(model, HardLabels(), *digits, preprocess=digits[0].preprocess, config=config, out=out, device=CPU)
    return model.eval()


@pytest.fixture(scope="module")
def overfitted_cnn(digits: tuple[ImageSet, ImageSet]) -> PixelModel:
    """Trained on plain FGSM at eps 0.3, without a random start, until FGSM no longer works and PGD does (Wong et al. 2020)."""
    epochs, size = 30, 100
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * len(digits[0]) // size)
    held_out = next(batches(digits[1], digits[1].preprocess, batch_size=100, order=np.arange(3, 1000, 10)))
    x_held, y_held = to_model_input(held_out.pixels, CPU), torch.from_numpy(held_out.labels)

    def standing(x: Tensor) -> float:
        with torch.no_grad():
            return float((model.eval()(x).argmax(dim=1) == y_held).float().mean())

    for epoch in range(epochs):
        order = np.random.default_rng((0, epoch)).permutation(len(digits[0]))
        for batch in batches(digits[0], digits[0].preprocess, batch_size=size, order=order):
            x, labels = to_model_input(batch.pixels, CPU), torch.from_numpy(batch.labels)
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
def simple(undefended_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(undefended_cnn, "undefended cnn")


@pytest.fixture(scope="module")
def overfitted(overfitted_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(overfitted_cnn, "cnn overfitted to FGSM at eps 0.3", eps=EPS[-1:])


def test_undefended_networks_pass_although_nothing_stands(undefended: Measured, simple: Measured) -> None:
    for measured in (undefended, simple):
        assert measured.verdict == "PASS"
        assert measured.clean > 0.93
        assert measured.worst["0.3"] <= 0.02 * N


def test_defensive_distillation_is_masked(undefended: Measured, distilled: Measured) -> None:
    """Plain FGSM says robust; its images have no gradient, and both remedies break what it left."""
    assert distilled.verdict == "MASKED"
    for eps in ("0.1", "0.2", "0.3"):
        assert distilled.standing["fgsm", eps] > 0.85 * N
        assert distilled.standing["fgsm-rescaled", eps] < 0.5 * N
        # it is no more robust than what it was distilled from
        assert distilled.worst[eps] <= undefended.worst[eps] + 0.05 * N
    for rule in ("zero-gradient", "rescaled-logits", "margin-pgd"):
        assert distilled.lower_bound(rule) > max(i["masked_above"] for i in distilled.evidence if i["rule"] == rule)


def test_distillation_costs_no_clean_accuracy(
    undefended_run: Run, distilled_run: Run, digits: tuple[ImageSet, ImageSet]
) -> None:
    """Well trained, at equal epochs: it is the gradients that are hidden, and not a network that learned nothing."""
    shares = []
    for run in (undefended_run, distilled_run):
        correct, n = accuracy(run.load_model(), digits[1], run.preprocess)
        shares.append(correct / n)
    print(f"\nclean accuracy on {n}: undefended {shares[0]:.3f}, distilled {shares[1]:.3f}")
    assert shares[0] > 0.94
    assert shares[1] > shares[0] - 0.02


def test_overfitting_to_fgsm_never_passes(overfitted: Measured) -> None:
    assert overfitted.standing["fgsm", "0.3"] > 0.6 * N
    assert overfitted.standing["pgd-margin", "0.3"] < 0.15 * N
    assert overfitted.verdict in ("SUSPECT", "MASKED")


@pytest.mark.parametrize("which", ["undefended", "simple", "distilled", "overfitted"])
def test_the_size_of_the_logits_changes_no_decision_and_hides_nothing(
    which: str, request: pytest.FixtureRequest, measure: Callable[..., Measured]
) -> None:
    """1e5 times as large, the softmax of any network saturates: plain FGSM is blind, and the verdict must say so."""
    before: Measured = request.getfixturevalue(which)
    model = {
        "undefended": lambda: request.getfixturevalue("undefended_run").load_model(),
        "simple": lambda: request.getfixturevalue("undefended_cnn"),
        "distilled": lambda: request.getfixturevalue("distilled_run").load_model(),
        "overfitted": lambda: request.getfixturevalue("overfitted_cnn"),
    }[which]()
    eps = tuple(e for e in EPS if e.text in before.worst)
    after = measure(Louder(model), f"{which}, logits * {FACTOR:g}", eps=eps)
    assert after.clean == before.clean
    for e in eps:
        # signs of gradients within rounding of zero may turn, and with them a few of twenty steps
        for name, share in (("fgsm-rescaled", 0.999), ("pgd-margin", 0.95)):
            agree = float((np.abs(after.images[name, e.text] - before.images[name, e.text]) < 1e-6).mean())
            print(f"  {name} at {e.text}: {agree:.5f} of the pixels agree")
            assert agree > share
            assert abs(after.standing[name, e.text] - before.standing[name, e.text]) <= 2
        assert abs(after.worst[e.text] - before.worst[e.text]) <= 0.02 * N
        assert after.standing["fgsm", e.text] >= 0.98 * after.clean * N
    assert after.verdict == "MASKED"
    assert after.lower_bound("zero-gradient") > 0.9


def test_what_is_measured_does_not_depend_on_what_else_runs(
    undefended_run: Run, undefended: Measured, measure: Callable[..., Measured]
) -> None:
    """One budget alone gives the figures that it gives among four."""
    alone = measure(undefended_run.load_model(), "undefended, eps 0.1 alone", eps=EPS[1:2])
    for name in NAMES:
        assert alone.standing[name, "0.1"] == undefended.standing[name, "0.1"]
    assert alone.worst["0.1"] == undefended.worst["0.1"]


def test_the_bundle_of_a_run_gives_the_same_verdict(
    distilled_run: Run, distilled: Measured, digits: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    """Through the whole line: export, the torch backend, the evaluation loop, its results file."""
    from edgeadv.torch_backend import TorchBackend
    from edgeadv_export import export_bundle
    from edgeadv_runtime.evaluate import DataInfo, evaluate

    frames = [np.asarray(digits[1].image(i).convert("RGB")) for i in range(8)]
    bundle = export_bundle(
        distilled_run.load_model().eval(), tmp_path / "d.edgeadv", classes=distilled_run.classes, preprocess=distilled_run.preprocess,
        frames=frames, title=distilled_run.title, provenance=distilled_run.provenance, variants=["fp32"],
    )  # fmt: skip
    order = balanced_subset(digits[1].labels, N)
    clean = [
        CleanBatch(b.index, b.pixels, b.labels)
        for b in batches(digits[1], bundle.preprocess, batch_size=100, order=order)
    ]
    with TorchBackend(bundle, device=CPU, threads=1) as backend:
        attacks = standard_attacks(backend.model, EPS[1:2], gradients_sha256=bundle.weights_sha256)
        results = evaluate(
            craft(clean, attacks, backend, uint8=False), infos(attacks, uint8=False), bundle=bundle, backends=[backend],
            data=DataInfo("mnist5k", "test", N),
        )  # fmt: skip
    assert results.masking["verdict"] == distilled.verdict == "MASKED"
    worst = results.select(attack="worst-case", eps="0.1")[0]
    assert worst.threat == "white-box"
    assert abs(worst.correct_top1 - distilled.worst["0.1"]) <= 2
    fgsm_row = results.select(attack="fgsm", eps="0.1")[0]
    assert fgsm_row.zero_gradient_share is not None and fgsm_row.zero_gradient_share > 0.8
