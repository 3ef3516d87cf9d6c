"""From names to attacks, and how hard they try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edgeadv_runtime.attacks.patches import PLACES, SHAPES
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.corruptions.kinds import SETS
from edgeadv_runtime.decoding import Options
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.suites import (
    OPTIONAL,
    PGD_MARGIN,
    QUERY_ATTACKS,
    SQUARE,
    SUITES,
    Effort,
)

from .inputs import names

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv_runtime.attacks.base import Attack

Attacks = str | Sequence["str | Attack"] | Mapping[str, Effort] | None

STANDARD = "standard"
FLOAT32, TF32, FLOAT16 = "float32", "tf32", "float16"
PRECISIONS = (FLOAT32, TF32, FLOAT16)
_SEVERITIES = "1,2,3,4,5"


@dataclass(frozen=True, kw_only=True)
class AttackPlan(Options):
    """How images are attacked, beside budgets and the names of attacks, and where they come from."""

    queries: Annotated[int | None, "Most queries that square makes for an image."] = None
    limit: Annotated[int | None, "At most this many images, as many of each class."] = None
    images_list: Annotated[
        Path | None, "Only the images that this file names: a name, or a pattern such as 00000/00003_*, a line."
    ] = None
    group: Annotated[
        str | None, "track: also score tracks, of images called TRACK_FRAME, as an application would decide on them."
    ] = None
    target: Annotated[str | None, "Class id that fgsm and fgsm-rescaled move towards."] = None
    transfer_from: Annotated[
        tuple[Path | Bundle, ...],
        "Another bundle of the same classes: images made on it are tried too. For a defended network an "
        "undefended one; may be given several times.",
    ] = ()
    gradients: Annotated[
        str | None,
        f"{FLOAT32}, {TF32} or {FLOAT16}: the less precise the sooner. By default {TF32} on a GPU, as PyTorch has "
        f"it, and on a processor {FLOAT32}, which knows no other.",
    ] = None
    patch: Annotated[
        str | None,
        "In place of attacks within eps: a patch of this area, e.g. 2%,5%,10% of the picture, ascending.",
    ] = None
    patch_file: Annotated[Path | None, "Also score this patch for all pictures, made by `edgeadv patch`."] = None
    patch_shape: Annotated[str, f"Of the patch: {' or '.join(SHAPES)}."] = SHAPES[0]
    patch_place: Annotated[str, "Of a grid, the worst place for each image, or a random one."] = PLACES[0]
    corruptions: Annotated[
        str | None,
        f"In place of attacks: what cameras and weather do to a picture. Comma-separated kinds, or {', '.join(SETS)}.",
    ] = None
    severities: Annotated[str, "Of the corruptions, from 1 to 5."] = _SEVERITIES
    workers: Annotated[int, "Processes that decode images."] = 0
    allow_unreadable: Annotated[bool, "Accept more than 1% of unreadable images."] = False
    allow_training_images: Annotated[
        bool,
        "Accept more than 1% of images that the network was trained on; every row of the results says so.",
    ] = False
    download: Annotated[bool, "Let torchvision download the data."] = False
    data_root: Annotated[Path | None, "Where torchvision keeps its data."] = None

    def __post_init__(self) -> None:
        if isinstance(self.transfer_from, str | Path | Bundle):
            object.__setattr__(self, "transfer_from", (self.transfer_from,))
        super().__post_init__()
        if self.queries is not None and self.queries < 1:
            raise InputError("queries", f"must be at least 1, not {self.queries}")
        if self.group not in (None, "track"):
            raise InputError("group", f"{self.group!r} is not track")
        if self.group is not None and self.limit is not None:
            raise InputError("`limit` would tear tracks apart: leave it out, or name whole tracks with `images_list`")
        if self.severities != _SEVERITIES and self.corruptions is None:
            raise InputError("`severities` are those of `corruptions`: add it, or leave them out")
        if self.patch is None and (self.patch_shape, self.patch_place) != (SHAPES[0], PLACES[0]):
            raise InputError("`patch_shape` and `patch_place` are those of `patch`: add it, or leave them out")
        if self.workers < 0:
            raise InputError("workers", f"must be at least 0, not {self.workers}")


def efforts_of(suite: str, attacks: str | Sequence[str] | None = None, queries: int | None = None) -> dict[str, Effort]:
    """Which attacks run, and how hard they try.

    An attack that is named and that the suite does not have tries as hard as in ``standard``, and one that no suite has
    as hard as the suite's PGD on the margin.

    Raises:
        InputError: an unknown suite or attack, or ``queries`` without Square.
    """
    known: dict[str, Mapping[str, Effort]] = dict(SUITES)  # type: ignore[arg-type]
    if suite not in known:
        raise InputError("suite", f"{suite!r} is not one of {', '.join(known)}")
    efforts = dict(known[suite])
    if attacks is not None:
        chosen = names(attacks, field="attacks")
        known_names = (*dict.fromkeys(name for each in known.values() for name in each), *OPTIONAL)
        if unknown := [name for name in chosen if name not in known_names]:
            raise InputError(f"unknown attack {', '.join(unknown)}: choose from {', '.join(known_names)}")
        efforts = {name: efforts.get(name) or known[STANDARD].get(name) or efforts[PGD_MARGIN] for name in chosen}
    if queries is not None:
        if SQUARE not in efforts:
            raise InputError(f"`queries` is for {SQUARE}, which does not run: add it with `attacks`, or leave it out")
        efforts[SQUARE] = replace(efforts[SQUARE], queries=queries)
    return efforts


def chosen_attacks(suite: str, attacks: Attacks, queries: int | None) -> tuple[dict[str, Effort], list[Attack]]:
    """The efforts of attacks that are named, and the attacks that are objects: these alone if nothing is named.

    Raises:
        InputError: as :func:`efforts_of`.
    """
    if isinstance(attacks, Mapping):
        if wrong := [name for name, effort in attacks.items() if not isinstance(effort, Effort)]:
            raise InputError("attacks", f"gives {wrong[0]} something else than an Effort")
        if queries is not None:
            raise InputError("`queries` are part of the efforts that `attacks` gives: leave them out")
        return {**efforts_of(suite, list(attacks)), **attacks}, []
    if attacks is None or isinstance(attacks, str):
        return efforts_of(suite, attacks, queries), []
    # read once: it may be an iterator, and one attack needs no list
    given = list(attacks) if isinstance(attacks, Iterable) else [attacks]
    named = [attack for attack in given if isinstance(attack, str)]
    own = [attack for attack in given if not isinstance(attack, str)]
    return {} if own and not named else efforts_of(suite, named, queries), own


def check_resumable(images: ImageSet | None, own: Sequence[Attack]) -> None:
    """Make sure that what is resumed can be told from something else of the same name.

    Args:
        images: what is attacked; None where a pack's hashes tell.
        own: attacks that are objects.

    Raises:
        InputError: it cannot.
    """
    if own:
        names = ", ".join(attack.name for attack in own)
        raise InputError("resume", f"cannot tell whether {names} is still the same attack: leave it out")
    from edgeadv.data.datasets import EMBEDDED, TORCHVISION

    if images is not None and not (Path(images.spec).exists() or images.spec in (EMBEDDED, *TORCHVISION)):
        raise InputError("resume", f"cannot tell whether {images.spec} holds the same images in memory: leave it out")


def without_gradients(efforts: Mapping[str, Effort]) -> Mapping[str, Effort]:
    """Make sure that a pack can be extended by these attacks.

    Raises:
        InputError: one of them needs gradients.
    """
    if wrong := [name for name in efforts if name not in QUERY_ATTACKS]:
        raise InputError(
            f"{', '.join(wrong)} needs gradients, which were settled with the pack: only "
            f"{', '.join(QUERY_ATTACKS)} can be added"
        )
    return efforts
