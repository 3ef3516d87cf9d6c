"""Held-out images: which they are, what is measured on them, which epoch is kept, and when a training has collapsed."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeadv.attacks import fgsm, margin, pgd
from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.loading import loader, to_model_input
from edgeadv.data.rng import RandomStream
from edgeadv.data.training_images import fed_images
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.training import checkpoint
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import OutOfTimeError, TrainConfig
from edgeadv.training.loop import accuracy, fit
from edgeadv.training.objectives import HardLabels
from edgeadv.training.selection import HOLDOUT, Standing, collapse, split_off, standing
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.records.eps import Eps

CPU = torch.device("cpu")
EPS = Eps.parse("0.05")


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    torch.set_num_threads(1)
    return open_data("mnist5k", split="train"), open_data("mnist5k", split="test")


def network(seed: int = 0) -> PixelModel:
    torch.manual_seed(seed)
    about = Architecture(name="small", source="timm", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    return PixelModel(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10)), about
    )


def test_the_split_is_fixed_balanced_and_a_fifth_at_most() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 50_000)
    first = split_off(labels, None, budget=EPS)
    assert len(first) == HOLDOUT == len(set(first.tolist()))
    assert set(np.bincount(labels[first])) == {200}
    np.testing.assert_array_equal(first, split_off(labels, None, budget=Eps.parse("1/255")))
    assert len(split_off(labels[:4000], None, budget=EPS)) == 800
    assert len(split_off(labels, None, budget=None)) == 0 and len(split_off(labels, 0, budget=EPS)) == 0
    assert len(split_off(labels, 300, budget=None)) == 300
    with pytest.raises(InputError, match="leaves too few"):
        split_off(labels[:100], 51, budget=EPS)


def test_standing_is_the_worst_of_clean_one_step_and_ten(digits: tuple[ImageSet, ImageSet]) -> None:
    """Counted again in one batch; the network is left as it was."""
    images, _ = digits
    model = network()
    fit_a_little(model, images)
    order = balanced_subset(images.labels, 300)
    model.train()
    found = standing(model, loader(images, order, images.preprocess, CPU), order, EPS)
    assert model.training and all(p.requires_grad for p in model.parameters())
    model.eval().requires_grad_(False)
    batch = next(batches(images, images.preprocess, batch_size=300, order=order))
    x, labels = (
        to_model_input(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)).contiguous(),
        torch.from_numpy(batch.labels),
    )
    ones = fgsm(model, x, labels, eps=EPS.value)[0].x
    many = pgd(model, x, labels, eps=EPS.value, steps=10, loss=margin).x
    right = [model(images_).argmax(dim=1) == labels for images_ in (x, ones, many)]
    one, worst = right[0] & right[1], right[0] & right[1] & right[2]
    expected = Standing(*(float(flags.sum()) / 300 for flags in (right[0], one, worst)), images=300)
    # a start is drawn by the image, but a sum in another order may turn one image
    assert abs(found.worst_case - expected.worst_case) <= 1 / 300 + 1e-9
    assert (found.clean, found.fgsm, found.images) == (expected.clean, expected.fgsm, 300)
    assert 0 < found.worst_case < found.fgsm < found.clean


def saved_state(folder: Path) -> dict[str, Any]:
    """What an unfinished training has kept."""
    state: dict[str, Any] = torch.load(io.BytesIO(checkpoint.load(folder)), weights_only=True)
    return state


def fit_a_little(model: nn.Module, images: ImageSet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for batch in batches(
        images, images.preprocess, batch_size=64, order=np.random.default_rng(0).permutation(4000)[:2560]
    ):
        optimizer.zero_grad()
        logits = model(to_model_input(torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)))
        nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels)).backward()
        optimizer.step()


def run(
    digits: tuple[ImageSet, ImageSet], out: Path, model: PixelModel, objective: Any = None, **more: Any
) -> dict[str, Any]:
    settings = {"epochs": 3, "batch_size": 64, "limit": 256, "holdout": 100, "ema": 0.0}
    kept = {name: more.pop(name) for name in ("resume", "report", "deadline", "seen_before") if name in more}
    return fit(
        model,
        AdversarialTraining.fgsm(EPS) if objective is None else objective,
        *digits,
        preprocess=digits[0].preprocess,
        config=TrainConfig(**{**settings, **more}),
        out=out,
        device=CPU,
        **kept,
    )


def test_held_out_images_are_not_trained_on(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    train_images, test_images = digits

    def image(i: int) -> Any:
        seen.add(i)
        return train_images.image(i)

    watched = replace(train_images, image=image)
    metrics = run((watched, test_images), tmp_path / "plain", network(), HardLabels(), limit=None, epochs=1)
    held_out = set(split_off(train_images.labels, 100, budget=None).tolist())
    # nor read; the last 60 do not fill a batch
    assert not seen & held_out and len(seen) == 3900 and metrics["train_images"] == 3900
    assert "kept_epoch" not in metrics


def test_the_images_that_a_list_names_are_not_trained_on(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_images, test_images = digits
    seen: set[int] = set()

    def image(i: int) -> Any:
        seen.add(i)
        return train_images.image(i)

    watched = replace(train_images, image=image)
    held_out = np.arange(0, 4000, 20)
    file = tmp_path / "list.txt"
    file.write_text("# some\n\n" + "".join(f"{train_images.names[i]}\n" for i in held_out))
    more: dict[str, Any] = {"limit": None, "epochs": 1, "holdout_list": str(file)}
    metrics = run((watched, test_images), tmp_path / "plain", network(), HardLabels(), **more)
    assert not seen & {*held_out.tolist()} and metrics["train_images"] == 3800 and "kept_epoch" not in metrics
    assert metrics["holdout_list"] == {"name": "list.txt", "sha256": sha256_file(file)}
    seen.clear()
    metrics = run((watched, test_images), tmp_path / "robust", network(), **more)
    assert metrics["train_images"] == 3800 and metrics["holdout_images"] == 100
    # all that choose are of the list
    assert len(seen & {*held_out.tolist()}) == 100 and len(seen) == 3900


def test_a_list_that_takes_a_whole_class_is_refused(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    names, labels = digits[0].names, digits[0].labels
    file = tmp_path / "list.txt"
    file.write_text("".join(f"{names[i]}\n" for i in np.flatnonzero(labels == 7)))
    with pytest.raises(InputError, match=r"`holdout_list` .*leaves no image of class 7 to train on"):
        run(digits, tmp_path / "run", network(), holdout_list=str(file))


@pytest.mark.parametrize("count", [0, 30])
def test_held_out_images_that_the_first_weights_know_are_told(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    held_out = split_off(digits[0].labels, 100, budget=EPS)
    known = fed_images(loader(digits[0], held_out, digits[0].preprocess, CPU), held_out[:count])
    run(digits, tmp_path / "run", network(), epochs=1, limit=64, seen_before=known)
    assert ("30 of 100 images held out were trained on before" in caplog.text) == (count == 30)


def force(monkeypatch: pytest.MonkeyPatch, figures: Sequence[float]) -> None:
    """Let held-out images stand as ``figures`` say, epoch by epoch; the measuring itself is real."""
    real, forced = standing, iter(figures)

    def measured(*arguments: Any, **more: Any) -> Standing:
        return Standing(0.9, 0.9, next(forced), images=real(*arguments, **more).images)

    monkeypatch.setattr("edgeadv.training.loop.standing", measured)


def test_the_epoch_that_stands_best_is_kept(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that are as good, the later one."""
    force(monkeypatch, [0.3, 0.4, 0.4, 0.35])
    model = network()
    weights: list[dict[str, torch.Tensor]] = []

    def report(progress: Any) -> None:
        if progress.measured is not None:
            weights.append({k: v.clone() for k, v in model.state_dict().items()})

    metrics = run(digits, tmp_path / "run", model, limit=640, epochs=4, report=report)
    assert [epoch["holdout_worst_case"] for epoch in metrics["epochs"]] == [0.3, 0.4, 0.4, 0.35]
    assert metrics["kept_epoch"] == 3
    assert all(torch.equal(v, weights[2][k]) for k, v in model.state_dict().items())
    assert any(not torch.equal(v, weights[3][k]) for k, v in model.state_dict().items())
    assert metrics["test_accuracy"] == metrics["epochs"][2]["test_accuracy"]


def test_a_network_that_gives_one_label_to_everything_is_not_kept(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two classes it stands half of the images under every attack."""
    real, labels, stood = standing, iter([1, 2, 3, 1]), iter([0.7, 0.3, 0.28, 0.5])

    def measured(*arguments: Any, **more: Any) -> Standing:
        return Standing(0.9, 0.9, next(stood), images=real(*arguments, **more).images, labels=next(labels))

    monkeypatch.setattr("edgeadv.training.loop.standing", measured)
    metrics = run(digits, tmp_path / "run", network(), limit=640, epochs=4)
    assert metrics["kept_epoch"] == 2
    assert [epoch["holdout_labels"] for epoch in metrics["epochs"]] == [1, 2, 3, 1]


def test_labels_are_counted(digits: tuple[ImageSet, ImageSet]) -> None:
    model = network()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    source = loader(digits[0], np.arange(100), digits[0].preprocess, torch.device("cpu"))
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.eye(len(head.bias))[3])
    assert standing(model, source, np.arange(100), Eps.parse("0.05")).labels == 1


def test_the_average_of_the_weights_is_by_hand(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """After every step, statistics of BatchNorm included; its decay rises to the one that is asked for."""
    model, steps, decay = network(), 6, 0.35
    after: list[dict[str, torch.Tensor]] = []

    class Watched(HardLabels):
        def __call__(self, net: nn.Module, x: torch.Tensor, labels: torch.Tensor, stream: RandomStream) -> Any:
            after.append({k: v.clone() for k, v in model.state_dict().items()})
            return super().__call__(net, x, labels, stream)

    run(digits, tmp_path / "raw", model, HardLabels(), limit=64 * steps, epochs=1, holdout=0)
    last = {k: v.clone() for k, v in model.state_dict().items()}
    model = network()
    after.clear()
    run(digits, tmp_path / "run", model, Watched(), limit=64 * steps, epochs=1, holdout=0, ema=decay)
    expected = after[1]
    for n, state in enumerate((*after[2:], last), 1):
        share = min(decay, (1 + n) / (10 + n))
        expected = {k: share * v + (1 - share) * state[k] for k, v in expected.items()}
    assert share == decay
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])
            assert not torch.equal(value, last[name])
        else:
            assert value == steps


@pytest.mark.parametrize(("average", "last"), [(0.5, 0.4), (0.4, 0.5), (0.4, 0.4)])
def test_of_the_average_and_the_last_weights_the_better_are_kept(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float, last: float
) -> None:
    force(monkeypatch, [average, last])
    model = network()
    raw: list[dict[str, torch.Tensor]] = []

    def report(progress: Any) -> None:
        if progress.measured is not None:
            raw.append({k: v.clone() for k, v in model.state_dict().items()})

    metrics = run(digits, tmp_path / "run", model, limit=640, epochs=1, ema=0.9, report=report)
    (epoch,) = metrics["epochs"]
    assert epoch["holdout_worst_case"] == max(average, last)
    assert (epoch["worst_case_of_average"], epoch["worst_case_of_last"]) == (average, last)
    assert (metrics["ema"], metrics["kept_weights"]) == (0.9, "last" if last > average else "average")
    as_trained = all(torch.equal(v, raw[0][k]) for k, v in model.state_dict().items())
    assert as_trained == (last > average)
    right, n = accuracy(model, loader(digits[1], np.arange(len(digits[1])), digits[1].preprocess, CPU))
    assert metrics["test_accuracy"] == right / n


def test_a_short_training_of_a_long_average_learns(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """After 60 steps a decay of 0.9995 alone would have left 97% of the random start in it."""
    metrics = run(digits, tmp_path / "run", network(), HardLabels(), limit=None, epochs=1, holdout=0, ema=0.9995)
    assert metrics["test_accuracy"] > 0.5


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_interrupted_and_resumed_keeps_the_same_epoch(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, ema: float
) -> None:
    whole = network()
    metrics = run(digits, tmp_path / "whole", whole, limit=640, epochs=4, lr=1.5, ema=ema)

    def stop(progress: Any) -> None:
        if progress.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "cut", network(), limit=640, epochs=4, lr=1.5, ema=ema, report=stop)
    again = network(seed=9)
    resumed = run(digits, tmp_path / "cut", again, limit=640, epochs=4, lr=1.5, ema=ema, resume=True)
    assert resumed["kept_epoch"] == metrics["kept_epoch"]
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(("ema", "kind"), [(0.0, "last"), (0.9, "average")])
def test_a_best_epoch_that_does_not_say_what_it_is_of_is_of_what_was_measured(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float, kind: str
) -> None:
    """As the edgeadv before wrote it."""
    force(monkeypatch, [0.5, 0.5])

    def stop(progress: Any) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "run", network(), limit=640, epochs=2, ema=ema, report=stop)
    state = saved_state(tmp_path / "run")
    del state["best"]["kind"]
    torch.save(state, buffer := io.BytesIO())
    checkpoint.save(tmp_path / "run", buffer.getvalue())
    force(monkeypatch, [0.1, 0.1])
    metrics = run(digits, tmp_path / "run", network(), limit=640, epochs=2, ema=ema, resume=True)
    assert (metrics["kept_epoch"], metrics["kept_weights"]) == (1, kind)


def test_a_deadline_ends_after_a_whole_epoch(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """No epoch begins that would end too late, going by the last one."""
    out = tmp_path / "run"
    begun: list[int] = []

    def report(progress: Any) -> None:
        begun.append(progress.epoch)
        time.sleep(0.3)

    with pytest.raises(
        OutOfTimeError, match=r"1 of 3 epochs are done and saved; an epoch takes \d+ s, .* `resume` continues"
    ):
        run(digits, out, network(), report=report, deadline=time.monotonic() + 0.29)
    assert set(begun) == {1}
    assert len(saved_state(out)["history"]) == 1
    assert len(run(digits, out, network(), resume=True)["epochs"]) == 3


def test_clipping_bounds_every_step(digits: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """Four steps of a gradient of length 1e-3 at most, which momentum adds up to ten times that."""
    moved = {}
    for clip in (None, 1e-3):
        model = network()
        before = [p.detach().clone() for p in model.parameters()]
        run(digits, tmp_path / f"{clip}", model, HardLabels(), epochs=1, clip=clip, lr=0.1, weight_decay=0.0, holdout=0)
        pairs = zip(model.parameters(), before, strict=True)
        moved[clip] = sum(float((p.detach() - q).square().sum()) for p, q in pairs) ** 0.5
    assert 1e-6 < moved[1e-3] < 4 * 0.1 * 10 * 1e-3
    assert moved[None] > 100 * moved[1e-3]


def epochs(*figures: tuple[float, float], clean: float = 0.8) -> list[dict[str, float]]:
    return [
        {"train_accuracy": train, "holdout_clean": clean, "holdout_worst_case": stood, "holdout_images": 100}
        for train, stood in figures
    ]


@pytest.mark.parametrize(
    ("history", "collapsed"),
    [
        (epochs((0.3, 0.2), (0.5, 0.3), (0.8, 0.01)), True),
        (epochs((0.3, 0.2), (0.5, 0.3), (0.5, 0.149)), True),
        (epochs((0.4, 0.3), (0.5, 0.3), (0.8, 0.01)), True),  # of equal ones the second is kept
        (epochs((0.3, 0.2), (0.5, 0.3), (0.5, 0.151)), False),  # an ordinary bad epoch
        (epochs((0.3, 0.2), (0.5, 0.3), (0.49, 0.01)), False),  # nothing was learnt but everything lost: not this
        (epochs((0.3, 0.09), (0.8, 0.0)), False),  # there was nothing to lose
        # seen: a large step spoilt the whole network, which went on to learn
        ([*epochs((0.178, 0.164), clean=0.29), *epochs((0.201, 0.068), clean=0.21)], False),
        ([*epochs((0.3, 0.2), (0.5, 0.3), clean=0.5), *epochs((0.8, 0.0), clean=0.6)], True),
        ([*epochs((0.5, 0.3)), *epochs((0.8, 0.0), clean=0.0)], False),
        # one label for everything stood well, and was nothing to lose
        ([*({**e, "holdout_labels": 1} for e in epochs((0.3, 0.5), clean=0.5)), *epochs((0.5, 0.2))], False),
        (epochs((0.3, 0.2)), False),
        ([], False),
        # an average stands for a while what the network itself has lost already
        (
            [
                {**e, "holdout_worst_case": 0.35, "worst_case_of_last": e["holdout_worst_case"], "clean_of_last": 0.9}
                for e in epochs((0.5, 0.3), (0.8, 0.01))
            ],
            True,
        ),
        ([{"train_accuracy": 0.1}, {"train_accuracy": 0.9}], False),  # nothing held out
        ([{**e, "holdout_images": 99} for e in epochs((0.5, 0.3), (0.8, 0.01))], False),  # chance
    ],
)
def test_collapse_is_told_from_a_bad_epoch(history: list[dict[str, float]], collapsed: bool) -> None:
    found = collapse(history)
    assert (found is not None) == collapsed
    if found:
        assert (
            f"catastrophic overfitting in epoch {len(history)}" in found and "the best weights before are kept" in found
        )


def test_a_training_that_collapses_ends_and_keeps_the_best_epoch(
    digits: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of epochs 2 and 3 are forced; what follows from them is real."""
    force(monkeypatch, [0.5, 0.6, 0.0])
    model = network()
    metrics = run(digits, tmp_path / "run", model, epochs=6, limit=640)
    assert len(metrics["epochs"]) == 3 and metrics["kept_epoch"] == 2
    assert "catastrophic overfitting in epoch 3" in metrics["stopped"]
    state = saved_state(tmp_path / "run")
    assert all(torch.equal(v, state["best"]["model"][k]) for k, v in model.state_dict().items())
    # killed after that epoch was saved and before the run was written: it ends in the same way
    again = network(seed=3)
    assert run(digits, tmp_path / "run", again, epochs=6, limit=640, resume=True)["stopped"] == metrics["stopped"]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
