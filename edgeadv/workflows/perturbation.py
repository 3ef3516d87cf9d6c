"""One perturbation for all images, for the demonstration of ``edgeadv camera``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime import Bundle, Eps, InputError
from edgeadv_runtime.bundle.batches import MOST_UNREADABLE
from edgeadv_runtime.bundle.confidence import first_is_right
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.errors import DataError

from .alone import alone
from .extras import need
from .inputs import labelled_images, open_bundle
from .workload import by_precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data

_BATCH = 64


@dataclass(frozen=True)
class Demonstration:
    """A perturbation, and what it does to images that did not make it.

    Attributes:
        stored: the perturbation, as it was written.
        n: images that did not make it.
        right_without: share of them that the network names rightly.
        right_with: the same with the perturbation.
    """

    stored: StoredPerturbation
    n: int
    right_without: float
    right_with: float


@alone(file=True)
def make_perturbation(
    bundle: Bundle | str | Path,
    data: ImageSet | Data | str | Path,
    *,
    eps: str | Eps,
    out: str | Path,
    limit: int = 512,
) -> Demonstration:
    """Make one perturbation that is added to every frame: a demonstration, which measures no robustness.

    Half of the images make it, the other half say how many labels it turns::

        shown = make_perturbation("signs.edgeadv", "gtsrb/", eps="16/255", out="signs.perturbation")

    Args:
        bundle: whose weights are attacked, or where it is.
        data: labelled images, their name or their folder.
        eps: largest change of a value, in pixels of [0, 1], whole grey levels.
        out: the file to make; one that is there is replaced.
        limit: images, as many of each class, at least 2.

    Raises:
        InputError: an argument is out of range, or fewer than two images are readable.
        DataError: the images cannot be opened, or too many are unreadable.
    """
    need("train")
    from edgeadv.attacks.universal import universal_sign

    budget = eps if isinstance(eps, Eps) else Eps.parse(eps)
    budget.check_8_bits()
    opened = open_bundle(bundle)
    model, x, y, rest = halves(opened, data, limit)
    sign = universal_sign(model, x, y, eps=budget.grey_levels / 255)
    pattern = np.ascontiguousarray(sign.permute(1, 2, 0).cpu().numpy())
    stored = StoredPerturbation(pattern, budget, opened.weights_sha256)
    stored.save(Path(out))
    without = share_given(model, rest.pixels, rest.labels)
    with_it = share_given(model, np.stack([stored.applied(image, 1.0) for image in rest.pixels]), rest.labels)
    return Demonstration(stored, len(rest.labels), without, with_it)


@dataclass(frozen=True)
class Rest:
    """Images that did not make something: uint8 (n, H, W, channels), and their labels, int64 (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def halves(bundle: Bundle, data: ImageSet | Data | str | Path, limit: int) -> tuple[nn.Module, Tensor, Tensor, Rest]:
    """The network of the most precise artefact, half of the images and their labels as tensors, and the other half.

    Raises:
        InputError: fewer than two images are readable.
        DataError: the images cannot be opened, or too many are unreadable.
    """
    import torch

    from edgeadv.attacks.pack_writer import clean_batches
    from edgeadv.data.datasets import balanced_subset
    from edgeadv.gradients.artefact import open_graph
    from edgeadv.models.device import default_device

    device = default_device()
    images = labelled_images(data, bundle)
    order = np.random.default_rng(0).permutation(balanced_subset(images.labels, limit))
    unreadable: list[str] = []
    found = list(clean_batches(images, bundle, order, unreadable=unreadable))
    pixels, labels = np.concatenate([b.pixels for b in found]), np.concatenate([b.labels for b in found])
    if len(unreadable) > MOST_UNREADABLE * len(order):
        raise DataError(
            f"{len(unreadable)} of {len(order)} images of {images.spec} are unreadable, e.g. {unreadable[0]}; repair "
            "or remove them"
        )
    half = len(pixels) // 2
    if not half:
        raise InputError(f"{len(pixels)} of the images of {images.spec} are readable: at least 2 are needed")
    model = open_graph(bundle, by_precision(bundle)[0], device=device)
    x, y = torch.from_numpy(to_tensor(pixels[:half])).to(device), torch.from_numpy(labels[:half]).to(device)
    return model, x, y, Rest(pixels[half:], labels[half:])


def share_given(model: nn.Module, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of the images that the network gives these labels."""
    import torch

    device, hits = next(model.parameters()).device, []
    for i in range(0, len(pixels), _BATCH):
        with torch.no_grad():
            logits = model(torch.from_numpy(to_tensor(pixels[i : i + _BATCH])).to(device)).cpu().numpy()
        hits.append(first_is_right(logits, labels[i : i + _BATCH]))
    return float(np.concatenate(hits).mean())
