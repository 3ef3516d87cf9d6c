"""Is the artefact still the model it was made from? Always asked, on real images, before a bundle exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.entries import FlipEntry, ParityEntry
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import FLOAT_VARIANTS, INT8, U8IN, precision_of
from edgeadv_runtime.errors import BackendError, ExportError

if TYPE_CHECKING:
    from torch import nn

# Largest accepted error of a logit as a share of the largest absolute logit. A share, because a distilled model has
# logits 40 to 100 times larger than others, and its rounding errors grow with them.
# fp32: 1e-6 was measured on RegNetY-400MF, AlexNet and EfficientNet-Lite0; a GPU sums in another order.
# fp16: 3e-3 was measured on EfficientNet-Lite0 with ImageNet weights, 4e-3 where every activation is rounded as well.
# int8: of another device's logits from ONNX Runtime's, not from PyTorch's. The same integers summed exactly give the
# same logits, but who keeps the sums in float32 rounds some activations to the next step: up to 0.06 was measured on
# EfficientNet-Lite0 and 436 photographs. Saturating 16-bit sums (s8s8 on AVX2 without VNNI) give 0.47.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8-s8s8": 0.1, "int8-u8s8": 0.1}
TOLERANCES |= {variant + U8IN: TOLERANCES[variant] for variant in FLOAT_VARIANTS}
_BATCH = 16
_BATCH_SIZES = (1, 3)


def compare(expected: NDArray[np.float32], got: NDArray[np.float32], *, reference: str, runtime: str) -> ParityEntry:
    """Compare logits of the same images, both float32 of shape (n, classes) and finite.

    A flip needs a margin of at most twice the error, so the one tolerance on the error bounds the flips too: they are
    listed, not judged a second time.

    Args:
        expected: of the PyTorch model.
        got: of the artefact.
        reference: what computed ``expected``.
        runtime: what computed ``got``.
    """
    truth, found = expected.astype(np.float64), got.astype(np.float64)
    error, scale = float(np.abs(found - truth).max()), float(np.abs(truth).max())
    norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(found, axis=1)
    cosines = np.divide((truth * found).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    labels, others, lead = truth.argmax(axis=1), found.argmax(axis=1), margins(truth)
    flips = tuple(
        FlipEntry(frame=int(i), torch=int(labels[i]), artifact=int(others[i]), margin=float(lead[i]))
        for i in np.flatnonzero(labels != others)
    )
    return ParityEntry(
        frames=len(truth),
        max_abs_error=error,
        max_relative_error=error / scale if scale else float(error > 0),
        min_cosine=float(cosines.min()),
        top1_agreement=1 - len(flips) / len(truth),
        flips=flips,
        reference=reference,
        runtime=runtime,
    )


def summary(parity: ParityEntry) -> str:
    """``parity`` in a line."""
    return (
        f"relative error {parity.max_relative_error:.2g}, absolute {parity.max_abs_error:.2g}, "
        f"cosine {parity.min_cosine:.6f}, {len(parity.flips)} of {parity.frames} first labels differ"
    )


def margins(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """By how much the first logit of each image, (n, classes), leads its second."""
    lead: NDArray[np.floating] = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
    return lead


def torch_logits(model: nn.Module, pixels: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Logits of preprocessed images, uint8 (n, height, width, channels), from a float32 CPU model in eval mode that is
    called ``name``.

    Raises:
        ExportError: they are not finite.
    """
    import torch

    with torch.inference_mode():
        batches = [model(torch.from_numpy(to_tensor(part))).numpy() for part in _batches(pixels)]
    logits: NDArray[np.float32] = np.concatenate(batches)
    if not np.isfinite(logits).all():
        raise ExportError(f"{name} itself gives NaN or infinite logits on these frames; train again")
    return logits


def _batches(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH))


def trial_batches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """All of ``pixels``, uint8 (n, height, width, channels), in batches, and then some of them again in batches of
    other sizes."""
    again = (pixels[np.arange(size) % len(pixels)] for size in _BATCH_SIZES)
    return [*_batches(pixels), *again]


def trial_logits(variant: str, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The logits of all images, from those of :func:`trial_batches`.

    Raises:
        ExportError: they depend on the size of the batch.
    """
    logits: NDArray[np.float32] = np.concatenate(outputs[: -len(_BATCH_SIZES)])
    for again in outputs[-len(_BATCH_SIZES) :]:
        # int8 rounds anew what a batch of another size may have changed in the last bit
        allowed = TOLERANCES[variant if precision_of(variant) == INT8 else "fp32"]
        if np.abs(again - logits[np.arange(len(again)) % len(logits)]).max() > allowed * np.abs(logits).max():
            raise ExportError(f"{variant}: the logits of an image depend on the others in its batch")
    return logits


def artifact_logits(backend: Backend, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of preprocessed images from ``backend``, after proving that the size of the batch does not matter.

    Args:
        backend: the artefact.
        pixels: uint8 of shape (n, height, width, channels).

    Returns:
        float32 of shape (n, classes).

    Raises:
        ExportError: the artefact fails, gives logits that are not finite, or depends on the size of the batch.
    """
    try:
        outputs = [backend.infer_pixels(part) for part in trial_batches(pixels)]
    except BackendError as error:
        raise ExportError(f"{backend.variant} does not run: {error}") from error
    return trial_logits(backend.variant, outputs)
