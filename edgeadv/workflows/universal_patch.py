"""One patch for all pictures, to print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeadv_runtime import Bundle, Eps, InputError
from edgeadv_runtime.attacks.patches import SHAPES, patch_shape
from edgeadv_runtime.attacks.stored_patch import StoredPatch
from edgeadv_runtime.records.eps import AREA

from .alone import alone
from .extras import need
from .inputs import open_bundle
from .perturbation import halves, share_given

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data


@dataclass(frozen=True)
class PatchForAll:
    """A patch, and what it does, upright in the middle, to pictures that did not make it.

    Attributes:
        stored: the patch, as it was written.
        n: pictures that did not make it.
        right_without: share of them that the network names rightly.
        right_with: the same with the patch.
        target_with: share that becomes the target, of those of other classes; None without a target.
    """

    stored: StoredPatch
    n: int
    right_without: float
    right_with: float
    target_with: float | None


@alone(file=True)
def make_patch(
    bundle: Bundle | str | Path,
    data: ImageSet | Data | str | Path,
    *,
    area: str | Eps,
    out: str | Path,
    shape: str = SHAPES[0],
    target: str | None = None,
    print_mm: float = 100.0,
    limit: int = 512,
) -> PatchForAll:
    """Make one patch that turns the label of any picture it is put on.

    Half of the pictures make it, over random places, turns, sizes and brightness; the other half say what it does::

        made = make_patch("signs.edgeadv", "gtsrb/", area="10%", out="patch.png", print_mm=80)

    Args:
        bundle: whose weights are attacked, or where it is.
        data: labelled images, their name or their folder.
        area: the share of the picture that it covers at most, ``"10%"``.
        out: the PNG to make; one that is there is replaced.
        shape: of :data:`~edgeadv_runtime.attacks.patches.SHAPES`.
        target: id of the class that pictures are to become; None is any wrong one.
        print_mm: its side in millimetres when the PNG is printed at its own size.
        limit: pictures, as many of each class, at least 2.

    Raises:
        InputError: an argument is out of range, or fewer than two pictures are readable.
        DataError: the pictures cannot be opened, or too many are unreadable.
    """
    need("train")
    from edgeadv.attacks.universal_patch import universal_patch

    if shape not in SHAPES:
        raise InputError("shape", f"{shape!r} is not one of {', '.join(SHAPES)}")
    budget = area if isinstance(area, Eps) else Eps.parse(area, norm=AREA)
    opened = open_bundle(bundle)
    height, width, _ = opened.preprocess.pixel_shape
    lies = patch_shape(budget, height, width, shape)
    if target is not None and target not in opened.classes.ids:
        raise InputError("target", f"{target!r} is no class of {opened.path}, whose begin {opened.classes.ids[0]}")
    aim = None if target is None else opened.classes.index(target)
    model, x, y, rest = halves(opened, data, limit)
    content = universal_patch(model, x, y, lies, target=aim)
    values = (content.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    stored = StoredPatch(values, budget, shape, opened.weights_sha256, target)
    stored.save(Path(out), print_mm=print_mm)
    covered = np.stack([stored.applied(image, 0.5, 0.5) for image in rest.pixels])
    without, with_it = (share_given(model, pixels, rest.labels) for pixels in (rest.pixels, covered))
    called = None
    if aim is not None:
        others = rest.labels != aim
        called = share_given(model, covered[others], np.full(int(others.sum()), aim)) if others.any() else None
    return PatchForAll(stored, len(rest.labels), without, with_it, called)
