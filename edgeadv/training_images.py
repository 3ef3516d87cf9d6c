"""The list of the images that a network was trained on: made of what training sees, before augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.errors import DataError
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.preprocess import Preprocess, pictures
from edgeadv_runtime.training_images import TrainingImages

from .data import DEFAULT_ROOT, ImageSet, all_pictures, batches, open_data
from .feed import Feed

_BATCH = 256


def fed_images(source: Feed, order: NDArray[np.int64]) -> TrainingImages:
    """The images at ``order`` as ``source`` gives them to training; unreadable ones are not among them.

    A set that lives on the device is not decoded again; a larger one is, once.
    """
    found: list[str] = []
    for batch in source.batches(_BATCH, order):
        pixels = batch.pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        found += [sha256_bytes(image.tobytes()) for image in pixels]
    return TrainingImages.of(found)


def named_images(
    spec: str, preprocess: Preprocess, *, root: Path = DEFAULT_ROOT, workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingImages:  # fmt: skip
    """The images of what ``--training-data`` names, under the ``preprocess`` of the network that was trained on them.

    Args:
        spec: a name as for ``--data``, of which the training part is read; or a folder: its ``train/`` if it has one, else every
            picture in it, at any depth.
        preprocess: of the network.
        root: where torchvision keeps its data.
        workers: processes that decode.
        progress: called with the images done and the images there are.

    Raises:
        DataError: there is no such data, or no image of it is readable.
    """
    images = _opened(spec, root)
    found: list[str] = []
    done = 0
    for batch in batches(images, preprocess, batch_size=_BATCH, workers=workers):
        found += [sha256_bytes(image.tobytes()) for image in batch.pixels]
        done += len(batch.index) + len(batch.unreadable)
        if progress is not None:
            progress(done, len(images))
    if not found:
        raise DataError(f"--training-data {spec} holds no readable image: give what the network was trained on")
    return TrainingImages.of(found)


def _opened(spec: str, root: Path) -> ImageSet:
    folder = Path(spec).resolve()
    if not folder.is_dir() or (folder / "train").is_dir():
        return open_data(spec, split="train", root=root)
    return all_pictures(folder, pictures(folder.rglob("*")), split="train")
