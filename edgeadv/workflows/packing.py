"""Attacked images in a pack, which a device can score without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeadv_runtime import AttackPack, Bundle, InputError
from edgeadv_runtime.attacks.queries import query_attacks
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.files import partial_of

from .alone import alone
from .attack_plan import STANDARD, AttackPlan, Attacks, check_resumable, chosen_attacks
from .corruptions import check_budget_kind
from .extras import need
from .inputs import Budgets, open_bundle
from .patching import patch_workload
from .workload import make_workload

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data
    from edgeadv_runtime.attacks.base import Attack


@alone()
def attack(
    bundle: Bundle | str | Path,
    data: ImageSet | Data | str | Path,
    *,
    eps: Budgets | None = None,
    out: str | Path,
    suite: str = STANDARD,
    attacks: Attacks = None,
    plan: AttackPlan | None = None,
    provider: str = "cpu",
    uint8: bool = True,
    resume: bool = False,
    progress: Progress | None = None,
) -> AttackPack:
    """Attack the bundle's artefacts by their own gradients and write a pack.

    What ``progress`` raises, or an interruption, ends the work; what was finished stays beside ``out`` for ``resume``::

        pack = attack("signs.edgeadv", "gtsrb/", eps=["8/255"], out="signs.pack")

    Args:
        bundle: whose weights are attacked, or where it is.
        data: labelled images, their name or their folder.
        eps: budgets in pixels of [0, 1], ascending; None takes those of ``attacks``, if all of them are objects.
        out: the pack's folder; must not exist.
        suite: how hard to try, of :data:`~edgeadv_runtime.records.suites.SUITES`.
        attacks: names, or efforts by name, and objects such as :class:`~edgeadv_runtime.CallableAttack`, instead of the
            suite's attacks.
        plan: how images are attacked; with ``patch`` in the place of budgets within eps.
        provider: where gradients are computed: ``"cpu"``, or ``"cuda"``.
        uint8: store 8-bit pixels, rounded within eps; else float32.
        resume: continue what an interrupted call left.
        progress: called with the images done, all images, and what is being done with them.

    Raises:
        InputError: arguments do not go together, or one does not fit the bundle or this machine.
        DataError: the images cannot be opened, or too many are unreadable.
        StorageError: ``out`` exists or cannot be written, or there is an unfinished pack and ``resume`` is false.
    """
    need("train")
    from edgeadv.attacks.pack_writer import write_pack

    if provider not in ("cpu", "cuda"):
        raise InputError("provider", f"{provider!r} computes no gradients: cpu or cuda")
    bundle, folder, plan = open_bundle(bundle), Path(out), plan or AttackPlan()
    if plan.group is not None:
        raise InputError(
            "`group` needs the names of the images, which a pack has not: leave it out, and `evaluate` them"
        )
    if plan.corruptions is not None:
        raise InputError(
            "`corruptions` are made where they are scored: leave them out, and `evaluate` the pack with them"
        )
    own: list[Attack] = []
    if plan.patch is not None or plan.patch_file is not None:
        check_budget_kind(data, None, plan, with_attacks=eps is not None or attacks is not None or suite != STANDARD)
        work = patch_workload(bundle, data, plan, variants=bundle.variants, provider=provider)
    else:
        efforts, own = chosen_attacks(suite, attacks, plan.queries)
        work = make_workload(
            bundle, data, eps, efforts=efforts, variants=bundle.variants, plan=plan, own=own, provider=provider
        )
    if resume:
        check_resumable(work.images, own)
    if not folder.exists():
        work.check_training_images(bundle, workers=plan.workers, progress=progress)

    return write_pack(
        folder,
        bundle=bundle,
        images=work.images,
        order=work.order,
        attacks=[*work.attacks, *query_attacks(work.efforts, work.eps, work.reference, (), state=partial_of(folder))],
        reference=work.reference,
        data=work.data,
        uint8=uint8,
        resume=resume,
        workers=plan.workers,
        skipped=work.skipped,
        progress=progress,
    )
