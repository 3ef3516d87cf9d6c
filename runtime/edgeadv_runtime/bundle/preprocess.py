"""From a picture to the tensor a model sees: the one implementation that training, export, attack, evaluation and
applications share.

A preprocessed image is uint8 HWC RGB. The float tensor is that array over 255, so every clean image is exactly
representable in 8 bits, and a perturbation of ``eps`` always means pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decoding import convert
from ..errors import DataError, InputError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ColorOrder = Literal["rgb", "bgr"]
Side = Annotated[int, msgspec.Meta(ge=1, le=8192)]

# of a resized picture, four bytes each; a picture of 150,000 x 1, 516 bytes as a file, would take ten thousand million
# of them
_MOST_PIXELS, _ALWAYS_TAKEN = 1 << 26, 4


def pictures(files: Iterable[Path]) -> list[Path]:
    """Those of ``files`` whose endings are of formats that :func:`decode` reads, sorted; Pillow writes some that it
    cannot read."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(file for file in files if file.suffix.lower() in suffixes and file.is_file())


def decode(path: Path) -> Image.Image:
    """Decode the image file at ``path`` to RGB, whole. EXIF orientation is not applied (as in torchvision).

    Raises:
        DataError: the file is missing, empty, truncated, not an image, or one of more than 8 bits a channel in grey.
    """
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except Exception as error:  # each of Pillow's decoders has errors of its own
        raise DataError(f"{path} is not a readable image ({error})") from error


def as_image(frame: Image.Image | NDArray[np.uint8], *, color_order: ColorOrder | None = None) -> Image.Image:
    """A Pillow RGB image from a Pillow image, or from a uint8 HWC array whose colour order is stated.

    Raises:
        InputError: wrong type, dtype or shape, an array without its colour order, or a picture that Pillow cannot
            convert.
    """
    if isinstance(frame, Image.Image):
        try:
            return _rgb(frame)
        except InputError:
            raise
        except Exception as error:  # a file that is decoded only now, or a mode that Pillow has no way from
            raise InputError(f"this picture cannot be converted to RGB ({error})") from error
    if not isinstance(frame, np.ndarray):
        raise InputError(f"a frame is a Pillow image or a uint8 HWC array, not {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InputError(
            f"a frame array is uint8 of shape (height, width, 3), not {frame.dtype} of shape {frame.shape}"
        )
    if color_order not in get_args(ColorOrder):
        raise InputError("state the colour order of a frame array: color_order='rgb' or 'bgr' (OpenCV gives bgr)")
    height, width, _ = frame.shape
    # Pillow swaps the channels while it copies into its own memory: no second copy of the frame is made
    return Image.frombuffer(
        "RGB", (width, height), np.ascontiguousarray(frame), "raw", "RGB" if color_order == "rgb" else "BGR", 0, 1
    )


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow cuts off what is above 255: all but the darkest of 16 bits would be white
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise InputError(f"it has more than 8 bits a pixel (mode {image.mode}): convert it to 8 bits first")
    if 0 in image.size:
        raise InputError("a picture without pixels")
    return image.convert("RGB")


def to_tensor(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 NHWC in 0..255 to float32 NCHW in [0, 1], bit-identical to torchvision's ``ToTensor``."""
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    # in place: memory of this size is asked of the system each time, and costs more than the division
    x /= np.float32(255)
    return x


def to_pixels(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 NCHW to the nearest uint8 NHWC: the inverse of :func:`to_tensor` where ``x`` is pixels over 255, else
    rounded.

    Args:
        x: finite, float32 of shape (n, channels, height, width); what is outside [0, 1] is cut to it.
    """
    levels = np.rint(x.transpose(0, 2, 3, 1) * np.float32(255))
    return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8))


class PreprocessEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A preprocessing as files hold it: the parameters of :class:`Preprocess`, and what is the same for all."""

    resize: Side | None
    crop: Side
    interpolation: Interpolation
    resize_mode: Literal["shorter_side"]
    antialias: bool
    color_order: Literal["rgb"]
    range: tuple[float, float]

    def __post_init__(self) -> None:
        if not self.antialias or self.range != (0, 1) or (self.resize or self.crop) < self.crop:
            raise ValueError("not a preprocessing that this version can apply")

    @property
    def preprocess(self) -> Preprocess:
        """What applies it."""
        return Preprocess(resize=self.resize, crop=self.crop, interpolation=self.interpolation)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize the shorter side, cut the centre: the parameters, and the only code that applies them.

    With Pillow images this is bit-identical to torchvision's ``Resize(resize, interpolation)`` followed by
    ``CenterCrop(crop)``; Pillow always antialiases when it shrinks.

    Attributes:
        resize: length of the shorter side after resizing, in pixels; None leaves the size as it is.
        crop: side of the centre square that is cut out, in pixels.
        interpolation: Pillow's filter.
    """

    resize: int | None
    crop: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name, value in (("crop", self.crop), ("resize", self.crop if self.resize is None else self.resize)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 8192:
                raise InputError(f"preprocess {name} must be a whole number of pixels from 1 to 8192, not {value!r}")
        if self.resize is not None and self.resize < self.crop:
            raise InputError(f"preprocess crop {self.crop} is larger than resize {self.resize}")
        if self.interpolation not in get_args(Interpolation):
            raise InputError(f"preprocess interp must be one of {', '.join(get_args(Interpolation))}")

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``resize=256,crop=224,interp=bicubic``; ``resize=none`` keeps the size.

        Raises:
            InputError: a part is unknown, missing or not a number.
        """
        parts: dict[str, str] = {}
        for part in text.split(","):
            key, _, value = part.strip().partition("=")
            if key not in ("resize", "crop", "interp") or not value or key in parts:
                raise InputError(
                    f"`preprocess` is written resize=256,crop=224,interp=bicubic; {part.strip()!r} is not a part"
                )
            parts[key] = value.strip()
        if "crop" not in parts:
            raise InputError("`preprocess` needs crop=PIXELS, the side of the model's input")
        try:
            resize = None if parts.get("resize", "none") == "none" else int(parts["resize"])
            crop = int(parts["crop"])
        except ValueError as error:
            raise InputError(f"`preprocess` sizes are whole numbers of pixels: {text!r}") from error
        return cls(resize=resize, crop=crop, interpolation=parts.get("interp", "bilinear"))  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preprocess:
        """Read what :meth:`to_json` wrote; keys it does not know are refused, for they would change the picture.

        Raises:
            SchemaError: it is not a preprocessing that this version can apply.
        """
        return convert(value, PreprocessEntry, what="preprocessing", mend="update edgeadv").preprocess

    def to_json(self) -> dict[str, Any]:
        """Every parameter, the constant ones too, so that another implementation can check that it agrees."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self.entry))
        return found

    @property
    def entry(self) -> PreprocessEntry:
        """The same as a record."""
        return PreprocessEntry(
            resize=self.resize,
            crop=self.crop,
            interpolation=self.interpolation,
            resize_mode="shorter_side",
            antialias=True,
            color_order="rgb",
            range=(0.0, 1.0),
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's input."""
        return (3, self.crop, self.crop)

    def __call__(
        self, frame: Image.Image | NDArray[np.uint8], *, color_order: ColorOrder | None = None
    ) -> NDArray[np.uint8]:
        """Preprocess one frame.

        Args:
            frame: a Pillow image, or a uint8 array of shape (height, width, 3).
            color_order: ``"rgb"`` or ``"bgr"``; required for arrays, ignored for Pillow images.

        Returns:
            uint8 array of shape (crop, crop, 3), RGB.

        Raises:
            InputError: the frame is not one of the two, smaller than the crop while ``resize`` is None, or so long and
                narrow that resizing it would take more than 64 million pixels.
        """
        image = as_image(frame, color_order=color_order)
        if self.resize is not None:
            image = self._resized(image, self.resize)
        width, height = image.size
        if width < self.crop or height < self.crop:
            raise InputError(
                f"a frame of {width}x{height} is smaller than the crop {self.crop}; preprocess with resize="
            )
        # torchvision rounds half to even here, and so does Python's round
        left, top = round((width - self.crop) / 2.0), round((height - self.crop) / 2.0)
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))

    def _resized(self, image: Image.Image, side: int) -> Image.Image:
        width, height = image.size
        short, long = sorted((width, height))
        if short == side:
            return image
        long_new = int(side * long / short)
        if side * long_new > _MOST_PIXELS and long > _ALWAYS_TAKEN * short:
            raise InputError(
                f"a picture of {width}x{height} is too long and narrow to be resized to {side}: cut it first"
            )
        size = (side, long_new) if width <= height else (long_new, side)
        return image.resize(size, Image.Resampling[self.interpolation.upper()])
