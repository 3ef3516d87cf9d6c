"""The self-test of a bundle on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeadv_runtime import Backend, Bundle, OnnxRuntimeBackend, TensorRTBackend
from edgeadv_runtime.backends import golden_check
from edgeadv_runtime.backends.golden_check import Verification
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.errors import BackendError
from edgeadv_runtime.records.about import Skipped

from .backends import TensorRTPlan, backend_openers
from .inputs import ALL, open_bundle


@dataclass(frozen=True)
class ArtefactTest:
    """One artefact.

    Attributes:
        backend: name of the backend.
        variant: the artefact.
        verification: what the golden frames said; None where the artefact did not run.
        notes: what the backend knows beyond its answers, or why it did not run.
    """

    backend: str
    variant: str
    verification: Verification | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelfTest:
    """The golden frames of a bundle on its artefacts.

    Attributes:
        path: of the bundle.
        artefacts: one entry for each artefact.
        skipped: pairs of backend and variant that cannot be, with the reason.
    """

    path: Path
    artefacts: tuple[ArtefactTest, ...]
    skipped: tuple[Skipped, ...]

    def raise_if_failed(self) -> None:
        """Do nothing if every artefact gave its golden results.

        Raises:
            BackendError: one did not, or did not run.
        """
        done = [(f"{test.backend} {test.variant}", test) for test in self.artefacts]
        problems = [f"{name} did not run: {test.notes[0]}" for name, test in done if test.verification is None]
        wrong = [name for name, test in done if test.verification is not None and not test.verification.ok]
        if wrong:
            problems.append(f"{self.path} does not give its golden results on {', '.join(wrong)}: do not use it there")
        if problems:
            raise BackendError("; ".join(problems))


def verify(
    bundle: Bundle | str | Path,
    *,
    backends: str | Iterable[str] = ("onnxruntime",),
    precisions: str | Iterable[str] = (ALL,),
    provider: str = "cpu",
    tensorrt: TensorRTPlan | None = None,
    progress: Progress | None = None,
) -> SelfTest:
    """Replay the golden frames: pixels must be exact, labels equal, logits within tolerance.

    An artefact that does not run stops the others only where it is the only one::

        verify("signs.edgeadv", precisions=["fp16"]).raise_if_failed()

    Args:
        bundle: what is tested, or where it is.
        backends: some of :data:`~edgeadv.workflows.backends.BACKENDS`, or ``all`` that work here.
        precisions: variants of the bundle, ``int8`` for the one that fits each backend; or ``all``.
        provider: of torch and ONNX Runtime; there is no fallback.
        tensorrt: how TensorRT's plans are had.
        progress: called with the artefacts done, all artefacts and the name of the next.

    Raises:
        InputError: nothing would run, or the bundle has no golden logits of a variant.
        BackendError: the only artefact does not run.
    """
    bundle = open_bundle(bundle)
    openers, skipped = backend_openers(
        bundle, backends=backends, precisions=precisions, provider=provider, plan=tensorrt
    )
    tests = []
    for done, ((name, variant), opener) in enumerate(openers.items()):
        if progress is not None:
            progress(done, len(openers), f"{name} {variant}")
        try:
            with opener() as artefact:
                (verification,) = golden_check.verify(bundle, [artefact])
                tests.append(ArtefactTest(name, variant, verification, tuple(_notes(artefact))))
        except BackendError as error:
            if len(openers) == 1:
                raise
            tests.append(ArtefactTest(name, variant, None, (str(error),)))
    return SelfTest(bundle.path, tuple(tests), tuple(skipped))


def _notes(artefact: Backend) -> Iterator[str]:
    """What a backend knows beyond its answers: which plan it is, and where its nodes run."""
    if isinstance(artefact, TensorRTBackend):
        yield f"plan {artefact.plan_sha256}, precision {artefact.precision_label}"
    if isinstance(artefact, OnnxRuntimeBackend) and len(artefact.node_share) > 1:
        yield ", ".join(f"{share:.0%} of the nodes by {name}" for name, share in artefact.node_share.items())
