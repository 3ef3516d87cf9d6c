"""``edgeadv perturbation``: one perturbation for all images, for the demonstration of ``edgeadv camera``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle.batches import MOST_UNREADABLE
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.confidence import first_is_right
from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.files import ensure_file_writable
from edgeadv_runtime.records.eps import Eps

from ._backends import BundlePath, ExpectedHash, PublicKey
from ._fields import say
from ._shared import need_pytorch

_BATCH = 64


def perturbation(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Labelled images: a name or a folder.")],
    eps: Annotated[str, typer.Option(help="Largest change of a value, e.g. 16/255, in pixels of [0, 1].")],
    out: Annotated[Path, typer.Option(help="The file to make; one that is there is replaced.")],
    limit: Annotated[int, typer.Option(min=2, help="Images, as many of each class; half of them only measure.")] = 512,
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """Make one perturbation that is added to every frame by the slider of `edgeadv camera --serve`. It is a demonstration.

    Half of the images make it, the other half say how many labels it turns. It measures no robustness: an attack on each image is
    much stronger, see `edgeadv evaluate`.
    """
    need_pytorch()
    import numpy as np
    import torch

    from edgeadv.attacks.universal import universal_sign
    from edgeadv.backends.pytorch import load_model
    from edgeadv.data.datasets import balanced_subset, batches, open_data
    from edgeadv.models.device import default_device
    from edgeadv_runtime.bundle.preprocess import to_tensor

    budget = Eps.parse(eps)
    budget.check_8_bits()
    ensure_file_writable(out)
    opened, device = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key), default_device()
    images = open_data(data, split="test").relabel(opened.classes)
    order = np.random.default_rng(0).permutation(balanced_subset(images.labels, limit))
    found = list(batches(images, opened.preprocess, batch_size=_BATCH, order=order))
    pixels, labels = np.concatenate([b.pixels for b in found]), np.concatenate([b.labels for b in found])
    unreadable = [message for b in found for message in b.unreadable]
    if len(unreadable) > MOST_UNREADABLE * len(order):
        raise DataError(
            f"{len(unreadable)} of {len(order)} images of {data} are unreadable, e.g. {unreadable[0]}; repair or remove them"
        )
    half = len(pixels) // 2
    if not half:
        raise InputError(f"{len(pixels)} of the images of {data} are readable: at least 2 are needed")
    model = load_model(opened, device=device)
    x, y = torch.from_numpy(to_tensor(pixels[:half])).to(device), torch.from_numpy(labels[:half]).to(device)
    sign = universal_sign(model, x, y, eps=budget.grey_levels / 255)
    stored = StoredPerturbation(
        np.ascontiguousarray(sign.permute(1, 2, 0).cpu().numpy()), budget, opened.manifest["weights"]["sha256"]
    )
    stored.save(out)

    def right(strength: float) -> float:
        """Share of the other half that the network names rightly."""
        hits = []
        for i in range(half, len(pixels), _BATCH):
            moved = np.stack([stored.applied(image, strength) for image in pixels[i : i + _BATCH]])
            with torch.no_grad():
                logits = model(torch.from_numpy(to_tensor(moved)).to(device)).cpu().numpy()
            hits.append(first_is_right(logits, labels[i : i + _BATCH]))
        return float(np.concatenate(hits).mean())

    say(
        f"of {len(pixels) - half} images that did not make it {right(0.0):.1%} are right without and {right(1.0):.1%} with it, at eps "
        f"{budget.text}: {out}"
    )
