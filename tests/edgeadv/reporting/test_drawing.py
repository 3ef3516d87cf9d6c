"""The drawing of what a model sees: its pixels are the model's, its outlines those of the geometry."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeadv.reporting.drawing import drawn
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import Preprocess

# tests/edgeadv/conftest.py: what a command left on the terminal
Cli = Callable[..., Any]
ORANGE, BLUE = (213, 94, 0), (0, 114, 178)


def places(picture: np.ndarray[Any, Any], ink: tuple[int, int, int]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((picture == ink).all(axis=2))
    return (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


@pytest.mark.parametrize(
    "text", ["roi=0.1:0.2:0.9:1,resize=64,crop=48", "letterbox=48x64,fill=0,color=gray,roi=0:0:240:120"]
)
def test_outlines_and_pixels(text: str) -> None:
    steps = Preprocess.parse(text)
    frame = np.random.default_rng(0).integers(0, 40, (160, 240, 3), dtype=np.uint8)
    picture = np.asarray(drawn(steps, frame))
    plan = steps.geometry(240, 160)
    scale = 480 / 240
    for ink, box in ((ORANGE, plan.seen), (BLUE, plan.region)):
        if ink == BLUE and plan.seen == plan.region:
            continue  # the orange one lies over it
        assert np.abs(np.subtract(places(picture, ink), [16 + value * scale for value in box])).max() <= 1
    _, height, width = steps.input_shape
    factor = 480 // max(height, width)
    right = picture[16 : 16 + height * factor : factor, 480 + 32 : 480 + 32 + width * factor : factor]
    assert np.array_equal(right, np.broadcast_to(steps(frame, color_order="rgb"), right.shape))


def test_bundle_show_draws(cli: Cli, tiny_bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (9, 99, 9)).save(tmp_path / "photo.png")
    for more in ([], ["--frame", "photo.png"]):
        shown = cli("bundle", "show", tiny_bundle.path, "--picture", "seen.png", *more)
        assert shown.status == 0 and shown.out.endswith("written            seen.png\n")
        with Image.open(tmp_path / "seen.png") as picture:
            assert picture.format == "PNG" and (not more or picture.getpixel((300, 100)) == (9, 99, 9))
    for more, says in (
        (["--picture", "seen.jpg"], "--picture seen.jpg is written as a PNG"),
        (["--frame", "photo.png"], "--frame is what --picture draws"),
        (["--picture", "seen.png", "--frame", "no.png"], "no.png does not exist"),
    ):
        refused = cli("bundle", "show", tiny_bundle.path, *more)
        assert refused.status == 2 and says in refused.err and len(refused.err.splitlines()) == 1, refused.err


def test_a_report_draws_its_bundle(cli: Cli, tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    options = ["--eps", "8/255", "--attack", "fgsm", "--precision", "fp32", "--limit", "20"]
    assert cli("evaluate", tiny_bundle.path, "--data", photos, *options, "--out", "r.json").status == 0
    assert cli("report", "r.json", "--out", "without.html").status == 0
    assert cli("report", "r.json", "--out", "with.html", "--bundle", tiny_bundle.path).status == 0
    page = (tmp_path / "with.html").read_text()
    steps = tiny_bundle.preprocess
    assert "What the model sees" in page and str(steps) in page
    from edgeadv.reporting.drawing import drawn_png

    assert base64.b64encode(drawn_png(steps, tiny_bundle.golden().frames[0])).decode() in page
    assert "What the model sees" not in (tmp_path / "without.html").read_text()


def test_a_bundle_of_no_file_of_the_report(
    cli: Cli, tiny_bundle: Bundle, digits_bundle: Bundle, tmp_path: Path
) -> None:
    assert cli("bench", tiny_bundle.path, "--precision", "fp32", "--runs", "5", "--out", "b.json").status == 0
    refused = cli("report", "b.json", "--bundle", digits_bundle.path)
    assert refused.status == 2 and "--bundle hold" in refused.err and not (tmp_path / "report.html").exists()
