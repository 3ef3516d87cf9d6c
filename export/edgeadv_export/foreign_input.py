"""How a file of somebody else wants its pictures: what it says by itself, and what must be asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeadv_runtime.errors import InputError

from .foreign_scale import (
    LEVELS,
    PASSING,
    Inside,
    Scale,
    constants_of,
    normalisation,
    parse_scale,
)

LAYOUTS = ("nchw", "nhwc", "flat", "flat-nhwc")
COLORS = ("rgb", "bgr", "gray")
_FLAT = LAYOUTS[2:]
_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the caller says of a file; None is left to the file.

    Attributes:
        input: name of the input that takes the picture.
        output: name of the tensor that holds the logits.
        layout: one of :data:`LAYOUTS`.
        scale: ``0..1``, ``0..255``, ``imagenet`` or ``MEAN/STD``.
        color: one of :data:`COLORS`.
        shape: channels, height and width of the preprocessed picture.
        classes: how many there are.
    """

    input: str | None = None
    output: str | None = None
    layout: str | None = None
    scale: str | None = None
    color: str | None = None
    shape: tuple[int, int, int] | None = None
    classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a file takes a picture.

    Attributes:
        input: name of the input.
        dtype: NumPy's name of its type.
        shape: of the input without the batch.
        batch: the size that it is fixed to; None where it is free, 0 where there is no such axis.
        layout: one of :data:`LAYOUTS`.
        color: one of :data:`COLORS`.
        scale: of its numbers.
        image: channels, height and width of the preprocessed picture.
    """

    input: str
    dtype: str
    shape: tuple[int, ...]
    batch: int | None
    layout: str
    color: str
    scale: Scale
    image: tuple[int, int, int]

    def feed(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What the file is given for preprocessed pictures, uint8 (n, height, width, channels), as its maker would.

        Returns:
            An array of the file's type and shape, n in front.
        """
        x = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(LEVELS)
        if self.color == "bgr":
            x = x[:, ::-1]
        scale = self.scale
        if scale.factor != 1:
            x = x * np.float32(scale.factor)
        if scale.mean:
            x = (x - _along(scale.mean)) / _along(scale.std)
        if self.layout.endswith("nhwc"):
            x = x.transpose(0, 2, 3, 1)
        if self.dtype == "uint8":
            x = np.rint(x)
        return np.ascontiguousarray(x.reshape(len(x), *self.shape)).astype(self.dtype)


def _along(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


class Reader:
    """Finds the convention of one input of a graph; collects what was guessed and what must be asked."""

    def __init__(self, graph: Any, asked: Asked) -> None:
        self.graph, self.asked = graph, asked
        self.notes: list[str] = []
        self.needed: dict[str, str] = {}
        self._constants = constants_of(graph)

    def convention(self, name: str) -> Convention | None:
        """How the input called ``name`` takes a picture; None where :attr:`needed` says what is missing.

        Raises:
            InputError: it takes no picture, or what was asked does not fit it.
        """
        value = next(each for each in self.graph.input if each.name == name)
        dims = _dims(value)
        dtype = _TYPES.get(value.type.tensor_type.elem_type)
        if dtype is None:
            kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
            raise InputError(f"the input {name!r} takes {kind}: a picture is float32, float16 or uint8")
        users = {node.op_type for node in self.graph.node if name in node.input}
        if dtype == "uint8" and not users <= set(PASSING):
            raise InputError(f"the input {name!r} takes uint8 into {min(users - set(PASSING))}: cast it to float first")
        self.notes.append(f"input {name!r}: {dtype}, {_shape_text(dims)}")
        layout, batch, rest = self._layout(name, dims)
        size = None if layout is None else self._size(name, layout, rest)
        channels = None if size is None else size[0]
        if channels == 1 and self.asked.shape is not None and self.asked.shape[0] == 3:
            raise InputError(
                "preprocess", "gives three channels, and the file takes one: add color=gray to `preprocess`"
            )
        inside = normalisation(self.graph, name, self._constants)
        scale = self._scale(dtype, inside, "gray" if channels == 1 else self.asked.color or "rgb")
        color = self._color(channels, inside)
        if self.asked.shape is None:
            self.needed["preprocess"] = _preprocess_for(size, math.prod(each or 0 for each in rest))
        if self.needed or layout is None or size is None or color is None or self.asked.shape is None:
            return None
        assert scale is not None
        image = self.asked.shape
        if image[0] == 1 and color != "gray":
            raise InputError("preprocess", f"gives one channel, and the file takes {color}")
        shape = tuple(image[i] if layout == "nchw" else image[(1, 2, 0)[i]] for i in range(3))
        if layout not in _FLAT:
            at = 0 if layout == "nchw" else 2
            shape = tuple(size[0] if i == at else each for i, each in enumerate(shape))
            shape = shape[1:] if len(_dims(value) or ()) == 3 and batch != 0 else shape
        else:
            shape = tuple(size[0] * image[1] * image[2] if each != 1 else 1 for each in rest)
        return Convention(
            input=name,
            dtype=dtype,
            shape=shape,
            batch=batch,
            layout=layout,
            color=color,
            scale=parse_scale(scale, color),
            image=image,
        )

    def _layout(self, name: str, dims: list[int | None] | None) -> tuple[str | None, int | None, list[int | None]]:
        """Layout, batch and the rest of the shape."""
        assert dims is not None, "a file without is refused when it is read"
        asked = self.asked.layout
        if asked is not None and asked not in LAYOUTS:
            raise InputError("layout", f"{asked!r} is not one of {', '.join(LAYOUTS)}")
        # (3, H, W) has no batch; (1, H, W) and (?, H, W) have no channel
        batched = not (len(dims) == 3 and dims[0] not in (1, None) and _found_layout(dims) is not None)
        batch, rest = (dims[0], dims[1:]) if batched else (0, dims)
        wide = [each for each in rest if each != 1]
        if batched and len(rest) == 2 and len(wide) == 2:
            rest = [1, *rest]
        if batched and len(rest) in (1, 2, 3) and len(wide) == 1:
            if asked is not None and asked not in _FLAT:
                raise InputError("layout", f"{asked} needs three dimensions beside the batch, not {_shape_text(dims)}")
            self._check_area(name, wide[0])
            gray = self.asked.color == "gray" or _one_channel(wide[0], self.asked.shape)
            if asked is None and not gray:
                self.needed["layout"] = "flat, or flat-nhwc if the colours of a pixel lie side by side"
                return None, batch, rest
            self._guessed("layout", asked or "flat", asked)
            return asked or "flat", batch, rest
        if len(rest) != 3:
            raise InputError(f"the input {name!r} is {_shape_text(dims)}, and no picture: name another `input`")
        if asked in _FLAT:
            raise InputError("layout", f"{asked} needs one dimension beside the batch, not {_shape_text(dims)}")
        if asked is None and not {1, 3, None} & set(rest):
            raise InputError(f"the input {name!r} is {_shape_text(dims)}, with neither 1 nor 3 channels: no picture")
        layout = asked or _found_layout(rest)
        if layout is None:
            self.needed["layout"] = f"nchw or nhwc, for {_shape_text(dims)} can be both"
            return None, batch, rest
        self._guessed("layout", layout, asked)
        return layout, batch, rest

    def _size(self, name: str, layout: str, rest: list[int | None]) -> tuple[int, int | None, int | None] | None:
        """Channels, height and width of the file's input."""
        image = self.asked.shape
        if layout in _FLAT:
            (wide,) = [each for each in rest if each != 1]
            if image is None:
                return None
            channels = (1 if self.asked.color == "gray" else image[0]) if wide is None else wide // math.prod(image[1:])
            return channels, image[1], image[2]
        channels_at = 0 if layout == "nchw" else 2
        found = rest[channels_at]
        gray = self.asked.color == "gray" or (image is not None and image[0] == 1)
        channels = (1 if gray else 3) if found is None else found
        if channels not in (1, 3):
            raise InputError(f"the input {name!r} takes {channels} channels as {layout}: 1 or 3 are due, see `layout`")
        height, width = (each for i, each in enumerate(rest) if i != channels_at)
        if image is not None and (height not in (None, image[1]) or width not in (None, image[2])):
            raise InputError(
                "preprocess", f"gives {image[1]}x{image[2]} pixels, and the input {name!r} takes {height}x{width}"
            )
        return channels, height, width

    def _check_area(self, name: str, wide: int | None) -> None:
        """Refuse a flat input that does not hold one or three numbers for each pixel."""
        image = self.asked.shape
        if image is not None and wide is not None and wide not in (math.prod(image[1:]), 3 * math.prod(image[1:])):
            raise InputError(
                "preprocess", f"gives {image[1]}x{image[2]} pixels, and the input {name!r} takes {wide} numbers"
            )

    def _scale(self, dtype: str, inside: Inside | None, color: str) -> str | None:
        asked, found, why = self.asked.scale, None, f"{inside} is inside"
        if dtype == "uint8":
            found, why = "0..255", "the input is uint8"
        elif inside is not None:
            found = inside.takes
        if asked is None and found is None:
            told = "nothing in the file tells" if inside is None else f"{inside} inside does not tell"
            self.needed["scale"] = f"0..1, 0..255, imagenet or MEAN/STD, for {told} what it takes"
            return None
        if asked is None:
            self._guessed("scale", f"{found} ({why})", None)
            return found
        means = parse_scale(asked, color).range
        if found not in (None, means):
            raise InputError("scale", f"{asked} was given, and the file takes {found}, for {why}: leave `scale` out")
        self._guessed("scale", asked if means == asked else f"{asked}, which is {means}", asked)
        if found is None and inside is not None:
            self.notes.append(f"{why}, which does not tell the scale")
        return asked

    def _color(self, channels: int | None, inside: Inside | None) -> str | None:
        asked = self.asked.color
        if asked is not None and asked not in COLORS:
            raise InputError("color", f"{asked!r} is not one of {', '.join(COLORS)}")
        if channels is None:
            return asked
        if channels == 1:
            if asked not in (None, "gray"):
                raise InputError("color", f"{asked} was given, and the file takes one channel: gray")
            self._guessed("color", "gray", asked)
            return "gray"
        if asked == "gray":
            raise InputError("color", "gray was given, and the file takes three channels")
        found = None if inside is None else inside.color
        if asked is not None and found not in (None, asked):
            raise InputError(
                "color",
                f"{asked} was given, and the file takes {found}: {inside} is inside, ImageNet's means in that order; "
                "leave `color` out",
            )
        if asked is None and found is None:
            self.needed["color"] = "rgb or bgr, for nothing in the file tells the order of its three channels"
            return None
        self._guessed("color", asked or str(found), asked)
        return asked or found

    def _guessed(self, field: str, value: str, asked: str | None) -> None:
        self.notes.append(f"{field} {value}" + ("" if asked else ", by the file itself"))


def _dims(value: Any) -> list[int | None] | None:
    """Dimensions of a value, None for a free one; None where even their number is not told."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _shape_text(dims: list[int | None] | None) -> str:
    return "of any shape" if dims is None else f"({', '.join('?' if d is None else str(d) for d in dims)})"


def _found_layout(rest: list[int | None]) -> str | None:
    first, last = rest[0] in (1, 3), rest[2] in (1, 3)
    return None if first == last else "nchw" if first else "nhwc"


def _one_channel(wide: int | None, image: tuple[int, int, int] | None) -> bool:
    return image is not None and ((wide is None and image[0] == 1) or wide == image[1] * image[2])


def _preprocess_for(size: tuple[int, int | None, int | None] | None, wide: int) -> str:
    """What `preprocess` may be for an input of channels, height and width, or one of so many numbers."""
    if size is None:
        found = [(c, math.isqrt(wide // c)) for c in (1, 3) if wide and wide == c * math.isqrt(wide // c) ** 2]
        channels, side = found[0] if found else (3, None)
        height = width = side
    else:
        channels, height, width = size
    gray = ",color=gray" if channels == 1 else ""
    if height is None or width is None:
        return f"how a picture becomes its size, e.g. resize=256,crop=224,interp=bilinear{gray}"
    square = f"resize={round(height / 0.875)},crop={height}" if height == width >= 112 else f"size={height}x{width}"
    return f"how a picture becomes {height}x{width}, e.g. {square},interp=bilinear{gray}"
