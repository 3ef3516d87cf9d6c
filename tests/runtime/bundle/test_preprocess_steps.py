"""Every step of a preprocessing that torchvision has too is torchvision's, bit for bit; the others are as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.bundle.pictures import as_image, decode, load, windowed
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import DataError, InputError, SchemaError

PHOTOGRAPHS = Path(__file__).parents[4] / "shared/data/imagenet-dev"
SIZES = [
    (64, 64),
    (65, 64),
    (63, 97),
    (97, 63),
    (101, 33),
    (640, 31),
    (31, 640),
    (160, 120),
    (20, 27),
    (1, 1),
    (3, 200),
]
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos"]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def odd_pictures() -> list[Image.Image]:
    return [noise(*size) for size in SIZES]


@pytest.fixture(scope="module")
def real_photographs() -> list[Image.Image]:
    """Every 50th photograph, in the mode of its file: RGB, grey, CMYK."""
    files = sorted(PHOTOGRAPHS.rglob("*.JPEG"))[::50]
    if not files:
        pytest.skip(f"{PHOTOGRAPHS} is not here")
    return [load(file) for file in files]


def torchvision_steps(interpolation: str) -> dict[str, Any]:
    """By the text of a preprocessing: torchvision's transforms of the same."""
    from torchvision.transforms import InterpolationMode, v2

    kind = InterpolationMode(interpolation)
    return {
        "size=120x160": v2.Resize((120, 160), kind),
        "size=33x31": v2.Resize((33, 31), kind),
        "size=48x64,crop=40x63": v2.Compose([v2.Resize((48, 64), kind), v2.CenterCrop((40, 63))]),
        "size=40x56,color=gray": v2.Compose([v2.Grayscale(), v2.Resize((40, 56), kind)]),
        "resize=40,crop=32,color=gray": v2.Compose([v2.Grayscale(), v2.Resize(40, kind), v2.CenterCrop(32)]),
        "longer=64,crop=64,fill=0": v2.Compose([v2.Resize(None, kind, max_size=64), v2.CenterCrop(64)]),
        "longer=65,crop=48x71,fill=0": v2.Compose([v2.Resize(None, kind, max_size=65), v2.CenterCrop((48, 71))]),
        "resize=41,crop=31x40,fill=0": v2.Compose([v2.Resize(41, kind), v2.CenterCrop((31, 40))]),
        "crop=50,fill=0": v2.CenterCrop(50),
        "crop=224,crop_pct=0.875": v2.Compose([v2.Resize(256, kind), v2.CenterCrop(224)]),
    }


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_odd_sizes_as_torchvision(interpolation: str) -> None:
    for text, transform in torchvision_steps(interpolation).items():
        preprocess = Preprocess.parse(f"{text},interp={interpolation}")
        for image in odd_pictures():
            # torchvision fails on a side that becomes 0
            if min(image.size) * 65 < max(image.size) and "longer" in text:
                continue
            expected = np.asarray(transform(image)).reshape(preprocess.pixel_shape)
            assert np.array_equal(preprocess(image), expected), (text, image.size)


def test_photographs_as_torchvision(real_photographs: list[Image.Image]) -> None:
    for text, transform in torchvision_steps("bilinear").items():
        preprocess = Preprocess.parse(text)
        for image in real_photographs:
            expected = np.asarray(transform(image.convert("RGB"))).reshape(preprocess.pixel_shape)
            assert np.array_equal(preprocess(image), expected), (text, image.size, image.mode)


def test_a_letterbox_is_a_resize_and_a_padding() -> None:
    """Of the size that the smaller of the two scales gives, in the middle: what YOLO's letterbox does."""
    from torchvision.transforms import v2

    for image in odd_pictures():
        for height, width in ((224, 224), (120, 160), (31, 64)):
            scale = min(height / image.height, width / image.width)
            h, w = max(1, round(image.height * scale)), max(1, round(image.width * scale))
            left, top = (width - w) // 2, (height - h) // 2
            padding = [left, top, width - w - left, height - h - top]
            expected = v2.Compose([v2.Resize((h, w)), v2.Pad(padding, fill=114)])(image)
            found = Preprocess.parse(f"letterbox={height}x{width},fill=114")(image)
            assert np.array_equal(found, np.asarray(expected)), (image.size, height, width)


def test_a_letterbox_of_a_grey_frame() -> None:
    pixels = Preprocess.parse("letterbox=40x40,fill=7,color=gray")(Image.new("RGB", (80, 20), (200, 200, 200)))
    assert pixels.shape == (40, 40, 1)
    assert (pixels[:15] == 7).all() and (pixels[15:25] == 200).all() and (pixels[25:] == 7).all()


def test_the_region_is_cut_first() -> None:
    from torchvision.transforms import v2

    image = noise(101, 67)
    cut = image.crop((10, 5, 90, 60))
    expected = np.asarray(v2.Compose([v2.Resize(40), v2.CenterCrop(32)])(cut))
    assert np.array_equal(Preprocess.parse("roi=10:5:90:60,resize=40,crop=32")(image), expected)
    # half to even: 0.5 of 101 and of 67 are 50.5 and 33.5
    quarter = image.crop((50, 34, 101, 67))
    expected = np.asarray(v2.Resize((20, 30))(quarter))
    assert np.array_equal(Preprocess.parse("roi=0.5:0.5:1:1,size=20x30")(image), expected)
    assert Preprocess.parse("roi=0:0:1:1,crop=32") != Preprocess.parse("crop=32")
    for text in ("roi=10:5:102:60", "roi=0:0:0.001:1"):
        with pytest.raises(InputError, match="101x67 has no region of interest"):
            Preprocess.parse(f"{text},size=20x20")(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """By turning arrays: what the eight values mean is in the standard (CIPA DC-008)."""
    turns: dict[int, Any] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    image = noise(50, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "p.png", exif=exif)
    stored = np.asarray(image)
    expected = Preprocess.parse("size=20x24")(Image.fromarray(np.ascontiguousarray(turns[orientation](stored))))
    for read in (load, decode):
        assert np.array_equal(Preprocess.parse("exif=apply,size=20x24")(read(tmp_path / "p.png")), expected)
        assert np.array_equal(
            Preprocess.parse("exif=ignore,size=20x24")(read(tmp_path / "p.png")), Preprocess.parse("size=20x24")(image)
        )
    turned = Preprocess.parse("exif=apply,size=20x24").frame(load(tmp_path / "p.png"))
    assert np.array_equal(turned, turns[orientation](stored))
    assert np.array_equal(Preprocess.parse("exif=apply,size=20x24")(turned, color_order="rgb"), expected)


def test_broken_exif_is_one_line(tmp_path: Path) -> None:
    noise(50, 30).save(tmp_path / "p.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    pixels = Preprocess.parse("exif=apply,size=20x24")(load(tmp_path / "p.jpg"))
    assert pixels.shape == (20, 24, 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_by_a_window(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32
    Image.fromarray(levels).save(tmp_path / f"p.{suffix}")
    image = load(tmp_path / f"p.{suffix}")
    preprocess = Preprocess.parse("window=1000:5095,crop=40x50,color=gray")
    inside = np.clip(levels.astype(np.float64), 1000, 5095) - 1000
    expected = np.floor(inside * 255 / 4095 + 0.5).astype(np.uint8)[..., None]
    assert set(np.unique(expected)) >= {0, 255}
    assert np.array_equal(preprocess(image), expected)
    assert np.array_equal(preprocess(levels), expected)
    assert np.array_equal(preprocess(levels[..., None]), expected)
    assert np.array_equal(preprocess(preprocess.frame(image)), expected)
    assert np.array_equal(Preprocess.parse("window=1000:5095,crop=40x50")(image), np.repeat(expected, 3, axis=2))
    with pytest.raises(DataError, match="window=LOW:HIGH"):
        decode(tmp_path / f"p.{suffix}")


def test_windows_at_their_ends() -> None:
    assert windowed(np.array([0, 9, 10, 11, 65535]), (10, 11)).tolist() == [0, 0, 0, 255, 255]
    # halves upwards: 1 of 510 is half a level
    assert windowed(np.array([0, 1, 2, 509, 510]), (0, 510)).tolist() == [0, 1, 1, 255, 255]
    every = np.arange(65536)
    assert np.array_equal(windowed(every, (0, 65535)), np.floor(every * 255 / 65535 + 0.5).astype(np.uint8))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((40, 40, 3), np.uint8),
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40), np.int32),
        Image.new("L", (40, 40)),
        Image.new("F", (40, 40)),
    ],
)
def test_eight_bits_where_a_window_is_stated(frame: Any) -> None:
    with pytest.raises(InputError, match="window="):
        Preprocess.parse("window=0:4095,crop=32")(frame, color_order="rgb")


def test_grey_frames_of_every_form() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    preprocess = Preprocess.parse("size=20x30,color=gray")
    assert preprocess.input_shape == (1, 20, 30) and preprocess.pixel_shape == (20, 30, 1)
    expected = preprocess(Image.fromarray(frame))
    assert np.array_equal(preprocess(frame, color_order="rgb"), expected)
    assert np.array_equal(preprocess(frame[..., ::-1], color_order="bgr"), expected)
    grey = np.asarray(Image.fromarray(frame).convert("L"))
    for same in (grey, grey[..., None], Image.fromarray(grey), Image.fromarray(grey).convert("RGB")):
        assert np.array_equal(preprocess(same), expected)
    assert as_image(grey, color="gray").mode == "L"
    with pytest.raises(InputError, match="colour order"):
        preprocess(frame)
    with pytest.raises(InputError, match="uint8 of shape"):
        preprocess(grey.astype(np.uint16))


TEXTS = [
    "resize=256,crop=224,interp=bilinear",
    "resize=none,crop=32,interp=nearest",
    "exif=apply,roi=0.1:0.25:1:1,window=0:4095,color=gray,size=120x160,crop=112x150,interp=bicubic",
    "roi=10:0:640:480,letterbox=224x224,crop=224,interp=bilinear,fill=114",
    "longer=300,crop=200x224,interp=lanczos,fill=0",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_files_hold_it_all(text: str) -> None:
    preprocess = Preprocess.parse(text)
    assert str(preprocess) == text
    assert Preprocess.parse(str(preprocess)) == preprocess
    stored = json.loads(json.dumps(preprocess.to_json()))
    assert Preprocess.from_json(stored) == preprocess and hash(Preprocess.from_json(stored)) == hash(preprocess)


def test_old_settings_are_written_as_they_were() -> None:
    assert json.dumps(Preprocess(resize=256, crop=224).to_json()) == (
        '{"resize": 256, "crop": 224, "interpolation": "bilinear", "resize_mode": "shorter_side", "antialias": true, '
        '"color_order": "rgb", "range": [0.0, 1.0]}'
    )
    assert Preprocess.parse("crop=224x224") == Preprocess.parse("crop=224")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("size=32", None),
        ("size=32x", "size=HEIGHTxWIDTH"),
        ("size=axb", "size=HEIGHTxWIDTH"),
        ("size=0x32", "from 1 to 8192"),
        ("size=120x160,resize=32", "resizes once"),
        ("size=32x32,crop=33", "crop 33 is larger than resize"),
        ("size=32x40,crop=32x41", "crop 32x41 is larger than resize 32x40"),
        ("letterbox=224x224", "needs fill"),
        ("letterbox=224x224,fill=256", "0 to 255"),
        ("letterbox=224x224,fill=grey", "fill=LEVEL"),
        ("longer=32,crop=33", "crop 33 is larger"),
        ("longer=32", "needs crop"),
        ("crop=32x32x32", "crop=PIXELS or"),
        ("crop=224,crop_pct=0", "share of the shorter side"),
        ("crop=224,crop_pct=1.1", "share of the shorter side"),
        ("crop=224,crop_pct=x", "crop_pct=SHARE"),
        ("crop=224,crop_pct=0.9,resize=256", "nothing else that resizes"),
        ("crop=224x200,crop_pct=0.9", "square crop"),
        ("crop=32,color=bgr", "color must be one of rgb, gray"),
        ("crop=32,exif=yes", "exif=apply or exif=ignore"),
        ("crop=32,window=0", "window=LOW:HIGH"),
        ("crop=32,window=5:5", "LOW < HIGH"),
        ("crop=32,window=0:65536", "LOW < HIGH"),
        ("crop=32,window=-1:10", "LOW < HIGH"),
        ("crop=32,roi=0:0:1", "roi=LEFT"),
        ("crop=32,roi=0:0:nan:1", "left:top:right:bottom"),
        ("crop=32,roi=0:0:inf:1", "left:top:right:bottom"),
        ("crop=32,roi=0.5:0:0.5:1", "left:top:right:bottom"),
        ("crop=32,roi=0.5:0:20:10", "whole pixels"),
        ("crop=32,roi=-1:0:20:10", "left:top:right:bottom"),
    ],
)
def test_texts_that_are_none(text: str, says: str | None) -> None:
    if says is None:
        assert Preprocess.parse(text) == Preprocess.parse(f"{text}x32")
        return
    with pytest.raises(InputError, match=says):
        Preprocess.parse(text)


@pytest.mark.parametrize(
    "change",
    [
        {"exif": "apply"},
        {"window": [5, 5]},
        {"window": [0, 70000]},
        {"roi": [0, 0, 0, 1]},
        {"roi": [0, 0, 1]},
        {"fill": 256},
        {"crop": [10, 20, 30]},
        {"crop": [0, 20]},
        {"crop": 9000},
        {"crop": 2.5},
        {"resize_mode": "letterbox"},
        {"resize_mode": "cover"},
        {"color_order": "bgr"},
        {"padding": 1},
    ],
)
def test_files_that_hold_none(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="update edgeadv"):
        Preprocess.from_json({**Preprocess(resize=40, crop=32).to_json(), **change})


def test_frames_that_become_too_small() -> None:
    with pytest.raises(InputError, match=r"80x40, resized to 40x20, is smaller than the crop 32; .* fill="):
        Preprocess.parse("longer=40,crop=32")(noise(80, 40))
    assert Preprocess.parse("longer=40,crop=32,fill=0")(noise(80, 40)).shape == (32, 32, 3)


@pytest.mark.parametrize("text", [*TEXTS[:1], *TEXTS[3:], "size=24x30", "roi=0.1:0.2:0.8:0.9,resize=64,crop=40"])
def test_geometry_says_what_is_seen(text: str) -> None:
    """A frame that is white where the geometry says the model looks is seen all white, and one that is white where it
    does not, all black: but for the pixel at the edge, that of the filter."""
    preprocess = Preprocess.parse(text.replace("10:0:640:480", "10:0:600:470"))
    plan = preprocess.geometry(640, 480)
    left, top, right, bottom = plan.seen
    inside = np.zeros((480, 640, 3), np.uint8)
    inside[round(top) : round(bottom), round(left) : round(right)] = 255
    shown: NDArray[np.uint8] = preprocess(inside, color_order="rgb")
    (x, y), (width, height) = plan.corner, plan.input
    rows = slice(max(0, -y) + 3, min(height, plan.size[1] - y) - 3)
    columns = slice(max(0, -x) + 3, min(width, plan.size[0] - x) - 3)
    assert (shown[rows, columns] == 255).all()
    assert (preprocess(255 - inside, color_order="rgb")[rows, columns] == 0).all()
