"""``run.json`` as a record: files of an older edgeadv open, and what is wrong in one is named by its path."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeadv.models.builder import Architecture, PixelModel, build
from edgeadv.training.runs import Run, RunData, check_savable, write_run
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import BundleError, InputError, SchemaError, StorageError

DIGITS = tuple("0123456789")


@pytest.fixture
def info(tiny_model: PixelModel) -> dict[str, Any]:
    """What the first edgeadv wrote, and a key that none knows."""
    return {
        "title": "tiny, papernot T=40",
        "recipe": {"recipe": "papernot", "temperature": 40.0, "teacher": "tiny", "teacher_test_accuracy": 0.5},
        "config": {"epochs": 2, "lr": None, "augment": "none"},
        "architecture": tiny_model.architecture.to_json(),
        "preprocess": Preprocess(resize=32, crop=32).to_json(),
        "classes": Classes(DIGITS, DIGITS).to_json(),
        "data": {"spec": "/home/me/digits", "train_images": 64, "test_images": 100},
        "stages": [
            {
                "epochs": [{"loss": 2.5, "test_images": 100}, {"loss": 0.5, "test_images": 100}],
                "test_accuracy": 0.5,
                "test_accuracy_ci95": [0.4, 0.6],
                "test_images": 100,
                "unreadable": ["a.png: /home/me/digits/a.png is not an image"],
            }
        ],
        "mood": "good",
    }


def test_an_older_file_opens_and_keeps_its_numbers(
    tmp_path: Path, tiny_model: PixelModel, info: dict[str, Any]
) -> None:
    run = write_run(tmp_path, tiny_model, info)
    assert (run.title, run.data, run.training_images) == ("tiny, papernot T=40", "/home/me/digits", None)
    assert run.info.data == RunData("/home/me/digits", train_images=64, test_images=100)
    assert run.info.stage.kept == {"loss": 0.5, "test_images": 100}
    kept = json.loads(json.dumps(run.provenance))
    # a folder's place is nothing that a bundle carries, and a count stays a whole number
    assert json.dumps(kept).count("/home/me") == 0 and '"test_images": 100}' in json.dumps(kept)
    assert kept["stages"][0] == {**info["stages"][0], "unreadable": ["a.png"]}
    assert (kept["recipe"], kept["config"], kept["data"]["spec"]) == (info["recipe"], info["config"], "digits")
    assert not {"versions", "created", "mood"} & kept.keys()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda info: info.pop("title"), "missing required field 'title'"),
        (lambda info: info.update(stages=[]), "stages: Expected 'array' of length >= 1"),
        (
            lambda info: info["stages"][0].update(test_accuracy="high"),
            "stages[0].test_accuracy: Expected 'float', got 'str'",
        ),
        (lambda info: info["stages"][0].update(test_accuracy=1.5), "stages[0].test_accuracy: Expected 'float' <= 1.0"),
        (lambda info: info["stages"][0].update(kept_epoch=3), "stages[0]: epoch 3 of 2 is kept"),
        (lambda info: info["stages"][0].update(kept_epoch=0), "stages[0].kept_epoch: Expected 'int' >= 1"),
        (lambda info: info["data"].update(train_images=-1), "data.train_images: Expected 'int' >= 0"),
        (lambda info: info.update(recipe={"recipe": ["papernot"]}), "recipe[...]: Expected"),
        (lambda info: info.update(weights_sha256="me"), "weights_sha256: Expected 'str' matching regex"),
        (lambda info: info.update(training_images={"count": 3}), "training_images: Object missing required field"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(
    tmp_path: Path, tiny_model: PixelModel, info: dict[str, Any], change: Change, says: str
) -> None:
    file = write_run(tmp_path, tiny_model, info).path / "run.json"
    written = json.loads(file.read_text())
    change(written)
    file.write_text(json.dumps(written))
    with pytest.raises(SchemaError) as error:
        Run.open(tmp_path)
    text = str(error.value)
    assert says in text and "\n" not in text
    assert text.startswith(f"{file} is not a complete training run (") and text.endswith(
        "; copy it again or train again"
    )


@pytest.mark.parametrize("key", ["architecture", "preprocess", "classes"])
def test_what_does_not_become_an_object_is_a_damaged_run(
    tmp_path: Path, tiny_model: PixelModel, info: dict[str, Any], key: str
) -> None:
    file = write_run(tmp_path, tiny_model, info).path / "run.json"
    written = json.loads(file.read_text())
    written[key] = [{}] if key == "classes" else {}
    file.write_text(json.dumps(written))
    with pytest.raises(BundleError, match=r"is a damaged run \(.*\); copy it again or train again"):
        Run.open(tmp_path)


# What would be lost at the end is tried at the beginning


def test_weights_that_can_be_saved_leave_nothing(tmp_path: Path, tiny_model: PixelModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    check_savable(tiny_model, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("")
    check_savable(tiny_model, tmp_path / "there")
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["mine.txt"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.parametrize("name", ["timm/coat_lite_tiny", "timm/coat_lite_mini"])
def test_layers_that_share_tensors_can_be_saved(name: str, tmp_path: Path) -> None:
    check_savable(build(Architecture.find(name, num_classes=2)), tmp_path)


class Odd(nn.Module):
    """State that no file of tensors holds."""

    def get_extra_state(self) -> object:
        return {"callback": print}

    def set_extra_state(self, state: object) -> None:
        pass


def test_a_network_that_cannot_be_saved_is_refused_before_it_is_trained(tmp_path: Path, tiny_model: PixelModel) -> None:
    tiny_model = copy.deepcopy(tiny_model)
    tiny_model.net.add_module("odd", Odd())
    with pytest.raises(InputError, match=r"weights of \w+ cannot be saved.*let its state_dict hold tensors only"):
        check_savable(tiny_model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, tiny_model: PixelModel) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        check_savable(tiny_model, tmp_path / "file" / "run")
