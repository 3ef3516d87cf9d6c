"""``edgeadv verify``: the self-test of a bundle on this machine."""

from __future__ import annotations

from ..workflows.backends import TensorRTPlan
from ..workflows.inputs import ALL
from ..workflows.verification import verify as run_verification
from ._arguments import Backends, BundleFile, Precisions, Provider
from ._fields import say


def verify(
    bundle: BundleFile,
    tensorrt: TensorRTPlan,
    backends: Backends = "onnxruntime",
    precisions: Precisions = ALL,
    provider: Provider = "cpu",
) -> None:
    """Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    One line for each artefact; the exit status is 2 if one of them fails.
    """
    tested = run_verification(
        bundle.open(), backends=backends, precisions=precisions, provider=provider, tensorrt=tensorrt
    )
    for artefact in tested.artefacts:
        if artefact.verification is not None:
            say(str(artefact.verification))
            for note in artefact.notes:
                say(f"  {note}")
    for pair in tested.skipped:
        say(f"{pair.backend} {pair.variant}: not verified; {pair.reason}")
    tested.raise_if_failed()
