"""``edgeadv patch``: one patch for all pictures, to print and to stick on things."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgeadv_runtime.attacks.patches import SHAPES

from ..workflows.universal_patch import make_patch
from ._arguments import BundleFile, at_least
from ._fields import say
from ._shared import keep_memory


def patch(
    bundle: BundleFile,
    data: Annotated[str, "Labelled images: a name or a folder."],
    area: Annotated[str, "Share of the picture that it covers at most, e.g. 10%."],
    out: Annotated[Path, "The PNG to make; one that is there is replaced."],
    shape: Annotated[str, f"{' or '.join(SHAPES)}."] = SHAPES[0],
    target: Annotated[str | None, "Class id that pictures are to become; by default any wrong one."] = None,
    print_mm: Annotated[float, "Side in millimetres when the PNG is printed at its own size."] = 100.0,
    limit: Annotated[int, at_least(2, "Images, as many of each class; half of them only measure.")] = 512,
) -> None:
    """Make one patch that turns the label of the pictures it is put on, as a PNG to print.

    It is trained over random places, turns, sizes and brightness. Half of the images make it, the other half say what
    it does. For a figure see `edgeadv evaluate --patch`.
    """
    keep_memory()
    made = make_patch(
        bundle.open(), data, area=area, out=out, shape=shape, target=target, print_mm=print_mm, limit=limit
    )
    called = "" if made.target_with is None else f", {made.target_with:.1%} of those of other classes become {target}"
    say(
        f"of {made.n} images that did not make it {made.right_without:.1%} are right without and {made.right_with:.1%} "
        f"with it{called}: {out}"
    )
