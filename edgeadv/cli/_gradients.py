"""Which gradients the attacks of a plan follow on a GPU: float16's, where they are as good and come sooner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import InputError, StorageError
from edgeadv_runtime.files import PLAN_FILE, read_json

from ._attacks import Plan

FLOAT32, SOONEST = "float32", "soonest"

GradientsFrom = Annotated[
    str,
    typer.Option(
        "--gradients",
        help=f"{FLOAT32}, or {SOONEST}: on a GPU float16's, if a check on some images finds them as strong.",
    ),
]


def follow_soonest(
    plan: Plan, bundle: Bundle, *, asked: str, target: str | None, folder: Path, resume: bool, rank: int = 0, workers: int = 0
) -> Plan:  # fmt: skip
    """``plan`` with the gradients of the reference that come soonest, and a line about them.

    Only on a GPU, for untargeted attacks in L-infinity with several steps, on at least four times the images that the check takes; else it is
    the plan as it is.

    Args:
        plan: with float32's gradients.
        bundle: what is attacked.
        asked: ``"float32"`` or ``"soonest"``.
        target: class that attacks move towards.
        folder: where the job keeps its parts, and which gradients it follows.
        resume: go on with what is there, if anything is.
        rank: of this process; only the first one decides, and speaks.
        workers: processes that decode.

    Raises:
        InputError: ``asked`` is neither.
        StorageError: another process than the first sees no job.
    """
    from edgeadv.attacks.sooner import CHECKED, HALF

    if asked not in (FLOAT32, SOONEST):
        raise InputError(f"--gradients {asked!r} is not one of {FLOAT32}, {SOONEST}")
    if asked == FLOAT32 or plan.reference.provider != "cuda" or target is not None or len(plan.order) < 4 * CHECKED:
        return plan
    params = [attack.params(eps) for attack in plan.attacks for eps in attack.eps]
    if {each.norm for each in params} != {"linf"} or max(each.steps or 1 for each in params) == 1:
        return plan
    goes_on = resume or rank > 0
    if folder.exists() and not goes_on:
        # it is going to be refused
        return plan
    followed = _followed(folder) if goes_on else None
    if followed is None and rank > 0:
        raise StorageError(
            f"{folder} shows this process no {PLAN_FILE}: processes on several machines need one folder that all of them see"
        )
    if followed is not None and HALF not in followed:
        if rank == 0:
            typer.echo("gradients are float32's, as before")
        return plan
    return _soonest(plan, bundle, checked=followed is not None, speaks=rank == 0, workers=workers)


def _soonest(plan: Plan, bundle: Bundle, *, checked: bool, speaks: bool, workers: int) -> Plan:
    import numpy as np
    import torch

    from edgeadv.attacks import GradientAttack
    from edgeadv.attacks.linearity import LinearityControl
    from edgeadv.attacks.sooner import CHECKED, soonest
    from edgeadv.data import balanced_subset
    from edgeadv.models import PixelModel
    from edgeadv.pack import clean_batches
    from edgeadv.torch_backend import TorchBackend
    from edgeadv_runtime.preprocess import to_tensor

    reference = plan.reference
    assert isinstance(reference, TorchBackend)
    exact = reference.attack_model
    assert isinstance(exact, PixelModel)
    device = next(exact.parameters()).device
    chosen = plan.order[balanced_subset(plan.images.labels[plan.order], CHECKED)]
    batches = [*clean_batches(plan.images, bundle, chosen, unreadable=[], workers=workers)]
    x = torch.from_numpy(np.concatenate([to_tensor(batch.pixels) for batch in batches])).to(device)
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).to(device)
    made = soonest(reference.model, exact, x, labels, plan.eps, checked=checked)
    if speaks:
        typer.echo(made.said)
    attacks = [
        replace(attack, model=made.model, gradients=made.words)
        if isinstance(attack, (GradientAttack, LinearityControl)) and attack.model is exact
        else attack
        for attack in plan.attacks
    ]
    return replace(plan, attacks=attacks)


def _followed(folder: Path) -> set[str] | None:
    """Where the gradients of a job's attacks come from, if it has begun."""
    file = folder / PLAN_FILE
    if not file.exists():
        return None
    listed = read_json(file, what="plan of the job").get("attacks", [])
    return {entry["gradients"] for entry in listed if isinstance(entry, dict) and entry.get("gradients")}
