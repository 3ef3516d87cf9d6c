"""``edgeadv evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgeadv_runtime import Bundle

from ..workflows.attack_plan import STANDARD, AttackPlan
from ..workflows.evaluation import Execution
from ..workflows.evaluation import evaluate as run_evaluation
from ..workflows.inputs import ALL
from ..workflows.processes import join
from ._arguments import Attacks, Backends, BundleFile, Precisions, Suite
from ._fields import say
from ._shared import keep_memory, progress_bar
from ._table import print_results

DISTILLED = ("papernot", "soft-label")
"""Recipes whose runs keep a teacher that is not defended."""


@dataclass(kw_only=True)
class _Evaluation:
    out: Annotated[Path, "The results file; one that is there is replaced."]
    plan: AttackPlan
    execution: Execution
    data: Annotated[str | None, "Labelled images: a name or a folder. Attacks are crafted here."] = None
    pack: Annotated[
        Path | None, "An attack pack: needs no PyTorch. With --data, which then must be what it was made from."
    ] = None
    eps: Annotated[str | None, "With --data: budgets in pixels of [0, 1], ascending, e.g. 1/255,8/255."] = None
    backends: Backends = "onnxruntime"
    precisions: Precisions = ALL
    suite: Suite = STANDARD
    attacks: Attacks = None


def evaluate(bundle: BundleFile, asked: _Evaluation) -> None:
    """Clean and adversarial accuracy of the artefacts in a bundle, all on the same images.

    Give --data and --eps to craft the attacks here (that needs PyTorch), or --pack to score what was crafted before.
    Under torchrun the processes share the images; an evaluation that was interrupted goes on with --resume.
    """
    with join(own_gpu=asked.execution.provider in ("cuda", "tensorrt") or "tensorrt" in asked.backends) as processes:
        with processes.in_turn():
            opened = bundle.open()
        if asked.pack is None:
            keep_memory()
        with progress_bar() as progress:
            results = run_evaluation(opened, **vars(asked), progress=progress)
    if not processes.first:
        return
    print_results(results)
    gates = [entry.gate.data.sha256 for entry in opened.manifest.variants.values() if entry.gate is not None]
    if results.data.sha256 in gates:
        say("int8 was let through on these very images: quote its accuracy on others")
    if asked.pack is None and not asked.plan.transfer_from and (advice := _advice(opened)):
        say(advice)
    say(f"written: {asked.out}")


def _advice(bundle: Bundle) -> str | None:
    """What else to try on a network that was trained to withstand attacks; None for any other."""
    about = bundle.manifest.provenance.get("recipe")
    recipe = about.get("recipe", "undefended") if isinstance(about, dict) else "undefended"
    if recipe in ("undefended", "teacher"):
        return None
    whose = (
        "its teacher, exported from RUN/teacher, or any undefended one" if recipe in DISTILLED else "an undefended one"
    )
    return (
        f"trained by {recipe}: try images that break {whose} of these classes too, with --transfer-from OTHER.edgeadv"
    )
