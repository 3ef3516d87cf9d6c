"""Which pixels of a frame a model sees: regions, sizes and corners, in whole pixels. No picture is touched here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

ResizeMode = Literal["shorter_side", "longer_side", "stretch", "letterbox"]
Size = tuple[int, int]
"""Width and height, as Pillow has them."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom; the last two are the first pixels outside."""

# of a resized picture, four bytes each; a picture of 150,000 x 1, 516 bytes as a file, would take ten thousand million
# of them
_MOST_PIXELS, _ALWAYS_TAKEN = 1 << 26, 4


@dataclass(frozen=True)
class Geometry:
    """From a frame of one size to a model's input.

    Attributes:
        region: what is cut out of the frame first.
        size: width and height that it is resized to.
        corner: left and top of the input in the resized picture; negative where that is smaller and is filled up.
        input: width and height of the input.
    """

    region: Box
    size: Size
    corner: Size
    input: Size

    @property
    def filled(self) -> bool:
        """Whether the input shows anything beside the frame."""
        return any(
            low < 0 or low + side > whole for low, side, whole in zip(self.corner, self.input, self.size, strict=True)
        )

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what the model sees of the frame, in the frame's pixels."""
        left, top, right, bottom = self.region
        across, down = (right - left) / self.size[0], (bottom - top) / self.size[1]
        (x, y), (width, height) = self.corner, self.input
        return (
            max(left, left + x * across),
            max(top, top + y * down),
            min(right, left + (x + width) * across),
            min(bottom, top + (y + height) * down),
        )


def region_of(roi: tuple[float, float, float, float] | None, size: Size) -> Box:
    """The region ``roi`` of a frame of ``size``: fractions of it where right and bottom are at most 1, rounded to the
    nearest pixel, half to even; else pixels.

    Raises:
        InputError: the frame has no such region, or not one pixel of it.
    """
    width, height = size
    if roi is None:
        return (0, 0, width, height)
    shares = roi[2] <= 1 and roi[3] <= 1
    left, top, right, bottom = (
        round(value * whole) if shares else int(value)
        for value, whole in zip(roi, (width, height, width, height), strict=True)
    )
    if right > width or bottom > height or right <= left or bottom <= top:
        text = ":".join(f"{value:g}" for value in roi)
        raise InputError(f"a frame of {width}x{height} has no region of interest {text}: state another roi=")
    return (left, top, right, bottom)


def resized(mode: ResizeMode, resize: int | Size | None, size: Size) -> Size:
    """Width and height of a picture of ``size`` after resizing.

    Args:
        mode: what ``resize`` is the length of.
        resize: a side in pixels, or height and width of a box; None leaves the size as it is.
        size: width and height before.

    Raises:
        InputError: the picture is so long and narrow that it would take more than 64 million pixels.
    """
    width, height = size
    if resize is None:
        return size
    if not isinstance(resize, int):
        to_height, to_width = resize
        if mode == "stretch":
            return (to_width, to_height)
        scale = min(to_width / width, to_height / height)
        return (max(1, round(width * scale)), max(1, round(height * scale)))
    short, long = sorted(size)
    # both cut off what is behind the point, as torchvision does
    if mode == "longer_side":
        other = max(1, int(resize * short / long))
        return (other, resize) if width <= height else (resize, other)
    if resize == short:
        return size
    other = int(resize * long / short)
    if resize * other > _MOST_PIXELS and long > _ALWAYS_TAKEN * short:
        raise InputError(
            f"a picture of {width}x{height} is too long and narrow to be resized to {resize}: cut it first"
        )
    return (resize, other) if width <= height else (other, resize)


def corner(size: Size, box: Size) -> Size:
    """Left and top of the centred ``box`` in a picture of ``size``: torchvision's rounding, half to even where it cuts
    and down where it pads."""
    left, top = (
        round((side - want) / 2.0) if side >= want else -((want - side) // 2)
        for side, want in zip(size, box, strict=True)
    )
    return (left, top)
