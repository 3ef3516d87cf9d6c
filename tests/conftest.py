"""Shared fixtures: a tiny seeded network, real photographs, and the bundle of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv.models import PixelModel
from edgeadv_runtime.bundle import Bundle, Classes
from edgeadv_runtime.preprocess import Preprocess

TINY_CLASSES = 10


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
    import torch

    from edgeadv.models import Architecture, build

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
    from edgeadv_export import export_bundle

    out: Path = tmp_path_factory.mktemp("bundles") / "tiny.edgeadv"
    return export_bundle(
        tiny_model, out, classes=tiny_classes, preprocess=tiny_preprocess, frames=photographs, title="tiny",
        provenance={"recipe": "seed 0"},
    )  # fmt: skip
