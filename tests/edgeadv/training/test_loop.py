"""The training loop: it learns, it can be cut off anywhere, and it says when it cannot go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgeadv.data.datasets import ImageSet, open_data
from edgeadv.data.loading import loader
from edgeadv.data.rng import RandomStream
from edgeadv.models.builder import Architecture, PixelModel, build, save_weights
from edgeadv.models.checkpoints import read_weights
from edgeadv.training import recipes as distilling
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.checkpoint import STATE_FILE
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import Progress, accuracy, fit
from edgeadv.training.objectives import HardLabels, Outcome
from edgeadv.training.recipes import Task, train
from edgeadv.training.runs import Run
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.errors import (
    BundleError,
    DataError,
    EdgeAdvError,
    InputError,
    IntegrityError,
    SchemaError,
    StorageError,
    TrainingError,
)
from edgeadv_runtime.records.eps import Eps

CPU = torch.device("cpu")


def part(images: ImageSet, n: int) -> ImageSet:
    """The first ``n`` images of each tenth of a set that is ordered by class."""
    index = [start + i for start in range(0, len(images), len(images) // 10) for i in range(n)]
    return replace(
        images,
        labels=images.labels[index],
        names=[images.names[i] for i in index],
        image=lambda i: images.image(index[i]),
    )


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    """All digits to train on (a limit takes 256 of them), 100 to test."""
    torch.set_num_threads(1)
    return open_data("mnist5k", split="train"), part(open_data("mnist5k", split="test"), 10)


@pytest.fixture(scope="module")
def small() -> Architecture:
    return Architecture.find("timm/test_vit2", num_classes=10)


@pytest.fixture(scope="module")
def bn() -> Architecture:
    return Architecture.find("timm/test_resnet", num_classes=10)


CONFIG = TrainConfig(epochs=3, batch_size=64, limit=256, augment="crop-flip")


def task(digits: tuple[ImageSet, ImageSet], config: TrainConfig = CONFIG, **more: Any) -> Task:
    return Task(
        train_images=digits[0],
        test_images=digits[1],
        preprocess=digits[0].preprocess,
        config=config,
        device=CPU,
        **more,
    )


def weights(run: Run) -> dict[str, Tensor]:
    return read_weights(run.path / "weights.safetensors")


def assert_same(a: Run, b: Run) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def timeless(run: Run) -> list[dict[str, Any]]:
    """What was measured, without the seconds it took."""
    stages = msgspec.to_builtins(run.info.stages)
    for stage in stages:
        for epoch in stage["epochs"]:
            [epoch.pop(key) for key in ("duration_s", "measured_s", "images_per_s", "waited_s")]
    return stages


def stop_in(stage: str, epoch: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.stage, progress.epoch) == (stage, epoch):
            raise KeyboardInterrupt

    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: tuple[ImageSet, ImageSet], bn: Architecture) -> Run:
    """An uninterrupted run. Shared: tests must not change it."""
    return train(task(digits), bn, tmp_path_factory.mktemp("runs") / "whole")


# A whole run


def test_a_run_keeps_what_it_was(finished: Run, digits: tuple[ImageSet, ImageSet], bn: Architecture) -> None:
    assert sorted(f.name for f in finished.path.iterdir()) == ["run.json", "training-images.npy", "weights.safetensors"]
    assert (
        finished.architecture == bn
        and finished.preprocess == digits[0].preprocess
        and finished.classes == digits[0].classes
    )
    assert finished.info.config == asdict(CONFIG)
    assert finished.info.recipe["recipe"] == "undefended"
    (stage,) = finished.info.stages
    assert len(stage.epochs) == 3
    assert (stage.train_images, stage.test_images, stage.unreadable) == (256, 100, [])
    low, high = stage.test_accuracy_ci95
    assert low < stage.test_accuracy < high
    again = Run.open(finished.path)
    assert again == finished and finished.provenance["data"]["spec"] == "mnist5k"


def test_the_accuracy_is_that_of_the_weights(finished: Run, digits: tuple[ImageSet, ImageSet]) -> None:
    model = finished.load_model()
    test = digits[1]
    x = to_tensor(np.stack([test.preprocess(test.image(i)) for i in range(len(test))]))
    with torch.no_grad():
        right = int((model.eval()(torch.from_numpy(x)).argmax(dim=1).numpy() == test.labels).sum())
    assert finished.info.stages[0].test_accuracy == right / 100
    assert accuracy(model.train(), loader(test, np.arange(100), test.preprocess, CPU), batch_size=7) == (right, 100)
    assert model.training


def test_it_learns(tmp_path: Path, digits: tuple[ImageSet, ImageSet], small: Architecture) -> None:
    config = TrainConfig(epochs=3, limit=1000, lr=0.02)
    seen: list[Progress] = []
    run = train(task(digits, config, report=seen.append), small, tmp_path / "run")
    epochs = run.info.stages[0].epochs
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["test_accuracy"] > 0.5
    last = seen[-1]
    assert (last.stage, last.epoch, last.epochs, last.step, last.steps) == ("train", 3, 3, 15, 15)
    assert last.measured == epochs[-1] and last.test_accuracy == epochs[2]["test_accuracy"]
    before = seen[-2]
    assert (before.epoch, before.step, before.measured) == (3, 15, None)
    assert before.loss == last.loss == epochs[-1]["loss"] and before.test_accuracy == epochs[1]["test_accuracy"]
    assert seen[0].test_accuracy is None
    assert all(p.images_per_s > 0 and 0 <= p.waiting < 1 and p.lr > 0 for p in seen)


def test_a_seed_decides_the_weights(
    tmp_path: Path, finished: Run, digits: tuple[ImageSet, ImageSet], bn: Architecture
) -> None:
    torch.manual_seed(12345)
    assert_same(train(task(digits), bn, tmp_path / "again"), finished)
    one = replace(CONFIG, epochs=1)
    runs = [train(task(digits, config), bn, tmp_path / name) for name, config in (("0", one), ("1", one.with_seed(1)))]
    assert not torch.equal(weights(runs[0])["fc.weight"], weights(runs[1])["fc.weight"])


def test_each_epoch_has_an_order_of_its_own(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], small: Architecture
) -> None:
    seen: list[int] = []

    class Watched(HardLabels):
        def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
            seen.extend(stream.index.tolist())
            assert labels.tolist() == digits[0].labels[stream.index].tolist()
            return super().__call__(model, x, labels, stream)

    config = replace(CONFIG, epochs=2)
    fit(
        build(small),
        Watched(),
        *digits,
        preprocess=digits[0].preprocess,
        config=config,
        out=tmp_path / "run",
        device=CPU,
    )
    first, second = seen[:256], seen[256:]
    assert len(seen) == 512 and len(set(first)) == 256
    assert set(first) == set(second) and first != second
    # not sorted by class
    assert len(set(digits[0].labels[first[:20]].tolist())) > 4


def test_workers_change_nothing(
    tmp_path: Path, finished: Run, digits: tuple[ImageSet, ImageSet], bn: Architecture
) -> None:
    digits = (part(digits[0], 26), digits[1])
    one = replace(CONFIG, epochs=1, limit=None)
    alone = train(task(digits, one), bn, tmp_path / "0")
    assert_same(train(task(digits, replace(one, workers=2)), bn, tmp_path / "2"), alone)


def flat(digits: tuple[ImageSet, ImageSet], out: Path, config: TrainConfig, objective: Any = None) -> PixelModel:
    """A network of one linear layer, after training: nothing in it mixes the images of a batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    model = PixelModel(net, Architecture(name="flat", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3))
    objective = HardLabels() if objective is None else objective
    fit(model, objective, *digits, preprocess=digits[0].preprocess, config=config, out=out, device=CPU)
    return model


@pytest.mark.parametrize("parts", [2, 3, 32])
def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path, digits: tuple[ImageSet, ImageSet], parts: int) -> None:
    """With clipping, an average and random starts, all of which belong to the update or to the image."""
    config = TrainConfig(epochs=2, batch_size=96, limit=288, augment="crop-flip", clip=0.5, ema=0.5, holdout=50)
    objective = AdversarialTraining.fgsm(Eps.parse("0.1"))
    whole = flat(digits, tmp_path / "whole", config, objective)
    cut = flat(digits, tmp_path / "cut", replace(config, accumulate=parts), objective)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_are_passed_one_by_one(tmp_path: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    sizes = []

    class Watched(HardLabels):
        def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
            sizes.append((len(x), len(labels), len(stream.index)))
            return super().__call__(model, x, labels, stream)

    flat(digits, tmp_path / "run", TrainConfig(epochs=1, batch_size=64, limit=128, accumulate=4), Watched())
    assert sizes == [(16, 16, 16)] * 8


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    for parts in (3, 64, 0):
        with pytest.raises(InputError, match=r"equal parts|`accumulate` must be at least 1"):
            TrainConfig(batch_size=64, accumulate=parts)


def test_without_a_compiler_nothing_is_begun(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of what was compiled before does not hide that the compiler is gone."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nonexistent/g++"))
    config = TrainConfig(epochs=1, batch_size=64, limit=128, holdout=50, compile=True)
    with pytest.raises(InputError, match=r"`compile` is not possible: torch .* cannot compile.*leave it out"):
        flat(digits, tmp_path, config, HardLabels())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_compiled_network_trains_alike(tmp_path: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    """The real compiler: another order of sums, the same network. What is saved does not tell."""
    config = TrainConfig(epochs=2, batch_size=64, limit=128, holdout=50)
    objective = AdversarialTraining.fgsm(Eps.parse("0.1"))
    plain, compiled = (flat(digits, tmp_path / str(on), replace(config, compile=on), objective) for on in (False, True))
    assert compiled._compiled_call_impl is not None and plain._compiled_call_impl is None
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_every_schedule_goes_on_where_it_was(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], small: Architecture, schedule: str
) -> None:
    """And is another training than the usual one."""
    config = replace(CONFIG, schedule=schedule)
    whole = train(task(digits, config), small, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(task(digits, config, report=stop_in("train", 3)), small, tmp_path / "cut")
    with pytest.raises(InputError, match=r"other settings \(schedule\)"):
        train(task(digits, CONFIG, resume=True), small, tmp_path / "cut")
    assert_same(train(task(digits, config, resume=True), small, tmp_path / "cut"), whole)
    usual = train(task(digits), small, tmp_path / "usual")
    assert usual.info.weights_sha256 != whole.info.weights_sha256


# Interrupted


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, finished: Run, digits: tuple[ImageSet, ImageSet], bn: Architecture, epoch: int
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(task(digits, report=stop_in("train", epoch)), bn, out)
    assert (out / STATE_FILE).exists() == (epoch > 1)
    with pytest.raises(EdgeAdvError):
        Run.open(out)
    seen: list[Progress] = []
    run = train(task(digits, resume=True, report=seen.append), bn, out)
    assert_same(run, finished)
    assert timeless(run) == timeless(finished)
    assert min(p.epoch for p in seen) == epoch
    assert not (out / STATE_FILE).exists()


def test_dropout_goes_on_where_it_was(tmp_path: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    """What torch draws during training is part of the state."""

    def model() -> PixelModel:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 10))
        return PixelModel(
            net, Architecture(name="dropout", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
        )

    def run(out: Path, **more: Any) -> PixelModel:
        made = model()
        fit(made, HardLabels(), *digits, preprocess=digits[0].preprocess, config=CONFIG, out=out, device=CPU, **more)
        return made

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", report=stop_in("train", 2))
    torch.rand(7)
    resumed = run(tmp_path / "cut", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_an_unfinished_training_is_not_started_over(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(task(digits, report=stop_in("train", 2)), bn, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(StorageError, match="continue it with `resume`"):
        train(task(digits), bn, tmp_path / "run")
    assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.fixture
def cut(tmp_path: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture) -> Path:
    """A run that was interrupted in its second epoch."""
    with pytest.raises(KeyboardInterrupt):
        train(task(digits, report=stop_in("train", 2)), bn, tmp_path / "cut")
    return tmp_path / "cut"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 4}, "epochs"),
        ({"lr": 0.1}, "lr"),
        ({"seed": 1}, "seed"),
        ({"limit": 512}, "limit, steps"),
        ({"augment": "none"}, "augment"),
        ({"batch_size": 32, "weight_decay": 0.0}, "batch_size, steps, weight_decay"),
    ],
)
def test_it_cannot_go_on_with_other_settings(
    cut: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=rf"started with other settings \({named}\)"):
        train(task(digits, replace(CONFIG, **change), resume=True), bn, cut)


def test_it_cannot_go_on_with_another_network_data_or_start(
    cut: Path,
    tmp_path: Path,
    digits: tuple[ImageSet, ImageSet],
    bn: Architecture,
    small: Architecture,
    tiny_model: PixelModel,
) -> None:
    with pytest.raises(InputError, match=r"other settings \(architecture"):
        train(task(digits, resume=True), small, cut)
    with pytest.raises(InputError, match=r"other settings .*data"):
        train(task((replace(digits[0], spec="elsewhere"), digits[1]), resume=True), bn, cut)
    with pytest.raises(InputError, match=r"other settings .*preprocess"):
        train(
            replace(task(digits, resume=True), preprocess=Preprocess(resize=32, crop=32, interpolation="nearest")),
            bn,
            cut,
        )
    save_weights(tiny_model, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"other settings .*recipe"):
        train(task(digits, resume=True), bn, cut, weights=str(tmp_path / "w.safetensors"))
    train(task(digits, resume=True), bn, cut)


@pytest.mark.parametrize("content", [b"", b"no state at all", None])
def test_a_damaged_state_is_named(
    cut: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture, content: bytes | None
) -> None:
    state = cut / STATE_FILE
    state.write_bytes(state.read_bytes()[:3000] if content is None else content)
    with pytest.raises(BundleError, match=r"state\.bin is damaged and cannot be resumed"):
        train(task(digits, resume=True), bn, cut)


# Finished runs


def test_a_finished_run_is_reopened(finished: Run, digits: tuple[ImageSet, ImageSet], bn: Architecture) -> None:
    def never(progress: Progress) -> None:
        raise AssertionError("it trained")

    assert train(task(digits, resume=True, report=never), bn, finished.path) == finished
    with pytest.raises(InputError, match="holds a finished run: choose another `out`"):
        train(task(digits, report=never), bn, finished.path)


def test_a_finished_run_is_not_taken_for_another(
    finished: Run,
    tmp_path: Path,
    digits: tuple[ImageSet, ImageSet],
    bn: Architecture,
    small: Architecture,
    tiny_model: PixelModel,
) -> None:
    save_weights(tiny_model, tmp_path / "w.safetensors")
    other_preprocess = replace(
        task(digits, resume=True), preprocess=Preprocess(resize=32, crop=32, interpolation="nearest")
    )
    attempts: list[Callable[[], object]] = [
        lambda: train(task(digits, replace(CONFIG, epochs=4), resume=True), bn, finished.path),
        lambda: train(task(digits, resume=True), small, finished.path),
        lambda: train(task(digits, resume=True), replace(bn, upsample=2), finished.path),
        lambda: train(task((replace(digits[0], spec="elsewhere"), digits[1]), resume=True), bn, finished.path),
        lambda: train(other_preprocess, bn, finished.path),
        lambda: train(task(digits, resume=True), bn, finished.path, weights=str(tmp_path / "w.safetensors")),
    ]
    for attempt in attempts:
        with pytest.raises(InputError, match="finished run with other settings"):
            attempt()


def damaged_copy(run: Run, to: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    to.mkdir()
    (to / "weights.safetensors").write_bytes((run.path / "weights.safetensors").read_bytes())
    info = json.loads((run.path / "run.json").read_text())
    edit(info)
    (to / "run.json").write_text(json.dumps(info))
    return to


def test_a_run_is_checked_when_it_is_opened(finished: Run, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[dict[str, Any]], object], type[EdgeAdvError]]] = [
        (lambda info: info.update(schema_version=2), SchemaError),
        (lambda info: info.update(kind="bundle"), SchemaError),
        (lambda info: info.update(finished=False), InputError),
        (lambda info: info.pop("weights_sha256"), BundleError),
        (lambda info: info.pop("classes"), BundleError),
        (lambda info: info["architecture"].pop("name"), BundleError),
        (lambda info: info.update(weights_sha256="0" * 64), IntegrityError),
    ]
    for number, (edit, error) in enumerate(cases):
        with pytest.raises(error):
            Run.open(damaged_copy(finished, tmp_path / str(number), edit))
    with pytest.raises(BundleError, match="no training run there"):
        Run.open(tmp_path / "nothing")


# Starting from weights


def test_training_starts_from_a_file(
    tmp_path: Path, finished: Run, digits: tuple[ImageSet, ImageSet], bn: Architecture
) -> None:
    """A run's own weights, in its own format, for its own and for other classes."""
    file = finished.path / "weights.safetensors"
    near = TrainConfig(epochs=1, limit=64, lr=1e-9, weight_decay=0)
    run = train(task(digits, near), bn, tmp_path / "same", weights=str(file))
    for name, tensor in weights(run).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, weights(finished)[name], atol=1e-6, rtol=0)
    assert run.info.recipe["start_weights"] == "weights.safetensors"
    four = [
        replace(images, classes=Classes(("a", "b", "c", "d"), ("a", "b", "c", "d")), labels=images.labels % 4)
        for images in digits
    ]
    run = train(task((four[0], four[1]), near), replace(bn, num_classes=4), tmp_path / "four", weights=str(file))
    assert weights(run)["fc.weight"].shape[0] == 4
    torch.testing.assert_close(
        weights(run)["layer1.0.conv1.weight"], weights(finished)["layer1.0.conv1.weight"], atol=1e-6, rtol=0
    )


# What cannot be


def test_a_loss_that_is_not_finite_stops(tmp_path: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10)
    )
    model = PixelModel(net, Architecture(name="plain", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(TrainingError, match=r"loss is not finite at step \d+ of epoch \d+: lower `lr`"):
        fit(
            model,
            HardLabels(),
            *digits,
            preprocess=digits[0].preprocess,
            config=TrainConfig(epochs=10, limit=640, lr=100),
            out=tmp_path / "run",
            device=CPU,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"seed": -1},
        {"seed": 2**64},
        {"workers": -1},
        {"lr": 0.0},
        {"lr": 101.0},
        {"lr": float("nan")},
        {"weight_decay": -0.1},
        {"weight_decay": 1.1},
    ],
)
def test_unusable_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^`{next(iter(change))}` must be "):
        TrainConfig(**change)


def test_too_few_images_for_a_batch(tmp_path: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture) -> None:
    with pytest.raises(InputError, match="63 training images do not fill one batch of 64"):
        train(task(digits, replace(CONFIG, limit=63)), bn, tmp_path / "run")


def test_an_out_that_cannot_be_written(tmp_path: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        train(task(digits), bn, tmp_path / "file" / "run")


def test_test_images_are_labelled_by_the_training_classes(digits: tuple[ImageSet, ImageSet]) -> None:
    turned = Classes(tuple("9876543210"), tuple("9876543210"))
    other = replace(digits[1], classes=turned, labels=9 - digits[1].labels)
    np.testing.assert_array_equal(task((digits[0], other)).test_images.labels, digits[1].labels)
    unknown = replace(digits[1], classes=Classes(tuple("012345678x"), tuple("012345678x")))
    with pytest.raises(DataError, match="does not know: x"):
        task((digits[0], unknown))


def unreadable(images: ImageSet, which: range) -> ImageSet:
    def image(i: int) -> Image.Image:
        if i in which:
            raise DataError("cut off")
        return images.image(i)

    return replace(images, image=image)


def test_a_few_unreadable_training_images_are_listed_and_many_are_an_error(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], bn: Architecture
) -> None:
    config = TrainConfig(epochs=1, batch_size=50)
    hundred = part(digits[0], 10)
    run = train(task((unreadable(hundred, range(2)), digits[1]), config), bn, tmp_path / "few")
    told = run.info.stages[0].unreadable
    assert len(told) == 2 and all("cut off" in message for message in told)
    # a bundle keeps which images, and not where they were
    assert run.provenance["stages"][0]["unreadable"] == [message.split(": ")[0] for message in told]
    assert "cut off" not in str(run.provenance)

    # killed between the last epoch and the run's file, it still knows
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    damaged = (unreadable(hundred, range(2)), digits[1])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distilling, "write_run", killed)
        train(task(damaged, config), bn, tmp_path / "late")
    resumed = train(task(damaged, config, resume=True), bn, tmp_path / "late")
    assert resumed.info.stages[0].unreadable == told
    with pytest.raises(InputError, match=r"\d of the first \d+ training images are unreadable, e\.g\. mnist5k"):
        train(task((unreadable(hundred, range(30)), digits[1]), config), bn, tmp_path / "many")
    with pytest.raises(InputError, match="none of the 100 test images"):
        train(task((hundred, unreadable(digits[1], range(100))), config), bn, tmp_path / "blind")
