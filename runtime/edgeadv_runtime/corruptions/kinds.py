"""Corruptions by name and severity.

The first fifteen are those of Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations* (ICLR 2019), with the constants of CIFAR-10-C for pictures whose shorter side is below 64 pixels and
those of ImageNet-C for larger ones. The others are of this project: what a camera does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..draws import image_rng
from ..errors import InputError
from . import blur, digital, noise, sensor, weather

SEVERITIES = 5
SMALL_BELOW = 64
"""Pixels of the shorter side below which the constants are those of CIFAR-10-C."""
_PUBLISHED = ("CIFAR-10-C", "ImageNet-C")
_OWN = "edgeadv"


@dataclass(frozen=True)
class Kind:
    """A corruption.

    Attributes:
        apply: picture, generator and constants to a picture that may leave [0, 1].
        small: constants of severities 1 to 5 for small pictures.
        large: those for larger ones; None where they are the same, as shares of the picture.
    """

    apply: Callable[..., NDArray[np.float64]]
    small: Sequence[Sequence[Any]]
    large: Sequence[Sequence[Any]] | None = None

    def constants(self, side: int, severity: int) -> tuple[Sequence[Any], str]:
        """Those of a picture whose shorter side has ``side`` pixels, and whose they are."""
        if self.large is None:
            return self.small[severity - 1], _OWN
        small = side < SMALL_BELOW
        return (self.small if small else self.large)[severity - 1], _PUBLISHED[not small]


def _ones(*values: Any) -> list[tuple[Any]]:
    return [(value,) for value in values]


def _zooms(*ends: tuple[float, float]) -> list[tuple[list[float]]]:
    """Enlargements from 1 in steps, of each severity, as the published code has them: where the step does not divide
    the range in floating point, its end is one of them."""
    return [(np.arange(1, last, step).tolist(),) for last, step in ends]


PUBLISHED: Mapping[str, Kind] = {
    "gaussian-noise": Kind(
        noise.gaussian_noise, _ones(0.04, 0.06, 0.08, 0.09, 0.1), _ones(0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot-noise": Kind(noise.shot_noise, _ones(500, 250, 100, 75, 50), _ones(60, 25, 12, 5, 3)),
    "impulse-noise": Kind(
        noise.impulse_noise, _ones(0.01, 0.02, 0.03, 0.05, 0.07), _ones(0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "defocus-blur": Kind(
        blur.defocus_blur,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "glass-blur": Kind(
        blur.glass_blur,
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    "motion-blur": Kind(
        blur.motion_blur,
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom-blur": Kind(
        blur.zoom_blur,
        _zooms((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        _zooms((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": Kind(
        weather.snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    "frost": Kind(
        weather.frost,
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    ),
    "fog": Kind(
        weather.fog,
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    "brightness": Kind(digital.brightness, _ones(0.05, 0.1, 0.15, 0.2, 0.3), _ones(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Kind(digital.contrast, _ones(0.75, 0.5, 0.4, 0.3, 0.15), _ones(0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic-transform": Kind(
        digital.elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
    ),
    "pixelate": Kind(digital.pixelate, _ones(0.95, 0.9, 0.85, 0.75, 0.65), _ones(0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg-compression": Kind(digital.jpeg_compression, _ones(80, 65, 58, 50, 40), _ones(25, 18, 15, 10, 7)),
}
CAMERA: Mapping[str, Kind] = {
    "motion-horizontal": Kind(partial(sensor.motion_along, angle=0), _ones(0.06, 0.1, 0.15, 0.22, 0.3)),
    "motion-vertical": Kind(partial(sensor.motion_along, angle=90), _ones(0.06, 0.1, 0.15, 0.22, 0.3)),
    "low-light": Kind(sensor.low_light, [(e, 4000, 6.0) for e in (0.3, 0.12, 0.05, 0.025, 0.012)]),
    "over-exposure": Kind(sensor.over_exposure, _ones(1.5, 2.2, 3.2, 4.5, 7)),
    "rolling-shutter": Kind(sensor.rolling_shutter, _ones(0.05, 0.1, 0.17, 0.25, 0.35)),
    "jpeg-low": Kind(digital.jpeg_compression, _ones(30, 20, 12, 7, 3)),
    "lens-dirt": Kind(
        weather.lens_dirt, [(4, 0.12, 0.5), (6, 0.15, 0.6), (8, 0.18, 0.7), (10, 0.22, 0.8), (12, 0.25, 0.9)]
    ),
    "rain-drops": Kind(weather.rain_drops, [(4, 0.08), (7, 0.1), (11, 0.12), (16, 0.14), (22, 0.16)]),
    "rotation": Kind(sensor.rotation, _ones(5, 10, 15, 22, 30)),
    "zoom": Kind(sensor.zoom, _ones(1.1, 1.2, 1.35, 1.5, 1.75)),
}
# a device has no PyAV: this one is in no set
VIDEO: Mapping[str, Kind] = {"h264": Kind(digital.video_compression, _ones(28, 34, 40, 45, 50))}
KINDS: Mapping[str, Kind] = {**PUBLISHED, **CAMERA, **VIDEO}
SETS: Mapping[str, Sequence[str]] = {
    "published": tuple(PUBLISHED),
    "camera": tuple(CAMERA),
    "all": (*PUBLISHED, *CAMERA),
}


def kinds_of(text: str) -> tuple[str, ...]:
    """Names out of a comma-separated list of kinds and sets.

    Raises:
        InputError: one is neither.
    """
    found: dict[str, None] = {}
    for part in text.split(","):
        names = SETS.get(part.strip(), (part.strip(),))
        if unknown := [name for name in names if name not in KINDS]:
            known = f"{', '.join(SETS)}, {', '.join(KINDS)}"
            raise InputError("corruptions", f"has no {unknown[0]!r}: choose from {known}")
        found |= dict.fromkeys(names)
    return tuple(found)


def corrupt(image: NDArray[np.float32], kind: str, severity: int, *, seed: int = 0) -> NDArray[np.float32]:
    """A picture as it looks under a corruption.

    ::

        foggy = corrupt(image, "fog", 3)

    Args:
        image: float32 (3, height, width) or (1, height, width) in [0, 1].
        kind: of :data:`KINDS`.
        severity: from 1 to 5.
        seed: of what is drawn. The same picture, kind, severity and seed give the same.

    Returns:
        float32 like ``image`` in [0, 1], rounded to 8 bits, as a camera gives it.

    Raises:
        InputError: the kind is unknown, or the severity out of range.
    """
    if kind not in KINDS:
        raise InputError("corruptions", f"has no {kind!r}: choose from {', '.join(KINDS)}")
    if not 1 <= severity <= SEVERITIES:
        raise InputError("severity", f"{severity} is not from 1 to {SEVERITIES}")
    constants, _ = KINDS[kind].constants(min(image.shape[1:]), severity)
    rng = image_rng(kind, seed, image)
    x = image.transpose(1, 2, 0).astype(np.float64)
    made = digital.pixels(KINDS[kind].apply(x, rng, *constants))
    # divided as decoding does, so that the same 8 bits are the same floats
    return np.ascontiguousarray(made.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
