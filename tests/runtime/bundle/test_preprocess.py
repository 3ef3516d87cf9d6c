"""Preprocessing is torchvision's, bit for bit, on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.bundle.pictures import as_image, decode
from edgeadv_runtime.bundle.preprocess import Preprocess, to_pixels, to_tensor
from edgeadv_runtime.errors import BundleError, DataError, InputError

PHOTOGRAPHS = Path(__file__).parents[4] / "shared/data/imagenet-dev"
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos"]


def torchvision_pixels(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    steps: list[Any] = [CenterCrop(preprocess.crop)]
    if preprocess.resize is not None:
        steps.insert(0, Resize(preprocess.resize, InterpolationMode(preprocess.interpolation)))
    return np.asarray(Compose(steps)(image))


@pytest.fixture(scope="module")
def real_photographs() -> list[Image.Image]:
    """Every 25th photograph: portrait, landscape, grey, CMYK, from 100 to several 1,000 pixels wide."""
    files = sorted(PHOTOGRAPHS.rglob("*.JPEG"))[::25]
    if not files:
        pytest.skip(f"{PHOTOGRAPHS} is not here")
    return [decode(file) for file in files]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("resize", "crop"), [(256, 224), (232, 224), (257, 224), (224, 223), (33, 32), (32, 32), (31, 30)]
)
def test_photographs_as_torchvision(
    real_photographs: list[Image.Image], resize: int, crop: int, interpolation: Any
) -> None:
    preprocess = Preprocess(resize=resize, crop=crop, interpolation=interpolation)
    for image in real_photographs:
        assert np.array_equal(preprocess(image), torchvision_pixels(image, preprocess)), image.size


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    "size",
    [(64, 64), (65, 64), (64, 65), (63, 97), (97, 63), (101, 33), (33, 101), (640, 31), (31, 640), (32, 32), (20, 27)],
)
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (40, 31), (41, 32), (40, 32), (None, 20), (None, 19)])
def test_odd_and_even_sizes_as_torchvision(
    size: tuple[int, int], resize: int | None, crop: int, interpolation: Any
) -> None:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    preprocess = Preprocess(resize=resize, crop=crop, interpolation=interpolation)
    result = preprocess(pixels, color_order="rgb")
    assert result.shape == (crop, crop, 3)
    assert np.array_equal(result, torchvision_pixels(Image.fromarray(pixels), preprocess))


def test_to_tensor_is_torchvisions() -> None:
    from torchvision.transforms.functional import to_tensor as theirs

    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    ours = to_tensor(every_level)
    assert ours.dtype == np.float32
    assert ours.shape == (1, 3, 16, 16)
    assert np.array_equal(ours[0], theirs(Image.fromarray(every_level[0])).numpy())
    assert ours.flags.c_contiguous


def test_a_bgr_frame_gives_the_rgb_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    preprocess = Preprocess(resize=32, crop=32)
    expected = preprocess(Image.fromarray(frame))
    assert np.array_equal(preprocess(frame, color_order="rgb"), expected)
    assert np.array_equal(preprocess(frame[..., ::-1], color_order="bgr"), expected)
    assert not np.array_equal(preprocess(frame, color_order="bgr"), expected)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_frames_that_do_not_lie_as_usual_in_memory(order: Any) -> None:
    """Cut out, mirrored, every second line, transposed, channels first, read only."""
    whole = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    frozen = whole.copy()
    frozen.flags.writeable = False
    planes = np.ascontiguousarray(whole.transpose(2, 0, 1)).transpose(1, 2, 0)
    preprocess = Preprocess(resize=32, crop=32)
    for frame in (
        whole[7:99, 3:131],
        whole[::-1],
        whole[::2, ::3],
        whole.transpose(1, 0, 2),
        planes,
        frozen,
        np.asfortranarray(whole),
    ):
        rgb = frame if order == "rgb" else frame[..., ::-1]
        assert np.array_equal(
            preprocess(frame, color_order=order), preprocess(Image.fromarray(np.ascontiguousarray(rgb)))
        )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (4320, 7680)])
def test_frames_of_any_size(height: int, width: int) -> None:
    frame = np.full((height, width, 3), (10, 200, 30), np.uint8)
    pixels = Preprocess(resize=32, crop=32)(frame, color_order="bgr")
    assert pixels.shape == (32, 32, 3) and np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[30, 200, 10]]


@pytest.mark.parametrize("size", [(150_000, 1), (1, 5_000_000)])
def test_a_picture_that_resizing_would_blow_up(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="too long and narrow to be resized to 512"):
        Preprocess(resize=512, crop=224)(Image.new("RGB", size))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused(tmp_path: Path, mode: str) -> None:
    """Pillow would cut off what is above 255, and mid-grey be white."""
    image = Image.fromarray(np.full((40, 50), 30000, np.uint16)) if mode == "I;16" else Image.new(mode, (50, 40), 30000)
    with pytest.raises(InputError, match=rf"more than 8 bits a pixel \(mode {mode}\)"):
        Preprocess(resize=32, crop=32)(image)
    image.save(tmp_path / "p.tiff")
    with pytest.raises(DataError, match="more than 8 bits"):
        decode(tmp_path / "p.tiff")


def test_pictures_that_turn_out_to_be_none(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    content = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(content[: len(content) // 2])
    closed = Image.open(tmp_path / "p.png")
    closed.close()
    for image in (Image.open(tmp_path / "p.png"), closed, Image.new("RGB", (0, 0)), Image.new("La", (40, 40))):
        with pytest.raises(InputError):
            Preprocess(resize=32, crop=32)(image)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_other_pictures_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (40, 50), (200, 100, 50)).convert(mode)
    assert np.array_equal(Preprocess(resize=None, crop=40)(image), np.asarray(image.convert("RGB"))[5:45])


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((40, 40, 3), np.float32), "not float32"),
        (np.zeros((40, 40), np.uint8), "shape"),
        (np.zeros((3, 40, 40), np.uint8), "shape"),
        (np.zeros((40, 40, 4), np.uint8), "shape"),
        (np.zeros((40, 40, 3), np.uint16), "not uint16"),
        (np.zeros((40, 40, 1), np.uint8), "shape"),
        (np.zeros((0, 40, 3), np.uint8), "shape"),
        ("photo.jpg", "not str"),
    ],
)
def test_frames_that_are_none(frame: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Preprocess(resize=32, crop=32)(frame, color_order="rgb")


@pytest.mark.parametrize("order", [None, "RGB", "gbr"])
def test_an_array_needs_its_colour_order(order: Any) -> None:
    with pytest.raises(InputError, match="colour order"):
        as_image(np.zeros((4, 4, 3), np.uint8), color_order=order)


def test_a_frame_smaller_than_the_crop() -> None:
    with pytest.raises(InputError, match="40x30 is smaller than the crop 32"):
        Preprocess(resize=None, crop=32)(Image.new("RGB", (40, 30)))


def test_parse_and_json() -> None:
    preprocess = Preprocess.parse("resize=256, crop=224,interp=bicubic")
    assert preprocess == Preprocess(resize=256, crop=224, interpolation="bicubic")
    assert preprocess.input_shape == (3, 224, 224)
    assert Preprocess.parse("crop=32") == Preprocess.parse("resize=none,crop=32") == Preprocess(resize=None, crop=32)
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    for change in ({"antialias": False}, {"mean": [0.5]}):
        with pytest.raises(BundleError, match="update edgeadv"):
            Preprocess.from_json({**preprocess.to_json(), **change})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resize=256",
        "crop=x",
        "crop=32,crop=32",
        "side=32",
        "crop",
        "crop=",
        "crop=0",
        "crop=9000",
        "crop=32,resize=16",
        "crop=32,interp=cubic",
    ],
)
def test_texts_that_are_no_preprocessing(text: str) -> None:
    with pytest.raises(InputError):
        Preprocess.parse(text)


def test_files_that_cannot_be_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    assert decode(tmp_path / "whole.jpg").size == (64, 64)
    for name, content in {"empty.jpg": b"", "text.jpg": b"no picture", "cut.jpg": data[: len(data) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            decode(tmp_path / name)
    with pytest.raises(DataError, match="does not exist"):
        decode(tmp_path / "missing.jpg")
    with pytest.raises(DataError, match="not a readable image"):
        decode(tmp_path)


def test_to_pixels_undoes_to_tensor_at_every_level() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels[..., 1] = 255 - pixels[..., 1]
    back = to_pixels(to_tensor(pixels))
    assert back.dtype == np.uint8 and back.flags.c_contiguous and np.array_equal(back, pixels)


def test_to_pixels_takes_the_nearest_level_and_cuts() -> None:
    levels = np.array([-3.0, -0.4, 0.4, 0.6, 7.49, 7.51, 254.6, 255.4, 300.0], np.float32)
    x = np.tile((levels / 255).astype(np.float32), (1, 3, 1, 1))
    assert to_pixels(x)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 7, 8, 255, 255, 255]
