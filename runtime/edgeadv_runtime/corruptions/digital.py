"""Digital corruptions (Hendrycks and Dietterich 2019, section 4.1)."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import require
from .filters import Picture, gaussian, sample


def pixels(x: Picture) -> NDArray[np.uint8]:
    """Rounded to 8 bits."""
    found: NDArray[np.uint8] = (x.clip(0, 1) * 255).round().astype(np.uint8)
    return found


def image_of(x: Picture) -> Image.Image:
    """A Pillow image in 8 bits."""
    values = pixels(x)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def picture_of(image: Image.Image) -> Picture:
    """The picture of a Pillow image in 8 bits."""
    values = np.asarray(image, dtype=np.float64) / 255
    return values[..., None] if values.ndim == 2 else values


def brightness(x: Picture, rng: np.random.Generator, more: float) -> Picture:
    """A larger value in HSV, hue and saturation kept."""
    value = x.max(axis=2, keepdims=True)
    brighter = (value + more).clip(0, 1)
    # hue and saturation are ratios of the channels; black has neither
    found: Picture = np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)
    return found


def contrast(x: Picture, rng: np.random.Generator, share: float) -> Picture:
    """Each channel nearer to its mean, at a ``share`` of its distance."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    found: Picture = (x - mean) * share + mean
    return found


def elastic_transform(x: Picture, rng: np.random.Generator, alpha: float, sigma: float, affine: float) -> Picture:
    """Stretched regions (Simard, Steinkraus and Platt 2003): a random affine map, then a smooth random displacement.

    Args:
        x: the picture.
        rng: what is drawn from.
        alpha: of the displacement, as a share of the side.
        sigma: of the Gaussian that smooths it, likewise.
        affine: by which three points near the middle are moved at most, likewise.
    """
    height, width = x.shape[:2]
    side = float(max(height, width))
    middle, part = np.array([height, width]) // 2, min(height, width) // 3
    points = np.array([middle + part, [middle[0] + part, middle[1] - part], middle - part], dtype=np.float64)
    moved = points + rng.uniform(-affine * side, affine * side, points.shape)
    # the map from moved points back to where they come from
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    at = [back[0, k] * rows + back[1, k] * columns + back[2, k] for k in (0, 1)]
    x = sample(x, at[0], at[1], mode="mirror")
    if alpha == 0:
        return x
    drawn = rng.uniform(-1, 1, (height, width, 2))
    shift = gaussian(drawn, sigma * side, truncate=3, mode="symmetric") * alpha * side
    return sample(x, rows + shift[..., 0], columns + shift[..., 1], mode="symmetric")


def pixelate(x: Picture, rng: np.random.Generator, share: float) -> Picture:
    """Larger pixels: a ``share`` of each side's."""
    height, width = x.shape[:2]
    small = image_of(x).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return picture_of(small.resize((width, height), Image.Resampling.NEAREST))


def video_compression(x: Picture, rng: np.random.Generator, crf: int) -> Picture:
    """A frame of an H.264 stream of low rate, coded by itself.

    Args:
        x: the picture.
        rng: not used.
        crf: x264's constant rate factor, from 0 to 51: the larger, the fewer bits.

    Raises:
        MissingDependencyError: PyAV is not installed.
    """
    av = require("av", extra="video")
    height, width, channels = x.shape
    # 4:2:0 has one colour for two rows and two columns
    values = np.pad(pixels(x), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    values = np.ascontiguousarray(values if channels == 3 else values.repeat(3, axis=2))
    with io.BytesIO() as stream:
        with av.open(stream, "w", format="h264") as container:
            # one thread: the bits must not depend on the machine
            options = {"crf": str(crf), "preset": "medium", "threads": "1"}
            track = container.add_stream("libx264", rate=25, options=options)
            track.width, track.height, track.pix_fmt = values.shape[1], values.shape[0], "yuv420p"
            for frame in (av.VideoFrame.from_ndarray(values, format="rgb24"), None):
                container.mux(track.encode(frame))
        stream.seek(0)
        with av.open(stream, format="h264") as container:
            read = next(container.decode(video=0)).to_ndarray(format="rgb24")
    found: Picture = read[:height, :width, :channels].astype(np.float64) / 255
    return found


def jpeg_compression(x: Picture, rng: np.random.Generator, quality: int) -> Picture:
    """Written as JPEG and read again; Pillow's ``quality``, from 1 to 95."""
    with io.BytesIO() as stream:
        image_of(x).save(stream, "JPEG", quality=quality)
        stream.seek(0)
        with Image.open(stream) as image:
            return picture_of(image)
