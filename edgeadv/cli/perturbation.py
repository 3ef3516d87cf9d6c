"""``edgeadv perturbation``: one perturbation for all images, for the demonstration of ``edgeadv camera``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..workflows.perturbation import make_perturbation
from ._arguments import BundleFile, at_least
from ._fields import say
from ._shared import keep_memory


def perturbation(
    bundle: BundleFile,
    data: Annotated[str, "Labelled images: a name or a folder."],
    eps: Annotated[str, "Largest change of a value, e.g. 16/255, in pixels of [0, 1]."],
    out: Annotated[Path, "The file to make; one that is there is replaced."],
    limit: Annotated[int, at_least(2, "Images, as many of each class; half of them only measure.")] = 512,
) -> None:
    """Make one perturbation that is added to every frame by the slider of `edgeadv camera --serve`. It is a
    demonstration.

    Half of the images make it, the other half say how many labels it turns. It measures no robustness: an attack on
    each image is much stronger, see `edgeadv evaluate`.
    """
    keep_memory()
    made = make_perturbation(bundle.open(), data, eps=eps, out=out, limit=limit)
    say(
        f"of {made.n} images that did not make it {made.right_without:.1%} are right without and {made.right_with:.1%} "
        f"with it, at eps {made.stored.eps.text}: {out}"
    )
