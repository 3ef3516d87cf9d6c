"""From a picture to the tensor a model sees: the one implementation that training, export, attack, evaluation and
applications share.

A preprocessed image is uint8 HWC, RGB or one grey channel. The float tensor is that array over 255, so every clean
image is exactly representable in 8 bits, and a perturbation of ``eps`` always means pixels in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decoding import convert
from ..errors import InputError
from .geometry import Geometry, ResizeMode, corner, region_of, resized
from .pictures import Color, ColorOrder, Frame, as_image, upright
from .preprocess_text import arguments, sides_text, text_of

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Level16 = Annotated[int, msgspec.Meta(ge=0, le=65535)]

_MOST_SIDE = 8192


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


class PreprocessEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A preprocessing as files hold it: the parameters of :class:`Preprocess`, and what is the same for all.

    What an edgeadv before them did not know is left out where it changes nothing.
    """

    # plain numbers, whose range is checked below: a bounded one beside a tuple of two breaks msgspec 0.23's memory
    resize: int | tuple[int, int] | None
    crop: int | tuple[int, int]
    interpolation: Interpolation
    resize_mode: ResizeMode
    antialias: bool
    color_order: Color
    range: tuple[float, float]
    exif: bool = False
    roi: tuple[float, float, float, float] | None = None
    window: tuple[Level16, Level16] | None = None
    fill: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None

    def __post_init__(self) -> None:
        if not self.antialias or self.range != (0, 1):
            raise ValueError("not a preprocessing that this version can apply")
        try:
            _ = self.preprocess
        except InputError as error:
            raise ValueError(str(error)) from error

    @property
    def preprocess(self) -> Preprocess:
        """What applies it."""
        return Preprocess(
            exif=self.exif,
            roi=self.roi,
            window=self.window,
            color=self.color_order,
            resize=self.resize,
            resize_mode=self.resize_mode,
            interpolation=self.interpolation,
            crop=self.crop,
            fill=self.fill,
        )


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a frame to a model's input: the steps in the order of these fields, and the only code that applies them.

    With Pillow images resizing, cropping and grey are bit-identical to torchvision's ``Resize``, ``CenterCrop`` and
    ``Grayscale``, of one version and of the other; Pillow always antialiases when it shrinks.

    Attributes:
        exif: turn a picture as its EXIF orientation says. torchvision does not, and an array has none.
        roi: left, top, right and bottom of the region that is cut out of the frame first: fractions of the frame where
            right and bottom are at most 1, else whole pixels. None takes all of it.
        window: the levels of 16-bit grey that become 0 and 255; what is between is rounded to the nearest level, halves
            upwards, what is outside is cut. With it every frame must be 16-bit grey; without it none may be.
        color: ``"rgb"``, or ``"gray"`` for one channel.
        resize: length in pixels of the side that ``resize_mode`` names, or height and width of a box; None leaves the
            size as it is.
        resize_mode: ``"shorter_side"``; ``"longer_side"``; ``"stretch"`` to the box, whatever the frame's own shape;
            ``"letterbox"``, as large as fits into the box, rounded to whole pixels, and ``fill`` around it.
        interpolation: Pillow's filter.
        crop: side of the centred square that is cut out, in pixels, or its height and width: the model's input.
        fill: grey level, 0 to 255, around a frame that is smaller than the crop, or in a letterbox; None refuses such
            frames. torchvision's ``CenterCrop`` fills with 0.
    """

    exif: bool = False
    roi: tuple[float, float, float, float] | None = None
    window: tuple[int, int] | None = None
    color: Color = "rgb"
    resize: int | tuple[int, int] | None
    resize_mode: ResizeMode = "shorter_side"
    interpolation: Interpolation = "bilinear"
    crop: int | tuple[int, int]
    fill: int | None = None

    def __post_init__(self) -> None:
        box = self.resize_mode in ("stretch", "letterbox")
        crop = _sides("crop", self.crop, box=True)
        object.__setattr__(self, "crop", crop[0] if crop[0] == crop[1] else crop)
        if box or self.resize is not None:
            sides = _sides("resize", self.resize, box=box)
            object.__setattr__(self, "resize", sides if box else sides[0])
        for name, value, kind in (
            ("interp", self.interpolation, Interpolation),
            ("color", self.color, Color),
            ("resize_mode", self.resize_mode, ResizeMode),
            ("exif", self.exif, Literal[True, False]),
        ):
            if value not in get_args(kind):
                raise InputError(f"preprocess {name} must be one of {', '.join(map(str, get_args(kind)))}")
        self._check_numbers()
        if self.fill is None and self.resize_mode == "letterbox":
            raise InputError("preprocess letterbox needs fill=LEVEL, the grey level around the picture, e.g. fill=114")
        if self.resize is None or (self.fill is not None and not box):
            return
        least = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        if self.resize_mode == "shorter_side":
            # the other side may be as long as it likes
            crop = (min(crop), min(crop))
        if crop[0] > least[0] or crop[1] > least[1]:
            raise InputError(f"preprocess crop {sides_text(self.crop)} is larger than resize {sides_text(self.resize)}")

    def _check_numbers(self) -> None:
        if self.window is not None:
            low, high = self.window
            if not (_whole(low) and _whole(high) and 0 <= low < high <= 65535):
                raise InputError(f"preprocess window is two levels, 0 <= LOW < HIGH <= 65535, not {low}:{high}")
            object.__setattr__(self, "window", (low, high))
        if self.fill is not None and not (_whole(self.fill) and 0 <= self.fill <= 255):
            raise InputError(f"preprocess fill must be a grey level from 0 to 255, not {self.fill!r}")
        if self.roi is not None:
            left, top, right, bottom = roi = tuple(map(float, self.roi))
            pixels = all(value == int(value) for value in roi if np.isfinite(value))
            if not (0 <= left < right < np.inf and 0 <= top < bottom < np.inf):
                raise InputError("preprocess roi is left:top:right:bottom, each below the one two places behind it")
            if not (pixels or (right <= 1 and bottom <= 1)):
                raise InputError("preprocess roi is in fractions of the frame, all of [0, 1], or in whole pixels")
            object.__setattr__(self, "roi", roi)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``resize=256,crop=224,interp=bicubic``, ``size=120x160,color=gray`` or ``letterbox=224x224,fill=114``;
        ``docs/reference/preprocessing.md`` lists the parts. ``str`` of a preprocessing writes it so.

        Raises:
            InputError: a part is unknown, missing or not a number.
        """
        return cls(**arguments(text))

    def __str__(self) -> str:
        return text_of(self, color=self.color)

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
            resize_mode=self.resize_mode,
            antialias=True,
            color_order=self.color,
            range=(0.0, 1.0),
            exif=self.exif,
            roi=self.roi,
            window=self.window,
            fill=self.fill,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's input."""
        height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        return (3 if self.color == "rgb" else 1, height, width)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Height, width and channels: the shape of what a frame becomes."""
        channels, height, width = self.input_shape
        return (height, width, channels)

    def geometry(self, width: int, height: int) -> Geometry:
        """What of a frame of ``width`` and ``height`` the model sees.

        Raises:
            InputError: the frame has no such region, is smaller than the crop after resizing, or is too long and
                narrow.
        """
        left, top, right, bottom = region = region_of(self.roi, (width, height))
        _, crop_height, crop_width = self.input_shape
        box = size = resized(self.resize_mode, self.resize, (right - left, bottom - top))
        x = y = 0
        if self.resize_mode == "letterbox" and isinstance(self.resize, tuple):
            box = (self.resize[1], self.resize[0])
            x, y = corner(size, box)
        if self.fill is None and (size[0] < crop_width or size[1] < crop_height):
            became = "" if size == (width, height) else f", resized to {size[0]}x{size[1]},"
            raise InputError(
                f"a frame of {width}x{height}{became} is smaller than the crop {sides_text(self.crop)}; preprocess "
                "with resize=, or with fill= to surround it"
            )
        cut = corner(box, (crop_width, crop_height))
        return Geometry(region, size, (x + cut[0], y + cut[1]), (crop_width, crop_height))

    def frame(self, image: Image.Image) -> NDArray[Any]:
        """``image`` as an array that :meth:`__call__` takes instead of it with ``color_order="rgb"``: uint8 (height,
        width, 3), turned where ``exif`` says so; with ``window`` uint16 (height, width).

        Raises:
            InputError: the picture is not one, or not 16-bit grey where there is a ``window``.
        """
        image = upright(image) if self.exif else image
        if self.window is None:
            return np.asarray(as_image(image))
        as_image(image, window=self.window)
        levels: NDArray[np.uint16] = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return levels

    def __call__(self, frame: Frame, *, color_order: ColorOrder | None = None) -> NDArray[np.uint8]:
        """Preprocess one frame.

        Args:
            frame: a Pillow image, or an array: uint8 of shape (height, width, 3); for ``"gray"`` also uint8 (height,
                width); with a ``window`` uint16 (height, width).
            color_order: ``"rgb"`` or ``"bgr"``; required for arrays of three channels, ignored for others.

        Returns:
            uint8 array of :attr:`pixel_shape`, RGB or one channel.

        Raises:
            InputError: the frame is none of these, smaller than the crop while there is no ``fill``, without the region
                of interest, or so long and narrow that resizing it would take more than 64 million pixels.
        """
        if self.exif and isinstance(frame, Image.Image):
            frame = upright(frame)
        image = as_image(frame, color_order=color_order, color=self.color, window=self.window)
        plan = self.geometry(*image.size)
        if plan.region != (0, 0, *image.size):
            image = image.crop(plan.region)
        if plan.size != image.size:
            image = image.resize(plan.size, Image.Resampling[self.interpolation.upper()])
        (left, top), (width, height) = plan.corner, plan.input
        if plan.filled:
            level = self.fill or 0
            canvas = Image.new(image.mode, plan.input, level if self.color == "gray" else (level, level, level))
            canvas.paste(image, (-left, -top))
            image = canvas
        else:
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image).reshape(self.pixel_shape)


def _sides(name: str, value: Any, *, box: bool) -> tuple[int, int]:
    """Height and width of what may be one number for both."""
    sides = tuple(value) if box and isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2 or not all(_whole(side) and 1 <= side <= _MOST_SIDE for side in sides):
        raise InputError(f"preprocess {name} must be a whole number of pixels from 1 to {_MOST_SIDE}, not {value!r}")
    return (sides[0], sides[1])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
