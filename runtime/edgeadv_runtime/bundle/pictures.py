"""Pictures of files and of applications, decoded, upright and in the colours that a preprocessing wants."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, InputError
from ..reading import opened

ColorOrder = Literal["rgb", "bgr"]
Color = Literal["rgb", "gray"]
Frame = Image.Image | NDArray[np.uint8] | NDArray[np.uint16]
"""A Pillow image, or an array: uint8 (height, width, 3), uint8 (height, width) in grey, uint16 (height, width)."""

ORIENTATION = 0x0112
"""EXIF's number of the orientation."""
MOST_PIXELS = 64_000_000
"""Of one picture, decoded: a file of a megabyte may ask for gigabytes. Larger ones are refused by their headers."""
_TOO_LARGE = f"more than {MOST_PIXELS // 10**6} million pixels: cut it or make it smaller first"


def load(path: Path) -> Image.Image:
    """Decode the image file at ``path``, whole, in the mode that it has; EXIF orientation is not applied.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, or larger than :data:`MOST_PIXELS`.
    """
    return _decoded(path, rgb=False)


def decode(path: Path) -> Image.Image:
    """Decode the image file at ``path`` to RGB, whole. EXIF orientation is not applied (as in torchvision).

    Raises:
        DataError: the file is missing, empty, truncated, not an image, one of more than 8 bits a channel in grey, or
            larger than :data:`MOST_PIXELS`.
    """
    return _decoded(path, rgb=True)


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's formats that are read: all but PostScript, for which it runs another program."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - {"EPS"}))


@contextmanager
def picture(path: Path) -> Iterator[Image.Image]:
    """The picture at ``path``, of which only the header is read, while the block runs; a user may name a link to it.

    Raises:
        DataError: there is none, it is no plain file, not an image, or larger than :data:`MOST_PIXELS`; also what the
            block raises, for that is of its pixels.
    """
    with opened(path, what="image", links=True, error=DataError) as stream:
        try:
            with Image.open(stream, formats=formats()) as image:
                _check_size(image)
                yield image
        except Image.DecompressionBombError as error:
            raise DataError(f"{path} is not taken ({_TOO_LARGE})") from error
        except Exception as error:  # each of Pillow's decoders has errors of its own
            # it names the stream, not the file, where it knows no such picture
            why = "it is no picture that is known here" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"{path} is not a readable image ({why})") from error


def _decoded(path: Path, *, rgb: bool) -> Image.Image:
    with picture(path) as image:
        if image.format == "TIFF":
            _silence_libtiff()
        if rgb:
            return _in_color(image, "rgb", None)
        image.load()
        return image.copy()


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise InputError(f"{image.width}x{image.height}: {_TOO_LARGE}")


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to standard error what Pillow raises as an error as well."""
    with suppress(OSError, AttributeError, ValueError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        for name in {line.split(maxsplit=5)[-1] for line in maps if "libtiff" in line}:
            library = ctypes.CDLL(name)
            library.TIFFSetErrorHandler.restype = ctypes.c_void_p
            library.TIFFSetErrorHandler(None)


def as_image(
    frame: Frame,
    *,
    color_order: ColorOrder | None = None,
    color: Color = "rgb",
    window: tuple[int, int] | None = None,
) -> Image.Image:
    """A Pillow image in RGB or grey from a Pillow image, or from an array.

    Args:
        frame: a Pillow image; a uint8 array (height, width, 3) whose colour order is stated; for ``"gray"`` also uint8
            (height, width) or (height, width, 1); with ``window`` uint16 of these two shapes.
        color_order: of an array of three channels.
        color: ``"rgb"``, or ``"gray"`` for Pillow's mode L, which is torchvision's ``Grayscale``.
        window: the levels of 16-bit grey that become 0 and 255, see :class:`Preprocess`.

    Raises:
        InputError: wrong type, dtype or shape, an array without its colour order, 16 bits without a window or a window
            without them, or a picture that Pillow cannot convert.
    """
    if isinstance(frame, Image.Image):
        try:
            return _in_color(frame, color, window)
        except InputError:
            raise
        except Exception as error:  # a file that is decoded only now, or a mode that Pillow has no way from
            raise InputError(f"this picture cannot be converted to {color} ({error})") from error
    if not isinstance(frame, np.ndarray):
        raise InputError(f"a frame is a Pillow image or a uint8 HWC array, not {type(frame).__name__}")
    one = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1)
    due_type, grey_taken = (np.uint8, color == "gray") if window is None else (np.uint16, True)
    if grey_taken and one and 0 not in frame.shape and frame.dtype == due_type:
        return _in_color(Image.fromarray(np.ascontiguousarray(frame.reshape(frame.shape[:2]))), color, window)
    due = "uint8 of shape (height, width, 3)" + (" or (height, width)" if color == "gray" else "")
    if window is not None:
        due = "uint16 of shape (height, width), for the preprocessing has window="
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or window is not None:
        raise InputError(f"a frame array is {due}, not {frame.dtype} of shape {frame.shape}")
    if color_order not in get_args(ColorOrder):
        raise InputError("state the colour order of a frame array: color_order='rgb' or 'bgr' (OpenCV gives bgr)")
    height, width, _ = frame.shape
    # Pillow swaps the channels while it copies into its own memory: no second copy of the frame is made
    image = Image.frombuffer(
        "RGB", (width, height), np.ascontiguousarray(frame), "raw", "RGB" if color_order == "rgb" else "BGR", 0, 1
    )
    return image if color == "rgb" else image.convert("L")


def upright(image: Image.Image) -> Image.Image:
    """``image`` turned and mirrored as its EXIF orientation says; itself where that says nothing.

    Raises:
        InputError: the picture cannot be decoded, or is larger than :data:`MOST_PIXELS`.
    """
    _check_size(image)
    try:
        image.load()
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise InputError(f"the EXIF orientation of this picture cannot be applied ({error})") from error


def _in_color(image: Image.Image, color: Color, window: tuple[int, int] | None) -> Image.Image:
    if 0 in image.size:
        raise InputError("a picture without pixels")
    _check_size(image)
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if window is not None:
        if not deep or image.mode == "F":
            raise InputError(f"it is no 16-bit grey (mode {image.mode}), for which alone the preprocessing has window=")
        image = Image.fromarray(windowed(np.asarray(image), window))
    elif deep:
        # Pillow cuts off what is above 255: all but the darkest of 16 bits would be white
        raise InputError(
            f"it has more than 8 bits a pixel (mode {image.mode}): convert it to 8 bits first, or state in "
            "`preprocess` which of its levels become black and white, window=LOW:HIGH"
        )
    if color == "gray":
        # by way of RGB, which is what a file in any other mode means to torchvision as well
        return image.copy() if image.mode == "L" else image.convert("RGB").convert("L")
    return image.convert("RGB")


def windowed(levels: NDArray[Any], window: tuple[int, int]) -> NDArray[np.uint8]:
    """16-bit grey in 8 bits: ``low`` and what is below it become 0, ``high`` and what is above it 255, and what is
    between them the nearest level, halves upwards."""
    low, high = window
    span = high - low
    inside = np.clip(levels.astype(np.int64), low, high) - low
    return ((inside * 510 + span) // (2 * span)).astype(np.uint8)
