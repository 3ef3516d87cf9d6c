"""Augmentations: what training does to its images, on the device that they are on.

What is drawn belongs to seed, epoch and image, so that neither the batch nor the number of processes matters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from .rng import RandomStream

Augment = Callable[[Tensor, RandomStream], Tensor]
"""uint8 (n, channels, H, W) and what its images draw, to the same shape."""

_SHIFT = 8  # one side in so many
_LEAST_AREA = 0.25
_MOVED: dict[str, Any] = {
    "degrees": 15,
    "translate": (0.1, 0.1),
    "scale": (0.85, 1.15),
    "interpolation": v2.InterpolationMode.BILINEAR,
}
_LIGHT = 0.4


def crop_flip(pixels: Tensor, stream: RandomStream, *, mirror: bool = True) -> Tensor:
    """Shift by up to an eighth of the side (reflected at the border) and mirror half of the images.

    Args:
        pixels: uint8 (n, channels, H, W).
        stream: of these images.
        mirror: whether any is mirrored.

    Returns:
        The same shape, each image moved by its own whole number of pixels.
    """
    height, width = pixels.shape[2:]
    shares = stream.shares("crop-flip", 3, pixels.device)
    rows, columns = (
        _reflected(_shown(side, share), side) for side, share in ((height, shares[:, 0]), (width, shares[:, 1]))
    )
    if mirror:
        columns = torch.where(shares[:, 2:] < 0.5, columns.flip(1), columns)
    return _taken(pixels, rows, columns)


def crop_flip_back(values: Tensor, stream: RandomStream, *, mirror: bool = True) -> tuple[Tensor, Tensor]:
    """Move what lies over images of :func:`crop_flip` to where it belongs over the images before it.

    Args:
        values: (n, channels, H, W), of any type.
        stream: of these images.
        mirror: as of :func:`crop_flip`.

    Returns:
        The same shape, and bool (n, 1, H, W): which places of the image were to be seen. The others hold anything.
    """
    height, width = values.shape[2:]
    shares = stream.shares("crop-flip", 3, values.device)
    # the place that shows pixel i of the image
    rows, columns = (
        2 * torch.arange(side, device=values.device) - _shown(side, share)
        for side, share in ((height, shares[:, 0]), (width, shares[:, 1]))
    )
    seen = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    if mirror:
        columns = torch.where(shares[:, 2:] < 0.5, width - 1 - columns, columns)
    return _taken(values, rows.clamp(0, height - 1), columns.clamp(0, width - 1)), seen[:, None]


def _shown(side: int, share: Tensor) -> Tensor:
    """For each image the places, int64 (n, side), that a window moved by its share of the range shows, also outside."""
    reach = side // _SHIFT
    start = (share * (2 * reach + 1)).long() - reach
    return start[:, None] + torch.arange(side, device=share.device)


def _reflected(places: Tensor, side: int) -> Tensor:
    return side - 1 - (side - 1 - places.abs()).abs()


def _taken(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of each image its own rows and columns, int64 (n, H) and (n, W)."""
    which = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    # taken as (n, H, W, channels), which is how channels-last memory has them
    moved: Tensor = pixels.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _one_by_one(transform: Callable[[tuple[int, int]], nn.Module]) -> Augment:
    """A torchvision transform, made for the image's height and width, with random numbers of each image's own."""

    def augment(pixels: Tensor, stream: RandomStream) -> Tensor:
        apply = transform((pixels.shape[-2], pixels.shape[-1]))
        made = []
        # the transforms draw from torch's CPU generator, wherever the image is
        with torch.random.fork_rng(devices=[]):
            for image, key in zip(pixels, stream.keys("transform").tolist(), strict=True):
                torch.default_generator.manual_seed(key)
                made.append(apply(image))
        return torch.stack(made) if made else pixels

    return augment


AUGMENTS = ("none", "crop-flip", "resized-crop", "affine", "trivial")
"""Nothing; shifts; a part of a quarter of the image at least (Szegedy et al. 2015, which begins at 8%); rotation by up
to 15 degrees, shifts and scales by up to a tenth and 15%, and changes of light and colour; one of 14 changes of colour
or shape (Müller and Hutter 2021, "TrivialAugment"). All but the first mirror half of the images, unless told not to."""


def augmentation(name: str, *, mirror: bool = True) -> Augment | None:
    """The augmentation of one of the names of :data:`AUGMENTS`; None for ``"none"``.

    Args:
        name: one of them.
        mirror: whether half of the images are mirrored.
    """
    if name == "none":
        return None
    flip = [v2.RandomHorizontalFlip()] if mirror else []
    if name == "crop-flip":
        return partial(crop_flip, mirror=mirror)
    if name == "resized-crop":
        return _one_by_one(lambda size: v2.Compose([v2.RandomResizedCrop(size, scale=(_LEAST_AREA, 1.0)), *flip]))
    if name == "affine":
        return _one_by_one(lambda _: v2.Compose([*flip, v2.RandomAffine(**_MOVED), v2.ColorJitter(*[_LIGHT] * 3)]))
    return _one_by_one(lambda _: v2.Compose([*flip, v2.TrivialAugmentWide()]))
