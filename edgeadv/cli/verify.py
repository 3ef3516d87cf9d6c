"""``edgeadv verify``: the self-test of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import verify as runtime
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import BackendError

from ._shared import ALL, BACKENDS, backend_openers


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to test.")],
    backend: Annotated[
        str, typer.Option(help=f"Comma-separated list of {', '.join(BACKENDS)}, or all.")
    ] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="Comma-separated variants, or all that the bundle has.")] = ALL,
    provider: Annotated[str, typer.Option(help="What it runs on: cpu or cuda.")] = "cpu",
    expected_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that manifest.json must have, known from elsewhere: stops tampering.")
    ] = None,
) -> None:
    """Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    One line for each artefact; the exit status is 2 if one of them fails.
    """
    opened = Bundle.open(bundle, expected_sha256=expected_sha256)
    openers, skipped = backend_openers(opened, backend=backend, precision=precision, provider=provider)
    failed = []
    for opener in openers:
        with opener() as artefact:
            (verification,) = runtime.verify(opened, [artefact])
        typer.echo(str(verification))
        if not verification.ok:
            failed.append(f"{artefact.name} {artefact.variant}")
    for pair in skipped:
        typer.echo(f"{pair['backend']} {pair['variant']}: not verified; {pair['reason']}")
    if failed:
        raise BackendError(f"{bundle} does not give its golden results on {', '.join(failed)}: do not use it there")
