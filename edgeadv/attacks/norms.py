"""The balls that a perturbation stays in: L-infinity and L2, in pixels of [0, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeadv_runtime.draws import image_rng
from edgeadv_runtime.errors import InputError

LINF, EUCLIDEAN = "linf", "l2"
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Ball(ABC):
    """All images of [0, 1] within ``eps`` of an original.

    Attributes:
        eps: the radius.
    """

    eps: float

    @abstractmethod
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest image of the ball around ``x``; both float32 (n, 3, H, W)."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1, in this norm, in which a loss with ``gradient`` rises fastest; 0 where that is
        0."""

    @abstractmethod
    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Pixels:
        """A perturbation drawn evenly from the ball, of one image."""

    def starts(self, x: Tensor, *, seed: int, restart: int = 0) -> Tensor:
        """Random points of the balls around ``x``, each drawn by its own image: no image's depends on the batch it is
        in."""
        images = x.cpu().contiguous().numpy()
        drawn = np.empty_like(images)
        for i, image in enumerate(images):
            drawn[i] = self.random(image_rng("start", seed, image, restart), image.shape)
        return self.project(x + torch.from_numpy(drawn).to(x.device), x)


class Linf(Ball):
    """No pixel moves by more than ``eps``."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Clip each pixel."""
        return x_adv.clamp((x - self.eps).clamp_min(0), (x + self.eps).clamp_max(1))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign."""
        return gradient.sign()

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Pixels:
        """Each pixel evenly from [-eps, eps)."""
        return ((rng.random(shape, dtype=np.float32) * 2 - 1) * self.eps).astype(np.float32)


class Box(Linf):
    """All inputs between two of them, each number with its own ends: what verifiers of networks speak of.

    The radius is 1: lengths are shares of half a side.

    Args:
        lower: smallest input, float32 (1, ...).
        upper: largest input, of the same shape.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__(1.0)
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    lower: Tensor
    upper: Tensor

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Clip each number, wherever ``x`` is."""
        return x_adv.clamp(self.lower, self.upper)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign, times half a side."""
        half: Tensor = gradient.sign() * (self.upper - self.lower) / 2
        return half

    def starts(self, x: Tensor, *, seed: int, restart: int = 0) -> Tensor:
        """Random points of the box, evenly."""
        generator = torch.Generator().manual_seed(seed + restart)
        share = torch.rand(x.shape, generator=generator).to(x.device)
        return self.project(self.lower + share * (self.upper - self.lower), x)


class L2(Ball):
    """The Euclidean length of the perturbation, over all pixels and channels, is at most ``eps``."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Shorten the perturbation, then clip to [0, 1], which can only shorten it more."""
        delta = x_adv - x
        length = _length(delta)
        return (x + delta * (self.eps / length.clamp_min(self.eps))).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient over its length."""
        # squares of a small gradient would be 0: first to a size at which they are not
        largest = gradient.flatten(1).abs().amax(dim=1)[:, None, None, None]
        unit = gradient / torch.where(largest > 0, largest, 1.0)
        return unit / _length(unit).clamp_min(1.0)

    def random(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Pixels:
        """A Gaussian direction, and a length whose d-th power is even."""
        direction = rng.standard_normal(shape)
        length = rng.random() ** (1 / direction.size)
        drawn: Pixels = (direction / np.linalg.norm(direction) * length * self.eps).astype(np.float32)
        return drawn


def _length(delta: Tensor) -> Tensor:
    """Euclidean length of each image, (n, 1, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)[:, None, None, None]
    return length


def ball(norm: str, eps: float) -> Ball:
    """The ball of ``norm``, ``"linf"`` or ``"l2"``.

    Raises:
        InputError: another norm, or a radius that it cannot have: in L-infinity more than 1, the range of a pixel.
    """
    if norm not in (LINF, EUCLIDEAN):
        raise InputError(f"norm {norm!r} is not {LINF} or {EUCLIDEAN}")
    if norm == LINF and not 0 < eps <= 1:
        raise InputError(f"eps must be in (0, 1], in pixels of [0, 1], not {eps}")
    if not 0 < eps < float("inf"):
        raise InputError(f"eps must be above 0, not {eps}")
    return Linf(eps) if norm == LINF else L2(eps)
