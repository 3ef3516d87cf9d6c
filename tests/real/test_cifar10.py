"""RegNetY-400MF on real CIFAR-10 pictures, undefended and distilled, from the zip to the verdict by the command line
alone.

Few pictures and few epochs: what is asserted is that the line holds together, not that the networks are good.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeadv.cli import main
from edgeadv.training.runs import Run
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.records.results import Results

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "cifar10-train.zip").is_file(),
        reason="the CIFAR-10 zips are not in ../shared/data beside the checkout",
    ),
]
TRAIN, TEST, SCORED, EPOCHS = 100, 50, 100, 6
EPS = "8/255"
ATTACKS = ("fgsm", "fgsm-rescaled", "fgsm-rs", "pgd-ce", "pgd-margin", "noise")
NETWORK = ("--arch", "regnet_y_400mf", "--upsample", "1", "--epochs", str(EPOCHS), "--batch-size", "32")
NAMES = ("undefended", "distilled")


def unpack(archive: Path, folder: Path, per_class: int) -> None:
    """Unpack the first ``per_class`` pictures of every class."""
    taken: dict[str, int] = {}
    with zipfile.ZipFile(archive) as pictures:
        for name in sorted(pictures.namelist()):
            class_id = Path(name).parent.name
            if name.endswith(".jpg") and taken.get(class_id, 0) < per_class:
                taken[class_id] = taken.get(class_id, 0) + 1
                pictures.extract(name, folder)
    assert len(taken) == 10 and set(taken.values()) == {per_class}


@pytest.fixture(scope="module")
def work(passing_folder: Callable[[str], Path]) -> Path:
    """The folder in which all of it was made."""
    # two processes that both take all cores slow each other down tenfold
    torch.set_num_threads(1)
    work = passing_folder("cifar")
    data = work / "cifar10"
    unpack(SHARED / "cifar10-train.zip", data, TRAIN)
    unpack(SHARED / "cifar10-test-dev.zip", data, TEST)
    assert main(["train", "--data", str(data), *NETWORK, "--limit", "1000", "--out", str(work / "undefended")]) == 0
    distilled = [
        "distill",
        "--data",
        str(data),
        *NETWORK,
        "--limit",
        "1000",
        "-T",
        "40",
        "--out",
        str(work / "distilled"),
    ]
    assert main(distilled) == 0
    for name in NAMES:
        assert main(["export", str(work / name), "--out", str(work / f"{name}.edgeadv")]) == 0
        evaluate = [
            "evaluate",
            str(work / f"{name}.edgeadv"),
            "--data",
            str(data),
            "--eps",
            EPS,
            "--limit",
            str(SCORED),
            "--backend",
            "all",
            "--precision",
            "all",
            "--suite",
            "fast",
            "--out",
            str(work / f"{name}.json"),
        ]
        assert main(evaluate) == 0
    files = [str(work / f"{name}.json") for name in NAMES]
    assert main(["report", *files, "--out", str(work / "report.html")]) == 0
    return work


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def results(work: Path, name: str) -> Results:
    return Results.load(work / f"{name}.json")


def test_the_runs_learnt_something(work, name):
    run = Run.open(work / name)
    stage = run.info.stages[-1]
    assert len(stage.epochs) == EPOCHS and stage.train_images == 1000 and stage.test_images == 500
    assert stage.epochs[-1]["loss"] < stage.epochs[0]["loss"]
    # ten classes: the whole interval lies above chance
    assert stage.test_accuracy_ci95[0] > 0.15
    assert not (work / name / "state.bin").exists()


def test_the_distilled_run_says_what_it_is(work):
    run, teacher = Run.open(work / "distilled"), Run.open(work / "distilled" / "teacher")
    assert run.title == "regnet_y_400mf, papernot T=40"
    assert run.info.recipe["temperature"] == teacher.info.recipe["temperature"] == 40
    assert run.info.recipe["teacher_weights_sha256"] == teacher.info.weights_sha256


def test_the_bundle_is_the_run(work, name):
    bundle = Bundle.open(work / f"{name}.edgeadv")
    assert bundle.variants == ("fp32", "fp16")
    assert bundle.weights_sha256 == Run.open(work / name).info.weights_sha256
    assert bundle.classes.ids[:2] == ("airplane", "automobile")
    assert bundle.manifest.provenance["data"]["spec"] == "cifar10"
    assert bundle.manifest.provenance["frames"] == {"origin": "cifar10 test", "count": 64}


def test_every_row_is_there_over_all_images(results):
    artefacts = {(backend, variant) for backend in ("torch", "onnxruntime") for variant in ("fp32", "fp16")}
    attacks = {("clean", "0"), *((attack, EPS) for attack in (*ATTACKS, "pgd-margin@fp16", "worst-case"))}
    assert {(row.backend, row.variant, row.attack, row.eps) for row in results.rows} == {
        (*a, *b) for a in artefacts for b in attacks
    }
    assert len(results.rows) == 4 * len(attacks) and {row.n for row in results.rows} == {SCORED} == {results.data.n}
    assert {row.eps_value for row in results.rows if row.attack != "clean"} == {8 / 255}
    assert results.data.split == "test" and results.data.name == "cifar10"


def test_the_worst_case_is_no_better_than_any_attack_and_attacks_work(results):
    for artefact in results.artefacts:
        correct = {row.attack: row.correct_top1 for row in results.select(artefact=artefact)}
        assert correct["worst-case"] <= min(correct.values())
        # 8/255 leaves little of an ordinarily trained network
        assert correct["pgd-margin"] < correct["clean"] / 2
        assert correct["worst-case"] < SCORED / 10


def test_threats_are_labelled_by_whose_gradients_they_are(results):
    for row in results.rows:
        if row.attack in ("clean", "noise"):
            # of twenty draws of noise fp32 in PyTorch says which is the worst
            asked = "query" if (row.backend, row.variant) == ("torch", "fp32") else "transfer"
            assert (row.threat, row.gradients) == (None if row.attack == "clean" else asked, None)
            continue
        own = row.attack == "worst-case" or row.variant == (row.attack.partition("@")[2] or "fp32")
        assert row.threat == ("white-box" if own else "transfer")
        assert row.gradients in ("graph of fp32", "graph of fp16, in float32") or row.attack == "worst-case"


def test_onnxruntime_agrees_with_torch(results):
    for row in results.select(backend="onnxruntime"):
        (reference,) = results.select(backend="torch", variant="fp32", attack=row.attack)
        assert abs(row.correct_top1 - reference.correct_top1) <= 4


def test_there_is_a_verdict_and_so_few_right_answers_earn_no_pass(results):
    verdict = results.masking.verdict
    assert verdict in ("UNCHECKED", "SUSPECT", "MASKED")
    assert {row.masking.verdict for row in results.rows if row.masking is not None} == {verdict}
    evidence = {item.rule: item.text for item in reversed(results.masking.evidence)}
    (clean,) = results.select(backend="torch", variant="fp32", attack="clean")
    assert f"only {clean.correct_top1} images are classified right" in evidence["coverage"]
    assert len(evidence) > 3 and all(evidence.values())


def test_the_report_shows_both_verdicts(work):
    page = (work / "report.html").read_text()
    for name in NAMES:
        results = Results.load(work / f"{name}.json")
        assert results.bundle.title in page
        assert f'data-verdict="{results.masking.verdict}"' in page
