"""Data by one call: a name, a folder or a map-style ``Dataset`` becomes images to train and to test on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.errors import DataError, InputError

from .datasets import ImageSet, Split, open_data, preprocess_for

_LOOKED_AT = 16


class ImageDataset(Protocol):
    """A map-style data set: torch's ``Dataset``, a ``Subset`` of one, or a list of pairs."""

    def __getitem__(self, index: int, /) -> Any: ...
    def __len__(self) -> int: ...


class Data:
    """Images to train on and images to test on; each part is opened when it is first asked for, and once.

    Args:
        name: what it is called.
        open_part: opens ``"train"`` or ``"test"``.

    Attributes:
        name: what it is called.
    """

    def __init__(self, name: str, open_part: Callable[[Split], ImageSet]) -> None:
        self.name = name
        self._open = open_part

    @cached_property
    def train(self) -> ImageSet:
        """The images to train on.

        Raises:
            DataError: there are none, or they cannot be opened.
        """
        return self._open("train")

    @cached_property
    def test(self) -> ImageSet:
        """The images to test on, labelled as they are.

        Raises:
            DataError: there are none, or they cannot be opened.
        """
        return self._open("test")

    @property
    def classes(self) -> Classes:
        """The classes in label order; those of the test images where there is nothing to train on."""
        try:
            return self.train.classes
        except DataError:
            return self.test.classes

    def __repr__(self) -> str:
        return f"Data({self.name!r})"


Source: TypeAlias = str | Path | ImageDataset | ImageSet
"""What :func:`load_data` takes."""


def load_data(
    data: Source | Data,
    *,
    test: ImageDataset | ImageSet | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Data:
    """Labelled images by name, by folder, or from a data set in memory.

    ::

        data = load_data("gtsrb/")
        print(len(data.train), len(data.test), data.classes.ids[:3])

    Args:
        data: a name (``"mnist5k"``, ``"cifar10"``, ...) or a folder, see :func:`~edgeadv.data.datasets.open_data`; or
            a map-style data set of (image, label), see :func:`image_set`; or images that are open, such as
            ``data.train``. :class:`Data` is handed back.
        test: the data set or open images to test on, where ``data`` is one of these.
        root: where torchvision keeps its data; None takes the user's cache.
        download: let torchvision download what is not there.

    Returns:
        Nothing is opened yet where ``data`` is a name or a folder: what is wrong with it is said then.

    Raises:
        InputError: ``data`` is none of these, or ``test`` does not go with it.
        DataError: an image of the data set is of no kind that is known.
    """
    if isinstance(data, str | Path | Data):
        if test is not None:
            raise InputError(
                "test", "goes with a data set in memory: a name or a folder has a part of its own to test on"
            )
        if isinstance(data, Data):
            return data
        spec, folder = str(data), None if root is None else Path(root)
        return Data(Path(spec).name, lambda split: open_data(spec, split=split, root=folder, download=download))
    train = image_set(data, split="train", field="data")
    tests = (
        None if test is None else image_set(test, split="test", classes=train.classes, name=train.spec, field="test")
    )

    def part(split: Split) -> ImageSet:
        if split == "test" and tests is None:
            raise DataError("test", f"is missing: load_data({train.spec}, test=...) takes the images to test on")
        return train if split == "train" or tests is None else tests

    return Data(train.spec, part)


def image_set(
    dataset: ImageDataset | ImageSet,
    *,
    split: str = "test",
    classes: Classes | Sequence[str] | None = None,
    name: str | None = None,
    field: str = "dataset",
) -> ImageSet:
    """One data set in memory as labelled images.

    Args:
        dataset: map-style, of (image, label). An image is a Pillow image, a uint8 array (height, width, 3) or (height,
            width), a uint16 array (height, width), or a tensor (3 or 1, height, width), uint8 or float in [0, 1]; it
            is not normalised, which the model does. A label is a whole number from 0. Labels are read off ``targets``
            or ``labels`` where the data set has them, else every item is read once. Images that are open are labelled
            in the order of ``classes`` where these are given.
        split: what the images are for: ``"train"`` or ``"test"``.
        classes: in label order; None takes the data set's ``classes``, or the labels themselves.
        name: what to call it; None takes the name of its class.
        field: what errors call ``dataset``.

    Raises:
        InputError: it is no map-style data set, holds nothing, or has other labels than there are classes.
        DataError: an image is of no kind that is known.
    """
    if isinstance(dataset, ImageSet):
        if classes is None:
            return dataset
        return dataset.relabel(classes if isinstance(classes, Classes) else Classes(tuple(classes), tuple(classes)))
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise InputError(
            field,
            f"is of type {type(dataset).__name__}: give a name, a folder or a map-style data set of (image, label)",
        )
    if not len(dataset):
        raise InputError(field, "holds no images")
    labels, known = _labels(dataset, field), classes or _class_names(dataset)
    known = known or [str(i) for i in range(int(labels.max()) + 1)]
    if not isinstance(known, Classes):
        known = Classes(tuple(known), tuple(known))
    if labels.min() < 0 or labels.max() >= len(known):
        raise InputError(field, f"has labels from {labels.min()} to {labels.max()}, and {len(known)} classes")
    read = _Dataset(dataset)
    try:
        sides = [min(read(int(i)).size) for i in np.unique(np.linspace(0, len(labels) - 1, _LOOKED_AT).astype(int))]
    except DataError as error:
        raise DataError(field, f"cannot be read: {error}") from error
    name = name or type(dataset).__name__
    names = [f"{name}[{i}]" for i in range(len(labels))]
    return ImageSet(name, split, known, labels, names, preprocess_for(sides), read)


def _labels(dataset: ImageDataset, field: str) -> NDArray[np.int64]:
    """The label of each item, int64 of shape (n,)."""
    known = next((found for key in ("targets", "labels") if (found := getattr(dataset, key, None)) is not None), None)
    try:
        labels = np.asarray([dataset[i][1] for i in range(len(dataset))] if known is None else known)
        whole = labels.astype(np.int64)
        if labels.shape != (len(dataset),) or (labels != whole).any():
            raise ValueError("one whole number for each image is due")
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InputError(
            field, f"has no labels that are whole numbers ({error}): its items are (image, label)"
        ) from error
    return whole


def _class_names(dataset: Any) -> list[str]:
    """The data set's ``classes``, which may be names or tuples of them; a Subset has those of its whole."""
    own = getattr(dataset, "classes", None) or getattr(getattr(dataset, "dataset", None), "classes", None) or []
    return [str(each[0] if isinstance(each, tuple) else each) for each in own]


@dataclass(frozen=True)
class _Dataset:
    """Images of a data set in memory; picklable for worker processes where the data set is."""

    dataset: ImageDataset

    def __call__(self, i: int) -> Image.Image:
        try:
            return _picture(self.dataset[i][0])
        except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
            raise DataError(f"image {i} is not readable ({error})") from error


def _picture(image: Any) -> Image.Image:
    """A Pillow image of what a data set may hold.

    Raises:
        ValueError: it is of no kind that is known.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        if image.ndim == 3:
            image = image.transpose(1, 2, 0)
        if image.dtype.kind == "f":
            if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
                raise ValueError(
                    "a tensor of floats is in [0, 1]: leave the normalisation out, the model has it inside"
                )
            image = np.rint(image * 255).astype(np.uint8)
    deep = isinstance(image, np.ndarray) and image.dtype == np.uint16 and image.ndim == 2
    if not deep and (not isinstance(image, np.ndarray) or image.dtype != np.uint8):
        raise ValueError(
            f"a {getattr(image, 'dtype', type(image).__name__)} is no Pillow image, uint8 array or tensor in [0, 1]"
        )
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"an image of shape {image.shape} has no 3 channels")
    return Image.fromarray(np.ascontiguousarray(image))
