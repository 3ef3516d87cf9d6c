"""Exporting as a program calls it: the command's own files, errors by field, and data that was in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgeadv as ea
from edgeadv.data.sources import load_data
from edgeadv.models.builder import save_weights
from edgeadv.training.runs import Run
from edgeadv.workflows.exporting import (
    ConfidenceOptions,
    Int8Options,
    ModelSource,
    check_export,
    export,
    export_after_training,
)
from edgeadv_runtime.errors import DataError, EdgeAdvError, ExportError, InputError
from edgeadv_runtime.files import read_json


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def files(bundle: Path) -> dict[str, Any]:
    """Every file of a bundle but its manifest, and the manifest without the time of its making."""
    manifest = read_json(bundle / "manifest.json", what="manifest")
    assert manifest.pop("created")
    found = {
        path.name: path.read_bytes() for path in bundle.iterdir() if path.suffix in (".onnx", ".safetensors", ".npy")
    }
    with np.load(bundle / "golden.npz") as golden:  # a zip file holds times
        arrays = {name: golden[name].tobytes() for name in golden.files}
    manifest.pop("bundle_id")
    manifest["golden"].pop("sha256")
    return {"manifest.json": manifest, "golden.npz": arrays, **found}


def test_a_run_becomes_the_bundle_that_the_command_makes(cli, run, tmp_path):
    typed = cli("export", run, "--out", "typed.edgeadv")
    assert typed.status == 0, typed.err
    said: list[str] = []
    bundle = export(run, tmp_path / "called.edgeadv", progress=said.append)
    assert files(bundle.path) == files(tmp_path / "typed.edgeadv")
    assert "\n".join(said) + "\n" == typed.err
    assert files(export(Run.open(run), "object.edgeadv").path) == files(bundle.path)


def test_a_network_without_a_run(cli, tiny_model, tiny_classes, photos, tmp_path):
    save_weights(tiny_model, tmp_path / "w.safetensors")
    rows = zip(tiny_classes.ids, tiny_classes.names, strict=True)
    (tmp_path / "classes.tsv").write_text("".join(f"{i}\t{name}\n" for i, name in rows))
    given = {
        "arch": "timm/test_resnet",
        "weights": "w.safetensors",
        "classes": "classes.tsv",
        "preprocess": "resize=32,crop=32",
    }
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    typed = cli("export", *options, "--golden", photos, "--precision", "fp32", "--out", "typed")
    assert typed.status == 0, typed.err
    bundle = export(ModelSource(**given), "called", precisions=["fp32"], frames=photos)
    assert files(bundle.path) == files(tmp_path / "typed") and bundle.classes == tiny_classes
    of_data = export(ModelSource(**given), "data", precisions=["fp32"], data=photos)
    assert of_data.manifest.provenance["frames"] == {"origin": f"{photos.name} test", "count": 64}
    with pytest.raises(InputError, match=r"^without a run, export also needs `classes`, `frames`$"):
        export(ModelSource(**{**given, "classes": None}), "x")
    with pytest.raises(InputError, match=r"^`weights_map` 'by-luck' is not one of"):
        export(ModelSource(**given, weights_map="by-luck"), "x", frames=photos)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"precisions": ["int4"]}, "precisions", "'int4' is no variant: choose from fp32"),
        ({"precisions": ["int8", "int8-s8s8"]}, "precisions", "names a variant twice"),
        ({"int8": Int8Options(max_drop=2.0)}, "precisions", "has no int8: leave `max_drop` out"),
        ({"confidence": ConfidenceOptions(coverage=0.9)}, "coverage", "needs `confidence_data`"),
        ({"frames": "nowhere"}, None, "holds no images"),
        (
            {"precisions": ["int8"], "int8": Int8Options(calibration_count=3)},
            "calibration_count",
            "must be at least 32",
        ),
    ],
)
def test_what_is_wrong_is_said_of_a_field_and_nothing_is_written(changes, field, says, run, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        export(run, tmp_path / "x.edgeadv", **changes)
    assert error.value.field == field and list(tmp_path.iterdir()) == []


def test_data_that_is_gone_is_asked_for_in_one_line_and_can_be_given(cli, run, split, tmp_path):
    moved = Path(shutil.copytree(split, tmp_path / "elsewhere"))
    own = Path(shutil.copytree(run, tmp_path / "run"))
    text = (own / "run.json").read_text()
    (own / "run.json").write_text(text.replace(str(split.resolve()), "Folder"))
    assert Run.open(own).data == "Folder"
    says = "^`data` is needed: .* was trained on Folder, a folder that is not here or a data set in memory$"
    with pytest.raises(DataError, match=says):
        export(own, tmp_path / "x")
    typed = cli("export", own, "--out", "x")
    assert typed.status == 2 and typed.err.startswith("edgeadv: --data is needed: ") and typed.err.count("\n") == 1
    bundle = export(own, tmp_path / "x", precisions=["fp32"], data=load_data(moved))
    assert bundle.manifest.provenance["frames"]["origin"] == "elsewhere test"
    # frames of a folder need no data
    assert cli("export", own, "--golden", moved, "--precision", "fp32", "--out", "y").status == 0
    assert cli("export", own, "--data", moved, "--precision", "fp32", "--out", "z").status == 0


def test_after_a_training_fp32_alone_is_better_than_nothing(run, tmp_path, monkeypatch):
    def overflows(*_: Any) -> Any:
        raise ExportError("fp16 would overflow")

    monkeypatch.setattr("edgeadv_export.package.to_fp16", overflows)
    said: list[str] = []
    bundle = export_after_training(Run.open(run), tmp_path / "x", progress=said.append)
    assert bundle.variants == ("fp32",) and "fp16 is refused, the others go on: fp16 would overflow" in said
    with pytest.raises(ExportError, match=r"^fp16 would overflow$"):
        export(run, tmp_path / "y")


def test_the_command_goes_on_and_says_what_was_refused(cli, run, split, tmp_path, monkeypatch):
    def overflows(*_: Any) -> Any:
        raise ExportError("fp16 would overflow")

    monkeypatch.setattr("edgeadv_export.package.to_fp16", overflows)
    stopped = cli("export", run, "--out", "x")
    assert (stopped.status, stopped.err.splitlines()[-1]) == (2, "edgeadv: fp16 would overflow")
    assert not (tmp_path / "x").exists()
    done = cli("export", run, "--out", "x", "--keep-going")
    assert done.status == 0 and "fp16 is refused, the others go on: fp16 would overflow" in done.err
    line = "fp16               refused at the export: fp16 would overflow"
    assert line in done.out.splitlines()
    assert line in cli("bundle", "show", "x").out.splitlines()
    only = cli("export", run, "--out", "y", "--precision", "fp16", "--keep-going")
    assert only.status == 2
    assert only.err.splitlines()[-1] == "edgeadv: no variant works: fp16 would overflow. No bundle was written"


def test_a_bundle_that_could_not_be_written_is_refused_before_the_training(tmp_path, tiny_bundle):
    check_export(tmp_path / "new", field="export", may_exist=False)
    check_export(tiny_bundle.path, field="export", may_exist=True)
    with pytest.raises(InputError, match=r"exists: choose another `export`$"):
        check_export(tiny_bundle.path, field="export", may_exist=False)
    with pytest.raises(InputError, match=r"^`export` /proc/x: "):
        check_export(Path("/proc/x"), field="export", may_exist=False)


@pytest.mark.parametrize("make", ["export", "import"])
def test_what_cannot_be_written_is_said_before_anything_is_read(make: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "there").mkdir()
    for out, error in ((tmp_path / "file/x.edgeadv", "file"), (tmp_path / "there", "there")):
        with pytest.raises(EdgeAdvError, match=error):
            if make == "export":
                ea.export(tmp_path / "no run", out)
            else:
                (tmp_path / "x.onnx").write_bytes(b"no model")
                ea.import_onnx(tmp_path / "x.onnx", out)
