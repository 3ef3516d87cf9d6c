"""Training and distilling as a program calls them: the command's own files, errors by field, what ends one early."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from edgeadv.data.sources import load_data
from edgeadv.models.torch_files import torch_content
from edgeadv.training import checkpoint
from edgeadv.training.loop import Progress
from edgeadv.training.runs import Run
from edgeadv.workflows.runs import list_runs
from edgeadv.workflows.training import (
    DistillOptions,
    OutOfTimeError,
    RecipeOptions,
    TrainConfig,
    TrainJob,
    distill,
    train,
)
from edgeadv_runtime.errors import EdgeAdvError, InputError
from edgeadv_runtime.records.eps import Eps

ARCH = "timm/test_resnet"
CONFIG = TrainConfig(epochs=1, batch_size=16)
SMALL = ("--arch", ARCH, "--epochs", "1", "--batch-size", "16")
CLOCK = ("duration_s", "measured_s", "images_per_s", "waited_s", "created")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def timeless(value: Any) -> Any:
    """Without what a clock said."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in CLOCK}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def files(folder: Path) -> dict[str, Any]:
    """Every file below ``folder``: JSON without times, else bytes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): timeless(json.loads(path.read_text()))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in found
    }


def test_train_writes_what_the_command_writes_and_prints_nothing(cli, split, tmp_path, capsys):
    options = ("--recipe", "at-pgd", "--eps", "8/255", "--steps", "2", "--label-smoothing", "0.1")
    assert cli("train", "--data", split, *SMALL, *options, "--out", "typed").status == 0
    seen: list[Progress] = []
    run = train(
        ARCH,
        split,
        out="called",
        recipe="at-pgd",
        eps="8/255",
        config=CONFIG,
        options=RecipeOptions(steps=2, label_smoothing=0.1),
        progress=seen.append,
    )
    assert files(run.path) == files(tmp_path / "typed") and set(files(run.path)) > {"run.json", "weights.safetensors"}
    assert seen[-1].measured is not None and seen[-1].stage == "train"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_distill_writes_what_the_command_writes(cli, split, run, tmp_path):
    typed = cli(
        "distill", "--data", split, *SMALL, "--recipe", "soft-label", "-T", "4", "--teacher", run, "--out", "typed"
    )
    assert typed.status == 0, typed.err
    options = DistillOptions(temperature=4.0)
    for name, teacher in (("path", run), ("object", Run.open(run))):
        student = distill(
            ARCH,
            load_data(split),
            out=name,
            recipe="soft-label",
            teacher=teacher,
            epochs=1,
            config=TrainConfig(batch_size=16),
            options=options,
        )
        assert files(student.path) == files(tmp_path / "typed")


def test_the_names_of_before_are_options_still(cli, split):
    typed = cli(
        "train", "--data", split, *SMALL, "--recipe", "at-pgd", "--at-eps", "8/255", "--at-steps", "2", "--out", "r"
    )
    assert typed.status == 0, typed.err
    assert Run.open("r").info.recipe["steps"] == 2


CALLS: list[tuple[Callable[..., Run], dict[str, Any], str | None, str]] = [
    (train, {"epochs": 0}, "epochs", "must be at least 1"),
    (train, {"arch": "regnet_y_40mf"}, None, "did you mean"),
    (train, {"recipe": "papernot"}, "recipe", "edgeadv distill has papernot, soft-label, ard, rslad"),
    (train, {"recipe": "at-pgd"}, None, "at-pgd needs `eps`"),
    (train, {"eps": Eps.parse("8/255")}, "eps", "belong to adversarial training"),
    (train, {"recipe": "at-fgsm", "eps": "8/255", "options": RecipeOptions(steps=3)}, None, "leave `steps` out"),
    (train, {"options": RecipeOptions(beta=1.0)}, "beta", "belongs to `recipe` trades"),
    (train, {"weights_map": "by-luck"}, "weights_map", "is not one of by-name, by-position"),
    (train, {"job": TrainJob(time_limit="9")}, "time_limit", "is not a time such as 90s"),
    (train, {"job": TrainJob(preprocess="224")}, "preprocess", "is written"),
    (train, {"data": 5}, "data", "is of type int"),
    (distill, {"recipe": "trades"}, "recipe", "edgeadv train has that one"),
    (distill, {"recipe": "ard"}, None, "ard needs `eps`"),
    (distill, {"eps": "8/255"}, "eps", "belong to `recipe` ard and rslad"),
    (distill, {"options": DistillOptions(alpha=0.5)}, None, "papernot has no `alpha`"),
    (distill, {"teacher": "nowhere"}, None, "no training run there"),
    (distill, {"teacher": "nowhere", "options": DistillOptions(teacher_arch="a")}, "teacher", "is a finished run"),
    (
        distill,
        {"recipe": "ard", "eps": "8/255", "options": DistillOptions(teacher_recipe="undefended")},
        "teacher_recipe",
        "has no robustness for ard",
    ),
]


@pytest.mark.parametrize(("call", "changes", "field", "says"), CALLS)
def test_what_is_wrong_is_said_of_a_field_and_nothing_is_written(call, changes, field, says, split, tmp_path):
    arguments = {"arch": ARCH, "data": split, "config": CONFIG, **changes}
    with pytest.raises(EdgeAdvError, match=says) as error:
        call(arguments.pop("arch"), arguments.pop("data"), out=tmp_path / "run", **arguments)
    if isinstance(error.value, InputError):
        assert error.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_a_run_among_its_images_is_refused(split):
    with pytest.raises(InputError, match=r"^`out` .* is the folder of the images"):
        train(ARCH, split, out=split, config=CONFIG)


def test_a_time_limit_and_an_exception_of_the_caller_end_a_training_that_goes_on_later(split, tmp_path):
    whole = train(ARCH, split, out=tmp_path / "whole", epochs=2, config=CONFIG)
    with pytest.raises(OutOfTimeError, match="0 of 2 epochs are done"):
        train(ARCH, split, out=tmp_path / "run", epochs=2, config=CONFIG, job=TrainJob(time_limit="0.001s"))

    class CancelledError(Exception):
        pass

    def cancel(progress: Progress) -> None:
        if progress.epoch == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        train(ARCH, split, out=tmp_path / "run", epochs=2, config=CONFIG, job=TrainJob(resume=True), progress=cancel)
    seen: list[int] = []
    run = train(
        ARCH,
        split,
        out=tmp_path / "run",
        epochs=2,
        config=CONFIG,
        job=TrainJob(resume=True),
        progress=lambda progress: seen.append(progress.epoch),
    )
    assert set(seen) == {2} and files(run.path) == files(whole.path)


def test_classes_without_test_images_are_logged(split, tmp_path, caplog):
    shutil.copytree(split, tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "test" / "b")
    shutil.copytree(split / "train" / "b", tmp_path / "split" / "train" / "c")
    shutil.copytree(split / "test" / "b", tmp_path / "split" / "test" / "c")
    with caplog.at_level(logging.WARNING, logger="edgeadv.workflows"):
        train(ARCH, tmp_path / "split", out=tmp_path / "run", config=CONFIG)
    assert "no test images of 1 of 3 classes: b" in caplog.messages


class Folder(Dataset[Any]):
    """Images of a folder as a user's own code reads them."""

    classes = ("a", "b")

    def __init__(self, folder: Path) -> None:
        self.items = [
            (file, label) for label, name in enumerate(self.classes) for file in sorted((folder / name).glob("*.png"))
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        file, label = self.items[i]
        return Image.open(file), label


def test_a_data_set_in_memory_trains_the_same_network_and_is_named(split, run, tmp_path):
    data = load_data(Folder(split / "train"), test=Folder(split / "test"))
    own = train(ARCH, data, out=tmp_path / "run", config=CONFIG)
    assert own.data == "Folder" and own.provenance["data"]["spec"] == "Folder"
    of_files = Run.open(run)
    assert own.info.weights_sha256 == of_files.info.weights_sha256
    assert own.info.training_images == of_files.info.training_images


def test_runs_are_listed_with_those_that_do_not_open(run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "good")
    damaged = shutil.copytree(run, tmp_path / "runs" / "bad") / "run.json"
    info = json.loads(damaged.read_text())
    info["stages"][0]["epochs"][0]["loss"] = "low"
    damaged.write_text(json.dumps(info))
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "runs" / "begun" / "state.bin").write_bytes(b"")
    bad, begun, good = list_runs(tmp_path / "runs")
    assert good.run is not None and good.run.title == "test_resnet, undefended" and good.problem == ""
    assert bad.run is None and "stages[0].epochs[0][...]: Expected 'bool | int | float', got 'str'" in bad.problem
    assert begun.run is None and begun.problem == "is not finished: continue it with `resume`"
    with pytest.raises(InputError, match="is not a folder: name the one that holds the runs"):
        list_runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no run in"):
        list_runs(tmp_path / "empty")


def test_what_was_trained_before_a_setting_existed_goes_on_by_its_default(
    run: Path, split: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    info = json.loads((out / "run.json").read_text())
    del info["config"]["schedule"], info["config"]["holdout_list"]
    (out / "run.json").write_text(json.dumps(info))
    again = train(ARCH, split, out=out, config=CONFIG, job=TrainJob(resume=True))
    assert again.info.created == info["created"]
    with pytest.raises(InputError, match="finished run with other settings"):
        changed = TrainConfig(epochs=1, batch_size=16, schedule="cosine")
        train(ARCH, split, out=out, config=changed, job=TrainJob(resume=True))


def test_a_training_begun_before_a_setting_existed_goes_on_by_its_default(split: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", TrainConfig(epochs=2, batch_size=16)

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(ARCH, split, out=out, config=config, progress=stop)
    state = torch_content(checkpoint.load(out))
    # as the edgeadv before wrote it: no schedule, no list, and no average without a budget
    del state["fingerprint"]["schedule"], state["fingerprint"]["no_mirror"], state["fingerprint"]["holdout_list"]
    state["fingerprint"]["ema"] = 0.0
    torch.save(state, buffer := io.BytesIO())
    checkpoint.save(out, buffer.getvalue())
    with pytest.raises(InputError, match=r"was started with other settings \(schedule\)"):
        train(ARCH, split, out=out, config=replace(config, schedule="steps"), job=TrainJob(resume=True))
    assert len(train(ARCH, split, out=out, config=config, job=TrainJob(resume=True)).info.stage.epochs) == 2
