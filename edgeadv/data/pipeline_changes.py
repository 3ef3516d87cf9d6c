"""Our own preprocessing with one step done otherwise: what other implementations most often do, and the search for
what one of them does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.bundle.geometry import corner
from edgeadv_runtime.bundle.pictures import as_image, upright
from edgeadv_runtime.bundle.preprocess import Interpolation, Preprocess
from edgeadv_runtime.errors import InputError

Step = Literal["decoding", "region", "colour", "size", "interpolation", "antialias", "crop", "scaling"]
STEPS: tuple[Step, ...] = ("decoding", "region", "colour", "size", "interpolation", "antialias", "crop", "scaling")
"""In the order in which a picture passes them."""
Scale = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From the numbers of another pipeline, (height, width, channels), to levels of 0..255."""

EXPLAINED = 0.5
"""Levels that a picture may be off on average where nothing is left to explain: two JPEG decoders differ by as much."""
# a change counts if it takes away so much of the difference
_BETTER = 0.6
_WIDTH, _DEPTH = 5, 4
_TORCH: Mapping[Interpolation, tuple[str, bool | None]] = {
    "nearest": ("nearest", None),
    "bilinear": ("bilinear", False),
    "bicubic": ("bicubic", False),
}


@dataclass(frozen=True)
class Pipeline:
    """A preprocessing that may do one thing or another as ours does not.

    Attributes:
        preprocess: the steps that ours can do too.
        swapped: red and blue are taken for each other.
        grey_mean: grey is the plain mean of the channels.
        sampling: ``"pillow"``; ``"plain"`` resizes without antialiasing, as OpenCV and tensors do; ``"area"`` is the
            mean of what a pixel covers.
        longer: how the length of the longer side is rounded.
        place: where the crop begins: the name of a rounding, ``"corner"``, or how far it is off, (right, down).
        scale: what the other pipeline's numbers are.
    """

    preprocess: Preprocess
    swapped: bool = False
    grey_mean: bool = False
    sampling: Literal["pillow", "plain", "area"] = "pillow"
    longer: Callable[[float], int] = int
    place: Literal["floor", "ceil", "corner"] | tuple[int, int] = (0, 0)
    scale: Scale = lambda x: x

    def levels(self, image: Image.Image) -> NDArray[np.float64]:
        """What it makes of a decoded picture, (height, width, channels) in 0..255.

        Raises:
            InputError: it can make nothing of it.
        """
        steps = self.preprocess
        image = self._coloured(upright(image) if steps.exif else image)
        plan = steps.geometry(*image.size)
        picture = image.crop(plan.region)
        size, box = self._size(plan.size, picture.size), plan.input
        picture = self._resized(picture, size)
        left, top = self._corner(plan.corner if size == plan.size else corner(size, box), size, box)
        fill = steps.fill or 0
        canvas = Image.new(picture.mode, box, fill if picture.mode == "L" else (fill, fill, fill))
        canvas.paste(picture, (-left, -top))
        made = np.asarray(canvas, dtype=np.float64).reshape(steps.pixel_shape)
        return made[..., ::-1] if self.swapped and steps.color == "rgb" else made

    def _corner(self, middle: tuple[int, int], size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
        if self.place == "corner":
            return (0, 0)
        if isinstance(self.place, tuple):
            return (middle[0] + self.place[0], middle[1] + self.place[1])
        rounding = math.ceil if self.place == "ceil" else math.floor
        return (rounding((size[0] - box[0]) / 2), rounding((size[1] - box[1]) / 2))

    def _coloured(self, image: Image.Image) -> Image.Image:
        steps = self.preprocess
        if steps.color == "rgb" or not (self.swapped or self.grey_mean):
            return as_image(image, color=steps.color, window=steps.window)
        pixels = np.asarray(as_image(image, window=steps.window))
        if self.grey_mean:
            return Image.fromarray(np.rint(pixels.mean(axis=2)).astype(np.uint8))
        return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])).convert("L")

    def _size(self, size: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
        side, mode = self.preprocess.resize, self.preprocess.resize_mode
        if self.longer is int or mode != "shorter_side" or not isinstance(side, int):
            return size
        other = self.longer(side * max(before) / min(before))
        return (side, other) if before[0] <= before[1] else (other, side)

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if size == image.size:
            return image
        kind = self.preprocess.interpolation
        if self.sampling == "pillow" or kind not in _TORCH:
            return image.resize(size, Image.Resampling[kind.upper()])
        if self.sampling == "area":
            return image.resize(size, Image.Resampling.BOX)
        mode, align = _TORCH[kind]
        pixels = np.array(image, dtype=np.float32)
        x = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None]
        made = torch.nn.functional.interpolate(x, (size[1], size[0]), mode=mode, align_corners=align)
        levels = made[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
        return Image.fromarray(levels[..., 0] if image.mode == "L" else levels)


@dataclass(frozen=True)
class Change:
    """One step that another pipeline does otherwise.

    Attributes:
        step: which.
        what: how, in words: what it does.
        apply: our pipeline, changed so.
    """

    step: Step
    what: str
    apply: Callable[[Pipeline], Pipeline]


def _steps(**given: Any) -> Callable[[Pipeline], Pipeline]:
    return lambda pipeline: replace(pipeline, preprocess=replace(pipeline.preprocess, **given))


def _itself(**given: Any) -> Callable[[Pipeline], Pipeline]:
    return lambda pipeline: replace(pipeline, **given)


def changes(preprocess: Preprocess, scales: Mapping[str, Scale]) -> tuple[Change, ...]:
    """What may be done otherwise than ``preprocess`` does it, in the order of the steps.

    Args:
        preprocess: ours.
        scales: what the numbers may be instead, by what is said of it.
    """
    found = [*_decoding(preprocess), *_sizes(preprocess), *_samplings(preprocess.interpolation)]
    if preprocess.resize_mode != "letterbox":
        found += _places()
    found += [Change("scaling", what, _itself(scale=scale)) for what, scale in scales.items()]
    return tuple(found)


def _decoding(steps: Preprocess) -> Iterator[Change]:
    turns = (
        "it does not turn pictures by their EXIF orientation"
        if steps.exif
        else "it turns pictures by their EXIF orientation"
    )
    yield Change("decoding", turns, _steps(exif=not steps.exif))
    if steps.window is not None:
        yield Change("decoding", "it keeps the upper 8 of 16 bits, whatever the window", _steps(window=(0, 65535)))
    if steps.roi is not None:
        yield Change("region", "it takes the whole frame, not the region of interest", _steps(roi=None))
    if steps.color == "rgb":
        yield Change("colour", "its channels are BGR, in OpenCV's order", _itself(swapped=True))
    else:
        yield Change("colour", "it takes BGR for RGB when it makes grey", _itself(swapped=True))
        yield Change("colour", "its grey is the mean of the channels", _itself(grey_mean=True))


def _sizes(steps: Preprocess) -> Iterator[Change]:
    _, height, width = steps.input_shape
    short = min(height, width)
    options: list[tuple[str, dict[str, Any]]] = [
        (f"it stretches the frame to {height}x{width}", {"resize": (height, width), "resize_mode": "stretch"}),
        (f"it resizes the shorter side to {short}", {"resize": short, "resize_mode": "shorter_side"}),
        ("it does not resize", {"resize": None, "resize_mode": "shorter_side"}),
    ]
    if isinstance(steps.resize, int):
        side = steps.resize
        options.append((f"it stretches the frame to {side}x{side}", {"resize": (side, side), "resize_mode": "stretch"}))
    if height == width:
        side = math.floor(short / 0.875)
        options.append((f"it resizes the shorter side to {side}", {"resize": side, "resize_mode": "shorter_side"}))
    for fill in (0, 114, 128):
        box = {"resize": (height, width), "resize_mode": "letterbox", "fill": fill}
        options.append((f"it puts the frame into a letterbox of {height}x{width}, filled with {fill}", box))
    known = replace(steps)
    for what, given in options:
        try:
            other = replace(known, **given)
        except InputError:  # a crop that does not fit
            continue
        if other != steps:
            yield Change("size", what, _steps(**given))
    if steps.resize_mode == "shorter_side" and steps.resize is not None:
        yield Change("size", "it rounds the length of the longer side to the nearest pixel", _itself(longer=round))
        yield Change("size", "it rounds the length of the longer side up", _itself(longer=math.ceil))


def _samplings(ours: Interpolation) -> Iterator[Change]:
    for kind in ("nearest", "bilinear", "bicubic", "lanczos"):
        if kind != ours:
            what = f"it resizes with {kind}, where the bundle has {ours}"
            yield Change("interpolation", what, _steps(interpolation=kind))
    for kind in _TORCH:
        step: Step = "antialias" if kind == ours else "interpolation"
        how = (
            "the nearest pixel of the upper left, as OpenCV's INTER_NEAREST"
            if kind == "nearest"
            else (f"{kind} without antialiasing, as OpenCV, and torchvision on tensors with antialias=False")
        )
        change = functools.partial(_plain, kind=kind)
        yield Change(step, f"it resizes with {how}", change)
    yield Change(
        "interpolation", "it resizes with the mean of the area, as OpenCV's INTER_AREA", _itself(sampling="area")
    )


def _plain(pipeline: Pipeline, *, kind: Interpolation) -> Pipeline:
    return replace(pipeline, sampling="plain", preprocess=replace(pipeline.preprocess, interpolation=kind))


def _places() -> Iterator[Change]:
    yield Change("crop", "it rounds the corner of the crop down", _itself(place="floor"))
    yield Change("crop", "it rounds the corner of the crop up", _itself(place="ceil"))
    yield Change("crop", "it cuts from the upper left corner, not from the middle", _itself(place="corner"))
    for right in (-1, 0, 1):
        for down in (-1, 0, 1):
            if right or down:
                off = " and ".join(
                    f"{abs(by)} pixel {word}"
                    for by, word in ((right, "right" if right > 0 else "left"), (down, "down" if down > 0 else "up"))
                    if by
                )
                yield Change("crop", f"its crop is {off} of the middle", _itself(place=(right, down)))


@dataclass(frozen=True)
class Pair:
    """A decoded picture, and what the other pipeline made of its file, (height, width, channels)."""

    image: Image.Image
    other: NDArray[np.float64]


def distance(pipeline: Pipeline, pair: Pair) -> float:
    """How many levels the two differ on average; infinite where the pipeline makes nothing of the picture."""
    try:
        return float(np.abs(pipeline.scale(pair.other) - pipeline.levels(pair.image)).mean())
    except InputError:
        return math.inf


def search(
    ours: Pipeline, options: Sequence[Change], pairs: Sequence[Pair], *, progress: Callable[[], None] = lambda: None
) -> tuple[Change, ...]:
    """The fewest changes, at most one of each step, after which ours gives what the other pipeline gives.

    One more change is taken only if it removes 40% of what was left. The best few combinations are followed, for what
    two changes do together one alone may hide.

    Returns:
        In the order of the steps; empty where none brings them closer.
    """

    def left_by(taken: Sequence[Change]) -> float:
        changed = functools.reduce(lambda pipeline, change: change.apply(pipeline), taken, ours)
        progress()
        return float(np.mean([distance(changed, pair) for pair in pairs]))

    best: tuple[Change, ...] = ()
    left = left_by(best)
    beam: list[tuple[Change, ...]] = [()]
    for depth in range(_DEPTH):
        if left <= EXPLAINED / 5:
            break
        longer: dict[frozenset[int], tuple[Change, ...]] = {}
        for taken in beam:
            for option in options:
                if option.step not in {change.step for change in taken}:
                    together = sorted((*taken, option), key=lambda change: STEPS.index(change.step))
                    longer.setdefault(frozenset(map(id, together)), tuple(together))
        # the first of equals, which is the earlier step
        scored = sorted(((left_by(taken), taken) for taken in longer.values()), key=lambda entry: entry[0])
        if not scored:
            break
        beam = [taken for _, taken in scored[:_WIDTH]]
        if scored[0][0] <= _BETTER * left:
            left, best = scored[0]
        elif depth > len(best):
            break
    return best
