"""Attack objects of torchattacks, foolbox and ART in the real evaluation, and what is refused."""

from __future__ import annotations

import copy
import importlib.metadata
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv.attacks.adapters import autoattack, from_art, from_foolbox, from_torchattacks
from edgeadv.backends.pytorch import TorchBackend
from edgeadv.data.datasets import ImageSet, balanced_subset, batches
from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv_runtime.attacks.base import CallableAttack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend
from edgeadv_runtime.bundle.batches import CleanBatch, DataInfo
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import InputError, MissingDependencyError
from edgeadv_runtime.evaluation.loop import evaluate
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams

EPS = Eps.parse("8/255")
V = EPS.value
N = 30
STEP = V / 4
CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", autouse=True)
def _art(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """ART writes its settings into the home folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        import art.attacks.evasion
        import art.estimators.classification  # noqa: F401
    yield


def estimator(model: nn.Module, **changes: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier

    keywords: dict[str, Any] = {
        "loss": nn.CrossEntropyLoss(),
        "input_shape": (3, 32, 32),
        "nb_classes": 10,
        "clip_values": (0.0, 1.0),
        "device_type": "cpu",
    }
    return PyTorchClassifier(model, **{**keywords, **changes})


def art_attack(model: nn.Module, name: str, **keywords: Any) -> Any:
    from art.attacks import evasion

    return getattr(evasion, name)(estimator(model), eps=V, **keywords)


class Case:
    """One attack: adapted, and as its library's users call it."""

    def __init__(self, library: str, name: str, *, repeats: bool = True, **keywords: Any) -> None:
        self.library, self.name, self.keywords = library, name, keywords
        # whether it gives the same images twice without being seeded
        self.repeats = repeats

    def attack(self, model: nn.Module) -> Any:
        if self.library == "torchattacks":
            return getattr(torchattacks, self.name)(model, eps=V, **self.keywords)
        if self.library == "foolbox":
            return getattr(foolbox.attacks, self.name)(**self.keywords)
        return art_attack(model, self.name, **self.keywords)

    def adapted(self, model: nn.Module, sha256: str | None = "a" * 64, **keywords: Any) -> CallableAttack:
        attack = self.attack(model)
        if self.library == "torchattacks":
            return from_torchattacks(attack, eps=EPS, gradients_sha256=sha256, **keywords)
        if self.library == "foolbox":
            return from_foolbox(attack, model, eps=EPS, gradients_sha256=sha256, **keywords)
        return from_art(attack, eps=EPS, gradients_sha256=sha256, **keywords)

    def direct(self, model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
        attack, images, labels = self.attack(model), torch.from_numpy(x.copy()), torch.from_numpy(y)
        if self.library == "torchattacks":
            made: Tensor = attack(images, labels)
        elif self.library == "foolbox":
            _, made, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilons=V)
        else:
            return np.asarray(attack.generate(x.copy(), y=y))
        return made.detach().numpy()


CASES = {
    "ta-fgsm": Case("torchattacks", "FGSM"),
    "ta-pgd": Case("torchattacks", "PGD", alpha=STEP, steps=8, random_start=False),
    "ta-pgd-rs": Case("torchattacks", "PGD", alpha=STEP, steps=8, repeats=False),
    "ta-mifgsm": Case("torchattacks", "MIFGSM", alpha=STEP, steps=8),
    "ta-apgd": Case("torchattacks", "APGD", steps=10, loss="dlr"),
    "ta-square": Case("torchattacks", "Square", n_queries=60),
    "fb-fgsm": Case("foolbox", "LinfFastGradientAttack"),
    "fb-pgd": Case("foolbox", "LinfPGD", steps=8, abs_stepsize=STEP, random_start=False),
    "fb-pgd-rs": Case("foolbox", "LinfPGD", steps=8, rel_stepsize=0.25, repeats=False),
    "fb-deepfool": Case("foolbox", "LinfDeepFoolAttack", steps=10),
    "art-fgm": Case("art", "FastGradientMethod"),
    "art-pgd": Case("art", "ProjectedGradientDescent", eps_step=STEP, max_iter=8, verbose=False),
    "art-square": Case("art", "SquareAttack", max_iter=25, verbose=False, repeats=False),
}


@pytest.fixture(scope="module")
def trained(digits_train: ImageSet) -> PixelModel:
    """A residual network with BatchNorm after two passes over 2,000 digits, which is enough. Shared: do not change
    it."""
    torch.set_num_threads(1)
    order = balanced_subset(digits_train.labels, 2000)
    everything = next(batches(digits_train, digits_train.preprocess, batch_size=2000, order=order))
    x, y = torch.from_numpy(to_tensor(everything.pixels)), torch.from_numpy(everything.labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Architecture.find("timm/test_resnet", num_classes=10))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for part in torch.cat([torch.randperm(len(x)), torch.randperm(len(x))]).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bundle(
    trained: PixelModel, digits_train: ImageSet, digits_test: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """``trained`` as fp32 and int8 for x86."""
    from edgeadv_export import Int8Plan, Origin, choose_calibration, data_frames, export_bundle

    calibration = choose_calibration(digits_train, digits_train.preprocess, count=64)
    return export_bundle(
        trained,
        tmp_path_factory.mktemp("bundles") / "digits.edgeadv",
        classes=digits_test.classes,
        preprocess=digits_test.preprocess,
        frames=data_frames(digits_test),
        variants=("fp32", "int8-u8s8"),
        origin=Origin(title="digits", provenance={"data": "mnist5k"}),
        int8=Int8Plan(calibration=calibration, images=digits_test, order=np.arange(300), max_drop=5.0),
    )


@pytest.fixture(scope="module")
def batch(trained: PixelModel, digits_test: ImageSet) -> CleanBatch:
    taken = next(
        batches(digits_test, digits_test.preprocess, batch_size=N, order=balanced_subset(digits_test.labels, N))
    )
    return CleanBatch(taken.index, taken.pixels, taken.labels)


@pytest.fixture(scope="module")
def pixels(batch: CleanBatch) -> NDArray[np.float32]:
    return to_tensor(batch.pixels)


def half_trained(model: nn.Module) -> None:
    """Leave ``model`` in no uniform state: training, but for its first BatchNorm, and unfrozen, but for its head."""
    model.train().requires_grad_(True)
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    list(model.parameters())[-1].requires_grad_(False)


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        {key: value.clone().numpy().tobytes() for key, value in model.state_dict().items()},
    )


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.repeats], ids=lambda c: f"{c.library}-{c.name}"
)
def test_the_images_are_those_of_the_library_and_the_model_is_as_it_was(
    case: Case, trained: PixelModel, pixels: NDArray[np.float32], batch: CleanBatch
) -> None:
    expected = case.direct(trained, pixels, batch.labels)
    model = copy.deepcopy(trained)
    attack = case.adapted(model)
    half_trained(model)
    before, given = state(model), pixels.copy()
    (made,) = attack.craft(pixels, batch.labels)
    np.testing.assert_array_equal(made.x, expected)
    assert made.x.dtype == np.float32
    assert V / 2 < np.abs(made.x - pixels).max() <= V + 1e-6
    assert made.zero_gradient is None
    assert state(model) == before
    np.testing.assert_array_equal(pixels, given)


@pytest.mark.parametrize("name", ["ta-pgd", "fb-pgd", "art-pgd"])
def test_the_model_is_as_it_was_after_an_error(name: str, trained: PixelModel, pixels: NDArray[np.float32]) -> None:
    model = copy.deepcopy(trained)
    attack = CASES[name].adapted(model)
    half_trained(model)
    before, random_before = state(model), torch.get_rng_state()
    with pytest.raises((InputError, IndexError, RuntimeError)):
        attack.craft(pixels, np.full(len(pixels), 10))
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random_before)


def generators() -> tuple[bytes, str, Any]:
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("name", ["ta-pgd-rs", "fb-pgd-rs", "art-square"])
def test_random_choices_are_seeded_and_the_global_generators_are_put_back(
    name: str, trained: PixelModel, pixels: NDArray[np.float32], batch: CleanBatch
) -> None:
    attack, other = (CASES[name].adapted(trained, seed=seed) for seed in (0, 1))
    before = generators()
    first = attack.craft(pixels, batch.labels)[0].x
    assert generators() == before
    # whatever state they are in
    torch.rand(1), np.random.random_sample(), random.random()  # noqa: NPY002
    assert all(new != old for new, old in zip(generators(), before, strict=True))
    np.testing.assert_array_equal(attack.craft(pixels, batch.labels)[0].x, first)
    assert (other.craft(pixels, batch.labels)[0].x != first).mean() > 0.01


@pytest.mark.parametrize(("uint8", "names"), [(False, [*CASES]), (True, ["ta-pgd", "fb-deepfool", "art-pgd"])])
def test_they_run_through_the_real_evaluation(bundle: Bundle, batch: CleanBatch, uint8: bool, names: list[str]) -> None:
    with TorchBackend(bundle, device=torch.device("cpu"), threads=1) as reference:
        backends: list[Backend] = [
            reference,
            OnnxRuntimeBackend(bundle),
            OnnxRuntimeBackend(bundle, variant="int8-u8s8"),
        ]
        attacks = [CASES[name].adapted(reference.model, reference.gradients_sha256, name=name) for name in names]
        (made,) = craft([batch], attacks, reference, uint8=uint8)
        results = evaluate(
            bundle,
            [made],
            infos=infos(attacks, uint8=uint8),
            backends=backends,
            data=DataInfo("digits", "test", N),
        )
        right = {
            (backend.variant, backend.name, name): int((backend.infer(x).argmax(axis=1) == batch.labels).sum())
            for backend in backends
            for (name, _), x in made.adversarial.items()
        }
    rows = {(row.variant, row.backend, row.attack): row for row in results.rows}
    for (variant, backend_name, name), correct in right.items():
        row, case = rows[variant, backend_name, name], CASES[name]
        assert row.correct_top1 == correct
        assert row.threat == ("white-box" if variant == "fp32" else "transfer")
        assert (row.gradients, row.eps, row.zero_gradient_share) == ("graph of fp32", EPS.text, None)
        assert row.params.uint8 is uint8 and row.params.norm == "linf"
        distribution = "adversarial-robustness-toolbox" if case.library == "art" else case.library
        assert re.fullmatch(rf"{distribution} [\d.]+ \w+", row.params.library or "")
    torch_rows = {name: rows["fp32", "torch", name].correct_top1 for name in names}
    clean = rows["fp32", "torch", "clean"].correct_top1
    assert clean >= 0.7 * N
    assert all(correct <= clean for correct in torch_rows.values())
    # few queries get not far, and rounding undoes what is only just across the boundary
    weak = {"ta-square", "art-square"} | ({"fb-deepfool"} if uint8 else set())
    assert all(correct <= clean / 2 for name, correct in torch_rows.items() if name not in weak), torch_rows
    assert rows["fp32", "torch", "worst-case"].correct_top1 <= min(torch_rows.values())
    # a third party's attacks alone earn no verdict
    assert results.masking.verdict == "UNCHECKED"
    if uint8:
        x = made.adversarial["ta-pgd", EPS.text]
        np.testing.assert_allclose(x * 255, np.rint(x * 255), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ta-fgsm", {}),
        ("ta-pgd", {"steps": 8, "step_size": "0.00784314"}),
        ("ta-apgd", {"steps": 10, "loss": "dlr", "restarts": 1}),
        ("ta-square", {"queries": 60, "loss": "margin", "restarts": 1}),
        ("fb-pgd", {"steps": 8, "step_size": "0.00784314"}),
        ("fb-pgd-rs", {"steps": 8, "step_size": "0.25*8/255"}),
        ("fb-deepfool", {"steps": 10}),
        ("art-fgm", {}),
        ("art-pgd", {"steps": 8, "step_size": "0.00784314"}),
        ("art-square", {}),
    ],
)
def test_a_row_says_how_the_attack_was_run(name: str, expected: dict[str, Any], trained: PixelModel) -> None:
    attack = CASES[name].adapted(trained)
    described = attack.params(EPS).to_json()
    assert described.pop("norm") == "linf" and described.pop("seed") == 0
    library = str(described.pop("library"))
    assert library.rpartition(" ")[2] == type(CASES[name].attack(trained)).__name__
    assert described == expected
    assert (attack.queried, attack.control) == (None, False)


def test_names_and_repeats(trained: PixelModel) -> None:
    assert CASES["ta-pgd"].adapted(trained).name == "torchattacks-pgd"
    assert CASES["art-pgd"].adapted(trained).name == "art-projectedgradientdescent"
    repeated = foolbox.attacks.LinfPGD(steps=3).repeat(2)
    attack = from_foolbox(repeated, trained, eps=EPS, gradients_sha256=None)
    assert attack.name == "foolbox-linfprojectedgradientdescentattack"
    assert (attack.described.steps, attack.described.restarts) == (3, 2)
    least = torchattacks.PGD(trained, eps=V)
    least.set_mode_targeted_least_likely(quiet=True)
    adapted = from_torchattacks(least, eps=EPS, gradients_sha256=None)
    assert adapted.described.target == "targeted(least-likely)"


def test_a_target_that_the_attack_chooses_is_moved_to(
    trained: PixelModel, pixels: NDArray[np.float32], batch: CleanBatch
) -> None:
    attack = torchattacks.PGD(trained, eps=V, alpha=STEP, steps=20)
    attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10, quiet=True)
    made = from_torchattacks(attack, eps=EPS, gradients_sha256=None).craft(pixels, batch.labels)[0].x
    target = torch.from_numpy((batch.labels + 1) % 10)
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(trained(torch.from_numpy(x)), target) for x in (pixels, made))
    assert after < before / 2


def test_an_attack_asks_an_int8_artefact_and_follows_no_gradient(bundle: Bundle, batch: CleanBatch) -> None:
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    with OnnxRuntimeBackend(bundle, variant="int8-u8s8") as artefact:
        asked = BlackBoxClassifierNeuralNetwork(
            artefact.infer, input_shape=artefact.input_shape, nb_classes=10, clip_values=(0, 1)
        )
        square = SquareAttack(asked, eps=0.2, max_iter=100, verbose=False)
        attack = from_art(square, eps=Eps.parse("0.2"), gradients_sha256=None, queried=artefact.identity)
        with TorchBackend(bundle, device=torch.device("cpu"), threads=1) as reference:
            made = craft([batch], [attack], reference, uint8=False)
            results = evaluate(
                bundle,
                made,
                infos=infos([attack], uint8=False),
                backends=[artefact, reference],
                data=DataInfo("digits", "test", N),
            )
    rows = {(row.backend, row.attack): row for row in results.rows}
    asked_row, clean_row = rows["onnxruntime", "art-squareattack"], rows["onnxruntime", "clean"]
    assert asked_row.correct_top1 < clean_row.correct_top1 - 3
    assert (asked_row.threat, rows["torch", "art-squareattack"].threat) == ("query", "transfer")
    assert (attack.queried, attack.gradients, attack.gradients_sha256) == (artefact.identity, None, None)


Build = Callable[[nn.Module], CallableAttack]


def _ta(attack: Any, **keywords: Any) -> CallableAttack:
    return from_torchattacks(attack, eps=EPS, gradients_sha256=None, **keywords)


def _ta_normalised(model: nn.Module) -> CallableAttack:
    attack = torchattacks.PGD(model, eps=V)
    attack.set_normalization_used(mean=[0.5] * 3, std=[0.5] * 3)
    return _ta(attack)


def _ta_many_normalised(model: nn.Module) -> CallableAttack:
    attack = torchattacks.MultiAttack([torchattacks.FGSM(model, eps=V), torchattacks.PGD(model, eps=V)])
    attack.set_normalization_used(mean=[0.5] * 3, std=[0.5] * 3)
    return _ta(attack)


def _ta_towards_the_label(model: nn.Module) -> CallableAttack:
    attack = torchattacks.PGD(model, eps=V)
    attack.set_mode_targeted_by_label(quiet=True)
    return _ta(attack)


def _ta_training(model: nn.Module) -> CallableAttack:
    attack = torchattacks.PGD(model, eps=V)
    attack.set_model_training_mode(model_training=True)
    return _ta(attack)


def _ta_elsewhere(model: nn.Module) -> CallableAttack:
    attack = torchattacks.PGD(model, eps=V)
    attack.set_device(torch.device("meta"))
    return _ta(attack)


def _art(model: nn.Module, name: str = "FastGradientMethod", eps: float = V, **changes: Any) -> CallableAttack:
    from art.attacks import evasion

    keywords = {key: changes.pop(key) for key in ("norm", "targeted") if key in changes}
    attack = getattr(evasion, name)(estimator(model, **changes), eps=eps, **keywords)
    return from_art(attack, eps=EPS, gradients_sha256=None)


def _art_defended(model: nn.Module) -> CallableAttack:
    from art.defences.preprocessor import SpatialSmoothing

    return _art(model, preprocessing_defences=[SpatialSmoothing()])


def _art_postprocessed(model: nn.Module) -> CallableAttack:
    from art.defences.postprocessor import Rounded

    return _art(model, postprocessing_defences=[Rounded()])


def _art_deepfool(model: nn.Module) -> CallableAttack:
    from art.attacks.evasion import DeepFool

    return from_art(DeepFool(estimator(model), verbose=False), eps=EPS, gradients_sha256=None)


def _fb(attack: Any, model: Any, **keywords: Any) -> CallableAttack:
    return from_foolbox(attack, model, eps=EPS, gradients_sha256=None, **keywords)


REFUSED: dict[str, tuple[Build, str]] = {
    "ta-eps": (
        lambda m: _ta(torchattacks.PGD(m, eps=0.1)),
        r"PGD was built with eps 0\.1, not 8/255 = 0\.031373: build it",
    ),
    "ta-max-eps": (lambda m: _ta(torchattacks.PIFGSM(m)), r"PIFGSM was built with eps 0\.06"),
    "ta-no-eps": (lambda m: _ta(torchattacks.CW(m)), "CW has no eps"),
    "ta-member-eps": (
        lambda m: _ta(torchattacks.MultiAttack([torchattacks.FGSM(m, eps=V), torchattacks.PGD(m, eps=0.2)])),
        r"PGD was built with eps 0\.2",
    ),
    "ta-norm": (lambda m: _ta(torchattacks.APGD(m, eps=V, norm="L2")), "APGD has norm L2"),
    "ta-euclidean": (lambda m: _ta(torchattacks.PGDL2(m, eps=V)), "PGDL2 has norm L2"),
    "ta-normalised": (_ta_normalised, "PGD normalises"),
    "ta-many-normalised": (_ta_many_normalised, "MultiAttack normalises"),
    "ta-label": (_ta_towards_the_label, "towards their true labels"),
    "ta-training": (_ta_training, "in training mode"),
    "ta-device": (_ta_elsewhere, "built for meta and its model is on cpu"),
    "ta-foreign": (lambda m: _ta(foolbox.attacks.LinfPGD()), "is not an attack object of torchattacks"),
    "ta-name": (
        lambda m: _ta(torchattacks.PGD(m, eps=V), name="pgd-margin"),
        "pgd-margin is the name of one of edgeadv",
    ),
    "ta-suffix": (lambda m: _ta(torchattacks.PGD(m, eps=V), name="square@torch-fp32"), "square@torch-fp32 is the name"),
    "ta-row": (lambda m: _ta(torchattacks.PGD(m, eps=V), name="worst-case"), "worst-case is the name"),
    "ta-both": (
        lambda m: from_torchattacks(torchattacks.PGD(m, eps=V), eps=EPS, gradients_sha256="a" * 64, queried="torch"),
        "gradients_sha256=None with queried",
    ),
    "fb-norm": (lambda m: _fb(foolbox.attacks.L2PGD(), m), "keeps to L2 distance"),
    "fb-no-norm": (lambda m: _fb(foolbox.attacks.GaussianBlurAttack(), m), "give it foolbox.distances.linf"),
    "fb-model": (
        lambda m: _fb(foolbox.attacks.LinfPGD(), foolbox.PyTorchModel(m, bounds=(0, 1), device="cpu")),
        "pass the torch model itself, not a PyTorchModel",
    ),
    "fb-foreign": (lambda m: _fb(torchattacks.PGD(m, eps=V), m), "is not an attack object of foolbox"),
    "art-eps": (lambda m: _art(m, eps=0.2), r"FastGradientMethod was built with eps 0\.2"),
    "art-no-eps": (_art_deepfool, "DeepFool has no eps"),
    "art-norm": (lambda m: _art(m, norm=2), "FastGradientMethod has norm 2"),
    "art-targeted": (lambda m: _art(m, targeted=True), "FastGradientMethod is targeted"),
    "art-clip": (lambda m: _art(m, clip_values=(0, 255)), r"clip_values are \[  0\. 255\.\]"),
    "art-no-clip": (lambda m: _art(m, clip_values=None), "clip_values are None"),
    "art-mean": (lambda m: _art(m, preprocessing=(0.5, 1.0)), "has a StandardisationMeanStdPyTorch"),
    "art-std": (lambda m: _art(m, preprocessing=(0.0, 0.5)), "has a StandardisationMeanStdPyTorch"),
    "art-defence": (_art_defended, "has a SpatialSmoothing"),
    "art-rounded": (_art_postprocessed, "has a Rounded"),
    "art-foreign": (
        lambda m: from_art(torchattacks.PGD(m, eps=V), eps=EPS, gradients_sha256=None),
        "is not an attack object of adversarial-robustness-toolbox",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_refused_in_one_line(case: str, trained: PixelModel) -> None:
    build, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        build(copy.deepcopy(trained))
    assert "\n" not in str(caught.value)


def test_an_attack_that_leaves_its_budget_is_refused(bundle: Bundle, batch: CleanBatch) -> None:
    class TooFar(torchattacks.FGSM):  # type: ignore[misc]
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return (images + self.eps + 1e-4).clamp(0, 1)

    with TorchBackend(bundle, device=torch.device("cpu"), threads=1) as reference:
        attack = from_torchattacks(TooFar(reference.model, eps=V), eps=EPS, gradients_sha256=None)
        with pytest.raises(InputError, match=r"attack torchattacks-toofar moved a pixel by 0\.031473"):
            list(craft([batch], [attack], reference, uint8=False))


def test_art_has_no_class_for_a_label(trained: PixelModel, pixels: NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match="labels run from 3 to 10, but the estimator has nb_classes=10"):
        CASES["art-fgm"].adapted(trained).craft(pixels[:2], np.array([3, 10]))


def test_autoattack_is_torchattacks_and_says_so(
    trained: PixelModel, pixels: NDArray[np.float32], batch: CleanBatch
) -> None:
    eps = Eps.parse("0.4")
    attack = autoattack(trained, eps=eps, gradients_sha256="a" * 64, seed=3)
    assert (attack.name, attack.gradients) == ("autoattack-torchattacks", "torch fp32")
    assert attack.described == AttackParams(
        norm="linf",
        restarts=1,
        seed=3,
        queries=5000,
        library=f"torchattacks {importlib.metadata.version('torchattacks')}, a re-implementation of AutoAttack",
    )
    x, y = pixels, batch.labels
    made = attack.craft(x, y)[0].x
    theirs = torchattacks.AutoAttack(trained, eps=eps.value, n_classes=10, seed=3)
    np.testing.assert_array_equal(made, theirs(torch.from_numpy(x), torch.from_numpy(y)).detach().numpy())
    with torch.no_grad():
        right = (trained(torch.from_numpy(made)).argmax(dim=1).numpy() == y).sum()
    assert right <= 3


@pytest.mark.slow
def test_autoattack_with_steps_is_the_same_four_attacks(
    trained: PixelModel, pixels: NDArray[np.float32], batch: CleanBatch
) -> None:
    x, y = pixels, batch.labels

    def images(steps: int | None) -> NDArray[np.float32]:
        return autoattack(trained, eps=EPS, gradients_sha256=None, steps=steps).craft(x, y)[0].x

    def right(made: NDArray[np.float32]) -> int:
        with torch.no_grad():
            return int((trained(torch.from_numpy(made)).argmax(dim=1).numpy() == y).sum())

    as_it_is = images(None)
    np.testing.assert_array_equal(images(10), as_it_is)
    assert right(images(100)) <= right(as_it_is) < right(x)


@pytest.mark.parametrize(
    ("classes", "asked", "message"), [(3, 3, "the model has 3"), (10, 11, "not 11"), (10, 1, "not 1"), (5, 10, "has 5")]
)
def test_autoattack_on_too_few_classes(classes: int, asked: int, message: str, pixels: NDArray[np.float32]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))
    attack = autoattack(model, eps=EPS, gradients_sha256=None, n_classes=asked)
    with pytest.raises(InputError, match=message):
        attack.craft(pixels[:2], np.array([0, 1]))


def test_autoattack_without_torchattacks(trained: PixelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(MissingDependencyError, match=r"^torchattacks is not installed: pip install torchattacks$"):
        autoattack(trained, eps=EPS, gradients_sha256=None)


def test_the_page_runs_as_it_is_written(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CHECKOUT / "docs" / "how-to" / "other-attack-libraries.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "digits.edgeadv").symlink_to(bundle.path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert {row.attack for row in names["results"].rows} == {
        "clean",
        "torchattacks-pgd",
        "foolbox-linfdeepfoolattack",
        "autoattack-torchattacks",
        "worst-case",
    }
    assert [attack.name for attack in names["attacks"]] == [
        "art-projectedgradientdescent",
        "art-square@onnxruntime-int8-u8s8",
    ]
    assert (tmp_path / "results.json").exists()
