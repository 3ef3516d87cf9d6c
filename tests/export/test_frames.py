"""Classes and frames for an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeadv.data.datasets import ImageSet
from edgeadv_export import data_frames, folder_frames, imagenet_classes, read_classes
from edgeadv_export.frames import bounded
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import DataError, InputError

SHARED_CLASSES = Path(__file__).parents[3] / "shared/data/imagenet-classes.tsv"


def test_imagenet_classes() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert (classes.ids[0], classes.names[0]) == ("n01440764", "tench")
    assert list(classes.ids) == sorted(classes.ids)


def test_imagenet_ids_are_those_of_the_class_list() -> None:
    if not SHARED_CLASSES.is_file():
        pytest.skip(f"{SHARED_CLASSES} is not here")
    assert read_classes(SHARED_CLASSES).ids == imagenet_classes().ids


@pytest.mark.parametrize(
    "text", ["a\tapple\nb\tbig pear\n", "0\ta\tapple\n1\tb\tbig pear", "a\tapple\r\n\r\nb\tbig pear\r\n"]
)
def test_class_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "classes.tsv"
    file.write_bytes(text.encode())
    assert read_classes(file) == Classes(("a", "b"), ("apple", "big pear"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\tapple\nb pear\n", "class 1 is written 'b pear'"),
        ("1\ta\tapple\n2\tb\tpear\n", "class 0 is written"),
        ("a\tapple\t1\tx\n", "class 0"),
        ("\tapple\nb\tpear", "class 0"),
        ("a\tapple\na\tpear\n", "distinct"),
        ("a\tapple\n", "two"),
        ("", "two"),
        ("\xff", "is not a list of `classes`"),
    ],
)
def test_class_files_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "classes.tsv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=says):
        read_classes(file)


def test_a_missing_class_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: no list of `classes` there"):
        read_classes(tmp_path / "none.tsv")


def picture(value: int, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (8, 6), (value, value, value)).convert(mode)


def test_folder_frames_are_sorted_and_limited(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    picture(2).save(tmp_path / "b" / "x.PNG")
    picture(1, "L").save(tmp_path / "a.png")
    picture(3).save(tmp_path / "c.bmp")
    (tmp_path / "notes.txt").write_text("not an image")
    frames = folder_frames(tmp_path)
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 2, 3]
    assert all(frame.shape == (6, 8, 3) and frame.dtype == np.uint8 for frame in frames)
    assert len(folder_frames(tmp_path, limit=2)) == 2


def test_an_unreadable_frame_is_an_error(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png"):
        folder_frames(tmp_path)


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_frames(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no images"):
        folder_frames(tmp_path / name)


def test_data_frames_deal_the_classes_out_in_turn() -> None:
    labels = np.repeat(np.arange(5), 40)
    data = ImageSet(
        "grey",
        "test",
        Classes(tuple("abcde"), tuple("abcde")),
        labels,
        [str(i) for i in range(200)],
        Preprocess(resize=None, crop=6),
        lambda i: picture(i, "L"),
    )
    frames = data_frames(data, limit=12)
    chosen = [int(frame[0, 0, 0]) for frame in frames]
    assert [int(labels[i]) for i in chosen] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, *labels[chosen[10:]]]
    assert len(set(chosen)) == 12
    assert all(np.array_equal(a, b) for a, b in zip(frames, data_frames(data, limit=12), strict=True))
    assert frames[0].shape == (6, 8, 3)


@pytest.mark.parametrize("text", ["resize=256,crop=224", "crop=700,fill=0", "roi=0:0:1400:900,resize=64,crop=64"])
def test_large_frames_are_made_smaller_as_far_as_the_preprocessing_allows(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Preprocess.parse(text)
    photo = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    small = np.zeros((500, 375, 3), np.uint8)
    with caplog.at_level("INFO"):
        made, same = bounded([photo, small], steps)
    assert same is small and made.dtype == np.uint8
    assert caplog.messages == ["1 of 2 frames are large and were made smaller before anything is compared"]
    k = 3000 // made.shape[0]
    assert k > 1 and made.shape == (3000 // k, 4000 // k, 3)
    assert (steps(made, color_order="rgb").shape) == steps.pixel_shape
    assert made[1, 2, 0] == np.rint(photo[k : 2 * k, 2 * k : 3 * k, 0].mean())
    (again,) = bounded([made], steps)
    assert again is made


@pytest.mark.parametrize(("size", "text"), [((480, 640), "resize=256,crop=224"), ((720, 1280), "resize=438,crop=384")])
def test_a_frame_keeps_what_shows_how_it_is_resized(size: tuple[int, int], text: str) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (kept,) = bounded([frame], Preprocess.parse(text))
    assert kept is frame
    (smaller,) = bounded([np.tile(frame, (4, 4, 1))], Preprocess.parse(text))
    assert min(smaller.shape[:2]) >= 1.5 * int(text[7:10])


def test_sixteen_bits_stay_sixteen_bits() -> None:
    steps = Preprocess.parse("window=0:65535,color=gray,resize=64,crop=64")
    deep = np.full((2000, 2000), 65535, np.uint16)
    (made,) = bounded([deep], steps)
    assert made.dtype == np.uint16 and made.shape == (666, 666) and (made == 65535).all()


def test_a_frame_that_must_stay_as_it_is_stays() -> None:
    steps = Preprocess.parse("roi=3900:2900:4000:3000,resize=64,crop=64")
    photo = np.zeros((3000, 4000, 3), np.uint8)
    assert bounded([photo], steps)[0] is photo
