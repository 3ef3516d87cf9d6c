"""A stored perturbation that is added to live frames, so that people see what an attack does to a label.

It is one perturbation for all images, made in PyTorch by ``edgeadv perturbation``; an attacker who has the frame does
better.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arrays import Due, load_arrays
from ..bundle.bundle import Bundle
from ..errors import BundleError, InputError, IntegrityError
from ..files import write_bytes
from ..reading import MIB, decoded, read_bytes
from ..records.eps import Eps

SCHEMA_VERSION = 1
_MOST_BYTES = 256 * MIB
_DUE = {
    "schema_version": Due.of("int64"),
    "sign": Due.of("int8", None, None, None),
    "eps": Due.of("str"),
    "weights_sha256": Due.of("str"),
}


@dataclass(frozen=True, eq=False)
class StoredPerturbation:
    """One perturbation for all images of a bundle.

    Attributes:
        sign: int8 (height, width, channels), of -1, 0 and 1: the direction in which each value is moved.
        eps: the budget that it was made for.
        weights_sha256: hash of the weights that it was made against.
    """

    sign: NDArray[np.int8]
    eps: Eps
    weights_sha256: str

    def save(self, path: Path) -> None:
        """Write it to ``path``.

        Raises:
            StorageError: ``path`` cannot be written.
        """
        stream = io.BytesIO()
        np.savez_compressed(
            stream, schema_version=SCHEMA_VERSION, sign=self.sign, eps=self.eps.text, weights_sha256=self.weights_sha256
        )
        write_bytes(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path, bundle: Bundle) -> StoredPerturbation:
        """Read what :meth:`save` wrote, for ``bundle``.

        Raises:
            BundleError: the file is missing or damaged.
            IntegrityError: it was made for other weights.
        """
        if not path.exists():
            raise BundleError(f"{path} does not exist: edgeadv perturbation makes it")
        data = read_bytes(path, what="stored perturbation", limit=_MOST_BYTES, links=True)
        with decoded(path, what="not a stored perturbation", mend="edgeadv perturbation makes one"):
            stored = load_arrays(data, _DUE)
            if int(stored["schema_version"]) != SCHEMA_VERSION:
                raise ValueError(f"schema version {int(stored['schema_version'])}")
            found = cls(stored["sign"], Eps.parse(str(stored["eps"])), str(stored["weights_sha256"]))
        if found.weights_sha256 != bundle.weights_sha256:
            raise IntegrityError(f"{path} was made for the weights of another bundle: make it again with this one")
        due = bundle.preprocess.pixel_shape
        if found.sign.shape != due or found.sign.dtype != np.int8 or np.abs(found.sign).max(initial=0) > 1:
            raise BundleError(f"{path} is damaged: make it again")
        return found

    def levels(self, strength: float) -> int:
        """Grey levels by which ``strength`` in [0, 1] moves each value, never more than the budget holds.

        Raises:
            InputError: ``strength`` is out of range.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"strength must be in [0, 1], not {strength}")
        return int(strength * self.eps.grey_levels + 0.5)

    def applied(self, pixels: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
        """``pixels`` moved by ``strength`` times the budget, in whole grey levels.

        Args:
            pixels: uint8 (height, width, channels).
            strength: in [0, 1].

        Raises:
            InputError: ``strength`` is out of range.
        """
        levels = self.levels(strength)
        if not levels:
            return pixels
        moved: NDArray[np.uint8] = np.clip(pixels + np.int16(levels) * self.sign, 0, 255).astype(np.uint8)
        return moved
