"""``edgeadv verify``: the self-test of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import verify as runtime
from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend, TensorRTBackend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import BackendError

from ._backends import (
    BackendNames,
    EngineBatch,
    EngineChoice,
    EngineFolder,
    Precision,
    Provider,
    PublicKey,
    TrustPlan,
    backend_openers,
)
from ._shared import ALL


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to test.")],
    backend: BackendNames = "onnxruntime",
    precision: Precision = ALL,
    provider: Provider = "cpu",
    expected_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that manifest.json must have, known from elsewhere: stops tampering.")
    ] = None,
    public_key: PublicKey = None,
    engine_batch: EngineBatch = "1",
    engine_cache: EngineFolder = None,
    trust_plan: TrustPlan = None,
) -> None:
    """Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    One line for each artefact; the exit status is 2 if one of them fails.
    """
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    openers, skipped = backend_openers(
        opened, backend=backend, precision=precision, provider=provider,
        engine=EngineChoice(engine_batch, engine_cache, trust_plan),
    )  # fmt: skip
    failed = []
    for opener in openers:
        with opener() as artefact:
            (verification,) = runtime.verify(opened, [artefact])
            notes = _notes(artefact)
        typer.echo(str(verification))
        for note in notes:
            typer.echo(f"  {note}")
        if not verification.ok:
            failed.append(f"{artefact.name} {artefact.variant}")
    for pair in skipped:
        typer.echo(f"{pair['backend']} {pair['variant']}: not verified; {pair['reason']}")
    if failed:
        raise BackendError(f"{bundle} does not give its golden results on {', '.join(failed)}: do not use it there")


def _notes(artefact: Backend) -> list[str]:
    """What a backend knows beyond its answers: which plan it is, and where its nodes run."""
    notes = []
    if isinstance(artefact, TensorRTBackend):
        notes.append(f"plan {artefact.plan_sha256}, precision {artefact.precision_label}")
    if isinstance(artefact, OnnxRuntimeBackend) and len(artefact.node_share) > 1:
        notes.append(", ".join(f"{share:.0%} of the nodes by {name}" for name, share in artefact.node_share.items()))
    return notes
