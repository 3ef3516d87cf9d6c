"""A bundle made with a telephone's photographs is no larger than what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeadv.models.builder import PixelModel
from edgeadv_export import Origin, export_bundle
from edgeadv_export.package import GOLDEN_BYTES
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import EdgeAdvError

ORIGIN = Origin(title="tiny", provenance={})


def photographs(n: int, height: int, width: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n)]


@pytest.mark.parametrize(
    ("steps", "count"),
    [("resize=32,crop=32", 8), ("roi=3500:2500:4000:3000,resize=32,crop=32", 1)],
    ids=["made smaller", "must stay as they are"],
)
def test_golden_frames_of_large_photographs(
    steps: str, count: int, tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes
) -> None:
    bundle = export_bundle(
        tiny_model,
        tmp_path / "x.edgeadv",
        classes=tiny_classes,
        preprocess=Preprocess.parse(steps),
        frames=photographs(10 if count > 1 else 2, 3000, 4000),
        variants=["fp32"],
        origin=ORIGIN,
    )
    golden = bundle.golden()
    assert len(golden.frames) == bundle.manifest.golden.count == count
    if count > 1:
        assert sum(frame.nbytes for frame in golden.frames) < GOLDEN_BYTES / 4
        assert (bundle.path / "golden.npz").stat().st_size < 8 << 20
    pixels = np.stack([bundle.preprocess(frame, color_order="rgb") for frame in golden.frames])
    np.testing.assert_array_equal(pixels, golden.pixels)


def test_what_is_no_frame_is_still_refused_in_one_line(
    tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes, tiny_preprocess: Preprocess
) -> None:
    for frames in ([], [np.zeros(5, np.uint8)], [np.zeros((0, 4, 3), np.uint8)]):
        about = {"classes": tiny_classes, "preprocess": tiny_preprocess, "origin": ORIGIN}
        with pytest.raises(EdgeAdvError, match="frame"):
            export_bundle(tiny_model, tmp_path / "x", frames=frames, **about)  # type: ignore[arg-type]
