"""Data by one call: names and folders as ``--data`` takes them, and data sets in memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from edgeadv.data.datasets import ImageSet, batches
from edgeadv.data.sources import Data, image_set, load_data
from edgeadv_runtime.errors import DataError, InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 40, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


class Pairs(Dataset[Any]):
    """What a user writes: it says nothing of its labels."""

    def __init__(self, images: Any, labels: Any = LABELS) -> None:
        self.images, self.labels_ = images, labels

    def __len__(self) -> int:
        return len(self.labels_)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.images[i], int(self.labels_[i])


class Named(Pairs):
    """What torchvision's data sets are like."""

    classes = ("cat", "dog", "owl")

    @property
    def targets(self) -> list[int]:
        return [int(label) for label in self.labels_]


def pixels_of(images: ImageSet) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(images.image(i)) for i in range(len(images))])


def test_a_name_is_opened_when_it_is_asked_for_and_once():
    nowhere = load_data("nowhere")
    with pytest.raises(DataError, match="neither a folder nor one of mnist5k"):
        _ = nowhere.train
    data = load_data("mnist5k")
    assert data.train is data.train and (len(data.train), len(data.test)) == (4000, 1000)
    assert data.name == "mnist5k" and data.classes is data.train.classes
    assert load_data(data) is data


def test_a_folder_has_the_classes_of_what_is_there(tmp_path: Path):
    for part in ("train", "test"):
        for label, name in enumerate(("a", "b")):
            (tmp_path / "split" / part / name).mkdir(parents=True)
            Image.fromarray(PIXELS[label]).save(tmp_path / "split" / part / name / "0.png")
    split = load_data(tmp_path / "split")
    assert (split.name, split.train.split, split.test.split, split.classes.ids) == (
        "split",
        "train",
        "test",
        ("a", "b"),
    )
    # class folders alone are for testing
    assert load_data(str(tmp_path / "split" / "test")).classes.ids == ("a", "b")


TENSOR = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "images",
    [
        [Image.fromarray(each) for each in PIXELS],
        PIXELS,
        TENSOR,
        TENSOR / 255,
        (TENSOR / 255).double(),
    ],
    ids=["pillow", "array", "uint8", "float", "double"],
)
def test_every_kind_of_image_keeps_its_pixels(images: Any):
    found = image_set(Pairs(images))
    assert np.array_equal(pixels_of(found), PIXELS)
    assert found.labels.tolist() == LABELS.tolist() and found.classes.ids == ("0", "1", "2")
    # 32 pixels are taken as they are
    assert (found.preprocess.crop, found.split, found.spec) == (32, "test", "Pairs")
    assert [batch.pixels.shape for batch in batches(found, found.preprocess, batch_size=8)] == [
        (8, 32, 32, 3),
        (4, 32, 32, 3),
    ]


def test_grey_images_are_images():
    assert image_set(Pairs(PIXELS[..., 0])).image(0).mode == "L"
    assert np.array_equal(np.asarray(image_set(Pairs(TENSOR[:, :1])).image(3)), PIXELS[3, :, :, 0])


def test_names_of_classes_are_the_data_sets_own_and_the_test_part_follows():
    data = load_data(
        Subset(Named(PIXELS), list(range(6))), test=TensorDataset(TENSOR[6:], torch.from_numpy(LABELS[6:]))
    )
    assert data.classes.ids == ("cat", "dog", "owl") == data.test.classes.ids
    assert (len(data.train), len(data.test), data.name, data.test.spec) == (6, 6, "Subset", "Subset")
    assert np.array_equal(pixels_of(data.test), PIXELS[6:])
    assert repr(data) == "Data('Subset')"


def test_images_in_memory_go_to_worker_processes():
    found = image_set(TensorDataset(TENSOR, torch.from_numpy(LABELS)))
    assert np.array_equal(pickle.loads(pickle.dumps(found)).image(5), found.image(5))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "`data` is of type int: give a name, a folder or a map-style data set"),
        (DataLoader(Pairs(PIXELS)), "`data` is of type DataLoader"),
        ([], "`data` holds no images"),
        (TensorDataset(TENSOR, torch.arange(12) + 0.5), "`data` has no labels that are whole numbers"),
        (TensorDataset(TENSOR), "`data` has no labels that are whole numbers"),
        (Named(PIXELS, LABELS + 1), "`data` has labels from 1 to 3, and 3 classes"),
        (Pairs(PIXELS, LABELS - 1), "`data` has labels from -1 to 1"),
        (Pairs(TENSOR / 255 - 0.5), r"`data` cannot be read: image 0 .* in \[0, 1\]: leave the normalisation out"),
        (Pairs(PIXELS / 255), "a float64 is no Pillow image"),
        (Pairs(PIXELS[:, :, :, :2]), "of shape .* has no 3 channels"),
        (Pairs(["a.png"] * 12), "a str is no Pillow image"),
    ],
)
def test_what_is_no_data_set_of_images_is_refused_by_field(source: Any, says: str):
    with pytest.raises(InputError, match=says) as error:
        load_data(source)
    assert error.value.field == "data"


def test_a_test_part_goes_with_a_data_set_in_memory_and_must_be_given():
    alone = load_data(Pairs(PIXELS))
    with pytest.raises(DataError, match=r"^`test` is missing: load_data\(Pairs, test=\.{3}\) takes the images"):
        _ = alone.test
    with pytest.raises(InputError, match=r"^`test` goes with a data set in memory"):
        load_data("mnist5k", test=Pairs(PIXELS))
    with pytest.raises(InputError, match=r"^`test` has labels from 3 to 5, and 3 classes"):
        load_data(Pairs(PIXELS), test=Pairs(PIXELS, LABELS + 3))
    assert isinstance(alone, Data)
    with pytest.raises(InputError, match="classes need at least two distinct ids"):
        load_data(Pairs(PIXELS, LABELS * 0))


def test_open_images_are_taken_and_the_test_part_has_the_labels_of_the_training_part(tmp_path: Path):
    for part, classes in (("train", ("cat", "dog", "owl")), ("test", ("dog", "owl"))):
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    whole = load_data(tmp_path)
    assert whole.test.classes.ids == ("dog", "owl") and whole.test.labels.tolist() == [0, 1]
    data = load_data(whole.train, test=whole.test)
    assert data.train is whole.train
    assert data.test.classes == whole.train.classes and data.test.labels.tolist() == [1, 2]
    assert image_set(whole.test, classes=["cat", "dog", "owl"]).labels.tolist() == [1, 2]
    with pytest.raises(DataError, match="`test` is missing"):
        _ = load_data(whole.train).test
