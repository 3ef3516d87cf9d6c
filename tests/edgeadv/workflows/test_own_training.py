"""Students and teachers of own code: trained by the factory's name, continued, distilled and exported."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeadv as ea
from edgeadv.training.loop import Progress
from edgeadv.training.runs import Run
from edgeadv_runtime.errors import InputError

CODE = """
from torch import nn

class Small(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8 * 15 * 15, classes)

    def forward(self, x):
        x.sub_(0.5)
        # a view, which another order in memory would break
        y = self.head(self.act(self.norm(self.conv(x))).view(x.size(0), -1))
        return (y, x) if self.training else y

def student():
    return Small()

def teacher():
    net = Small()
    net.act = nn.SiLU()
    return net

def three():
    return Small(3)
"""
CONFIG = ea.TrainConfig(epochs=2, batch_size=16)
JOB = ea.TrainJob(preprocess="resize=32,crop=32")


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current directory, under a name of its own."""
    torch.set_num_threads(1)
    name = f"trained_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def test_own_code_is_trained_continued_and_exported(cli: Any, code: str, split: Path, tmp_path: Path) -> None:
    name = f"{code}:student"
    whole = ea.train(name, split, out="whole", recipe="at-fgsm", eps="4/255", config=CONFIG, job=JOB)
    assert whole.architecture.source == "module" and whole.architecture.name == name
    assert whole.info.stage.test_accuracy >= 0.9

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        ea.train(name, split, out="parts", recipe="at-fgsm", eps="4/255", config=CONFIG, job=JOB, progress=stop)
    # another process, which has imported nothing yet
    del sys.modules[code]
    typed = ["--recipe", "at-fgsm", "--eps", "4/255", "--epochs", "2", "--batch-size", "16"]
    typed += ["--preprocess", "resize=32,crop=32", "--data", split, "--out", "parts", "--resume"]
    other = cli("train", "--model", f"{code}:teacher", *typed)
    assert other.status == 2 and "was started with other settings (architecture)" in other.err
    done = cli("train", "--model", name, *typed)
    assert done.status == 0, done.err
    assert Run.open("parts").info.weights_sha256 == whole.info.weights_sha256
    done = cli("export", "parts", "--precision", "fp32", "--out", "x.edgeadv")
    assert done.status == 0, done.err
    assert ea.Bundle.open("x.edgeadv").manifest.architecture.name == name
    more = ea.train(name, split, out="more", weights="parts/weights.safetensors", epochs=1, config=CONFIG, job=JOB)
    assert more.info.recipe["start_weights_sha256"] == whole.info.weights_sha256


def test_teacher_and_student_may_both_be_own_code(code: str, split: Path) -> None:
    options = ea.DistillOptions(teacher_arch=f"{code}:teacher", steps=1)
    run = ea.distill(
        f"{code}:student",
        split,
        out="run",
        recipe="ard",
        eps="2/255",
        epochs=1,
        config=CONFIG,
        options=options,
        job=JOB,
    )
    assert run.architecture.name == f"{code}:student"
    teacher = Run.open("run/teacher")
    assert teacher.architecture.name == f"{code}:teacher"
    # and a teacher of own code may teach a library's network
    library = ea.distill(
        "timm/test_resnet", split, out="two", recipe="soft-label", teacher=teacher, epochs=1, config=CONFIG, job=JOB
    )
    assert library.architecture.source == "timm"


def test_teacher_and_student_of_own_code_are_continued(cli: Any, code: str, split: Path) -> None:
    name, config = f"{code}:student", ea.TrainConfig(epochs=1, batch_size=16)
    options = ea.DistillOptions(teacher_arch=f"{code}:teacher")
    given: dict[str, Any] = {"recipe": "soft-label", "config": config, "options": options, "job": JOB}
    whole = ea.distill(name, split, out="whole", **given)
    teacher = Run.open("whole/teacher").info.weights_sha256
    typed = ["--model", name, "--teacher-arch", f"{code}:teacher", "--recipe", "soft-label", "--epochs", "1"]
    typed += ["--batch-size", "16", "--preprocess", "resize=32,crop=32", "--data", split, "--out", "parts", "--resume"]

    class StopError(Exception):
        pass

    for stage in ("teacher", "student"):

        def stop(progress: Progress, stage: str = stage) -> None:
            if progress.stage == stage:
                raise StopError

        with pytest.raises(StopError):
            given["job"] = replace(JOB, resume=stage == "student")
            ea.distill(name, split, out="parts", progress=stop, **given)
        assert Path("parts/teacher/run.json").exists() is (stage == "student")
        # another process, which has imported nothing yet
        del sys.modules[code]
    done = cli("distill", *typed)
    assert done.status == 0, done.err
    assert Run.open("parts/teacher").info.weights_sha256 == teacher
    assert Run.open("parts").info.weights_sha256 == whole.info.weights_sha256


def test_a_function_is_trained_by_its_name(code: str, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    module = __import__(code)
    job = ea.TrainJob(preprocess="resize=32,crop=32", normalize="0.5,0.5,0.5/0.25,0.25,0.25")
    run = ea.train(module.student, split, out="run", epochs=1, config=CONFIG, job=job)
    assert (run.architecture.name, run.architecture.mean) == (f"{code}:student", (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"^`arch` is a Small that is made already, and"):
        ea.train(module.student(), split, out="no", epochs=1, config=CONFIG, job=job)
    assert not Path("no").exists()


@pytest.mark.parametrize(
    ("factory", "config", "says"),
    [
        ("three", CONFIG, r"logits of shape \(2, 3\) for 2 images, and there are 2 classes: their numbers must agree"),
        ("nothing", CONFIG, "has no .nothing.; it has Small, student, teacher, three$"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    factory: str, config: ea.TrainConfig, says: str, code: str, split: Path
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        ea.train(f"{code}:{factory}", split, out="run", config=config, job=JOB)
    assert "\n" not in str(caught.value)
    assert not Path("run/run.json").exists()


def test_a_study_of_own_code_needs_a_stated_transform(cli: Any, code: str, tmp_path: Path) -> None:
    done = cli("study", "--arch", f"{code}:student", "--data", tmp_path, "--eps", "1/255", "--out", "s", "--n", "4")
    assert done.status == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err
