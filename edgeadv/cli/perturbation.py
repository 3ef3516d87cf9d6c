"""``edgeadv perturbation``: one perturbation for all images, for the demonstration of ``edgeadv camera``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle.bundle import Bundle

from ..workflows.perturbation import make_perturbation
from ._arguments import BundlePath, ExpectedHash, PublicKey
from ._fields import say
from ._shared import keep_memory


def perturbation(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Labelled images: a name or a folder.")],
    eps: Annotated[str, typer.Option(help="Largest change of a value, e.g. 16/255, in pixels of [0, 1].")],
    out: Annotated[Path, typer.Option(help="The file to make; one that is there is replaced.")],
    limit: Annotated[int, typer.Option(min=2, help="Images, as many of each class; half of them only measure.")] = 512,
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """Make one perturbation that is added to every frame by the slider of `edgeadv camera --serve`. It is a
    demonstration.

    Half of the images make it, the other half say how many labels it turns. It measures no robustness: an attack on
    each image is much stronger, see `edgeadv evaluate`.
    """
    keep_memory()
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    made = make_perturbation(opened, data, eps=eps, out=out, limit=limit)
    say(
        f"of {made.n} images that did not make it {made.right_without:.1%} are right without and {made.right_with:.1%} "
        f"with it, at eps {made.stored.eps.text}: {out}"
    )
