"""Which gradients the attacks of a plan follow on a GPU: float16's, where they are as good and come sooner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.files import read_json

from ._attacks import Plan

_PLAN_FILE = "plan.json"


def follow_soonest(plan: Plan, bundle: Bundle, *, target: str | None, begun: Path | None, workers: int = 0) -> Plan:
    """``plan`` with the gradients of the reference that come soonest, and a line about them.

    Only on a GPU, for untargeted attacks in L-infinity on at least four times the images that the check takes; else it is the plan
    as it is.

    Args:
        plan: with float32's gradients.
        bundle: what is attacked.
        target: class that attacks move towards.
        begun: folder of a job that is continued, by this process or beside others: what it follows is settled.
        workers: processes that decode.
    """
    from edgeadv.attacks.sooner import CHECKED, HALF

    long = len(plan.order) >= 4 * CHECKED
    norms = {attack.params(eps).norm for attack in plan.attacks for eps in attack.eps}
    if plan.reference.provider != "cuda" or target is not None or norms != {"linf"} or not long:
        return plan
    followed = None if begun is None else _followed(begun)
    if followed is not None and HALF not in followed:
        return plan
    return _soonest(plan, bundle, checked=followed is not None, workers=workers)


def _soonest(plan: Plan, bundle: Bundle, *, checked: bool, workers: int) -> Plan:
    import numpy as np
    import torch

    from edgeadv.attacks import GradientAttack
    from edgeadv.attacks.sooner import CHECKED, soonest
    from edgeadv.models import PixelModel
    from edgeadv.pack import clean_batches
    from edgeadv.torch_backend import TorchBackend
    from edgeadv_runtime.preprocess import to_tensor

    reference = plan.reference
    assert isinstance(reference, TorchBackend)
    exact = reference.attack_model
    assert isinstance(exact, PixelModel)
    device = next(exact.parameters()).device
    # from all over the data: neighbours are often of one class
    chosen = plan.order[:: -(-len(plan.order) // CHECKED)]
    batches = [*clean_batches(plan.images, bundle, chosen, unreadable=[], workers=workers)]
    x = torch.from_numpy(np.concatenate([to_tensor(batch.pixels) for batch in batches])).to(device)
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches])).to(device)
    made = soonest(reference.model, exact, x, labels, plan.eps, checked=checked)
    typer.echo(made.said)
    attacks = [
        replace(attack, model=made.model, gradients=made.words)
        if isinstance(attack, GradientAttack) and attack.model is exact
        else attack
        for attack in plan.attacks
    ]
    return replace(plan, attacks=attacks)


def _followed(folder: Path) -> set[str] | None:
    """Where the gradients of a job's attacks come from, if it has begun."""
    file = folder / _PLAN_FILE
    if not file.exists():
        return None
    listed = read_json(file, what="plan of the job").get("attacks", [])
    return {entry["gradients"] for entry in listed if isinstance(entry, dict) and entry.get("gradients")}
