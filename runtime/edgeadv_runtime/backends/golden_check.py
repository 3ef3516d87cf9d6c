"""The self-test on the device: does this machine compute what the exporting one did?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.golden import Golden
from ..errors import InputError
from .base import Backend


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The golden frames of a bundle, replayed on one backend.

    Attributes:
        backend: name of the backend.
        variant: the artefact.
        provider: what executed it.
        device: the device in words.
        frames: number of golden frames.
        exact_frames: frames whose preprocessed pixels are the golden ones, bit for bit.
        equal_labels: frames whose first label is the golden one.
        max_relative_error: largest difference of a logit, as a share of the largest absolute golden logit.
        tolerance: the largest such error that is accepted.
    """

    backend: str
    variant: str
    provider: str
    device: str
    frames: int
    exact_frames: int
    equal_labels: int
    max_relative_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether pixels and first labels are equal and the logits within the tolerance."""
        return self.exact_frames == self.equal_labels == self.frames and self.max_relative_error <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.backend} {self.variant} ({self.provider}, {self.device}): {'ok' if self.ok else 'FAILED'}; "
            f"pixels exact on {self.exact_frames} of {self.frames} frames, first label equal on {self.equal_labels}, "
            f"relative error of the logits {self.max_relative_error:.2g} (at most {self.tolerance:g})"
        )


def verify(bundle: Bundle, backends: Sequence[Backend]) -> list[Verification]:
    """Replay the golden frames of ``bundle`` on every backend, one frame at a time as a camera does.

    ::

        with OnnxRuntimeBackend(bundle, variant="fp16") as backend:
            print([each.ok for each in verify(bundle, [backend])])

    Args:
        bundle: an opened bundle.
        backends: opened from ``bundle``; they stay open.

    Returns:
        One verification for each backend, whether it passed or not.

    Raises:
        InputError: the bundle has no golden logits for a backend's variant.
        BackendError: a backend failed, or gave logits that are not finite.
        BundleError: the golden file is not one.
    """
    golden = bundle.golden()
    pixels = np.stack([bundle.preprocess(frame, color_order="rgb") for frame in golden.frames])
    exact = sum(bool(np.array_equal(mine, theirs)) for mine, theirs in zip(pixels, golden.pixels, strict=True))
    return [_verification(bundle, golden, backend, exact) for backend in backends]


def _verification(bundle: Bundle, golden: Golden, backend: Backend, exact: int) -> Verification:
    if backend.variant not in golden.logits:
        have = ", ".join(golden.logits)
        raise InputError(
            f"{bundle.path} has golden logits of {have}, not of {backend.variant}; export it with that precision"
        )
    expected = golden.logits[backend.variant]
    # the golden pixels, not ours: a difference in preprocessing is to be seen as one, not as wrong logits
    logits = np.concatenate([backend.infer_pixels(golden.pixels[i : i + 1]) for i in range(len(golden.pixels))])
    scale = float(np.abs(expected).max())
    error = float(np.abs(logits - expected).max())
    return Verification(
        backend=backend.name,
        variant=backend.variant,
        provider=backend.provider,
        device=backend.device,
        frames=len(expected),
        exact_frames=exact,
        equal_labels=int((logits.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        max_relative_error=error / scale if scale else float(error > 0),
        tolerance=bundle.tolerance(backend.variant),
    )
