"""``edgeadv attack``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgeadv_runtime.bundle.training_images import overlap_sentence

from ..workflows.attack_plan import STANDARD, AttackPlan
from ..workflows.extras import need
from ..workflows.packing import attack as make_pack
from ._arguments import Attacks, BundleFile, EpsIfAny, Provider, Suite
from ._fields import say
from ._shared import keep_memory, progress_bar


@dataclass(kw_only=True)
class _Pack:
    data: Annotated[str, "Labelled images: a name or a folder."]
    out: Annotated[Path, "The attack pack to make."]
    plan: AttackPlan
    eps: EpsIfAny = None
    suite: Suite = STANDARD
    attacks: Attacks = None
    resume: Annotated[bool, "Continue an interrupted pack."] = False
    provider: Provider = "cpu"


def attack(
    bundle: BundleFile,
    asked: _Pack,
    float32: Annotated[bool, "Store floats; by default 8-bit pixels, rounded within eps."] = False,
) -> None:
    """Attack the bundle's artefacts by their own gradients and write a pack that a device can score without PyTorch."""
    need("train")
    keep_memory()
    with progress_bar() as progress:
        pack = make_pack(bundle.open(), **vars(asked), uint8=not float32, progress=progress)
    size = sum(file.stat().st_size for file in pack.path.iterdir()) / 2**20
    stored = sum(not info.control for info in pack.infos)
    if known := pack.data.training_images:
        say(overlap_sentence(known, pack.n))
    say(f"{pack.data.total} images, {stored} attacks and budgets, {size:.1f} MiB: {pack.path}")
