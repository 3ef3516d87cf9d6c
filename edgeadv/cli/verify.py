"""``edgeadv verify``: the self-test of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.bundle.bundle import Bundle

from ..workflows.backends import TensorRTPlan
from ..workflows.inputs import ALL
from ..workflows.verification import verify as run_verification
from ._arguments import BackendNames, ExpectedHash, Precision, Provider, PublicKey
from ._fields import say
from ._options import with_groups


@with_groups
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to test.")],
    tensorrt: TensorRTPlan,
    backend: BackendNames = "onnxruntime",
    precision: Precision = ALL,
    provider: Provider = "cpu",
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    One line for each artefact; the exit status is 2 if one of them fails.
    """
    tested = run_verification(
        Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key),
        backends=backend,
        precisions=precision,
        provider=provider,
        tensorrt=tensorrt,
    )
    for artefact in tested.artefacts:
        if artefact.verification is not None:
            say(str(artefact.verification))
            for note in artefact.notes:
                say(f"  {note}")
    for pair in tested.skipped:
        say(f"{pair.backend} {pair.variant}: not verified; {pair.reason}")
    tested.raise_if_failed()
