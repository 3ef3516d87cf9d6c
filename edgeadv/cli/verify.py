"""``edgeadv verify``: the self-test of a bundle on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import verify as runtime
from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.errors import BackendError, InputError, require

BACKENDS = ("onnxruntime", "torch")
TORCH_VARIANT = "fp32"


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to test.")],
    backend: Annotated[str, typer.Option(help=f"What runs it: {' or '.join(BACKENDS)}.")] = BACKENDS[0],
    precision: Annotated[
        str | None, typer.Option(help="Comma-separated variants; by default all that the backend can run.")
    ] = None,
    provider: Annotated[str, typer.Option(help="What ONNX Runtime runs on: cpu or cuda.")] = "cpu",
    expected_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that manifest.json must have, known from elsewhere: stops tampering.")
    ] = None,
) -> None:
    """Check every hash, then replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    One line for each artefact; the exit status is 2 if one of them fails.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend!r} is not one of {', '.join(BACKENDS)}")
    opened = Bundle.open(bundle, expected_sha256=expected_sha256)
    if precision is not None:
        variants = tuple(part.strip() for part in precision.split(","))
    else:
        variants = opened.variants if backend == "onnxruntime" else (TORCH_VARIANT,)
    failed = []
    with ExitStack() as stack:
        for variant in variants:
            opened_backend = stack.enter_context(_open(opened, backend, variant, provider))
            (verification,) = runtime.verify(opened, [opened_backend])
            typer.echo(str(verification))
            if not verification.ok:
                failed.append(variant)
    if failed:
        raise BackendError(
            f"{backend} does not compute what {bundle} was exported with ({', '.join(failed)}): do not use it here"
        )


def _open(bundle: Bundle, backend: str, variant: str, provider: str) -> Backend:
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(bundle, variant=variant, provider=provider)
    require("torch", extra="train")
    from edgeadv.torch_backend import TorchBackend

    return TorchBackend(bundle, variant=variant)
