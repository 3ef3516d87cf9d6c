"""ARD and RSLAD against their equations; what each shows the network, and that a student becomes robust."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.attacks import fgsm, margin, pgd
from edgeadv.data.datasets import ImageSet, batches, open_data
from edgeadv.data.loading import to_model_input
from edgeadv.data.rng import RandomStream
from edgeadv.models.builder import Architecture
from edgeadv.training.adversarial import AdversarialTraining, divergence, random_start
from edgeadv.training.config import OutOfTimeError, TrainConfig
from edgeadv.training.objectives import soft_labels
from edgeadv.training.recipes import DEFAULTS, Task, distill, train
from edgeadv.training.robust_distillation import Ard, Rslad
from edgeadv.training.runs import Run
from edgeadv.training.selection import split_off
from edgeadv.training.teachers import TeacherStanding
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

CPU = torch.device("cpu")
CLASSES = 4
EPS = Eps.parse("8/255")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, CLASSES)
    )


def pictures(n: int = 12) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.random((n, 3, 8, 8))).float(), torch.from_numpy(rng.integers(0, CLASSES, n))


def stream(x: Tensor, seed: int = 0) -> RandomStream:
    """Of as many images as ``x`` holds."""
    return RandomStream(seed, 0, np.arange(len(x)))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row, by its definition."""
    return (p * (p / q).log()).sum(dim=1)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 30.0])
@pytest.mark.filterwarnings("ignore:reduction")  # that it is a mean over classes too is the point
def test_ard_is_the_authors_loss(temperature: float, alpha: float) -> None:
    """``alpha * T**2 * nn.KLDivLoss()(log_softmax(student / T), softmax(teacher / T)) + (1 - alpha) * CE``, as their
    code has it."""
    student, teacher, (x, labels) = network(0), network(1).eval(), pictures()
    objective = Ard.at(EPS, teacher, temperature=temperature, alpha=alpha, steps=3)
    outcome = objective(student, x, labels, stream(x))
    again = network(0)
    made = objective.perturbation(again, x, labels, stream(x))
    perturbed = again(made)
    with torch.no_grad():
        soft = (teacher(x) / temperature).softmax(dim=1)
    by_element = nn.KLDivLoss()((perturbed / temperature).log_softmax(dim=1), soft)
    by_definition = kl(soft, (perturbed / temperature).softmax(dim=1)).mean() / CLASSES
    # at T = 30 two nearly even distributions differ by what float32 hardly holds
    torch.testing.assert_close(by_element, by_definition, rtol=2e-3, atol=1e-7)
    expected = alpha * temperature**2 * by_element
    if alpha < 1:
        expected = expected + (1 - alpha) * functional.cross_entropy(again(x), labels)
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(outcome.logits, perturbed)
    # what is kept of the batches, too
    torch.testing.assert_close(student[1].running_mean, again[1].running_mean)
    assert float((made - x).abs().max()) <= EPS.value + 1e-6


def test_ard_looks_where_the_students_cross_entropy_rises() -> None:
    student, (x, labels) = network(0).eval(), pictures(64)
    made = Ard.at(Eps.parse("0.1"), network(1), steps=5).perturbation(student, x, labels, stream(x))
    with torch.no_grad():
        near = functional.cross_entropy(student(random_start(x, 0.1, stream(x))), labels)
        assert float(functional.cross_entropy(student(made), labels)) > float(near) + 0.01


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rslad_is_equation_5(temperature: float) -> None:
    student, teacher, (x, labels) = network(0), network(1).eval(), pictures()
    objective = Rslad.at(EPS, teacher, temperature=temperature, steps=3)
    outcome = objective(student, x, labels, stream(x))
    again = network(0)
    soft = soft_labels(teacher, x, temperature)
    made = objective.perturbation(again, x, labels, stream(x), lambda z, _: divergence(z / temperature, soft))
    perturbed, clean = again(made), again(x)
    parts = [kl(soft, (z / temperature).softmax(dim=1)).mean() for z in (perturbed, clean)]
    torch.testing.assert_close(
        outcome.loss, temperature**2 * (5 / 6 * parts[0] + 1 / 6 * parts[1]), rtol=1e-4, atol=1e-6
    )
    # hard labels play no part
    third = network(0)
    assert torch.equal(objective(third, x, (labels + 1) % CLASSES, stream(x)).loss, outcome.loss)


def test_rslad_looks_where_the_student_leaves_the_teacher() -> None:
    student, teacher, (x, labels) = network(0).eval(), network(1).eval(), pictures(64)
    soft = soft_labels(teacher, x, 1.0)
    made = Rslad.at(Eps.parse("0.1"), teacher, steps=5).perturbation(
        student, x, labels, stream(x), lambda z, _: divergence(z, soft)
    )
    with torch.no_grad():
        assert float(divergence(student(made), soft).mean()) > 2 * float(divergence(student(x), soft).mean())


def test_the_defaults_are_the_papers() -> None:
    teacher = network(1)
    ard, rslad = Ard.at(EPS, teacher), Rslad.at(EPS, teacher)
    assert (ard.temperature, ard.alpha) == DEFAULTS["ard"] == (30.0, 1.0)
    assert (rslad.temperature, rslad.alpha) == DEFAULTS["rslad"] == (1.0, 5 / 6)
    for objective in (ard, rslad):
        assert objective.perturbation.steps == 10
        assert objective.perturbation.step_size == pytest.approx(2 / 255)
        assert objective.budget == EPS and objective.head_scale == 1
    for kind in (Ard, Rslad):
        with pytest.raises(InputError, match="alpha"):
            kind.at(EPS, teacher, alpha=math.nan)
        with pytest.raises(InputError, match="temperature"):
            kind.at(EPS, teacher, temperature=0.5)


# Runs


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    torch.set_num_threads(1)
    return open_data("mnist5k", split="train"), open_data("mnist5k", split="test")


def task(digits: tuple[ImageSet, ImageSet], **more: object) -> Task:
    return Task(
        train_images=digits[0],
        test_images=digits[1],
        preprocess=digits[0].preprocess,
        config=TrainConfig(epochs=1, batch_size=64, limit=256, holdout=50),
        device=CPU,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def student() -> Architecture:
    return Architecture.find("timm/test_resnet", num_classes=10)


@pytest.fixture(scope="module")
def teacher(digits: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of another architecture."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    about = Architecture.find("timm/test_efficientnet", num_classes=10)
    return train(task(digits), about, out, defence=AdversarialTraining.fgsm(EPS))


@pytest.mark.parametrize("recipe", ["ard", "rslad"])
def test_a_larger_teacher_teaches_a_smaller_student(
    recipe: str, digits: tuple[ImageSet, ImageSet], student: Architecture, teacher: Run, tmp_path: Path
) -> None:
    run = distill(task(digits), student, tmp_path / "run", recipe=recipe, eps=EPS, steps=2, teacher=teacher)  # type: ignore[arg-type]
    kept = run.info.recipe
    assert (kept["recipe"], kept["eps"], kept["steps"]) == (recipe, "8/255", 2)
    assert (kept["temperature"], kept["alpha"]) == DEFAULTS[recipe]
    assert kept["teacher"] == teacher.title and kept["teacher_weights_sha256"] == teacher.info.weights_sha256
    assert run.title == f"test_resnet, {recipe} T={DEFAULTS[recipe][0]:g} eps 8/255"
    assert run.info.stages[0].holdout_images == 50
    with pytest.raises(InputError, match="other settings"):
        distill(
            task(digits, resume=True),
            student,
            tmp_path / "run",
            recipe=recipe,
            eps=Eps.parse("4/255"),
            steps=2,  # type: ignore[arg-type]
            teacher=teacher,
        )


def test_what_a_teacher_has_to_hand_on_is_measured_before_the_student_is_trained(
    digits: tuple[ImageSet, ImageSet], student: Architecture, tmp_path: Path
) -> None:
    """Counted again in one batch, entropy by its definition; it changes nothing of the student, and is not measured for
    one that is finished."""
    longer = replace(task(digits), config=TrainConfig(epochs=3, limit=1000, lr=0.05, holdout=50))
    about = Architecture.find("timm/test_efficientnet", num_classes=10)
    teacher = train(longer, about, tmp_path / "teacher", defence=AdversarialTraining.fgsm(EPS))
    told: list[TeacherStanding] = []

    def tell(standing: TeacherStanding) -> None:
        assert not (tmp_path / "told").exists()
        told.append(standing)

    def run(out: str, **more: Any) -> Run:
        settings: dict[str, Any] = {"recipe": "rslad", "eps": EPS, "steps": 1, "teacher": teacher}
        return distill(task(digits, resume=True), student, tmp_path / out, **settings, **more)

    assert run("told", on_teacher=tell).info.weights_sha256 == run("quiet").info.weights_sha256
    run("told", on_teacher=tell)
    (found,) = told
    images = digits[0]
    order = split_off(images.labels, 50, budget=EPS)
    batch = next(batches(images, images.preprocess, batch_size=50, order=order))
    x = to_model_input(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)).contiguous()
    labels, network = torch.from_numpy(batch.labels), teacher.load_model().eval().requires_grad_(False)
    right = [
        network(made).argmax(dim=1) == labels
        for made in (
            x,
            fgsm(network, x, labels, eps=EPS.value)[0].x,
            pgd(network, x, labels, eps=EPS.value, steps=10, loss=margin).x,
        )
    ]
    stood = right[0] & right[1] & right[2]
    p = network(x[~stood]).softmax(dim=1).double().numpy()
    assert (found.stood, found.images) == (int(stood.sum()), 50) and 0 < found.stood < 50
    assert found.doubt == pytest.approx(float(-(p * np.log(p)).sum(axis=1).mean() / math.log(10)), rel=1e-5)


@pytest.mark.parametrize(
    ("standing", "helps", "says"),
    [
        (
            TeacherStanding(300, 500, 0.6),
            True,
            "60.0% of 500 images held out; its answers to the other 200 have 60% of",
        ),
        (TeacherStanding(500, 500, None), True, "100.0% of 500 images held out: by this rule of thumb it can help"),
        (TeacherStanding(20, 500, 0.9), False, "little robustness to hand on; train without a teacher"),
        (TeacherStanding(300, 500, 0.1), False, "sure of what its student will hardly learn"),
    ],
)
def test_what_is_said_of_a_teacher(standing: TeacherStanding, helps: bool, says: str) -> None:
    assert standing.helps == helps and says in standing.said and len(standing.said) <= 300


def test_a_teacher_is_trained_robust_where_none_is_given(
    digits: tuple[ImageSet, ImageSet], student: Architecture, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = distill(
        task(digits), student, out, recipe="rslad", eps=EPS, steps=1, teacher_defence=AdversarialTraining.n_fgsm(EPS)
    )
    assert Run.open(out / "teacher").info.recipe["recipe"] == "n-fgsm"
    assert run.info.recipe["teacher"] == "test_resnet, n-fgsm eps 8/255"


def test_what_does_not_fit_is_said_before_anything_is_trained(
    digits: tuple[ImageSet, ImageSet], student: Architecture, teacher: Run, tmp_path: Path
) -> None:
    plain = train(task(digits), student, tmp_path / "plain")
    out = tmp_path / "run"
    with pytest.raises(InputError, match="was not trained on adversarial images"):
        distill(task(digits), student, out, recipe="ard", eps=EPS, teacher=plain)
    with pytest.raises(InputError, match="ard needs `eps`"):
        distill(task(digits), student, out, recipe="ard", teacher=teacher)
    with pytest.raises(InputError, match="soft-label is trained on images as they are"):
        distill(task(digits), student, out, recipe="soft-label", eps=EPS, teacher=plain)
    with pytest.raises(InputError, match="papernot has no `alpha`"):
        distill(task(digits), student, out, recipe="papernot", alpha=0.5)
    assert not out.exists()


def test_a_distillation_in_slices_is_the_whole_one(
    digits: tuple[ImageSet, ImageSet], student: Architecture, teacher: Run, tmp_path: Path
) -> None:
    """A deadline that is over lets nothing begin; what was done before is there, and the rest follows."""
    two = replace(task(digits), config=TrainConfig(epochs=2, batch_size=64, limit=128, holdout=50))
    whole = distill(two, student, tmp_path / "whole", recipe="rslad", eps=EPS, steps=1, teacher=teacher)
    with pytest.raises(OutOfTimeError, match="student: 0 of 2 epochs"):
        distill(
            replace(two, deadline=0.0), student, tmp_path / "cut", recipe="rslad", eps=EPS, steps=1, teacher=teacher
        )
    run = distill(
        replace(two, resume=True), student, tmp_path / "cut", recipe="rslad", eps=EPS, steps=1, teacher=teacher
    )
    assert run.info.weights_sha256 == whole.info.weights_sha256
