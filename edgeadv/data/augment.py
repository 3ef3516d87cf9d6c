"""Augmentations: what training does to its images, on the device that they are on.

What is drawn belongs to seed, epoch and image, so that neither the batch nor the number of processes matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from .rng import RandomStream

Augment = Callable[[Tensor, RandomStream], Tensor]
"""uint8 (n, channels, H, W) and what its images draw, to the same shape."""

_SHIFT = 8  # one side in so many
_LEAST_AREA = 0.25


def crop_flip(pixels: Tensor, stream: RandomStream) -> Tensor:
    """Shift by up to an eighth of the side (reflected at the border) and mirror half of the images.

    Args:
        pixels: uint8 (n, channels, H, W).
        stream: of these images.

    Returns:
        The same shape, each image moved by its own whole number of pixels.
    """
    n, _, height, width = pixels.shape
    shares = stream.shares("crop-flip", 3, pixels.device)
    rows = _window(height, shares[:, 0])
    columns = _window(width, shares[:, 1])
    columns = torch.where(shares[:, 2:] < 0.5, columns.flip(1), columns)
    which = torch.arange(n, device=pixels.device)[:, None, None]
    # taken as (n, H, W, channels), which is how channels-last memory has them
    moved: Tensor = pixels.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _window(side: int, share: Tensor) -> Tensor:
    """For each image the places, int64 (n, side), that a window moved by its share of the range shows."""
    reach = side // _SHIFT
    start = (share * (2 * reach + 1)).long() - reach
    places = start[:, None] + torch.arange(side, device=share.device)
    return side - 1 - (side - 1 - places.abs()).abs()


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


AUGMENTS: Mapping[str, Augment | None] = {
    "none": None,
    "crop-flip": crop_flip,
    "resized-crop": _one_by_one(
        lambda size: v2.Compose([v2.RandomResizedCrop(size, scale=(_LEAST_AREA, 1.0)), v2.RandomHorizontalFlip()])
    ),
    "trivial": _one_by_one(lambda _: v2.Compose([v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()])),
}
"""By name: nothing; shifts and mirroring; a part of a quarter of the image at least, and mirroring (Szegedy et al.
2015, which begins at 8%); mirroring and one of 14 changes of colour or shape (Müller and Hutter 2021,
"TrivialAugment")."""
