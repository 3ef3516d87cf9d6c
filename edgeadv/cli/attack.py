"""``edgeadv attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.training_images import overlap_sentence

from ..workflows.attack_plan import STANDARD, AttackPlan
from ..workflows.extras import need
from ..workflows.packing import attack as make_pack
from ._arguments import AttackNames, BundlePath, EpsList, ExpectedHash, Provider, PublicKey, Suite
from ._fields import say
from ._options import with_groups
from ._shared import keep_memory, progress_bar


@with_groups
def attack(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Labelled images: a name or a folder.")],
    eps: EpsList,
    out: Annotated[Path, typer.Option(help="The attack pack to make.")],
    plan: AttackPlan,
    suite: Suite = STANDARD,
    attack: AttackNames = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Store floats; by default 8-bit pixels, rounded within eps.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted pack.")] = False,
    provider: Provider = "cpu",
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """Attack the bundle's weights with PyTorch's gradients and write a pack that a device can score without PyTorch."""
    need("train")
    keep_memory()
    with progress_bar() as progress:
        pack = make_pack(
            Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key),
            data,
            eps=eps,
            out=out,
            suite=suite,
            attacks=attack,
            plan=plan,
            provider=provider,
            uint8=not float32,
            resume=resume,
            progress=progress,
        )
    size = sum(file.stat().st_size for file in pack.path.iterdir()) / 2**20
    stored = sum(not info.control for info in pack.infos)
    if known := pack.data.training_images:
        say(overlap_sentence(known, pack.n))
    say(f"{pack.data.total} images, {stored} attacks and budgets, {size:.1f} MiB: {pack.path}")
