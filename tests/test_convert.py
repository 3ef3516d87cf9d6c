"""The converter of the traffic signs, on archives as the benchmark's are."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeadv.data.datasets import open_data
from edgeadv.data.lists import named_by

SIGNS = Path(__file__).parents[1] / "examples" / "signs"
COLUMNS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
NAMES = ("train.zip", "test.zip", "truth.zip")


def ppm(colour: tuple[int, int, int], size: tuple[int, int] = (30, 27)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PPM")
    return stream.getvalue()


def archives(folder: Path) -> None:
    """Three classes of two tracks of five frames; four test pictures."""
    with zipfile.ZipFile(folder / "train.zip", "w") as train:
        for number in range(3):
            home, rows = f"GTSRB/Final_Training/Images/{number:05d}", ""
            for track in range(2):
                for frame in range(5):
                    name = f"{track:05d}_{frame:05d}.ppm"
                    train.writestr(f"{home}/{name}", ppm((80 * number, 100 * track, 40 * frame)))
                    rows += f"{name};30;27;5;5;25;22;{number}\r\n"
            train.writestr(f"{home}/GT-{number:05d}.csv", COLUMNS + rows)
    with zipfile.ZipFile(folder / "test.zip", "w") as test, zipfile.ZipFile(folder / "truth.zip", "w") as truth:
        rows = ""
        for i, number in enumerate((0, 1, 2, 1)):
            test.writestr(f"GTSRB/Final_Test/Images/{i:05d}.ppm", ppm((80 * number, 0, 0), (60, 55)))
            rows += f"{i:05d}.ppm;60;55;5;5;55;50;{number}\r\n"
        test.writestr("GTSRB/Final_Test/Images/GT-final_test.test.csv", COLUMNS.replace(";ClassId", ""))
        truth.writestr("GT-final_test.csv", COLUMNS + rows)


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SIGNS / "convert.py"), *NAMES, "gtsrb", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_archives_become_the_folder(tmp_path: Path) -> None:
    archives(tmp_path)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "gtsrb: 18 to train on, 4 to test on\n"
    train, test = (open_data(str(tmp_path / "gtsrb"), split=split) for split in ("train", "test"))
    assert train.classes.ids == test.classes.ids == ("00000", "00001", "00002")
    assert train.names[:3] == [f"00000/00000_0000{frame}.jpg" for frame in (0, 2, 4)]
    assert test.labels.tolist() == [0, 1, 1, 2] and test.names[2] == "00001/00003.jpg"
    assert train.preprocess.input_shape == (3, 48, 48)
    pixels = np.asarray(train.image(7), dtype=int)
    assert pixels.shape == (48, 48, 3) and np.abs(pixels - (80, 0, 80)).max() < 8
    # a line of the list of held-out tracks is a whole track
    (tmp_path / "list").write_text("00001/00001_*\n")
    assert [train.names[i][:11] for i in named_by(tmp_path / "list", train.names, field="l")] == ["00001/00001"] * 3
    again = run(tmp_path)
    assert again.returncode == 2 and again.stderr == "gtsrb exists: name a folder to make\n"


def test_every_frame_at_another_size(tmp_path: Path) -> None:
    archives(tmp_path)
    assert run(tmp_path, "--every", "1", "--size", "32").stdout.startswith("gtsrb: 30 to train on")
    assert open_data(str(tmp_path / "gtsrb"), split="test").preprocess.input_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.zip", None, "No such file"),
        ("train.zip", {"GT-0.csv": COLUMNS.encode() + b"a.ppm;1;1;1;1;1;1;0\r\n"}, "a.ppm is not called TRACK_FRAME"),
        ("truth.zip", {"GT-final_test.csv": COLUMNS.encode() + b"9.ppm;1\r\n"}, "has no columns Filename and ClassId"),
        ("train.zip", {"readme.txt": b""}, "train.zip holds no table GT-....csv: give the benchmark's archive"),
        ("truth.zip", {"GT-final_test.csv": b"Filename;Class\r\na.ppm;1\r\n"}, "has no columns Filename and ClassId"),
        (
            "truth.zip",
            {"GT-final_test.csv": COLUMNS.encode() + b"0.ppm;1;1;1;1;1;1;43\r\n"},
            "has class 43, not 0 to 42",
        ),
        ("truth.zip", {"GT-final_test.csv": COLUMNS.encode() + b"9.ppm;1;1;1;1;1;1;4\r\n"}, "9.ppm is not there"),
    ],
)
def test_archives_of_something_else(tmp_path: Path, file: str, content: dict[str, bytes] | None, said: str) -> None:
    archives(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    done = run(tmp_path)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*NAMES} - {file if content is None else ""})


def test_a_damaged_picture_leaves_no_half_of_a_folder(tmp_path: Path) -> None:
    archives(tmp_path)
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("00000.ppm", b"P6 30 27 255 and nothing")
    done = run(tmp_path)
    assert done.returncode == 2 and "00000.ppm is not there or no picture" in done.stderr
    assert not (tmp_path / "gtsrb").exists()


@pytest.mark.parametrize("options", [("--every", "0"), ("--size", "0")])
def test_numbers_that_make_no_folder(tmp_path: Path, options: tuple[str, str]) -> None:
    archives(tmp_path)
    done = run(tmp_path, *options)
    assert done.returncode == 2 and done.stderr == "--every is from 1, --size 8 to 1000\n"


def test_the_committed_list_holds_out_a_tenth_of_each_class() -> None:
    lines = [line for line in (SIGNS / "holdout-tracks.txt").read_text().splitlines() if not line.startswith("#")]
    classes = [line.partition("/")[0] for line in lines]
    assert len(lines) == len(set(lines)) == 133 and set(classes) == {f"{i:05d}" for i in range(43)}
