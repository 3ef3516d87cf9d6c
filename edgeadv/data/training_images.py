"""The list of the images that a network was trained on: made of what training sees, before augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.bundle.walk import pictures
from edgeadv_runtime.errors import DataError
from edgeadv_runtime.files import sha256_bytes

from .datasets import ImageSet, all_pictures, batches, open_data, parts
from .loading import Loader

_BATCH = 256


def fed_images(source: Loader, order: NDArray[np.int64]) -> TrainingImages:
    """The images at ``order`` as ``source`` gives them to training; unreadable ones are not among them.

    A set that lives on the device is not decoded again; a larger one is, once.
    """
    return TrainingImages.of(fed_hashes(source, order))


def fed_hashes(source: Loader, order: NDArray[np.int64]) -> list[str]:
    """The same as hex SHA-256 of pixels."""
    found: list[str] = []
    for batch in source.batches(_BATCH, order):
        pixels = batch.pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        found += [sha256_bytes(image.tobytes()) for image in pixels]
    return found


def training_data(spec: str, *, root: Path | None = None) -> ImageSet:
    """Open what ``--training-data`` names.

    Args:
        spec: a name as for ``--data``, of which the training part is read; or a folder: its ``train/`` if it has one,
            else every picture in it, at any depth.
        root: where torchvision keeps its data.

    Raises:
        DataError: there is no such data, or there are no images in it.
    """
    folder = Path(spec).resolve()
    if not folder.is_dir() or "train" in parts(folder):
        return open_data(spec, split="train", root=root)
    files = pictures(folder)
    if not files:
        raise DataError(f"`training_data` {spec} holds no images: give what the network was trained on")
    return all_pictures(folder, files, split="train")


def hashed(
    images: ImageSet, preprocess: Preprocess, *, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> TrainingImages:
    """All of ``images`` under the ``preprocess`` of the network that was trained on them; unreadable ones are passed
    over.

    Args:
        images: what it was trained on.
        preprocess: of the network.
        workers: processes that decode.
        progress: called with the images done and the images there are.

    Raises:
        DataError: no image is readable.
    """
    found: list[str] = []
    done = 0
    for batch in batches(images, preprocess, batch_size=_BATCH, workers=workers):
        found += [sha256_bytes(image.tobytes()) for image in batch.pixels]
        done += len(batch.index) + len(batch.unreadable)
        if progress is not None:
            progress(done, len(images))
    if not found:
        raise DataError(f"none of the {done} training images of {images.spec} is readable")
    return TrainingImages.of(found)
