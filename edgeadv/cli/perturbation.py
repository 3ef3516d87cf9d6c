"""``edgeadv perturbation``: one perturbation for all images, for the demonstration of ``edgeadv camera``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import ensure_writable

from ._backends import BundlePath, ExpectedHash, PublicKey
from ._shared import need


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
    need("train")
    import numpy as np
    import torch

    from edgeadv.data import balanced_subset, batches, open_data
    from edgeadv.torch_backend import load_model
    from edgeadv.train import default_device
    from edgeadv.universal import universal_sign
    from edgeadv_runtime.preprocess import to_tensor

    budget = Eps.parse(eps)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name the file to write in it")
    ensure_writable(out.parent)
    opened, device = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key), default_device()
    images = open_data(data, split="test").relabel(opened.classes)
    order = np.random.default_rng(0).permutation(balanced_subset(images.labels, limit))
    found = list(batches(images, opened.preprocess, batch_size=64, order=order))
    pixels, labels = np.concatenate([b.pixels for b in found]), np.concatenate([b.labels for b in found])
    model, half = load_model(opened, device=device), len(pixels) // 2
    if not half:
        raise InputError(f"{len(pixels)} of the images of {data} are readable: at least 2 are needed")
    x, y = torch.from_numpy(to_tensor(pixels)).to(device), torch.from_numpy(labels).to(device)
    sign = universal_sign(model, x[:half], y[:half], eps=budget.value)
    stored = StoredPerturbation(
        np.ascontiguousarray(sign.permute(1, 2, 0).cpu().numpy()), budget, opened.manifest["weights"]["sha256"]
    )
    stored.save(out)
    moved = np.stack([stored.applied(image, 1.0) for image in pixels[half:]])
    with torch.no_grad():
        right = [
            int((model(torch.from_numpy(to_tensor(seen)).to(device)).argmax(dim=1) == y[half:]).sum())
            for seen in (pixels[half:], moved)
        ]
    n = len(pixels) - half
    typer.echo(
        f"of {n} images that did not make it {right[0] / n:.1%} are right without and {right[1] / n:.1%} with it, at eps {budget.text}: {out}"
    )
