"""What a workflow is given, as the objects that it works on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadv_runtime import Bundle, Eps, InputError
from edgeadv_runtime.records.eps import check_text

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data

ALL = "all"
Budgets = str | Eps | Iterable[str | Eps]


def names(given: str | Iterable[str], *, field: str) -> tuple[str, ...]:
    """A list of names, or a comma-separated text of them.

    Raises:
        InputError: it is empty, or has gaps or repetitions; ``field`` names it.
    """
    found = tuple(part.strip() for part in (given.split(",") if isinstance(given, str) else given))
    if not found or "" in found or len(set(found)) != len(found):
        text = given if isinstance(given, str) else ",".join(found)
        raise InputError(field, f"{text!r} is a comma-separated list without gaps or repetitions")
    return found


def one_of(given: str, choices: Iterable[str], *, field: str) -> Any:
    """``given``, which is one of ``choices``.

    Raises:
        InputError: it is not; ``field`` names it.
    """
    if given not in choices:
        raise InputError(field, f"{given!r} is not one of {', '.join(choices)}")
    return given


def open_bundle(bundle: Bundle | str | Path) -> Bundle:
    """``bundle`` itself, or the one at this path.

    Raises:
        BundleError: it is damaged or not one.
    """
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def budgets(eps: Budgets, *, norm: str = "linf") -> tuple[Eps, ...]:
    """Budgets in ascending order: ``"2/255,8/255"``, ``["2/255", "8/255"]``, or :class:`Eps`.

    Raises:
        InputError: as :meth:`Eps.parse_list`.
    """
    parts = list(eps) if isinstance(eps, Iterable) and not isinstance(eps, str) else [eps]
    texts = [part.text if isinstance(part, Eps) else part for part in parts]
    for text in texts:
        check_text(text)
    return Eps.parse_list(",".join(texts), norm=norm)


def labelled_images(
    data: ImageSet | Data | str | Path, bundle: Bundle, *, root: Path | None = None, download: bool = False
) -> ImageSet:
    """Images to score, labelled in the order of the bundle's classes.

    Args:
        data: an image set, data with a part to test on, or what :func:`edgeadv.data.datasets.open_data` opens.
        bundle: whose classes they have.
        root: where torchvision keeps its data.
        download: let torchvision download what is not there.

    Raises:
        DataError: it cannot be opened, or has a class that the bundle does not know.
    """
    from edgeadv.data.datasets import ImageSet, open_data
    from edgeadv.data.sources import Data, image_set

    if isinstance(data, Data):
        data = data.test
    elif not isinstance(data, ImageSet | str | Path):
        data = image_set(data, field="data")
    if not isinstance(data, ImageSet):
        data = open_data(str(data), split="test", root=root, download=download)
    return data.relabel(bundle.classes)
