"""On which scale a file of somebody else takes its pictures, as said in a word or as its first nodes tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeadv.models.normalization import IMAGENET_MEAN, IMAGENET_STD
from edgeadv_runtime.errors import InputError

LEVELS = 255.0
PASSING = ("Cast", "Transpose", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""What moves numbers or types, and no value."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """``(x * factor - mean) / std`` of pixels in [0, 1]; mean and deviation in the order of the file's channels."""

    factor: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def normalisation(self, color: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of pixels in [0, 1], in the order red, green, blue; both empty where there are none."""
        mean, std = (tuple(value / self.factor for value in each) for each in (self.mean, self.std))
        return (mean[::-1], std[::-1]) if color == "bgr" else (mean, std)

    @property
    def range(self) -> str:
        """What black and white become, such as ``0..255``; of each channel, where they differ."""
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        ends = [((0 - m) / s + 0.0, (self.factor - m) / s) for m, s in zip(mean, std, strict=True)]
        return ", ".join(dict.fromkeys(f"{low:.4g}..{high:.4g}" for low, high in ends))


def parse_scale(text: str, color: str) -> Scale:
    """Read ``0..1``, ``0..255``, ``imagenet`` or ``MEAN/STD``, each one number or one a channel in the file's order;
    above 1 they are of 0..255.

    Raises:
        InputError: it is none of these.
    """
    if text == "0..1":
        return Scale()
    if text == "0..255":
        return Scale(factor=LEVELS)
    if text == "-1..1":
        raise InputError("scale", f"{text!r} is written 0.5/0.5")
    channels = 1 if color == "gray" else 3
    if text == "imagenet":
        if channels == 1:
            raise InputError("scale", "imagenet is of three channels, and the file takes one: give MEAN/STD")
        step = -1 if color == "bgr" else 1
        return Scale(mean=IMAGENET_MEAN[::step], std=IMAGENET_STD[::step])
    mean, _, std = text.partition("/")
    try:
        values = [tuple(float(number) for number in part.split(",")) for part in (mean, std)]
    except ValueError as error:
        raise InputError(
            "scale", f"{text!r} is not 0..1, 0..255, imagenet, or MEAN/STD such as 0.5,0.5,0.5/0.5,0.5,0.5"
        ) from error
    if any(len(part) not in (1, channels) or not all(map(math.isfinite, part)) for part in values):
        raise InputError("scale", f"{text!r} is due with 1 or {channels} finite numbers before and after the stroke")
    if min(values[1]) <= 0:
        raise InputError("scale", f"{text!r} has a deviation that is not above 0")
    factor = LEVELS if max(*values[0], *values[1]) > 1 else 1.0
    size = max(map(len, values))
    means, stds = (part * size if len(part) == 1 else part for part in values)
    return Scale(factor=factor, mean=means, std=stds)


def constants_of(graph: Any) -> Mapping[str, NDArray[Any]]:
    """Small tensors that ``graph`` holds, by name: initializers, and those of ``Constant`` nodes."""
    tensors = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: onnx.numpy_helper.to_array(each) for name, each in tensors.items() if math.prod(each.dims) <= 4096}


@dataclass(frozen=True)
class Inside:
    """The ``(x - mean) / std`` that begins a graph.

    Attributes:
        mean: one number, or one a channel in the file's order.
        std: likewise.
        learnt: whether it is, or may be, a BatchNormalization: statistics of what the network was fed in training,
            which may have been normalised before. They prove nothing.
    """

    mean: NDArray[Any]
    std: NDArray[Any]
    learnt: bool = False

    def __str__(self) -> str:
        mean, std = in_words(self.mean), in_words(self.std)
        if self.learnt:
            return f"a BatchNormalization, plain or folded, of mean {mean} and deviation {std}"
        if (self.mean == 0).all():
            return f"x / {std}"
        return f"x - {mean}" if (self.std == 1).all() else f"(x - {mean}) / {std}"

    @property
    def takes(self) -> str | None:
        """The range of the numbers that are normalised so; None where that is not certain.

        Mean and deviation must both be there, for the other half may be done outside. Deviations of real pictures are
        near 0.25 of 0..1 and 64 of 0..255, and what is used is never far from that.
        """
        mean, std = self.mean, self.std
        if self.learnt:
            return None
        if (mean > 0).all() and (mean <= 1).all() and (std > 0.08).all() and (std < 1).all():
            # mean 0 and deviation 1 is what the first layer of a network sees that was given normalised numbers
            return None if (mean < 0.05).all() and (std > 0.6).all() else "0..1"
        levels = (mean >= 20).all() and (mean <= 256).all() and (std >= 20).all() and (std <= 256).all()
        return "0..255" if levels else None

    @property
    def color(self) -> str | None:
        """``rgb`` or ``bgr`` where the means are those of ImageNet's channels in that order."""
        return None if self.learnt else _channel_order(self.mean)


def normalisation(graph: Any, name: str, constants: Mapping[str, NDArray[Any]]) -> Inside | None:
    """What normalises at the beginning of ``graph`` at ``name``; None where nothing does."""
    factor, offset, value = np.ones(1), np.zeros(1), name
    steps: list[str] = []
    while True:
        users = [node for node in graph.node if value in node.input]
        if len(users) != 1:
            break
        (node,) = users
        held = [constants[each].astype(np.float64).ravel() for each in node.input if each in constants]
        if node.op_type == "BatchNormalization" and len(held) == 4 and not steps and held[2].size in (1, 3):
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            return Inside(held[2] + 0.0, np.sqrt(held[3] + epsilon), learnt=True)
        if node.op_type in ("Sub", "Add", "Mul", "Div") and len(held) == 1 and held[0].size in (1, 3):
            (number,), first = held, node.input[0] == value
            if node.op_type in ("Sub", "Div") and not first:
                break
            if node.op_type in ("Sub", "Add"):
                offset = offset + (number if node.op_type == "Add" else -number)
            else:
                by = number if node.op_type == "Mul" else 1 / np.where(number == 0, np.nan, number)
                factor, offset = factor * by, offset * by
            steps.append(node.op_type)
        elif node.op_type not in PASSING:
            break
        value = node.output[0]
    if not steps or not np.isfinite(factor).all() or (factor <= 0).any():
        return None
    # 0 is added, for -0 is printed with its sign
    mean, std = -offset / factor + 0.0, 1 / factor
    # a BatchNormalization that was folded is one factor and one addend
    folded = steps in (["Mul", "Add"], ["Mul", "Sub"])
    known = np.allclose(mean, std, rtol=1e-3) or _channel_order(mean) is not None
    return Inside(mean, std, learnt=folded and not known)


def _channel_order(mean: NDArray[Any]) -> str | None:
    if mean.size != 3:
        return None
    values = mean / (LEVELS if mean.max() > 1 else 1)
    for color, due in (("rgb", IMAGENET_MEAN), ("bgr", IMAGENET_MEAN[::-1])):
        if np.abs(values - np.array(due)).max() < 0.02:
            return color
    return None


def in_words(values: NDArray[Any]) -> str:
    """Numbers for a message."""
    return ",".join(f"{value:.4g}" for value in values)
