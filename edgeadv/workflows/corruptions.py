"""Labelled images under corruptions, of data or of a pack, for the one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadv_runtime.attacks.corrupted import corruption_infos
from edgeadv_runtime.attacks.pack import PACK_FILE, AttackPack
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluation.source import Source
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.records.about import Skipped

from .attack_plan import AttackPlan, check_resumable
from .extras import need

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data


def check_budget_kind(data: object | None, pack: object | None, plan: AttackPlan, *, with_attacks: bool) -> None:
    """Refuse what does not go with corruptions or with a patch.

    Raises:
        InputError: budgets of two kinds, attacks within eps, or no images.
    """
    if plan.corruptions is not None and plan.patch is not None:
        raise InputError("`patch` is measured in area and `corruptions` in severity: run them one after the other")
    name, unit = ("corruptions", "severities") if plan.patch is None else ("patch", "an area")
    fixed = (plan.queries, plan.target)
    if with_attacks or plan.transfer_from or any(value is not None for value in fixed):
        raise InputError(
            f"`{name}` has {unit} and no eps: leave out `eps`, `suite`, `attacks`, `queries`, `target` and "
            "`transfer_from`, and attack within eps in a run of its own"
        )
    if plan.patch is not None and (data is None or pack is not None):
        raise InputError("`patch` is made on the images of `data`: give that, and no `pack`")
    if pack is not None and (plan.group is not None or plan.images_list is not None):
        raise InputError("`group` and `images_list` need names of images, and a pack has none: give `data`")
    if plan.patch is None and plan.patch_file is not None:
        raise InputError("`patch_file` is scored beside patches of its area: add `patch`")
    if (data is None) == (pack is None):
        raise InputError("`corruptions` are made of the images of `data` or of a `pack`: give one of them")


def to_corrupt(
    bundle: Bundle,
    data: ImageSet | Data | str | Path | None,
    pack: AttackPack | str | Path | None,
    plan: AttackPlan,
    *,
    resume: bool,
    look: bool,
) -> tuple[Callable[[Sequence[Backend], Path | None], Source], list[Skipped]]:
    """The source of corrupted images, whatever artefacts are open.

    Raises:
        InputError: a kind or a severity is none, or the images do not fit the bundle.
        DataError: they cannot be opened.
    """
    assert plan.corruptions is not None
    infos = corruption_infos(plan.corruptions, plan.severities, side=min(bundle.preprocess.input_shape[1:]))
    if pack is not None:
        opened = pack if isinstance(pack, AttackPack) else AttackPack.open(pack, bundle=bundle)
        allowed = plan.allow_training_images or opened.data.allow_training_images
        if look:
            opened.check_training_images(bundle, allowed=allowed)

        def of_pack(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CleanBatch]:
            return (batch.clean for batch in opened.batches(unreadable, numbers))

        info = replace(opened.data, allow_training_images=allowed)
        origin = {"pack": sha256_file(opened.path / PACK_FILE)}
        return lambda *_: Source.of_corruptions(of_pack, infos, info, opened.shards, origin), []
    need("train")
    from edgeadv.attacks.pack_writer import check_training_images, images_sha256

    from .workload import chosen_images, shards

    assert data is not None
    images, order, about = chosen_images(bundle, data, plan)
    if resume:
        check_resumable(images, [])
    if look:
        check_training_images(images, bundle, order, data=about, workers=plan.workers)

    of_data, count = shards(bundle, images, order, about, workers=plan.workers)
    there = {"images": images_sha256(images, order)}
    source = Source.of_corruptions(of_data, infos, about, count, there)
    return lambda *_: replace(source, names=images.names if plan.group else ()), []
