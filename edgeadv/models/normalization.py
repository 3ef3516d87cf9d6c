"""Mean and deviation of pixels in [0, 1], as they are written. Loads no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeadv_runtime.errors import InputError

Normalize = str | tuple[Sequence[float], Sequence[float]]
# of pixels in [0, 1] the deviation is below 1; what is far above it was measured in 0..255
_WIDEST = 4
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalization(text: Normalize) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, as two sequences of one number for each channel or as text.

    ::

        mean, std = normalization("0.5,0.5,0.5/0.25,0.25,0.25")

    Args:
        text: ``"imagenet"``, ``"none"``, or ``"MEAN/STD"``, each with commas between its numbers; in pixels of [0, 1].

    Raises:
        InputError: it is of another form, its numbers are of pixels in 0..255, or a standard deviation is not above 0.
    """
    if text == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if text == "none":
        return (), ()
    try:
        parts = [part.split(",") for part in text.split("/")] if isinstance(text, str) else text
        mean, std = (tuple(float(value) for value in part) for part in parts)
    except (TypeError, ValueError):
        mean, std = (), ()
    if not mean or len(mean) != len(std) or not all(math.isfinite(v) for v in (*mean, *std)) or min(std) <= 0:
        raise InputError(
            "normalize",
            f"{text!r} is not imagenet, none or MEAN/STD with a number for each channel, such as "
            "0.5,0.5,0.5/0.25,0.25,0.25",
        )
    if max(map(abs, mean)) > 1 or max(std) > _WIDEST:
        raise InputError("normalize", f"{text!r} is for pixels of 0..255: divide its numbers by 255, for ours are 0..1")
    return mean, std
