"""``edgeadv export``, ``bundle`` and ``verify`` as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv.cli import main
from edgeadv.models.builder import PixelModel, save_weights
from edgeadv.training.runs import write_run
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.files import sha256_file


@pytest.fixture
def golden(tmp_path: Path, photographs: list[NDArray[np.uint8]]) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(photographs[:4]):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def weights_arguments(tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes, golden: Path) -> list[str]:
    save_weights(tiny_model, tmp_path / "w.safetensors")
    rows = zip(tiny_classes.ids, tiny_classes.names, strict=True)
    (tmp_path / "classes.tsv").write_text("".join(f"{i}\t{name}\n" for i, name in rows))
    return [
        "export",
        "--arch",
        "timm/test_resnet",
        "--weights",
        str(tmp_path / "w.safetensors"),
        "--classes",
        str(tmp_path / "classes.tsv"),
        "--preprocess",
        "resize=32,crop=32",
        "--golden",
        str(golden),
        "--out",
        str(tmp_path / "x.edgeadv"),
    ]


def without(arguments: list[str], option: str) -> list[str]:
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]


def test_export_from_weights(
    tmp_path: Path, weights_arguments: list[str], tiny_classes: Classes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(weights_arguments) == 0
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    assert bundle.variants == ("fp32", "fp16")
    assert bundle.classes == tiny_classes
    assert bundle.manifest.provenance == {
        "weights": {"name": "w.safetensors", "map": "by-name", "sha256": sha256_file(tmp_path / "w.safetensors")},
        "frames": {"origin": "frames", "count": 4},
    }
    out, err = capsys.readouterr()
    for text in (str(bundle.path), bundle.id, sha256_file(bundle.path / "manifest.json"), "model.fp16.onnx", "4/4"):
        assert text in out
    assert "comparing fp16 with PyTorch on 4 frames" in err
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text()


def test_export_from_a_run(tmp_path: Path, tiny_model: PixelModel, golden: Path) -> None:
    digits = tuple("0123456789")
    run = write_run(
        tmp_path / "run",
        tiny_model,
        {
            "architecture": tiny_model.architecture.to_json(),
            "preprocess": Preprocess(resize=32, crop=32).to_json(),
            "classes": Classes(digits, digits).to_json(),
            "data": {"spec": "mnist5k"},
            "title": "tiny, undefended",
            "recipe": {"recipe": "undefended"},
            "stages": [
                {
                    "epochs": [{"loss": 0.5}],
                    "test_accuracy": 0.5,
                    "test_accuracy_ci95": [0.4, 0.6],
                    "test_images": 100,
                    "unreadable": [],
                }
            ],
        },
    )
    assert main(["export", str(run.path), "--out", str(tmp_path / "x.edgeadv"), "--precision", "fp32"]) == 0
    bundle = Bundle.open(tmp_path / "x.edgeadv")
    assert bundle.variants == ("fp32",)
    assert bundle.manifest.title == "tiny, undefended"
    assert bundle.manifest.provenance["recipe"] == {"recipe": "undefended"}
    assert bundle.manifest.provenance["frames"] == {"origin": "mnist5k test", "count": 64}
    assert [frame.shape for frame in bundle.golden().frames] == [(28, 28, 3)] * 8
    again = ["export", str(run.path), "--out", str(bundle.path), "--precision", "fp32", "--golden", str(golden)]
    assert main(again) == 2
    assert main([*again, "--overwrite"]) == 0
    assert Bundle.open(bundle.path).manifest.provenance["frames"] == {"origin": "frames", "count": 4}


@pytest.mark.parametrize("option", ["--arch", "--weights", "--classes", "--preprocess", "--golden"])
def test_export_without_a_run_needs_the_rest(
    weights_arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(without(weights_arguments, option)) == 2
    err = capsys.readouterr().err
    assert option in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["somewhere"], "beside a run"),
        (["--precision", "int8"], "int8"),
        (["--precision", "fp32,"], "--precision"),
        (["--weights-map", "by-luck"], "by-luck"),
        (["--weights-map", "by-position"], "by-position"),
        (["--upsample", "0"], "upsample"),
        (["--preprocess", "crop=x"], "crop"),
        (["--classes", "nowhere.tsv"], "nowhere.tsv"),
        (["--classes", "imagenet1k"], "does not fit"),
        (["--arch", "resnet_tset"], "unknown architecture"),
        (["--golden", "nowhere"], "no images"),
    ],
)
def test_export_with_unusable_options(
    tmp_path: Path, weights_arguments: list[str], extra: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*weights_arguments, *extra]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "x.edgeadv").exists()


def test_bundle_show_and_slim(tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "show", str(tiny_bundle.path)]) == 0
    out = capsys.readouterr().out
    for text in ("tiny", "test_resnet", "resize=32,crop=32", tiny_bundle.id, "weights.safetensors", "12/12"):
        assert text in out
    # every file, with its size
    for file in tiny_bundle.path.iterdir():
        (row,) = [row for row in out.splitlines() if row.startswith(f"{file.name} ")]
        assert f" {file.stat().st_size / 2**20:.2f} " in row
    slim = ["bundle", "slim", str(tiny_bundle.path), "--out", str(tmp_path / "slim")]
    assert main([*slim, "--variant", "fp16", "--no-weights"]) == 0
    out = capsys.readouterr().out
    assert tiny_bundle.id in out and "left out           model.fp32.onnx, weights.safetensors" in out
    assert main([*slim, "--variant", "fp16"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["bundle", "slim", str(tmp_path / "slim"), "--variant", "fp16", "--weights", "--out", "y"]) == 2
    assert "without weights" in capsys.readouterr().err


def test_verify(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_bundle.path), "--backend", "all"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("tensorrt")]
    assert [": ok; " in line for line in lines] == [True] * 4
    digest = sha256_file(tiny_bundle.path / "manifest.json")
    assert main(["verify", str(tiny_bundle.path), "--precision", "fp16", "--expected-sha256", digest]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["verify", str(tiny_bundle.path), "--expected-sha256", "0" * 64]) == 2
    assert "not the manifest you expect" in capsys.readouterr().err


def test_verify_fails_where_the_preprocessing_differs(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim", variants=["fp32"], weights=False)
    manifest = json.loads((slim.path / "manifest.json").read_text())
    manifest["preprocess"]["interpolation"] = "nearest"
    manifest["bundle_id"] = bundle_id(manifest)
    (slim.path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(slim.path)]) == 2
    out, err = capsys.readouterr()
    assert "FAILED; pixels exact on 0 of 8 frames" in out
    assert "onnxruntime fp32" in err and err.count("\n") == 1


def test_these_commands_load_without_torch() -> None:
    script = (
        "import sys; from edgeadv.cli import bundle, export, verify; "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'timm', 'edgeadv_export'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
