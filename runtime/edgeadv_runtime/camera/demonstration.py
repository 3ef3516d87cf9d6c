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

from ..bundle.bundle import Bundle
from ..bundle.golden import NO_ARRAYS
from ..errors import BundleError, InputError, IntegrityError
from ..files import write_bytes
from ..records.eps import Eps

SCHEMA_VERSION = 1


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
        try:
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["schema_version"]) != SCHEMA_VERSION:
                    raise ValueError(f"schema version {int(stored['schema_version'])}")
                found = cls(stored["sign"], Eps.parse(str(stored["eps"])), str(stored["weights_sha256"]))
        except FileNotFoundError as error:
            raise BundleError(f"{path} does not exist: edgeadv perturbation makes it") from error
        except (*NO_ARRAYS, InputError) as error:
            raise BundleError(
                f"{path} is not a stored perturbation ({error}): edgeadv perturbation makes one"
            ) from error
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
