"""The variants that take uint8 pixels, through every command as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv.models.builder import PixelModel, save_weights
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.variants import VARIANTS, int8_variant
from edgeadv_runtime.engine import find_library
from edgeadv_runtime.records.results import Results

# tests/edgeadv/conftest.py: what a command left on the terminal
Cli = Callable[..., Any]
RIGHT = int8_variant("onnxruntime")


@pytest.fixture
def arguments(tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes, photos: Path) -> list[str]:
    """An export without a run and without ``--precision``, to be calibrated on labelled photographs."""
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
        "--out",
        "x.edgeadv",
    ]


@pytest.fixture
def int8(photos: Path) -> list[str]:
    return ["--calibration-data", str(photos), "--calibration-count", "32", "--max-drop", "30"]


@pytest.fixture(scope="module")
def pixels(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: PixelModel,
    tiny_classes: Classes,
    tiny_preprocess: Preprocess,
    photographs: list[NDArray[np.uint8]],
    photos: Path,
) -> Path:
    """The tiny network in every variant, int8 calibrated on 32 of the labelled photographs."""
    from edgeadv.data.datasets import open_data
    from edgeadv_export import Int8Plan, Origin, choose_calibration, export_bundle

    images = open_data(str(photos), split="test").relabel(tiny_classes)
    calibration = choose_calibration(images, tiny_preprocess, count=32)
    plan = Int8Plan(calibration=calibration, images=images, order=np.arange(len(images)), max_drop=50.0)
    out = tmp_path_factory.mktemp("pixels") / "pixels.edgeadv"
    return export_bundle(
        tiny_model,
        out,
        classes=tiny_classes,
        preprocess=tiny_preprocess,
        frames=photographs,
        variants=VARIANTS,
        origin=Origin(title="tiny", provenance={}),
        int8=plan,
    ).path


@pytest.fixture
def scored(cli: Cli, pixels: Path, photos: Path, tmp_path: Path) -> Callable[..., Results]:
    """``edgeadv evaluate`` on the photographs."""

    def run(*options: Any) -> Results:
        outcome = cli("evaluate", pixels, "--data", photos, "--examples", "0", "--out", "r.json", *options)
        assert outcome.status == 0, outcome.err
        return Results.load(tmp_path / "r.json")

    return run


def test_from_export_to_the_device(cli: Cli, arguments: list[str], int8: list[str], tmp_path: Path) -> None:
    outcome = cli(*arguments, *int8, "--precision", "fp32-u8in,fp16,int8-u8in")
    assert outcome.status == 0, outcome.err
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    assert bundle.variants == ("fp32-u8in", "fp16", "int8-s8s8-u8in", "int8-u8s8-u8in")
    assert "int8-u8s8-u8in     the same graph as int8-u8s8 after its input, with the gate of that:" in outcome.out
    assert outcome.err.count("calibrating int8 on 32 images") == 1

    shown = cli("bundle", "show", "x.edgeadv")
    assert shown.status == 0 and "model.fp32-u8in.onnx" in shown.out and "see below" in shown.out
    verified = cli("verify", "x.edgeadv", "--precision", "fp32-u8in,int8-u8in")
    assert verified.status == 0 and verified.out.count(": ok;") == 2
    assert f"onnxruntime {RIGHT}-u8in" in verified.out
    slim = cli("bundle", "slim", "x.edgeadv", "--variant", "int8-u8in", "--out", "slim.edgeadv")
    assert slim.status == 0
    assert Bundle.open(tmp_path / "slim.edgeadv").variants == ("int8-s8s8-u8in", "int8-u8s8-u8in")
    timed = cli(
        "bench", "slim.edgeadv", "--precision", "int8-u8in", "--runs", "2", "--warm-up", "0", "--out", "bench.json"
    )
    assert timed.status == 0, timed.err
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {row["variant"] for row in rows} == {f"{RIGHT}-u8in"}
    assert any("uint8 NHWC" in row["includes"] for row in rows)
    doctor = cli("doctor", "slim.edgeadv")
    assert f"{RIGHT}-u8in" in doctor.out and "int8-u8in" in doctor.out


def test_a_run_exports_pixels_only(cli: Cli, run: Path, tmp_path: Path) -> None:
    outcome = cli("export", run, "--out", "x.edgeadv", "--precision", "fp16-u8in")
    assert outcome.status == 0, outcome.err
    assert Bundle.open(tmp_path / "x.edgeadv").variants == ("fp16-u8in",)
    assert not (tmp_path / "x.edgeadv" / "model.fp16.onnx").exists()
    verified = cli("verify", "x.edgeadv", "--precision", "all")
    assert verified.status == 0 and "onnxruntime fp16-u8in" in verified.out


def test_scored_on_images_that_are_pixels_both_are_one(scored: Callable[..., Results]) -> None:
    """Rounded as a pack is, the adversarial images are the same for both, and so are all counts."""
    results = scored(
        "--eps",
        "8/255,16/255",
        "--attack",
        "fgsm,pgd-margin",
        "--uint8",
        "--precision",
        "fp32,fp32-u8in,fp16,fp16-u8in,int8-u8s8,int8-u8s8-u8in",
    )
    for base in ("fp32", "fp16", "int8-u8s8"):
        floats, bytes_ = results.select(variant=base), results.select(variant=f"{base}-u8in")
        assert len(floats) == len(bytes_) > 5
        for ours, theirs in zip(floats, bytes_, strict=True):
            assert (ours.attack, ours.eps, ours.params, ours.threat) == (
                theirs.attack,
                theirs.eps,
                theirs.params,
                theirs.threat,
            )
            assert (ours.correct_top1, ours.correct_top5, ours.n) == (
                theirs.correct_top1,
                theirs.correct_top5,
                theirs.n,
            )
            assert ours.rounding_lost == theirs.rounding_lost
    # crafted once, on the graph of both
    own = results.select(variant="int8-u8s8-u8in", attack="pgd-margin@int8-u8s8")
    assert [row.threat for row in own] == ["white-box", "white-box"]
    assert not any("u8in" in row.attack for row in results.rows)


def test_the_gradients_of_a_variant_that_is_alone(scored: Callable[..., Results]) -> None:
    results = scored("--eps", "16/255", "--attack", "pgd-margin", "--precision", "int8-s8s8-u8in")
    (own,) = results.select(attack="pgd-margin@int8-s8s8")
    assert own.threat == "white-box" and own.params.uint8 is True and "graph of int8-s8s8" in str(own.gradients)
    assert own.rounding_lost is None and not results.skipped


def test_float_images_are_rounded_and_the_rows_say_so(scored: Callable[..., Results]) -> None:
    attack = "pgd-margin"
    results = scored("--eps", "5/255", "--attack", attack, "--precision", "fp32,fp32-u8in")
    (floats,), (pixels,) = (results.select(variant=v, attack=attack) for v in ("fp32", "fp32-u8in"))
    assert floats.params.uint8 is False and pixels.params.uint8 is True
    # its steps end between levels: what rounding undoes is said
    assert pixels.rounding_lost is not None and floats.rounding_lost is None
    assert pixels.correct_top1 - floats.correct_top1 <= pixels.rounding_lost
    alone = scored("--eps", "5/255", "--attack", attack, "--precision", "fp32-u8in").select(attack=attack)
    assert [row.rounding_lost for row in alone] == [pixels.rounding_lost]


def test_square_asks_the_variant_that_takes_pixels(scored: Callable[..., Results]) -> None:
    results = scored("--eps", "16/255", "--attack", "square", "--queries", "20", "--precision", "int8-u8s8-u8in")
    (own,) = results.select(attack="square@onnxruntime-int8-u8s8-u8in")
    assert own.threat == "query" and own.params.uint8 is True
    (clean,) = results.select(attack="clean")
    assert own.correct_top1 < clean.correct_top1


def test_a_pack_on_a_device_that_has_pixels_only(cli: Cli, pixels: Path, tmp_path: Path, photos: Path) -> None:
    packed = [
        "attack",
        pixels,
        "--data",
        photos,
        "--eps",
        "16/255",
        "--attack",
        "fgsm,pgd-margin",
    ]
    assert cli(*packed, "--out", "p.pack").status == 0
    slim = cli("bundle", "slim", pixels, "--variant", "int8-u8s8-u8in", "--out", "device.edgeadv")
    assert slim.status == 0
    outcome = cli("evaluate", "device.edgeadv", "--pack", "p.pack", "--out", "r.json")
    assert outcome.status == 0, outcome.err
    device = Results.load(tmp_path / "r.json")
    assert [row.threat for row in device.select(attack="pgd-margin@int8-u8s8")] == ["white-box"]
    floats = cli("evaluate", pixels, "--pack", "p.pack", "--precision", "int8-u8s8", "--out", "floats.json")
    assert floats.status == 0
    host = Results.load(tmp_path / "floats.json")
    assert [row.correct_top1 for row in device.rows] == [row.correct_top1 for row in host.rows]
    judged = cli("gate", "r.json", "--variant", "int8-u8in", "--min-clean", "0.1")
    assert judged.status == 0 and "onnxruntime int8-u8s8-u8in" in judged.out


def test_engines_for_a_gpu_that_is_not_here(cli: Cli, pixels: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    find_library("tensorrt-rtx")
    options = ["--target", "sm_86", "--engine-cache", "cache"]
    outcome = cli("engine", pixels, "--precision", "fp16-u8in,int8-u8in", *options)
    assert outcome.status == 0, outcome.err
    assert "declared as fp16-u8in" in outcome.out and "declared as int8-s8s8-u8in" in outcome.out
    assert len(list((tmp_path / "cache").glob("*-u8in-*.plan"))) == 2
    again = cli("engine", pixels, "--precision", "fp16-u8in", "--explain", *options)
    assert again.status == 0 and "hit" in again.out
    refused = cli("engine", pixels, "--precision", "int8-u8s8-u8in", *options)
    assert refused.status == 2 and "use --precision int8-s8s8-u8in" in refused.err and refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("fp32-u8in-u8in", "--precision 'fp32-u8in-u8in' is no variant: choose from fp32, fp16, "),
        ("fp32,fp16-u16in", "--precision 'fp16-u16in' is no variant: choose from fp32, fp16, "),
        ("int8-u8in-u8in", "--precision 'int8-u8in-u8in' is no variant"),
        ("u8in", "--precision 'u8in' is no variant"),
        ("int8-u8in,int8-s8s8-u8in", "names a variant twice"),
        ("fp32-u8in,fp32-u8in", "--precision"),
    ],
)
def test_names_that_are_none(cli: Cli, arguments: list[str], tmp_path: Path, precision: str, says: str) -> None:
    before = sorted(tmp_path.iterdir())
    outcome = cli(*arguments, "--precision", precision)
    assert outcome.status == 2 and says in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert sorted(tmp_path.iterdir()) == before


def test_int8_options_are_for_int8_with_pixels_too(cli: Cli, arguments: list[str], int8: list[str]) -> None:
    outcome = cli(*arguments, *int8, "--precision", "fp32-u8in")
    assert outcome.status == 2 and "has no int8: leave" in outcome.err
    outcome = cli(*arguments, "--precision", "int8-u8s8-u8in")
    assert outcome.status == 2 and "int8 needs --calibration-data" in outcome.err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("verify", "BUNDLE", "--precision", "fp32-u8in"), "no variant 'fp32-u8in' (it has: fp32, fp16)"),
        (("verify", "BUNDLE", "--precision", "int8-u8in"), "-u8in' (it has: fp32, fp16)"),
        (("bundle", "slim", "BUNDLE", "--variant", "fp16-u8in", "--out", "s"), "no variant 'fp16-u8in'"),
        (("bundle", "slim", "BUNDLE", "--variant", "int8-u8in", "--out", "s"), "no variant 'int8-u8in'"),
        (("bench", "BUNDLE", "--precision", "fp32-u8in-u8in", "--out", "b.json"), "no variant 'fp32-u8in-u8in'"),
        (("verify", "BUNDLE", "--backend", "torch", "--precision", "fp32-u8in"), "no variant 'fp32-u8in'"),
    ],
)
def test_a_bundle_without_them(
    cli: Cli, tiny_bundle: Bundle, tmp_path: Path, command: tuple[str, ...], says: str
) -> None:
    outcome = cli(*(str(tiny_bundle.path) if part == "BUNDLE" else part for part in command))
    assert outcome.status == 2 and says in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_budget_below_a_grey_level(cli: Cli, pixels: Path, photos: Path, tmp_path: Path) -> None:
    command = [
        "evaluate",
        pixels,
        "--data",
        photos,
        "--attack",
        "fgsm",
        "--out",
        "r.json",
    ]
    for eps, says in (
        ("0.5/255", "less than one grey level"),
        ("0.02", "5.1 grey levels, and 8-bit images hold whole ones"),
    ):
        outcome = cli(*command, "--eps", eps, "--precision", "fp32-u8in")
        assert outcome.status == 2 and outcome.err.count("\n") == 1
        assert f"eps {eps} is {says}" in outcome.err and "leave out fp32-u8in" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_float_frames_are_refused(pixels: Path) -> None:
    """In an application, where the mistake would be made: a tensor for pixels."""
    from edgeadv_runtime import Classifier
    from edgeadv_runtime.errors import InputError

    with Classifier.open(pixels, variant="fp32-u8in", threads=1) as classifier:
        with pytest.raises(InputError, match="a frame array is uint8"):
            classifier.classify(np.zeros((32, 32, 3), np.float32), color_order="rgb")
        with pytest.raises(InputError, match=r"uint8 of shape \(n, 32, 32, 3\) in 0\.\.255, not float32"):
            classifier.backend.infer_pixels(np.zeros((1, 32, 32, 3), np.float32))  # type: ignore[arg-type]
