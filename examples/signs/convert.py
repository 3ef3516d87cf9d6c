"""Make the folder that the examples use out of the archives of the German Traffic Sign Recognition Benchmark.

    python examples/signs/convert.py TRAIN.zip TEST.zip TRUTH.zip gtsrb

The three are GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip of
https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html. Every second frame of a
track is taken, and every test picture, whole, at 48 x 48 pixels. (The project's own figures are of half of the test
pictures: those of this folder may differ by a point.)

    gtsrb/train/<class>/<track>_<frame>.jpg
    gtsrb/test/<class>/<number>.jpg

It needs Pillow only.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

CLASSES = 43
_UNREADABLE = (KeyError, OSError, ValueError, TypeError, zlib.error, Image.DecompressionBombError)


class BadArchiveError(Exception):
    """An archive does not hold what the benchmark's do."""


def labels(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Name of each picture as its table has it, with the table's folder before it, and its class, e.g. ``"00014"``."""
    tables = [
        name for name in archive.namelist() if PurePosixPath(name).name.startswith("GT-") and name.endswith(".csv")
    ]
    if not tables:
        raise BadArchiveError(f"{archive.filename} holds no table GT-....csv: give the benchmark's archive")
    for table in sorted(tables):
        with archive.open(table) as stream:
            for row in csv.DictReader(io.TextIOWrapper(stream, "ascii", "replace"), delimiter=";"):
                try:
                    number, name = int(row["ClassId"]), str(PurePosixPath(row["Filename"]))
                except (KeyError, TypeError, ValueError) as error:
                    raise BadArchiveError(f"{archive.filename}: {table} has no columns Filename and ClassId") from error
                if not 0 <= number < CLASSES:
                    raise BadArchiveError(f"{archive.filename}: {table} has class {number}, not 0 to {CLASSES - 1}")
                yield str(PurePosixPath(table).parent / name), f"{number:05d}"


def convert(archive: zipfile.ZipFile, name: str, target: Path, size: int) -> None:
    """One picture, whole, as a JPEG of ``size`` x ``size`` pixels."""
    try:
        with archive.open(name) as stream:
            picture = Image.open(stream).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except _UNREADABLE as error:
        raise BadArchiveError(f"{archive.filename}: {name} is not there or no picture ({error})") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, quality=92, subsampling=0)


def training(archive: zipfile.ZipFile, out: Path, size: int, every: int) -> int:
    """Every so-manieth frame of each track; returns how many."""
    count = 0
    for name, class_id in labels(archive):
        stem = PurePosixPath(name).stem
        frame = stem.rpartition("_")[2]
        if not frame.isdecimal():
            raise BadArchiveError(f"{archive.filename}: {name} is not called TRACK_FRAME")
        if int(frame) % every == 0:
            convert(archive, name, out / "train" / class_id / f"{stem}.jpg", size)
            count += 1
    return count


def testing(archive: zipfile.ZipFile, truth: zipfile.ZipFile, out: Path, size: int) -> int:
    """All pictures of the test part; returns how many."""
    place = {PurePosixPath(name).name: name for name in archive.namelist()}
    count = 0
    for name, class_id in labels(truth):
        file = PurePosixPath(name).name
        convert(archive, place.get(file, file), out / "test" / class_id / f"{PurePosixPath(file).stem}.jpg", size)
        count += 1
    return count


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("train", type=Path, help="GTSRB_Final_Training_Images.zip")
    options.add_argument("test", type=Path, help="GTSRB_Final_Test_Images.zip")
    options.add_argument("truth", type=Path, help="GTSRB_Final_Test_GT.zip")
    options.add_argument("out", type=Path, help="The folder to make.")
    options.add_argument("--size", type=int, default=48, help="Side of the pictures in pixels, by default 48.")
    options.add_argument("--every", type=int, default=2, help="Take one frame of so many of a track, by default 2.")
    given = options.parse_args()
    if given.out.exists() or given.every < 1 or not 8 <= given.size <= 1000:
        there = f"{given.out} exists: name a folder to make"
        print(there if given.out.exists() else "--every is from 1, --size 8 to 1000", file=sys.stderr)
        return 2
    # a folder that is there is whole
    part = given.out.with_name(f".{given.out.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with (
            zipfile.ZipFile(given.train) as train,
            zipfile.ZipFile(given.test) as test,
            zipfile.ZipFile(given.truth) as truth,
        ):
            trained, tested = training(train, part, given.size, given.every), testing(test, truth, part, given.size)
        part.rename(given.out)
    except (BadArchiveError, OSError, zipfile.BadZipFile) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{given.out}: {trained} to train on, {tested} to test on")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
