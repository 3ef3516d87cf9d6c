"""``edgeadv attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.training_images import overlap_sentence

from ._attacks import (
    STANDARD,
    AttackNames,
    Download,
    EpsList,
    Limit,
    Queries,
    Root,
    Suite,
    Target,
    TrainingImagesToo,
    TransferFrom,
    Unreadable,
    Workers,
    efforts_of,
    make_plan,
    query_attacks,
)
from ._backends import BundlePath, ExpectedHash, Provider, PublicKey
from ._fields import say
from ._gradients import FLOAT32, GradientsIn
from ._shared import image_bar, need_pytorch


def attack(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Labelled images: a name or a folder.")],
    eps: EpsList,
    out: Annotated[Path, typer.Option(help="The attack pack to make.")],
    suite: Suite = STANDARD,
    attack: AttackNames = None,
    queries: Queries = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Store floats; by default 8-bit pixels, rounded within eps.")
    ] = False,
    limit: Limit = None,
    target: Target = None,
    transfer_from: TransferFrom = None,
    gradients: GradientsIn = FLOAT32,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted pack.")] = False,
    provider: Provider = "cpu",
    workers: Workers = 0,
    allow_unreadable: Unreadable = False,
    allow_training_images: TrainingImagesToo = False,
    download: Download = False,
    data_root: Root = None,
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """Attack the bundle's weights with PyTorch's gradients and write a pack that a device can score without PyTorch."""
    need_pytorch()
    from edgeadv.attacks.pack_writer import check_training_images, partial_of, write_pack

    efforts = efforts_of(suite, attack, queries)
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    plan = make_plan(
        opened, data, eps, efforts=efforts, variants=opened.variants, images=limit, target=target, provider=provider,
        allow_unreadable=allow_unreadable, allow_training_images=allow_training_images, download=download, root=data_root,
        transfer_from=transfer_from or (), gradients=gradients,
    )  # fmt: skip
    if not out.exists():
        with image_bar("looking at the images") as progress:
            check_training_images(plan.images, opened, plan.order, data=plan.data, workers=workers, progress=progress)
    attacks = [*plan.attacks, *query_attacks(efforts, plan.eps, plan.reference, (), state=partial_of(out))]
    with image_bar("attacking") as progress:
        pack = write_pack(
            out, bundle=opened, images=plan.images, order=plan.order, attacks=attacks, reference=plan.reference,
            data=plan.data, uint8=not float32, resume=resume, workers=workers, skipped=plan.skipped,
            progress=progress,
        )  # fmt: skip
    size = sum(file.stat().st_size for file in pack.path.iterdir()) / 2**20
    stored = sum(not info.control for info in pack.infos)
    if known := pack.data.training_images:
        say(overlap_sentence(known, pack.n))
    say(f"{plan.data.total} images, {stored} attacks and budgets, {size:.1f} MiB: {pack.path}")
