"""Everything that takes a folder of pictures: the same ones are taken, and one line says what was left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeadv_runtime
from edgeadv.data.datasets import Batch, ImageSet, batches, open_data
from edgeadv.data.training_images import training_data
from edgeadv.workflows import comparing
from edgeadv_export.calibration import calibration_images, choose_calibration, gate_images
from edgeadv_export.confidence_fit import confidence_images
from edgeadv_export.frames import folder_frames
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.pictures import MOST_PIXELS, as_image, decode, load, upright
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.walk import pictures
from edgeadv_runtime.camera import open_source
from edgeadv_runtime.errors import DataError, EdgeAdvError, InputError

CLASSES = Classes(("bus", "car"), ("bus", "car"))
STEPS = Preprocess(resize=8, crop=8)
LOG = "edgeadv_runtime.bundle.walk"


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, 0)).save(path)


def folder(tmp_path: Path, *, per_class: int = 40) -> Path:
    """Class folders as disks and people leave them: ``per_class`` pictures each, three of them deeper."""
    data = tmp_path / "data"
    for k, name in enumerate(CLASSES.ids):
        for i in range(per_class):
            save(data / name / ("more" if i < 3 else "") / f"{i}.png", 100 * k + i)
        (data / name / "._0.png").write_bytes(b"\0\5\26\7\0\2\0\0")
        (data / name / ".DS_Store").write_bytes(b"")
        save(data / "__MACOSX" / name / "0.png", 7)
        (data / name / "labels.txt").write_text("")
    return data


def n_of(images: ImageSet) -> int:
    found: list[Batch] = list(batches(images, STEPS, batch_size=16))
    assert not any(batch.unreadable for batch in found)
    return sum(len(batch.index) for batch in found)


def _gate(data: Path) -> int:
    calibration = choose_calibration(calibration_images(str(data)), STEPS, count=32)
    images, order = gate_images(calibration, CLASSES, folder=data)
    assert len(order) == len(images)
    return n_of(images)


def _confidence(data: Path) -> int:
    images, order = confidence_images(str(data), CLASSES)
    assert len(order) == len(images)
    return n_of(images)


PLACES: dict[str, Callable[[Path], int]] = {
    "evaluate, attack, bench": lambda data: n_of(open_data(str(data), split="test").relabel(CLASSES)),
    "training data": lambda data: n_of(training_data(str(data))),
    "calibration": lambda data: n_of(calibration_images(str(data))),
    "int8's own test": _gate,
    "confidence": _confidence,
    "golden frames": lambda data: len(folder_frames(data, limit=200, preprocess=STEPS)),
    "diff": lambda data: len(comparing._files(data, 200)[0]),
    "camera": lambda data: sum(1 for _ in open_source(str(data)).frames()),
}
WALKERS = {"datasets", "training_images", "calibration", "frames", "comparing", "sources"}
"""The modules behind these places."""


def test_every_module_that_walks_is_tried_here() -> None:
    root = Path(edgeadv_runtime.__file__).parents[2]
    files = [file for name in ("edgeadv", "runtime", "export") for file in sorted((root / name).rglob("*.py"))]
    walkers = {file.stem for file in files if re.search(r"from \S*\bwalk import", file.read_text(encoding="utf-8"))}
    assert walkers == WALKERS


@pytest.mark.parametrize("place", PLACES)
def test_the_same_pictures_are_taken_everywhere(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder(tmp_path)
    with caplog.at_level("INFO", logger=LOG):
        assert PLACES[place](data) == 80
    said = [record.getMessage() for record in caplog.records if record.name == LOG]
    assert said and len(set(said)) == 1 and all(len(line) <= 300 for line in said)
    assert "80 pictures, " in said[0] and "in deeper folders; left out: " in said[0]
    assert "4 hidden files, 1 hidden folder, 2 other files" in said[0]


@pytest.mark.parametrize("place", PLACES)
def test_names_that_are_not_utf8_are_refused_everywhere(place: str, tmp_path: Path) -> None:
    data = folder(tmp_path)
    save(Path(os.fsdecode(os.fsencode(data) + b"/bus/caf\xe9.png")), 1)
    with pytest.raises(EdgeAdvError, match=r"bus/caf\\xe9\.png is not UTF-8: rename it") as refused:
        PLACES[place](data)
    str(refused.value).encode()


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of a few kilobytes that would be 192 MB."""
    path = tmp_path_factory.mktemp("huge") / "bus" / "huge.png"
    path.parent.mkdir()
    Image.new("1", (MOST_PIXELS // 8000 + 1, 8000)).save(path)
    return path


@pytest.mark.parametrize(
    "take",
    [
        load,
        decode,
        lambda path: as_image(Image.open(path)),
        lambda path: upright(Image.open(path)),
        lambda path: STEPS(Image.open(path)),
        lambda path: folder_frames(path.parent, preprocess=STEPS),
        lambda path: list(open_source(str(path.parent)).frames()),
    ],
)
def test_more_than_64_million_pixels_are_refused_by_the_header(
    take: Callable[[Path], object], huge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(self: Image.Image) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(EdgeAdvError, match="more than 64 million pixels: cut it"):
        take(huge)


def test_a_picture_beyond_pillows_own_limit_is_refused_in_the_same_words(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="more than 64 million pixels: cut it"):
        load(tmp_path / "huge.png")


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for it, whatever the file is called."""
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    (tmp_path / "cat.jpg").write_text(text)
    (tmp_path / "cat.eps").write_text(text)
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("another program was run"))
    for name in ("cat.jpg", "cat.eps"):
        with pytest.raises(DataError, match="it is no picture that is known here"):
            load(tmp_path / name)
    assert [file.name for file in pictures(tmp_path)] == ["cat.jpg"]


def test_a_damaged_tiff_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes to standard error what Pillow raises."""
    path = tmp_path / "x.tif"
    Image.fromarray(np.arange(40_000, dtype=np.uint8).reshape(200, 200)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[8:2000] = b"\xff" * 1992
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable image"):
        load(path)
    assert capfd.readouterr() == ("", "")
