"""Which images a network was trained on, known by hash: accuracy on them must not pass for accuracy on others.

A network is nearly always right about what it was trained on, whatever the folder is called that the images lie in. A
run and its bundle therefore carry the first 8 bytes of the SHA-256 of each image's preprocessed pixels. Only the very
pixels are found again: the same photograph at another JPEG quality, another frame of the same video or another crop is
another image here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arrays import Due, load_array
from ..errors import InputError
from ..reading import decoded, read_bytes

TRAINING_FILE = "training-images.npy"
"""The list's name in a run and in a bundle."""
MOST_PERCENT = 1
"""Of the images that are scored, so many in a hundred may be training images: data sets hold a few pictures twice."""
_DTYPE, _HEX = np.dtype("<u8"), 16
_WHAT = "list of training images"


def _shortened(images: Iterable[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of each hash, as little-endian numbers."""
    return np.frombuffer(bytes.fromhex("".join(image[:_HEX] for image in images)), dtype=_DTYPE)


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Images of one preprocessing, by the first 8 bytes of the SHA-256 of their pixels.

    Attributes:
        hashes: uint64 (n,), ascending, all different. That an image is taken for one of a million others by chance is
            as likely as 1 in 10^13.
    """

    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, images: Iterable[str]) -> TrainingImages:
        """Those with the hex SHA-256 of pixels in ``images``, as
        :attr:`~edgeadv_runtime.attacks.base.CleanBatch.hashes` has them."""
        return cls(np.unique(_shortened(images)))

    def __len__(self) -> int:
        return len(self.hashes)

    def __or__(self, other: TrainingImages | None) -> TrainingImages:
        """Both lists in one; None adds nothing."""
        return self if other is None else TrainingImages(np.union1d(self.hashes, other.hashes))

    def count(self, images: Sequence[str]) -> int:
        """How many of ``images``, hex SHA-256 of their pixels, are among these."""
        asked = _shortened(images)
        if not len(self):
            return 0
        # by bisection: np.isin would sort a million hashes again for each batch
        places = np.minimum(np.searchsorted(self.hashes, asked), len(self) - 1)
        return int((self.hashes[places] == asked).sum())

    def save(self, path: Path) -> None:
        """Write a ``.npy`` file of 8 bytes an image, without pickles; the same images give the same bytes."""
        with path.open("wb") as stream:
            np.save(stream, self.hashes.astype(_DTYPE), allow_pickle=False)

    @classmethod
    def load(cls, path: Path, *, count: int | None = None) -> TrainingImages:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            count: how many images it must hold; None takes any number.

        Raises:
            BundleError: the file is not such a list, or holds another number of images.
        """
        return cls.parse(read_bytes(path, what=_WHAT), path, count=count)

    @classmethod
    def parse(cls, data: bytes, path: Path, *, count: int | None = None) -> TrainingImages:
        """The same of the bytes of the file at ``path``.

        Raises:
            BundleError: they are not those of such a list, or hold another number of images.
        """
        with decoded(path, what=f"not a {_WHAT}", mend="export or copy it again"):
            hashes = load_array(data, Due.of("uint64", count)).astype(_DTYPE, copy=False)
            if not (hashes[1:] > hashes[:-1]).all():
                raise ValueError("the hashes are not in ascending order")
        return cls(hashes)


def too_many(known: int | None, n: int) -> bool:
    """Whether more than :data:`MOST_PERCENT` of ``n`` images, ``known`` of them trained on, flatter; None is not
    known."""
    return known is not None and 100 * known > MOST_PERCENT * n


def check_overlap(known: int | None, n: int, *, name: str, allowed: bool) -> None:
    """Refuse images of which too many were trained on.

    Args:
        known: how many; None where nobody knows.
        n: images that are scored.
        name: of the data.
        allowed: they may be.

    Raises:
        InputError: it is so, and that was not allowed.
    """
    if too_many(known, n) and not allowed:
        raise InputError(
            f"{name}: {known} of {n} images were trained on, so that accuracy would flatter: give others, or pass "
            "`allow_training_images`, which marks every row"
        )


def overlap_sentence(known: int | None, n: int) -> str:
    """What a reader must know of ``n`` images of which ``known`` were trained on; empty where that is none."""
    if known is None:
        return "whether the images were trained on is not known: the bundle has no list of its training images"
    if not known:
        return ""
    return f"{known} of {n} images were trained on" + (": these figures flatter" if too_many(known, n) else "")


@dataclass
class Overlap:
    """Counts, batch by batch, how many of the images that are scored were trained on.

    Attributes:
        training: the images that were trained on; None where they are not known.
        left_out: hex SHA-256 of images that are not scored, such as those that int8 was calibrated on.
        n: images so far, without those left out.
    """

    training: TrainingImages | None
    left_out: frozenset[str] = frozenset()
    n: int = 0
    _known: int = field(default=0, init=False)

    def add(self, images: Sequence[str]) -> None:
        """Add the images with these hex SHA-256 of their pixels."""
        scored = [image for image in images if image not in self.left_out] if self.left_out else images
        self.n += len(scored)
        if self.training is not None:
            self._known += self.training.count(scored)

    @property
    def known(self) -> int | None:
        """How many of them were trained on; None where that is not known."""
        return None if self.training is None else self._known

    def check(self, name: str, *, allowed: bool) -> None:
        """Refuse them if they are too many, as :func:`check_overlap` does.

        Raises:
            InputError: they are, and that was not allowed.
        """
        check_overlap(self.known, self.n, name=name, allowed=allowed)
