"""A grey net of 24 x 40 stretched pixels, and one of 16-bit photographs turned by EXIF: through every command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeadv_runtime import AttackPack, Classifier, Preprocess
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.pictures import load

# tests/edgeadv/conftest.py: what a command left on the terminal
Cli = Callable[..., Any]
GREY = "color=gray,size=24x40"
ATTACKS = "fgsm,pgd-margin,apgd-ce,pgd-smoothed,square,noise"


def trained(data: Path, out: Path, preprocess: str) -> Path:
    from edgeadv.cli import main

    options = ["--arch", "timm/test_resnet", "--epochs", "3", "--batch-size", "16", "--out", str(out / "run")]
    assert main(["train", "--data", str(data), *options, "--preprocess", preprocess]) == 0
    return out / "run"


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Landscape frames with an upright or a level bar, which no change of colour hides."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("bars")
    for part, count in (("train", 48), ("test", 16)):
        for class_id in ("level", "upright"):
            (folder / part / class_id).mkdir(parents=True)
            for i in range(count):
                frame = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
                at = int(rng.integers(8, 36))
                bar = slice(at, at + 6)
                frame[(bar, slice(None)) if class_id == "level" else (slice(None), bar)] += 180
                Image.fromarray(frame).save(folder / part / class_id / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    """Its bundle in all variants but fp16-u8in; shared."""
    from edgeadv.cli import main

    folder = tmp_path_factory.mktemp("grey")
    run = trained(bars, folder, GREY)
    options = ["--precision", "fp32,fp16,fp32-u8in,int8", "--calibration-count", "32", "--max-drop", "90"]
    assert main(["export", str(run), "--out", str(folder / "grey.edgeadv"), *options]) == 0
    return folder / "grey.edgeadv"


def test_a_grey_bundle_is_what_it_says(grey: Path, bars: Path, cli: Cli) -> None:
    bundle = Bundle.open(grey)
    assert bundle.preprocess.input_shape == (1, 24, 40)
    manifest = json.loads((grey / "manifest.json").read_text())["preprocess"]
    assert manifest["color_order"] == "gray" and manifest["resize"] == [24, 40]
    shown = cli("bundle", "show", grey)
    assert shown.status == 0 and f"{GREY},crop=24x40,interp=bilinear" in shown.out
    verified = cli("verify", grey)
    assert verified.status == 0 and verified.out.count(": ok") == 5
    assert bundle.golden().pixels.shape[1:] == (24, 40, 1)
    # the camera's grey frame and its colour frame of the same are one picture
    frame = np.asarray(Image.open(bars / "test/level/00.png").convert("L"))
    for variant in ("fp32", "fp32-u8in"):
        with Classifier.open(grey, variant=variant) as classifier:
            colour = np.repeat(frame[..., None], 3, axis=2)
            assert classifier.classify(frame) == classifier.classify(colour, color_order="bgr")


def test_a_grey_bundle_is_attacked_reported_and_timed(grey: Path, bars: Path, cli: Cli, tmp_path: Path) -> None:
    options = ["--backend", "torch,onnxruntime", "--precision", "fp32,fp32-u8in,int8", "--attack", ATTACKS]
    done = cli("evaluate", grey, "--data", bars, "--eps", "16/255", *options, "--out", "r.json")
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "r.json").read_text())
    rows = {(row["variant"], row["attack"]) for row in results["rows"]}
    assert {(v, a) for v in ("fp32", "fp32-u8in") for a in ("clean", "fgsm", "square", "noise")} <= rows
    clean = next(row for row in results["rows"] if row["attack"] == "clean")
    worst = next(row for row in results["rows"] if row["attack"] == "worst-case")
    assert clean["top1"] > 0.6 and worst["top1"] < clean["top1"]
    for name in ("clean_png", "adversarial_png", "perturbation_png"):
        assert results["examples"] and all(example[name] for example in results["examples"])
    assert cli("bench", grey, "--precision", "fp32,fp32-u8in", "--runs", "10", "--out", "b.json").status == 0
    assert cli("report", "r.json", "b.json", "--out", "r.html").status == 0
    assert "image/png;base64" in (tmp_path / "r.html").read_text()


def test_a_grey_pack_and_perturbation(grey: Path, bars: Path, cli: Cli, tmp_path: Path) -> None:
    named = ["--attack", "fgsm,pgd-margin"]
    assert cli("attack", grey, "--data", bars, "--eps", "16/255", *named, "--out", "k.pack").status == 0
    assert AttackPack.open(tmp_path / "k.pack", bundle=Bundle.open(grey)).n == 32
    scored = cli("evaluate", grey, "--pack", "k.pack", "--precision", "fp32", "--out", "r.json")
    assert scored.status == 0, scored.err
    assert cli("perturbation", grey, "--data", bars, "--eps", "32/255", "--out", "p.npz").status == 0
    with np.load(tmp_path / "p.npz") as stored:
        assert stored["sign"].shape == (24, 40, 1)
    shown = cli("camera", grey, "--source", bars / "test/level")
    assert shown.status == 0 and "16 frames captured = 16 classified" in shown.out


def test_the_page_shows_grey() -> None:
    from edgeadv_runtime.camera.serve import View

    view = View(title="grey", eps=None)
    view.show(np.full((24, 40, 1), 99, np.uint8), {})
    found = view.picture(0, 1.0)
    assert found is not None and found[1][:2] == b"\xff\xd8"


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop", "trivial"])
def test_grey_pictures_that_are_no_square_are_augmented(augment: str) -> None:
    import torch

    from edgeadv.data.augment import augmentation
    from edgeadv.data.rng import RandomStream

    pixels = torch.randint(0, 256, (8, 1, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    change = augmentation(augment)
    assert change is not None
    made = change(pixels, RandomStream(0, 0, np.arange(8)))
    assert made.shape == pixels.shape and made.dtype == torch.uint8 and not torch.equal(made, pixels)


def test_sixteen_bits_turned_by_exif(bars: Path, cli: Cli, tmp_path: Path) -> None:
    """The same bars as 16-bit files that lie on their side: what is evaluated, exported and seen by a camera is upright
    and has all its bits."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in sorted(bars.rglob("*.png")):
        levels = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 16
        to = tmp_path / "deep" / file.relative_to(bars)
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(np.rot90(levels, 1))).save(to, exif=exif)
    text = "exif=apply,window=0:4080,size=24x40,color=gray"
    run = trained(tmp_path / "deep", tmp_path, text)
    out = tmp_path / "deep.edgeadv"
    assert cli("export", run, "--out", out, "--precision", "fp32").status == 0
    bundle = Bundle.open(out)
    golden = bundle.golden()
    assert golden.frames[0].dtype == np.uint16 and golden.frames[0].shape == (48, 64)
    assert cli("verify", out).status == 0
    # 16 steps of 16 bits are one of 8: the pixels are those of the plain files
    plain = bundle.preprocess(load(tmp_path / "deep/test/level/00.png"))
    assert np.array_equal(plain, Preprocess.parse(GREY)(Image.open(bars / "test/level/00.png")))
    options = ["--eps", "4/255", "--attack", "fgsm"]
    evaluated = cli("evaluate", out, "--data", tmp_path / "deep", *options, "--out", "r.json")
    assert evaluated.status == 0, evaluated.err
    clean = next(row for row in json.loads((tmp_path / "r.json").read_text())["rows"] if row["attack"] == "clean")
    shown = cli("camera", out, "--source", tmp_path / "deep/test/upright")
    assert shown.status == 0 and "16 classified" in shown.out
    assert clean["n"] == 32
    # a picture of 8 bits is not taken for a dark one of 16
    refused = cli("evaluate", out, "--data", bars, *options, "--out", "no.json")
    assert refused.status == 2 and re.search(r"no 16-bit grey \(mode RGB\)", refused.err)
    assert not (tmp_path / "no.json").exists()


def test_what_a_network_cannot_take_is_one_line(bars: Path, cli: Cli) -> None:
    options = ["--data", bars, "--epochs", "1", "--batch-size", "16", "--out", "run"]
    refused = cli("train", *options, "--arch", "vit_b_16", "--preprocess", GREY)
    assert refused.status == 2 and "vit_b_16 cannot take images of 24x40 pixels" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
