"""The frames of the self-test, and what the exported model must make of them."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError

NO_ARRAYS = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
"""What reading arrays by name raises of a file that does not hold them."""


@dataclass(frozen=True)
class Golden:
    """Real frames and what the exported model must make of them.

    Attributes:
        frames: uint8 RGB arrays of shape (height, width, 3), or uint16 of shape (height, width); sizes may differ.
        pixels: uint8 array of shape (n, height, width, channels): the frames preprocessed.
        logits: for each variant, finite float32 of shape (n, classes), computed by ONNX Runtime on the CPU at export.
    """

    frames: list[NDArray[Any]]
    pixels: NDArray[np.uint8]
    logits: dict[str, NDArray[np.float32]]

    def save(self, path: Path) -> None:
        """Write a compressed ``.npz`` without pickles."""
        arrays: dict[str, Any] = {f"frame_{i}": frame for i, frame in enumerate(self.frames)}
        arrays["pixels"] = self.pixels
        arrays |= {f"logits_{variant}": values for variant, values in self.logits.items()}
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                pixels = arrays["pixels"]
                frames = [arrays[f"frame_{i}"] for i in range(len(pixels))]
                logits = {k.removeprefix("logits_"): arrays[k] for k in arrays.files if k.startswith("logits_")}
            _check(frames, pixels, logits)
        except NO_ARRAYS as error:
            raise BundleError(f"{path} is not a golden file ({error}); export the bundle again") from error
        return cls(frames=frames, pixels=pixels, logits=logits)

    def check_fits(self, path: Path, *, pixels: tuple[int, int, int], classes: int, count: int) -> None:
        """Refuse frames of another bundle.

        Raises:
            BundleError: they are not ``count`` frames of shape ``pixels`` with ``classes`` logits each.
        """
        height, width, channels = pixels
        shapes = {(count, *pixels), *((count, classes) for _ in self.logits)}
        if {self.pixels.shape, *(values.shape for values in self.logits.values())} != shapes:
            raise BundleError(
                f"{path} does not fit its bundle: {count} frames of {height}x{width}x{channels} and "
                f"{classes} classes are due"
            )


def _is_frame(frame: Any) -> bool:
    colour = frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    return bool(frame.size) and (colour or (frame.dtype == np.uint16 and frame.ndim == 2))


def _check(frames: list[Any], pixels: Any, logits: dict[str, Any]) -> None:
    if not all(map(_is_frame, frames)):
        raise ValueError("a frame is not uint8 of shape (height, width, 3), nor uint16 of shape (height, width)")
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError("pixels are not uint8 of shape (n, height, width, channels)")
    for values in logits.values():
        if (
            values.dtype != np.float32
            or values.ndim != 2
            or len(values) != len(pixels)
            or not np.isfinite(values).all()
        ):
            raise ValueError("logits are not finite float32 of shape (n, classes)")
