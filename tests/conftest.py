"""Shared fixtures: a tiny seeded network with real photographs, and a small one that has learned digits, each with its
bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv.data.datasets import ImageSet, batches, imagenet_classes, open_data
from edgeadv.models.builder import Architecture, PixelModel, build, load_pretrained
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.bundle.variants import VARIANTS

TINY_CLASSES = 10
LONG = (
    "test_trained.py", "test_int8_quality.py", "test_scale.py", "test_no_home.py", "test_kills.py", "test_fuzz.py",
    "test_training_together.py", "test_commands.py", "test_exporting.py", "test_import.py",
)  # fmt: skip
"""Files of minutes, longest first: none of them is left to one process when all others are done."""


def pytest_configure() -> None:
    """Give each process of pytest-xdist cores of its own: threads that wait for work and spin would take another's."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    processes, cores = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), sorted(os.sched_getaffinity(0))
    if processes <= len(cores):
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: processes])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(scope="module")
def passing_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Makes folders for what takes hundreds of megabytes: they are gone when the tests of a module are over."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(tmp_path_factory.mktemp(name))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def photographs() -> list[NDArray[np.uint8]]:
    """Twelve cut-outs of two photographs, uint8 RGB, all of different sizes, larger than 32 pixels."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    frames = []
    for i in range(12):
        picture = load_sample_images().images[i % 2]
        height, width = int(rng.integers(60, 200)), int(rng.integers(60, 300))
        top, left = int(rng.integers(picture.shape[0] - height)), int(rng.integers(picture.shape[1] - width))
        frames.append(np.ascontiguousarray(picture[top : top + height, left : left + width]))
    return frames


@pytest.fixture(scope="session")
def tiny_preprocess() -> Preprocess:
    """To 32 x 32 pixels."""
    return Preprocess(resize=32, crop=32)


@pytest.fixture(scope="session")
def tiny_classes() -> Classes:
    """Ten classes whose ids and names differ."""
    return Classes(
        ids=tuple(f"n{i:04d}" for i in range(TINY_CLASSES)), names=tuple(f"class {i}" for i in range(TINY_CLASSES))
    )


@pytest.fixture(scope="session")
def tiny_model() -> PixelModel:
    """A residual network of 0.4 million seeded weights, in eval mode. Shared: tests must not change it."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Architecture.find("timm/test_resnet", num_classes=TINY_CLASSES))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: PixelModel,
    tiny_classes: Classes,
    tiny_preprocess: Preprocess,
    photographs: list[NDArray[np.uint8]],
) -> Bundle:
    """``tiny_model`` as fp32 and fp16 with eight golden frames. Shared: tests must not change its files."""
    from edgeadv_export import Origin, export_bundle

    out: Path = tmp_path_factory.mktemp("bundles") / "tiny.edgeadv"
    return export_bundle(
        tiny_model,
        out,
        classes=tiny_classes,
        preprocess=tiny_preprocess,
        frames=photographs,
        origin=Origin(title="tiny", provenance={"recipe": "seed 0"}),
    )


@pytest.fixture
def rewritten(tmp_path: Path, tiny_bundle: Bundle) -> Callable[..., Path]:
    """Makes a copy of the tiny bundle whose manifest has other values for some keys."""

    def make(**keys: object) -> Path:
        folder = shutil.copytree(tiny_bundle.path, tmp_path / "rewritten.edgeadv", dirs_exist_ok=True)
        manifest = {**json.loads((folder / "manifest.json").read_text()), **keys}
        manifest["bundle_id"] = bundle_id(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


class Digits(nn.Module):
    """Seven convolutions in a row and a linear layer: ``body.0`` to ``body.6`` and ``head``."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 16, 24, 24, 32, 32, 32), (2, 1, 2, 1, 2, 1, 1)
        self.body = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in zip(widths, widths[1:], strides, strict=False)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.body:
            x = torch.relu(convolution(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class SmallDigits(nn.Module):
    """Two convolutions and a linear layer, ``head``: a tenth of the work of :class:`Digits`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((3, 8), (8, 16)))
        self.head = nn.Linear(16 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.body:
            x = torch.relu(convolution(x))
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture(scope="session")
def digits_train() -> ImageSet:
    return open_data("mnist5k", split="train")


@pytest.fixture(scope="session")
def digits_test() -> ImageSet:
    return open_data("mnist5k", split="test")


def learned(network: type[nn.Module], train: ImageSet, *, epochs: int) -> PixelModel:
    """A network that has learned digits, the same every time, in eval mode."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelModel(network(), Architecture(name="digits", source="timm", num_classes=10))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        everything = next(batches(train, train.preprocess, batch_size=len(train)))
        x, y = torch.from_numpy(to_tensor(everything.pixels)), torch.from_numpy(everything.labels)
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def digits_model(digits_train: ImageSet) -> PixelModel:
    """:class:`Digits` after a few seconds of training, about 95% right on the test images. Shared: do not change it."""
    return learned(Digits, digits_train, epochs=5)


@pytest.fixture(scope="session")
def small_digits_model(digits_train: ImageSet) -> PixelModel:
    """:class:`SmallDigits`, about as right as ``digits_model``, for what asks a network a million times. Shared as
    well."""
    return learned(SmallDigits, digits_train, epochs=3)


@pytest.fixture(scope="session")
def digits_bundle(
    tmp_path_factory: pytest.TempPathFactory, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> Bundle:
    """``digits_model`` in every variant: sure enough of its answers that no rounding changes one. Shared as well."""
    from edgeadv_export import Int8Plan, Origin, choose_calibration, data_frames, export_bundle

    calibration = choose_calibration(digits_train, digits_train.preprocess, count=64)
    plan = Int8Plan(calibration=calibration, images=digits_test, order=np.arange(500), max_drop=5.0)
    return export_bundle(
        digits_model,
        tmp_path_factory.mktemp("bundles") / "digits.edgeadv",
        classes=digits_test.classes,
        preprocess=digits_test.preprocess,
        frames=data_frames(digits_test),
        variants=VARIANTS,
        origin=Origin(title="digits", provenance={"data": "mnist5k"}),
        int8=plan,
    )


@pytest.fixture(scope="session")
def imagenet_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with seeded weights of two small classifiers of 1,000 classes. Shared: tests must not change them."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name in ("timm/test_resnet", "timm/test_efficientnet"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(Architecture.find(name, num_classes=1000))
        files[name] = folder / f"{model.architecture.name}.pth"
        torch.save(model.net.state_dict(), files[name])
    return files


@pytest.fixture(scope="session")
def imagenet_photos(tmp_path_factory: pytest.TempPathFactory, imagenet_weights: dict[str, Path]) -> Path:
    """24 photographs in folders named by WordNet id: what the first of ``imagenet_weights`` sees, every sixth one
    another.

    Shared: tests must not change them.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    torch.set_num_threads(1)
    ids, rng = imagenet_classes().ids, np.random.default_rng(0)
    model = load_pretrained(
        Architecture.find("timm/test_resnet", num_classes=len(ids)), imagenet_weights["timm/test_resnet"]
    ).eval()
    folder = tmp_path_factory.mktemp("imagenet")
    for i in range(24):
        picture = load_sample_images().images[i % 2]
        side = int(rng.integers(60, 400))
        top, left = int(rng.integers(picture.shape[0] - side)), int(rng.integers(picture.shape[1] - side))
        cut = picture[top : top + side, left : left + side]
        pixels = Preprocess(resize=168, crop=160)(cut, color_order="rgb")
        with torch.no_grad():
            label = int(model(torch.from_numpy(to_tensor(pixels[None]))).argmax())
        home = folder / ids[(label + (i % 6 == 0)) % len(ids)]
        home.mkdir(exist_ok=True)
        Image.fromarray(cut).save(home / f"{i:02d}.png")
    return folder
