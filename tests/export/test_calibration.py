"""Which images are chosen, and which are refused."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeadv.data.datasets import ImageSet, balanced_subset, open_data
from edgeadv.data.sources import load_data
from edgeadv_export import Calibration, calibration_images, choose_calibration, gate_images
from edgeadv_export.calibration import DEFAULT_COUNT, UNLABELLED
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.pictures import decode
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.errors import DataError, InputError

CLASSES = Classes(("a", "b", "c"), ("a", "b", "c"))
STEPS = Preprocess(resize=None, crop=8)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 pictures: 30 of a, 20 of b and 10 of c."""
    for number, (name, count) in enumerate((("a", 30), ("b", 20), ("c", 10))):
        for i in range(count):
            picture(tmp_path / "photos" / name / f"{i:02d}.png", 100 * number + i)
    return tmp_path / "photos"


def choose(folder: Path, count: int = 32, seed: int = 0) -> Calibration:
    return choose_calibration(calibration_images(str(folder)), STEPS, count=count, seed=seed)


def test_the_choice_is_balanced_and_stable(folder: Path) -> None:
    first = choose(folder)
    assert Counter(first.images.labels[first.index].tolist()) == {0: 11, 1: 11, 2: 10}
    assert np.array_equal(first.index, choose(folder).index) and first.hashes == choose(folder).hashes
    assert not np.array_equal(first.index, choose(folder, seed=1).index)
    assert list(first.index) == sorted(set(first.index.tolist()))
    assert set(first.index.tolist()) < set(choose(folder, count=40).index.tolist())


def test_a_limit_of_the_same_seed_does_not_choose_the_same_images() -> None:
    """A --limit would otherwise score the very images that were calibrated on, or rather none at all."""
    images = open_data("mnist5k", split="train")
    calibrated = set(choose_calibration(images, images.preprocess, count=512).index.tolist())
    limited = set(balanced_subset(images.labels, 512).tolist())
    assert 30 < len(calibrated & limited) < 110  # 66 are to be expected of 4,000


def test_training_images_are_no_measure(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "split" / part)
    chosen = choose(folder)
    gate_images(chosen, CLASSES, folder=tmp_path / "split")
    with pytest.raises(InputError, match="holds training images"):
        gate_images(chosen, CLASSES, folder=tmp_path / "split" / "train")
    allowed, _ = gate_images(chosen, CLASSES, folder=tmp_path / "split" / "train", allow_training_images=True)
    assert allowed.split == "train"


def test_without_a_count_all_of_a_small_set_are_taken(folder: Path) -> None:
    images = calibration_images(str(folder))
    everything = choose_calibration(images, STEPS)
    assert len(everything.index) == len(images) < DEFAULT_COUNT
    with pytest.raises(InputError, match=f"fewer than the {len(images) + 1} "):
        choose_calibration(images, STEPS, count=len(images) + 1)


def test_hashes_are_those_of_the_preprocessed_pixels(folder: Path) -> None:
    calibration = choose(folder)
    files = sorted(folder.rglob("*.png"))
    expected = [hashlib.sha256(np.asarray(Image.open(files[i]).convert("RGB")).tobytes()) for i in calibration.index]
    assert list(calibration.hashes) == [digest.hexdigest() for digest in expected]
    assert calibration.to_json() == {
        "method": "minmax-p95",
        "seed": 0,
        "count": 32,
        "origin": "photos",
        "split": "all",
        "images": list(calibration.hashes),
    }


def test_batches_hold_every_chosen_image_once(folder: Path) -> None:
    calibration = choose(folder, count=40)
    parts = list(calibration.tensors())
    assert [len(part) for part in parts] == [16, 16, 8]
    files = sorted(folder.rglob("*.png"))
    expected = to_tensor(np.stack([STEPS(decode(files[i])) for i in calibration.index]))
    assert np.array_equal(np.concatenate(parts), expected)
    sample = calibration.sample(5)
    assert np.array_equal(sample, expected[[0, 8, 16, 24, 32]])
    assert len(calibration.sample(100)) == 40


def test_unreadable_images_and_repetitions_are_passed_over(folder: Path) -> None:
    chosen = choose(folder)
    files = sorted(folder.rglob("*.png"))
    files[chosen.index[0]].write_bytes(b"not a picture")
    files[chosen.index[5]].write_bytes(files[chosen.index[6]].read_bytes())
    again = choose(folder)
    assert len(again.index) == len(set(again.hashes)) == 32
    assert chosen.index[0] not in again.index
    assert len({chosen.index[5], chosen.index[6]} & set(again.index.tolist())) == 1
    assert len(set(again.index.tolist()) - set(chosen.index.tolist())) == 2
    (message,) = again.unreadable
    assert files[chosen.index[0]].name in message


def test_too_few_images(folder: Path) -> None:
    with pytest.raises(InputError, match="holds 60 different readable images, fewer than the 61"):
        choose(folder, count=61)
    for file in list(folder.rglob("*.png"))[:40]:
        file.write_bytes(b"")
    with pytest.raises(InputError, match="holds 20 different readable images"):
        choose(folder)


@pytest.mark.parametrize(
    ("count", "seed", "says"), [(31, 0, "at least 32"), (-1, 0, "at least 32"), (32, -1, "0 or above")]
)
def test_numbers_out_of_range(folder: Path, count: int, seed: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose(folder, count, seed)


def test_a_folder_of_pictures_without_classes(folder: Path) -> None:
    images = calibration_images(str(folder / "a"))
    assert images.classes is UNLABELLED and len(images) == 30 and images.split == "all"
    picture(folder / "a" / "deeper" / "more.png", 999)
    assert len(calibration_images(str(folder / "a"))) == 31
    # pictures beside class folders: whose class would they be of?
    picture(folder / "stray.png", 998)
    assert calibration_images(str(folder)).classes is UNLABELLED


def test_a_split_folder_gives_its_training_part(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    folder.rename(tmp_path / "split" / "train")
    picture(tmp_path / "split" / "test" / "a" / "0.png", 1)
    images = calibration_images(str(tmp_path / "split"))
    assert (images.split, len(images)) == ("train", 60)


def test_test_images_beside_other_folders_are_not_calibrated_on(folder: Path, tmp_path: Path) -> None:
    """Whatever else lies there: a picture beside the class folders, and a folder that is neither."""
    whole = tmp_path / "whole"
    whole.mkdir()
    folder.rename(whole / "train")
    for name in ("train", "test", "docs"):
        picture(whole / name / "beside.png", 2)
    for i in range(40):
        picture(whole / "test" / "a" / f"{i}.png", 3 + i)
    images = calibration_images(str(whole))
    assert len(images) == 61
    (whole / "train").rename(whole / "images")
    with pytest.raises(InputError, match="flatter"):
        calibration_images(str(whole))


def test_the_training_images_of_a_run_are_the_default(digits_train: ImageSet) -> None:
    for spec in (None, "train"):
        images = calibration_images(spec, run_data=load_data("mnist5k"))
        assert (images.spec, images.split, len(images)) == ("mnist5k", "train", len(digits_train))


@pytest.mark.parametrize("run_data", [None, "mnist5k"])
@pytest.mark.parametrize("name", ["test", "val"])
def test_test_images_are_refused(folder: Path, tmp_path: Path, run_data: str | None, name: str) -> None:
    with pytest.raises(InputError, match="flatter"):
        calibration_images(name, run_data=None if run_data is None else load_data(run_data))
    folder.rename(tmp_path / name)
    with pytest.raises(InputError, match="flatter"):
        calibration_images(str(tmp_path / name), run_data=None if run_data is None else load_data(run_data))
    (tmp_path / "half").mkdir()
    (tmp_path / name).rename(tmp_path / "half" / name)
    with pytest.raises(InputError, match="flatter"):
        calibration_images(str(tmp_path / "half"), run_data=None if run_data is None else load_data(run_data))


def test_nothing_to_calibrate_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8 needs `calibration_data`"):
        calibration_images(None)
    with pytest.raises(InputError, match=r"is not a folder: give a folder of images$"):
        calibration_images(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="or train for"):
        calibration_images("nowhere", run_data=load_data("mnist5k"))
    with pytest.raises(InputError, match="holds no images"):
        calibration_images(str(tmp_path))


# --- what int8 is measured on


def test_what_calibration_left_is_measured_on(folder: Path) -> None:
    calibration = choose(folder)
    model = Classes(("c", "x", "a", "b"), ("c", "x", "a", "b"))
    images, order = gate_images(calibration, model)
    assert set(order.tolist()) == set(range(60)) - set(calibration.index.tolist())
    assert [images.labels[i] for i in (0, 30, 50)] == [2, 3, 0]
    _, few = gate_images(calibration, model, limit=4)
    assert set(few.tolist()) < set(order.tolist()) and len(set(images.labels[few])) == 2


def test_a_run_is_measured_on_its_test_images(folder: Path, digits_test: ImageSet) -> None:
    images, order = gate_images(choose(folder), digits_test.classes, run_data=load_data("mnist5k"))
    assert (images.split, len(order)) == ("test", 1000)
    _, order = gate_images(choose(folder), digits_test.classes, run_data=load_data("mnist5k"), limit=20)
    assert Counter(images.labels[order].tolist()) == dict.fromkeys(range(10), 2)


def test_a_folder_to_measure_on_comes_first(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "gate" / name / "0.png", 1)
    images, order = gate_images(choose(folder), CLASSES, folder=tmp_path / "gate", run_data=load_data("mnist5k"))
    assert images.labels.tolist() == [0, 1] and order.tolist() == [0, 1]


def test_int8_does_not_ship_unmeasured(folder: Path, tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / "flat" / f"{i}.png", 500 + i)
    with pytest.raises(InputError, match="does not ship unmeasured, and flat has no class folders: give `gate_data`"):
        gate_images(choose(tmp_path / "flat"), CLASSES)
    with pytest.raises(InputError, match="all 60 images of photos are used for calibration"):
        gate_images(choose(folder, count=60), CLASSES)
    with pytest.raises(DataError, match="does not know: c"):
        gate_images(choose(folder), Classes(("a", "b"), ("a", "b")))
    with pytest.raises(InputError, match=r"`gate_data` .* is not a folder"):
        gate_images(choose(folder), CLASSES, folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match="class folder"):
        gate_images(choose(folder), CLASSES, folder=folder / "a")
    with pytest.raises(InputError, match="`gate_limit`"):
        gate_images(choose(folder), CLASSES, limit=0)
