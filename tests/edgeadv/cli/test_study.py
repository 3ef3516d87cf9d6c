"""``edgeadv study`` from the command line: once as it should go, and what a user can get wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from edgeadv.workflows.study import _begin
from edgeadv_runtime.records.study import Study, StudyData, StudySettings

NAMES = ("timm/test_resnet", "timm/test_efficientnet")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def options(imagenet_photos: Path, imagenet_weights: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A study of two classifiers on eight photographs; a test changes one option."""
    return {
        "arch": ",".join(NAMES),
        "weights": ",".join(f"{name}={file}" for name, file in imagenet_weights.items()),
        "data": imagenet_photos,
        "n": 8,
        "eps": "1/255,8/255",
        "out": "out",
    }


def words(options: dict[str, Any]) -> list[Any]:
    return ["study", *(word for key, value in options.items() for word in (f"--{key}", value))]


def test_a_study(cli, options, tmp_path):
    outcome = cli(*words(options))
    assert outcome.status == 0
    assert outcome.err.splitlines() == [f"attacking {NAMES[0]} (1 of 2)", f"attacking {NAMES[1]} (2 of 2)"]
    study = Study.load(tmp_path / "out" / "study.json")
    assert [result.data.n for result in study.results] == [8, 8]
    assert study.settings.eps == ("1/255", "8/255")
    # both attacked lines of both classifiers, and what stands under the table
    assert outcome.out.count("  UNCHECKED") == 4 and outcome.out.count("masking check: UNCHECKED") == 2
    flat = " ".join(outcome.out.split())
    assert (
        "an upper bound on robust accuracy" in flat
        and "`edgeadv evaluate` with the suite standard gives a worst case" in flat
    )
    assert outcome.out.endswith("written: out\n")
    again = {**options, "out": "again", "workers": 2}
    assert cli(*words(again)).status == 0
    other = Study.load(tmp_path / "again" / "study.json")
    assert [result.rows for result in other.results] == [result.rows for result in study.results]


def test_unreadable_images_are_left_out_and_listed(cli, options, tmp_path):
    folder = Path(shutil.copytree(options["data"], tmp_path / "photos"))
    broken = next(folder.rglob("*.png"))
    broken.write_bytes(b"not a picture")
    options |= {"data": folder, "n": 24, "arch": NAMES[0], "weights": options["weights"].split(",")[0]}
    refused = cli(*words(options))
    assert refused.status == 2 and "1 of 24 images are unreadable" in refused.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    taken = cli(*words(options), "--allow-unreadable")
    assert taken.status == 0 and "1 unreadable images were left out" in taken.out
    (result,) = Study.load(tmp_path / "out" / "study.json").results
    assert result.data.n == 23 and len(result.data.unreadable) == 1
    for page in ("study.md", "study.html"):
        assert f"{broken.parent.name}/{broken.name}" in (tmp_path / "out" / page).read_text()


def test_stated_preprocessing_is_used_and_said(cli, options, tmp_path):
    assert cli(*words(options), "--preprocess", "resize=100,crop=96,interp=lanczos").status == 0
    text = (tmp_path / "out" / "study.md").read_text()
    assert text.count("resize=100,crop=96,interp=lanczos (stated by the user)") == 2


Options = dict[str, Any]
Case = Callable[[Options, Path], Options]


def files(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], options: Options) -> str:
    """The first classifier's weights, changed, and the second one's."""
    first, second = options["weights"].split(",")
    state = torch.load(first.partition("=")[2], weights_only=True)
    change(state)
    torch.save(state, folder / "changed.pth")
    return f"{NAMES[0]}={folder / 'changed.pth'},{second}"


def other_classes(state: dict[str, torch.Tensor]) -> None:
    for name in ("fc.weight", "fc.bias"):
        state[name] = state[name][:10].clone()


def broken(state: dict[str, torch.Tensor]) -> None:
    state["fc.bias"][3] = float("nan")


def animals(folder: Path) -> Path:
    """Class folders, but not ImageNet's."""
    source = next((folder / "photos").rglob("*.png"))
    for name in ("cat", "dog"):
        (folder / "animals" / name).mkdir(parents=True)
        shutil.copy(source, folder / "animals" / name / "0.png")
    return folder / "animals"


def text_file(folder: Path) -> Path:
    (folder / "notes.pth").write_text("not weights")
    return folder / "notes.pth"


def by_position_safetensors(folder: Path, options: Options) -> str:
    first, second = options["weights"].split(",")
    safetensors.torch.save_file(torch.load(first.partition("=")[2], weights_only=True), folder / "w.safetensors")
    return f"{NAMES[0]}={folder / 'w.safetensors'},{second}"


BAD: dict[str, tuple[str, Case]] = {
    "unknown_arch": ("unknown architecture 'resnet1O1'; did you mean resnet101", lambda o, f: {"arch": "resnet1O1"}),
    "arch_twice": ("without gaps or repetitions", lambda o, f: {"arch": f"{NAMES[0]},{NAMES[0]}"}),
    "no_arch": ("without gaps", lambda o, f: {"arch": ""}),
    "weights_not_there": (
        "nowhere.pth does not exist",
        lambda o, f: {"arch": NAMES[0], "weights": f"{NAMES[0]}=nowhere.pth"},
    ),
    "weights_without_arch": ("is written default, or ARCH=FILE", lambda o, f: {"weights": "resnet.pth"}),
    "weights_twice": ("each architecture once", lambda o, f: {"weights": f"{o['weights']},{o['weights']}"}),
    "weights_of_one_missing": (f"no file for {NAMES[1]}", lambda o, f: {"weights": o["weights"].split(",")[0]}),
    "weights_of_another": ("which --arch does not", lambda o, f: {"arch": NAMES[0]}),
    "weights_of_ten_classes": ("shape: fc.weight (10, ", lambda o, f: {"weights": files(f, other_classes, o)}),
    "weights_with_nan": ("holds NaN in fc.bias", lambda o, f: {"weights": files(f, broken, o)}),
    "weights_that_are_text": ("not a", lambda o, f: {"arch": NAMES[0], "weights": f"{NAMES[0]}={text_file(f)}"}),
    "weights_map": ("--weights-map 'by-magic' is not one of", lambda o, f: {"weights-map": "by-magic"}),
    "weights_map_of_safetensors": (
        "safetensors keeps no order",
        lambda o, f: {"weights-map": "by-position", "weights": by_position_safetensors(f, o)},
    ),
    "eps_in_levels": ("did you mean 8/255?", lambda o, f: {"eps": "8"}),
    "eps_word": ("eps 'much' is not a number", lambda o, f: {"eps": "0.1,much"}),
    "eps_unsorted": ("not in ascending order", lambda o, f: {"eps": "0.2,0.1"}),
    "eps_twice": ("names a budget twice", lambda o, f: {"eps": "0.2,1/5"}),
    "too_many_images": ("holds 24 images: ask for --n 24 or fewer", lambda o, f: {"n": 1000}),
    "no_images": ("--n", lambda o, f: {"n": 0}),
    "seed": ("--seed", lambda o, f: {"seed": -1}),
    "classes": ("2 class(es) that the model does not know: cat, dog", lambda o, f: {"data": animals(f), "n": 2}),
    "data_not_there": ("is not a folder", lambda o, f: {"data": "nowhere"}),
    "data_by_name": ("is not a folder", lambda o, f: {"data": "cifar10"}),
    "preprocess": ("is written resize=256,crop=224", lambda o, f: {"preprocess": "224"}),
    "preprocess_too_small": (
        "cannot take images of 1x1 pixels",
        lambda o, f: {"preprocess": "resize=1,crop=1", "arch": "alexnet", "weights": alexnet(f)},
    ),
    "provider": ("torch has no provider tensorrt", lambda o, f: {"provider": "tensorrt"}),
    "out_is_there": ("exists: choose another --out", lambda o, f: {"out": f / "photos"}),
    "out_under_a_file": ("cannot write", lambda o, f: {"out": text_file(f) / "out"}),
    "unfinished": ("continue it with --resume", lambda o, f: unfinished(f, "study.json")),
    "parts_of_others": ("holds something else than a study", lambda o, f: unfinished(f, "notes.txt")),
}


def alexnet(folder: Path) -> str:
    from edgeadv.models.builder import Architecture, build

    torch.save(build(Architecture.find("alexnet", num_classes=1000)).net.state_dict(), folder / "alexnet.pth")
    return f"alexnet={folder / 'alexnet.pth'}"


def unfinished(folder: Path, name: str) -> Options:
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / name).touch()
    return {}


@pytest.mark.parametrize("left", [(), (".study.json.0123abcd.tmp",)])
def test_a_study_that_was_killed_before_it_measured_anything_begins_again(
    left: tuple[str, ...], tmp_path: Path
) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name in left:
        (partial / name).touch()
    settings = StudySettings(
        architectures=(),
        data=StudyData(name="d", split="test", n=4, images_sha256="0" * 64),
        seed=0,
        attack="fgsm",
        eps=("8/255",),
    )
    for resume in (False, True):
        assert _begin(partial, settings, resume=resume).results == ()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name, cli, options, tmp_path):
    says, change = BAD[name]
    shutil.copytree(options["data"], tmp_path / "photos")
    options |= change(options, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    outcome = cli(*words(options))
    assert (outcome.status, outcome.out) == (2, "")
    lines = [line for line in outcome.err.splitlines() if not line.startswith("attacking ")]
    assert len(lines) == 1 and lines[0].startswith("edgeadv: ") and says in lines[0], outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_there_is_no_default_budget(cli, options):
    del options["eps"]
    outcome = cli(*words(options))
    assert outcome.status == 2 and "--eps" in outcome.err


def test_the_file_is_json_that_anybody_reads(cli, options, tmp_path):
    assert cli(*words(options)).status == 0
    value = json.loads((tmp_path / "out" / "study.json").read_text())
    assert (value["kind"], value["schema_version"]) == ("study", 1)
    assert [result["kind"] for result in value["results"]] == ["results", "results"]
