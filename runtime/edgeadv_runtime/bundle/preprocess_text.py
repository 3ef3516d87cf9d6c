"""A preprocessing as a user writes it: ``exif=apply,roi=0:0.25:1:1,resize=256,crop=224,interp=bicubic``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import InputError

_WRITTEN = "resize=256,crop=224,interp=bicubic"
_RESIZES = {"resize": "shorter_side", "longer": "longer_side", "size": "stretch", "letterbox": "letterbox"}
_EXIF = {"apply": True, "ignore": False}


def arguments(text: str) -> dict[str, Any]:
    """The arguments of :class:`~edgeadv_runtime.Preprocess` that ``text`` writes.

    Raises:
        InputError: a part is unknown, written twice, missing or not of its form.
    """
    parts: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in (*_PARTS, *_RESIZES, "crop_pct") or not value or key in parts:
            raise InputError(
                f"`preprocess` is written {_WRITTEN}; {part.strip()!r} is not a part, which are "
                f"{', '.join([*_RESIZES, *_PARTS, 'crop_pct'])}, each once"
            )
        parts[key] = value
    given = [key for key in _RESIZES if key in parts]
    if len(given) > 1:
        raise InputError(f"`preprocess` resizes once: leave out {' or '.join(f'{key}=' for key in given)}")
    found = {name: _read(key, parts[key], kind) for key, (name, kind) in _PARTS.items() if key in parts}
    key = given[0] if given else "resize"
    kind = _side if key in ("resize", "longer") else _sides
    found |= {"resize": _read(key, parts[key], kind) if given else None, "resize_mode": _RESIZES[key]}
    if key in ("size", "letterbox"):
        found.setdefault("crop", found["resize"])
    if "crop" not in found:
        raise InputError("`preprocess` needs crop=PIXELS, the side of the model's input, or size= or letterbox=")
    if "crop_pct" in parts:
        found["resize"] = _of_share(_read("crop_pct", parts["crop_pct"], float), found["crop"], given)
    return found


def _of_share(share: float, crop: Any, given: list[str]) -> int:
    """The shorter side of which ``crop`` is a share, as timm rounds it."""
    if given or not isinstance(crop, int):
        raise InputError("`preprocess` takes crop_pct= with a square crop=PIXELS and nothing else that resizes")
    if not 0 < share <= 1:
        raise InputError(f"`preprocess` crop_pct is the share of the shorter side that is cut out, not {share:g}")
    return math.floor(crop / share)


def _read(key: str, value: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(value)
    except (ValueError, KeyError) as error:
        raise InputError(f"`preprocess` has no {key}={value}: it is written {_FORMS[key]}") from error


def _side(text: str) -> int | None:
    return None if text == "none" else int(text)


def _sides(text: str) -> int | tuple[int, int]:
    height, times, width = text.partition("x")
    return (int(height), int(width)) if times else int(height)


def _several(kind: Callable[[str], Any], count: int) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        values = tuple(map(kind, text.split(":")))
        if len(values) != count:
            raise ValueError(text)
        return values

    return read


# name of the argument and what reads it, in the order of the steps
_PARTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "exif": ("exif", lambda text: _EXIF[text]),
    "roi": ("roi", _several(float, 4)),
    "window": ("window", _several(int, 2)),
    "color": ("color", str),
    "interp": ("interpolation", str),
    "crop": ("crop", _sides),
    "fill": ("fill", int),
}
_FORMS = {
    "exif": "exif=apply or exif=ignore",
    "roi": "roi=LEFT:TOP:RIGHT:BOTTOM, in fractions of the frame or in pixels",
    "window": "window=LOW:HIGH, two levels of 16 bits",
    "resize": "resize=PIXELS, the shorter side, or resize=none",
    "longer": "longer=PIXELS, the longer side",
    "size": "size=HEIGHTxWIDTH",
    "letterbox": "letterbox=HEIGHTxWIDTH",
    "crop": "crop=PIXELS or crop=HEIGHTxWIDTH, whole numbers",
    "fill": "fill=LEVEL, 0 to 255",
    "crop_pct": "crop_pct=SHARE, above 0 and at most 1",
}


def sides_text(value: int | tuple[int, int] | None) -> str:
    """``224``, ``120x160`` or ``none``."""
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value[0]}x{value[1]}"


def text_of(values: Any, *, color: str) -> str:
    """What :func:`arguments` reads back of a :class:`~edgeadv_runtime.Preprocess`; what is as it always was is left
    out."""
    key = next(key for key, mode in _RESIZES.items() if mode == values.resize_mode)
    parts = {
        "exif": "apply" if values.exif else None,
        "roi": None if values.roi is None else ":".join(f"{value:.10g}" for value in values.roi),
        "window": None if values.window is None else ":".join(map(str, values.window)),
        "color": None if color == "rgb" else color,
        key: sides_text(values.resize),
        "crop": sides_text(values.crop),
        "interp": values.interpolation,
        "fill": None if values.fill is None else str(values.fill),
    }
    return ",".join(f"{name}={value}" for name, value in parts.items() if value is not None)
