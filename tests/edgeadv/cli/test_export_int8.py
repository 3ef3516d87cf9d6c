"""``edgeadv export --precision int8`` as typed."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeadv.models.builder import PixelModel, save_weights
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import to_tensor

# tests/edgeadv/conftest.py: what a command left on the terminal, and how many photographs there are
Cli = Callable[..., Any]
PHOTOS = 72
LOOSE = ("--max-drop", "30")  # an untrained network is unsure of everything


@pytest.fixture
def arguments(tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes, photos: Path) -> list[str]:
    """An export of fp32 and int8 without a run, calibrated on labelled photographs."""
    save_weights(tiny_model, tmp_path / "w.safetensors")
    rows = zip(tiny_classes.ids, tiny_classes.names, strict=True)
    (tmp_path / "classes.tsv").write_text("".join(f"{i}\t{name}\n" for i, name in rows))
    return [
        "export",
        "--arch",
        "timm/test_resnet",
        "--weights",
        "w.safetensors",
        "--classes",
        "classes.tsv",
        "--preprocess",
        "resize=32,crop=32",
        "--golden",
        str(photos),
        "--precision",
        "fp32,int8",
        "--calibration-data",
        str(photos),
        "--calibration-count",
        "32",
        *LOOSE,
        "--out",
        "x.edgeadv",
    ]


def replaced(arguments: list[str], option: str, *values: str) -> list[str]:
    at = arguments.index(option)
    return [*arguments[:at], *values, *arguments[at + 2 :]]


def test_both_variants_from_weights(cli: Cli, arguments: list[str], tmp_path: Path, photos: Path) -> None:
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.err
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    assert bundle.variants == ("fp32", "int8-s8s8", "int8-u8s8")
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(photos.rglob("*.png"))]
    assert bundle.calibration_images <= {hashlib.sha256(array.tobytes()).hexdigest() for array in pixels}
    assert len(bundle.calibration_images) == 32
    for variant in bundle.variants[1:]:
        gate = bundle.manifest.variants[variant].gate.to_json()
        assert gate["clean"]["n"] == gate["data"]["n"] == PHOTOS - 32
        (loss,) = [line for line in outcome.out.splitlines() if line.startswith(variant) and "drop" in line]
        assert f"drop {gate['clean']['drop']:.2f} points [" in loss and "30 allowed" in loss
        assert f", judged at {gate['clean']['drop_upper']:.2f}" in loss
        assert f"{gate['gain']['smaller']:.1f}x smaller than fp32" in outcome.out
        assert bundle.manifest.variants[variant].gradients.parity.frames > 0
    assert "worst case under attack not measured: no --gate-eps was given" in outcome.out
    assert "int8 is calibrated on 32 images; 300 or more are advised" in outcome.err
    assert "calibrating int8 on 32 images of" in outcome.err
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text()
    assert str(photos.parent) not in (bundle.path / "manifest.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.tsv", "w.safetensors", "x.edgeadv"]

    shown = cli("bundle", "show", "x.edgeadv")
    assert shown.status == 0 and "see below" in shown.out and "int8-u8s8          on 40 images" in shown.out
    verified = cli("verify", "x.edgeadv", "--precision", "int8-s8s8,int8-u8s8", "--backend", "onnxruntime")
    assert verified.status == 0 and verified.out.count(": ok;") == 2
    slim = cli("bundle", "slim", "x.edgeadv", "--variant", "int8-u8s8", "--out", "slim")
    assert slim.status == 0 and "int8-u8s8          on 40 images" in slim.out and "int8-s8s8 " not in slim.out


def test_one_variant_and_labelled_images_of_another_folder(
    cli: Cli, arguments: list[str], tmp_path: Path, many_photos: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for i, file in enumerate(sorted(many_photos.rglob("*.png"))[:40]):
        (tmp_path / "flat" / f"{i}.png").write_bytes(file.read_bytes())
    (tmp_path / "flat" / "broken.png").write_bytes(b"")
    changed = replaced(replaced(arguments, "--precision", "--precision", "int8-u8s8"), "--calibration-data")
    outcome = cli(
        *changed,
        "--calibration-data",
        "flat",
        "--gate-data",
        many_photos,
        "--gate-limit",
        "100",
        "--calibration-seed",
        "3",
    )
    assert outcome.status == 0, outcome.err
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    assert bundle.variants == ("int8-u8s8",)
    assert {k: getattr(bundle.manifest.calibration, k) for k in ("origin", "split", "seed", "count")} == {
        "origin": "flat",
        "split": "all",
        "seed": 3,
        "count": 32,
    }
    data = bundle.manifest.variants["int8-u8s8"].gate.data.to_json()
    assert data["n"] + data["calibration_left_out"] == 100 and data["name"] == many_photos.name


def test_a_list_names_what_is_calibrated_on(cli: Cli, run: Path, split: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/0*\na/1*\nb/*\n")
    options = ["--precision", "int8-u8s8", "--calibration-list", "list.txt", "--max-drop", "100"]
    outcome = cli("export", run, "--out", "x.edgeadv", *options)
    assert outcome.status == 0, outcome.err
    named = [*(split / "train" / "a").glob("[01]*"), *(split / "train" / "b").iterdir()]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in named]
    hashes = {hashlib.sha256(array.tobytes()).hexdigest() for array in pixels}
    assert Bundle.open(tmp_path / "x.edgeadv").calibration_images == hashes and len(hashes) == 52


def test_a_run_brings_its_images(cli: Cli, run: Path, tmp_path: Path) -> None:
    outcome = cli(
        "export", run, "--out", "x.edgeadv", "--precision", "int8", "--calibration-count", "40", "--max-drop", "100"
    )
    assert outcome.status == 0, outcome.err
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    assert bundle.variants == ("int8-s8s8", "int8-u8s8")
    assert (bundle.manifest.calibration.split, bundle.manifest.calibration.count) == ("train", 40)
    data = bundle.manifest.variants["int8-s8s8"].gate.data.to_json()
    assert (data["split"], data["n"], data["calibration_left_out"]) == ("test", 16, 0)


def test_a_worst_case_that_may_not_be_believed_writes_nothing(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """40 images are too few for a verdict."""
    before = sorted(tmp_path.iterdir())
    outcome = cli(*replaced(arguments, "--precision", "--precision", "int8-s8s8"), "--gate-eps", "8/255")
    assert outcome.status == 2 and "attacking 40 images at eps 8/255" in outcome.err
    last = outcome.err.splitlines()[-1]
    assert "int8's worst case at eps 8/255 may not be believed" in last and "verdict UNCHECKED (only " in last
    assert "--gate-data, --gate-limit" in last and "No bundle was written" in last
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("--precision", "int8,int8-s8s8"), "names a variant twice"),
        (("--precision", "int4"), "int4"),
        (("--calibration-data",), "int8 needs --calibration-data"),
        (("--calibration-data", "nowhere"), "not a folder"),
        (("--calibration-data", "test"), "flatter"),
        (("--calibration-data", "empty"), "holds no images"),
        (("--calibration-data", "flat"), "give --gate-data"),
        (("--calibration-count", "32", "--calibration-list", "none.txt"), "none.txt"),
        (("--calibration-count", "32", "--calibration-list", __file__), "names none of 72 images"),
        (("--calibration-count", "31"), "at least 32"),
        (("--calibration-count", "72"), "none is left to measure int8 on"),
        (("--calibration-count", "73"), "fewer than the 73"),
        (("--calibration-count", "many"), "--calibration-count"),
        (("--max-drop", "-1"), "--max-drop"),
        (("--max-drop", "nan"), "--max-drop"),
        (("--max-drop", "0"), "--max-drop must be above 0"),
        (
            ("--max-drop", "1"),
            "40 labelled images cannot show that at most 1 points are lost, even if none is: give at least 276",
        ),
        (("--calibration-count", "32", "--calibration-seed", "-1"), "--calibration-seed"),
        (("--calibration-count", "32", "--gate-limit", "0"), "--gate-limit"),
        (("--calibration-count", "32", "--gate-eps", "8"), "8/255"),
        (("--calibration-count", "32", "--gate-data", "nowhere"), "not a folder"),
        (("--calibration-count", "32", "--gate-data", "flat"), "class folder"),
        (("--calibration-count", "32", "--gate-data", "strange"), "does not know: x, y"),
    ],
)
def test_unusable_options(
    cli: Cli, arguments: list[str], tmp_path: Path, photos: Path, changes: tuple[str, ...], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("flat", "strange/x", "strange/y"):
        (tmp_path / name).mkdir(parents=True)
        for i, file in enumerate(sorted(photos.rglob("*.png"))[:40]):
            (tmp_path / name / f"{i}.png").write_bytes(file.read_bytes())
    before = sorted(tmp_path.iterdir())
    outcome = cli(*replaced(arguments, changes[0], *(changes if len(changes) > 1 else ())))
    # what was found of pictures may have been said before
    *_, last = outcome.err.splitlines()
    assert outcome.status == 2 and last.startswith("edgeadv: ") and says in last and not outcome.out, outcome.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "option",
    [
        ("--calibration-data", "."),
        ("--calibration-list", "list.txt"),
        ("--calibration-count", "64"),
        ("--calibration-seed", "0"),
        ("--max-drop", "1"),
        ("--gate-data", "."),
        ("--gate-limit", "10"),
        ("--gate-eps", "8/255"),
    ],
)
def test_options_of_int8_without_int8(cli: Cli, run: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    outcome = cli("export", run, "--out", "x.edgeadv", *option)
    assert outcome.status == 2 and f"has no int8: leave {option[0]} out" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["test", "the test folder"])
def test_test_images_of_a_run_are_refused(cli: Cli, run: Path, split: Path, tmp_path: Path, name: str) -> None:
    data = name if name == "test" else split / "test"
    outcome = cli("export", run, "--out", "x.edgeadv", "--precision", "int8", "--calibration-data", data)
    assert outcome.status == 2 and "flatter" in outcome.err and outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


PLANTED = (
    ("conv1.1", "conv1.3"),
    ("conv1.4", "conv1.6"),
    ("layer1.0.bn1", "layer1.0.conv2"),
    ("layer2.0.bn1", "layer2.0.conv2"),
    ("layer3.0.bn1", "layer3.0.conv2"),
    ("layer3.0.bn2", "layer3.0.conv3"),
    ("layer4.0.bn1", "layer4.0.conv2"),
)


def hopeless(model: PixelModel, x: torch.Tensor) -> PixelModel:
    """A network of which seven layers need float32: before each, one channel is so loud that the others round to
    nothing."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        for before, after in PLANTED:
            norm, convolution = model.net.get_submodule(before), model.net.get_submodule(after)
            norm.weight[0] *= 1e5  # type: ignore[operator, index]
            norm.bias[0] *= 1e5  # type: ignore[operator, index]
            convolution.weight[:, 0] /= 1e5  # type: ignore[operator, index]
        model.head.bias -= model(x).mean(dim=0)  # or it would see one class in everything
    return model


def test_what_loses_too_much_leaves_nothing(
    cli: Cli, arguments: list[str], tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes, photos: Path
) -> None:
    files = sorted(photos.rglob("*.png"))
    x = torch.from_numpy(to_tensor(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])))
    model = hopeless(tiny_model, x)
    save_weights(model, tmp_path / "w.safetensors")
    with torch.no_grad():
        labels = model(x).argmax(dim=1).tolist()
    for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        (tmp_path / "seen" / tiny_classes.ids[label]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "seen" / tiny_classes.ids[label] / f"{i}.png")
    before = sorted(tmp_path.iterdir())
    changed = replaced(replaced(arguments, "--calibration-data", "--calibration-data", "seen"), "--max-drop")
    outcome = cli(*changed)  # the default
    assert outcome.status == 2
    assert (
        "40 labelled images cannot show that at most 1 points are lost, even if none is: give at least 276"
        in outcome.err
    )
    outcome = cli(*changed, "--max-drop", "12")
    assert outcome.status == 2, outcome.out
    last = outcome.err.splitlines()[-1]
    assert last.startswith("edgeadv: int8-s8s8 of test_resnet loses") and "No bundle was written" in last
    assert len(last) <= 300 and "a larger --max-drop, or export without it: --precision fp32,fp16" in last
    assert "quantising each layer of int8-s8s8 on its own" in outcome.err
    assert sorted(tmp_path.iterdir()) == before
