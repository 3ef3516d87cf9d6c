"""What the tests of the command line share: a way to call it, and a folder of labelled photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv.models.builder import PixelModel
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from tests.edgeadv.desk import Desk

# more than one shard of a pack
PHOTOS = 72
# enough of them right for a verdict
MANY = 400


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    status: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run the command line in this process, in ``tmp_path``."""
    from edgeadv.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


def labelled(folder: Path, count: int, model: PixelModel, classes: Classes, preprocess: Preprocess) -> Path:
    """Class folders of 32 x 32 PNGs, sorted by what the network sees in them; every tenth has a wrong label."""
    import torch
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(1)
    pictures = load_sample_images().images
    frames: list[NDArray[np.uint8]] = []
    for i in range(count):
        picture = pictures[i % 2]
        side = int(rng.integers(8, 200))
        top, left = int(rng.integers(picture.shape[0] - side)), int(rng.integers(picture.shape[1] - side))
        cut = Image.fromarray(picture[top : top + side, left : left + side])
        frames.append(np.asarray(cut.resize((32, 32), Image.Resampling.BILINEAR)))
    pixels = np.stack([preprocess(frame, color_order="rgb") for frame in frames])
    with torch.no_grad():
        labels = model(torch.from_numpy(to_tensor(pixels))).argmax(dim=1).tolist()
    for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        class_id = classes.ids[(label + (i % 10 == 0)) % len(classes)]
        (folder / class_id).mkdir(exist_ok=True)
        Image.fromarray(frame).save(folder / class_id / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def photos(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: PixelModel, tiny_classes: Classes, tiny_preprocess: Preprocess
) -> Path:
    """72 labelled photographs, most of which the tiny network gets right. Shared: tests must not change them."""
    return labelled(tmp_path_factory.mktemp("photos"), PHOTOS, tiny_model, tiny_classes, tiny_preprocess)


@pytest.fixture(scope="session")
def many_photos(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: PixelModel, tiny_classes: Classes, tiny_preprocess: Preprocess
) -> Path:
    """400 of them, enough for a verdict. Shared: tests must not change them."""
    return labelled(tmp_path_factory.mktemp("many"), MANY, tiny_model, tiny_classes, tiny_preprocess)


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, photos: Path) -> Path:
    """An attack pack of ``photos`` for ``tiny_bundle``, made by the command. Shared: tests must not change it."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("packs") / "photos.pack"
    named = ["--attack", "fgsm,fgsm-rescaled,fgsm-rs,pgd-margin"]
    arguments = ["attack", tiny_bundle.path, "--data", photos, "--eps", "2/255,8/255", *named, "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to train on: two classes that colour tells apart, 32 images each, and 8 each to test on. Shared."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "split"
    for part, count in (("train", 32), ("test", 8)):
        for class_id, channel in (("a", 0), ("b", 2)):
            (folder / part / class_id).mkdir(parents=True)
            for i in range(count):
                frame = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                frame[..., channel] += 100
                Image.fromarray(frame).save(folder / part / class_id / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, split: Path) -> Path:
    """A finished run on ``split``, made by the command. Shared: tests must not change it."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--arch", "timm/test_resnet", "--epochs", "1", "--batch-size", "16", "--out", str(out)]
    assert main(["train", "--data", str(split), *options]) == 0
    return out


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, photos: Path) -> Path:
    """A results file of ``photos`` and ``tiny_bundle``, made by the command. Shared: tests must not change it."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("results") / "results.json"
    arguments = ["evaluate", tiny_bundle.path, "--data", photos, "--eps", "8/255", "--attack", "fgsm", "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture
def desk(
    tmp_path: Path,
    tiny_bundle: Bundle,
    photos: Path,
    pack: Path,
    run: Path,
    split: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, tiny_bundle.path, photos, pack, run, split)
