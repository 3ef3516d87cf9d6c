"""A frame with what is cut out of it, and beside it what a model sees of it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.pictures import as_image
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import InputError

from .inputs import Inputs

_SIDE, _GAP, _LINE = 480, 16, 18
_BACKGROUND, _INK = (255, 255, 255), (30, 30, 30)
_REGION, _SEEN = (0, 114, 178), (213, 94, 0)


def drawn(preprocess: Preprocess, frame: NDArray[Any]) -> Image.Image:
    """The frame, its region of interest in blue and what the model sees of it in orange, beside the model's input.

    Args:
        preprocess: what makes one of the other.
        frame: as :meth:`~edgeadv_runtime.Preprocess.frame` has it.

    Raises:
        InputError: it makes nothing of this frame.
    """
    pixels = preprocess(frame, color_order="rgb")
    whole = as_image(frame, color_order="rgb", window=preprocess.window)
    width, height = whole.size
    plan = preprocess.geometry(width, height)
    scale = min(_SIDE / max(width, height), 8.0)
    left = whole.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    marks = ImageDraw.Draw(left)
    captions = [f"frame {width}x{height}", f"the model's input {pixels.shape[1]}x{pixels.shape[0]}"]
    if preprocess.roi is not None:
        _outline(marks, plan.region, scale, _REGION)
        captions[0] += ", blue: region of interest"
    _outline(marks, plan.seen, scale, _SEEN)
    captions[0] += ", orange: what the model sees"
    right = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = max(1, _SIDE // max(right.size))
    if max(right.size) > _SIDE:
        right.thumbnail((_SIDE, _SIDE))
    # whole pixels, so that each one of a small input can be seen
    right = right.resize((right.width * factor, right.height * factor), Image.Resampling.NEAREST)
    canvas = Image.new(
        "RGB",
        (left.width + right.width + 3 * _GAP, max(left.height, right.height) + 2 * _GAP + 3 * _LINE),
        _BACKGROUND,
    )
    canvas.paste(left, (_GAP, _GAP))
    canvas.paste(right, (left.width + 2 * _GAP, _GAP))
    text = ImageDraw.Draw(canvas)
    for number, line in enumerate((*captions, str(preprocess))):
        text.text((_GAP, canvas.height - _GAP - (3 - number) * _LINE), line, fill=_INK)
    return canvas


def drawn_png(preprocess: Preprocess, frame: NDArray[Any]) -> bytes:
    """The same as a PNG."""
    stream = io.BytesIO()
    drawn(preprocess, frame).save(stream, "PNG", optimize=True)
    return stream.getvalue()


@dataclass(frozen=True)
class Seen:
    """What a page shows of one bundle: its title, its preprocessing as text, and the drawing, a PNG in base64."""

    title: str
    preprocess: str
    png: str


def seen(bundle: Bundle, inputs: Inputs) -> Seen:
    """The drawing of the first golden frame of ``bundle``.

    Raises:
        InputError: none of the files of the page is about it.
    """
    ids = {path: file.bundle.id for path, file in inputs.results.items()}
    ids |= {path: file.bundle.id for path, file in inputs.benches.items()}
    path = next((path for path, known in ids.items() if known == bundle.id), None)
    if path is None:
        raise InputError("bundles", f"hold {bundle.path}, which none of these files is about: leave it out")
    png = base64.b64encode(drawn_png(bundle.preprocess, bundle.golden().frames[0])).decode("ascii")
    return Seen(inputs.titles[path], str(bundle.preprocess), png)


def _outline(marks: Any, box: tuple[float, float, float, float], scale: float, ink: tuple[int, int, int]) -> None:
    left, top, right, bottom = (round(value * scale) for value in box)
    # a light line inside the coloured one: one of the two stands out from any picture
    marks.rectangle((left, top, right - 1, bottom - 1), outline=ink, width=3)
    if right - left > 12 and bottom - top > 12:
        marks.rectangle((left + 3, top + 3, right - 4, bottom - 4), outline=_BACKGROUND, width=1)
