"""The frames of the self-test, and what the exported model must make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Due, load_arrays
from ..errors import BundleError
from ..reading import decoded, read_bytes

_FRAMES = (Due.of("uint8", None, None, 3), Due.of("uint16", None, None))


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
        return cls.parse(read_bytes(path, what="golden file"), path)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Golden:
        """The same of the bytes of the file at ``path``.

        Raises:
            BundleError: they are not those of such a file.
        """
        with decoded(path, what="not a golden file", mend="export the bundle again"):
            due = {"pixels": Due.of("uint8", None, None, None, None), "logits_*": Due.of("float32", None, None)}
            arrays = load_arrays(data, {**due, "frame_*": _FRAMES})
            pixels = arrays["pixels"]
            frames = [arrays[f"frame_{i}"] for i in range(len(pixels))]
            logits = {k.removeprefix("logits_"): arrays[k] for k in arrays if k.startswith("logits_")}
            _check(frames, pixels, logits)
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


def _check(frames: list[Any], pixels: Any, logits: dict[str, Any]) -> None:
    if not len(pixels) or not all(frame.size for frame in frames):
        raise ValueError("it holds no frames, or an empty one")
    if not all(len(values) == len(pixels) and np.isfinite(values).all() for values in logits.values()):
        raise ValueError("logits are not finite numbers for each frame")
