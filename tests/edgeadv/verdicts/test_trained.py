"""The masking verdict on networks that were really trained: which figures may be believed is known beforehand.

Networks that hide nothing must pass, robust or not; hidden gradients must not; and the size of the logits must not
matter. ``pytest -s`` prints what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeadv.data.datasets import ImageSet
from edgeadv.data.loading import loader
from edgeadv.training.loop import accuracy
from edgeadv.training.objectives import DefensiveDistillation, HardLabels
from edgeadv.training.runs import Run
from edgeadv_runtime.attacks.base import infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.records.suites import (
    FGSM,
    FGSM_RESCALED,
    LARGE_EPS,
    NOISE,
    PGD_MARGIN,
)
from tests.edgeadv.verdicts.measuring import (
    CPU,
    EPS,
    FACTOR,
    ROBUST_EPS,
    Measured,
    N,
    Trainer,
    attacks_on,
    louder,
)

pytestmark = pytest.mark.slow


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
    for eps in ("0.1", "0.3"):
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
    measured = measure(student, f"papernot T={temperature:g} cnn", eps=EPS[-1:])
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


@pytest.mark.parametrize("which", ["undefended", "simple", "distilled", "overfitted"])
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
    after = measure(louder(model), f"{which}, logits * {FACTOR:g}", eps=eps)
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
