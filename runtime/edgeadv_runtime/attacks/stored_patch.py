"""A patch for all pictures, as a PNG that can be printed, shown and scored."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..bundle.bundle import Bundle
from ..bundle.pictures import load
from ..decoding import Sha256, decode
from ..errors import BundleError, DataError, InputError, IntegrityError
from ..files import write_bytes
from ..records.eps import AREA, Eps
from .patches import patch_mask, patch_shape

_KEY = "edgeadv"
_LEAST_SIDE = 600
_MM_PER_INCH = 25.4
_AGAIN = "edgeadv patch makes one"


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """What is written in the PNG beside its pixels."""

    area: str
    shape: str
    weights_sha256: Sha256
    target: str | None = None


@dataclass(frozen=True, eq=False)
class StoredPatch:
    """One patch for all pictures of a bundle.

    Attributes:
        content: uint8 (h, w, channels), in pixels of the model's input.
        area: the share of the input that it covers at most.
        kind: ``"square"`` or ``"round"``.
        weights_sha256: hash of the weights that it was made against.
        target: id of the class that it was made to call up; None is any wrong one.
    """

    content: NDArray[np.uint8]
    area: Eps
    kind: str
    weights_sha256: str
    target: str | None = None

    def save(self, path: Path, *, print_mm: float) -> None:
        """Write a PNG whose side measures ``print_mm`` millimetres when it is printed at its own size.

        Raises:
            InputError: the size is not above 0.
            StorageError: ``path`` cannot be written.
        """
        if not 0 < print_mm < 10_000:
            raise InputError("print_mm", f"must be above 0 and below 10000 millimetres, not {print_mm:g}")
        h, w, channels = self.content.shape
        factor = -(-_LEAST_SIDE // max(h, w))
        values = self.content if channels == 3 else self.content.repeat(3, axis=2)
        covered = patch_mask(self.kind, h)
        drawn = np.dstack([values, np.where(covered, 255, 0).astype(np.uint8)])
        image = Image.fromarray(drawn).resize((w * factor, h * factor), Image.Resampling.NEAREST)
        text = PngInfo()
        about = _About(area=self.area.text, shape=self.kind, weights_sha256=self.weights_sha256, target=self.target)
        text.add_text(_KEY, json.dumps(msgspec.to_builtins(about)))
        per_inch = image.width / (print_mm / _MM_PER_INCH)
        with io.BytesIO() as stream:
            image.save(stream, "PNG", pnginfo=text, dpi=(per_inch, per_inch))
            write_bytes(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path, bundle: Bundle) -> StoredPatch:
        """Read what :meth:`save` wrote, for ``bundle``; of other weights it is taken, as patches are tried on others.

        Raises:
            BundleError: the file is missing or damaged.
            IntegrityError: it was made for another size of pictures.
        """
        try:
            image = load(path)
        except DataError as error:
            raise BundleError(f"{error}: {_AGAIN}") from error
        if _KEY not in image.info:
            raise BundleError(f"{path} is a picture and no patch of edgeadv: {_AGAIN}")
        about = decode(str(image.info[_KEY]).encode(), _About, what="patch", path=path, mend=_AGAIN)
        height, width, channels = bundle.preprocess.pixel_shape
        area = Eps.parse(about.area, norm=AREA)
        h, w = patch_shape(area, height, width, about.shape).mask.shape
        if image.width % w or image.height % h or image.width // w != image.height // h:
            raise IntegrityError(
                f"{path} was made for other pictures than those of {bundle.path}, of {width}x{height} pixels: make one "
                "with this bundle"
            )
        factor = image.width // w
        values = np.asarray(image.convert("RGB"))[factor // 2 :: factor, factor // 2 :: factor]
        return cls(np.ascontiguousarray(values[..., :channels]), area, about.shape, about.weights_sha256, about.target)

    def applied(self, pixels: NDArray[np.uint8], row: float, column: float) -> NDArray[np.uint8]:
        """``pixels`` with the patch on them.

        Args:
            pixels: uint8 (height, width, channels).
            row: of its middle, as a share of the height; it is moved inside where it would leave the picture.
            column: likewise, of the width.

        Raises:
            InputError: a place is out of [0, 1].
        """
        if not (0 <= row <= 1 and 0 <= column <= 1):
            raise InputError(f"the place of a patch is in [0, 1] of each side, not {row:g} and {column:g}")
        height, width = pixels.shape[:2]
        h, w = self.content.shape[:2]
        top, left = (
            int(min(max(round(share * whole - part / 2), 0), whole - part))
            for share, whole, part in ((row, height, h), (column, width, w))
        )
        moved = pixels.copy()
        there = moved[top : top + h, left : left + w]
        there[:] = np.where(patch_mask(self.kind, h)[..., None], self.content, there)
        return moved
