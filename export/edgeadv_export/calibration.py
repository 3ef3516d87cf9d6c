"""Which images int8 is calibrated on: chosen by seed before any accuracy is seen, and named by hash in the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv.data.datasets import UNLABELLED, ImageSet, all_pictures, balanced_subset, batches, open_data, parts
from edgeadv.data.sources import Data
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.bundle.walk import Walk, pictures
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import sha256_bytes

from .int8 import METHOD

DEFAULT_COUNT, FEWEST, ADVISED = 512, 32, 300
TRAIN = "train"
_TEST_PARTS = {"test", "val"}
# a stream of its own: a --limit of the same seed would otherwise choose the very images that were calibrated on
_STREAM = 0xCA11B
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The images that give the ranges of the tensors. They are read again for each use, not held.

    Attributes:
        images: what they were chosen from.
        index: int64 (n,), their positions in ``images``, ascending.
        hashes: SHA-256 of the preprocessed pixels of each, all different.
        preprocess: how a frame becomes the model's input.
        seed: of the choice.
        unreadable: a message for each image that was not chosen because it could not be decoded.
    """

    images: ImageSet
    index: NDArray[np.int64]
    hashes: tuple[str, ...]
    preprocess: Preprocess
    seed: int
    unreadable: tuple[str, ...]

    @property
    def origin(self) -> str:
        """Name of the data set or folder, without its place."""
        return Path(self.images.spec).name

    def tensors(self) -> Iterator[NDArray[np.float32]]:
        """The images in batches, float32 (n, channels, height, width) in [0, 1]."""
        for batch in batches(self.images, self.preprocess, batch_size=_BATCH, order=self.index):
            yield to_tensor(batch.pixels)

    def sample(self, most: int) -> NDArray[np.float32]:
        """At most ``most`` of the images, spread evenly over them, float32 (n, channels, height, width)."""
        n = len(self.index)
        chosen = self.index[np.arange(min(most, n)) * n // min(most, n)]
        (batch,) = batches(self.images, self.preprocess, batch_size=most, order=chosen)
        return to_tensor(batch.pixels)

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of them."""
        return {
            "method": METHOD,
            "seed": self.seed,
            "count": len(self.hashes),
            "origin": self.origin,
            "split": self.images.split,
            "images": list(self.hashes),
        }


def choose_calibration(
    images: ImageSet, preprocess: Preprocess, *, count: int | None = None, seed: int = 0
) -> Calibration:
    """Choose ``count`` different images by ``seed``, as many of each class as there are; None is up to
    :data:`DEFAULT_COUNT`.

    An image that cannot be decoded, or whose preprocessed pixels are those of one already chosen, is passed over for
    the next one.

    ::

        calibration = choose_calibration(images, preprocess, count=512)

    Raises:
        InputError: ``count`` or ``seed`` is out of range, or there are not that many images.
    """
    wanted = DEFAULT_COUNT if count is None else count
    if wanted < FEWEST:
        raise InputError(
            f"`calibration_count` must be at least {FEWEST}, not {wanted}: fewer images give no stable ranges"
        )
    if seed < 0:
        raise InputError(f"`calibration_seed` must be 0 or above, not {seed}")
    chosen: dict[str, int] = {}
    unreadable: list[str] = []
    seen = np.empty(0, dtype=np.int64)
    while len(chosen) < wanted:
        # a larger subset of the same seed holds the smaller one
        subset = balanced_subset(images.labels, len(seen) + wanted - len(chosen), seed=(seed, _STREAM))
        if len(subset) == len(seen):
            if count is None and len(chosen) >= FEWEST:
                break
            raise InputError(
                f"{images.spec} ({images.split}) holds {len(chosen)} different readable images, fewer than the "
                f"{FEWEST if count is None else count} that are needed (`calibration_count`): give more images"
            )
        for batch in batches(images, preprocess, batch_size=_BATCH, order=np.setdiff1d(subset, seen)):
            unreadable += batch.unreadable
            for i, pixels in zip(batch.index.tolist(), batch.pixels, strict=True):
                chosen.setdefault(sha256_bytes(pixels.tobytes()), i)
        seen = subset
    hashes = sorted(chosen, key=chosen.__getitem__)
    index = np.array([chosen[digest] for digest in hashes], dtype=np.int64)
    return Calibration(
        images=images, index=index, hashes=tuple(hashes), preprocess=preprocess, seed=seed, unreadable=tuple(unreadable)
    )


def calibration_images(spec: str | None, *, run_data: Data | None = None) -> ImageSet:
    """Open what ``calibration_data`` names: ``train`` of the run, which is the default, or a folder.

    A folder holds class folders, or ``train/`` with class folders, or just pictures, at any depth.

    ::

        images = calibration_images("photos/", run_data=None)

    Args:
        spec: the option; None where it was not given.
        run_data: what the run was trained and tested on; None without a run.

    Raises:
        InputError: nothing was given, or test images, or a folder without images.
    """
    if run_data is not None and spec in (None, TRAIN):
        return run_data.train
    if spec is None:
        raise InputError(
            f"int8 needs `calibration_data`: a folder with at least {FEWEST} images such as the model will see"
        )
    folder = Path(spec).resolve()
    below = {child.name for child in Walk(folder).folders()} if folder.is_dir() else set()
    if below and TRAIN in parts(folder):
        return open_data(str(folder), split="train")
    if TRAIN in below and below & _TEST_PARTS:
        return calibration_images(str(folder / TRAIN))
    if {folder.name, *below} & _TEST_PARTS:
        raise InputError(
            f"`calibration_data` {spec} holds test images: calibrating on them would flatter every figure of the test; "
            f"give {TRAIN}ing images"
        )
    if not folder.is_dir():
        raise InputError(
            f"`calibration_data` {spec!r} is not a folder: give a folder of images"
            + ("" if run_data is None else f", or {TRAIN} for the images that the run was trained on")
        )
    walk = Walk(folder)
    files, classes = walk.pictures(), walk.folders()
    if not files:
        raise InputError(f"`calibration_data` {spec} holds no images: give a folder of such as the model will see")
    holding = {file.parent for file in files}
    if len(classes) > 1 and folder not in holding and holding.issuperset(classes):
        return open_data(str(folder), split="test")  # class folders, all of them
    return all_pictures(folder, pictures(folder), split="all")


def gate_images(
    calibration: Calibration,
    classes: Classes,
    *,
    folder: Path | None = None,
    run_data: Data | None = None,
    limit: int | None = None,
    allow_training_images: bool = False,
) -> tuple[ImageSet, NDArray[np.int64]]:
    """The labelled images that int8 is measured on, and which of them.

    Those of ``folder``; else the test images of the run; else what calibration left of its own class folders.

    ::

        images, order = gate_images(calibration, classes, folder=Path("labelled/"), run_data=None, limit=1000)

    Args:
        calibration: the images that were chosen; none of them is among the positions returned if they are of one set.
        classes: the model's.
        folder: class folders of labelled images.
        run_data: what the run was trained and tested on; None without a run.
        limit: at most this many, as many of each class.
        allow_training_images: take a ``folder`` whose name says that its images are for training.

    Returns:
        The set, labelled in the order of ``classes``, and positions in it, ascending.

    Raises:
        InputError: there are no labelled images, or none is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`gate_limit` must be at least 1, not {limit}")
    if folder is not None:
        if not folder.is_dir():
            raise InputError(f"`gate_data` {folder} is not a folder: give one with a folder of images for each class")
        images = open_data(str(folder), split="test")
        if images.split == "train" and not allow_training_images:
            raise InputError(
                f"`gate_data` {folder} holds training images, on which a network hides what it loses: give test images"
            )
    elif run_data is not None:
        images = run_data.test
    elif calibration.images.classes is UNLABELLED:
        raise InputError(
            f"int8 does not ship unmeasured, and {calibration.origin} has no class folders: give `gate_data`, a "
            "folder with a folder of images for each class"
        )
    else:
        images = calibration.images
    labelled = images.relabel(classes)
    order = np.arange(len(labelled))
    if images is calibration.images:
        order = np.setdiff1d(order, calibration.index)
        if not len(order):
            raise InputError(
                f"all {len(images)} images of {calibration.origin} are used for calibration and none is left to "
                "measure int8 on: lower `calibration_count`, or give `gate_data`"
            )
    return labelled, order[balanced_subset(labelled.labels[order], limit)]
