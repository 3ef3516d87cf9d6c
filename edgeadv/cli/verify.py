"""``edgeadv verify``: the self-test of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend, TensorRTBackend
from edgeadv_runtime.backends import golden_check as runtime
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import BackendError

from ._backends import (
    BackendNames,
    EngineBatch,
    EngineChoice,
    EngineFolder,
    EngineLibrary,
    ExpectedHash,
    Precision,
    Provider,
    PublicKey,
    Tf32,
    TrustPlan,
    Workspace,
    backend_openers,
)
from ._fields import say
from ._shared import ALL


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to test.")],
    backend: BackendNames = "onnxruntime",
    precision: Precision = ALL,
    provider: Provider = "cpu",
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
    engine_batch: EngineBatch = None,
    engine_cache: EngineFolder = None,
    trust_plan: TrustPlan = None,
    library: EngineLibrary = None,
    workspace: Workspace = None,
    tf32: Tf32 = False,
) -> None:
    """Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    One line for each artefact; the exit status is 2 if one of them fails.
    """
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    openers, skipped = backend_openers(
        opened, backend=backend, precision=precision, provider=provider,
        engine=EngineChoice(engine_batch, engine_cache, trust_plan, library, workspace, tf32),
    )  # fmt: skip
    failed, not_run = [], []
    for (name, variant), opener in openers.items():
        try:
            with opener() as artefact:
                (verification,) = runtime.verify(opened, [artefact])
                lines = [str(verification), *(f"  {note}" for note in _notes(artefact))]
                ok = verification.ok
        except BackendError as error:
            if len(openers) == 1:
                raise
            not_run.append(f"{name} {variant} did not run: {error}")
            continue
        for line in lines:
            say(line)
        if not ok:
            failed.append(f"{name} {variant}")
    for pair in skipped:
        say(f"{pair['backend']} {pair['variant']}: not verified; {pair['reason']}")
    if failed:
        not_run.append(f"{bundle} does not give its golden results on {', '.join(failed)}: do not use it there")
    if not_run:
        raise BackendError("; ".join(not_run))


def _notes(artefact: Backend) -> list[str]:
    """What a backend knows beyond its answers: which plan it is, and where its nodes run."""
    notes = []
    if isinstance(artefact, TensorRTBackend):
        notes.append(f"plan {artefact.plan_sha256}, precision {artefact.precision_label}")
    if isinstance(artefact, OnnxRuntimeBackend) and len(artefact.node_share) > 1:
        notes.append(", ".join(f"{share:.0%} of the nodes by {name}" for name, share in artefact.node_share.items()))
    return notes
