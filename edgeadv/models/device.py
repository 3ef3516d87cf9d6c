"""The device that PyTorch computes on, and in which arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# the first GPUs that round factors to TensorFloat-32
_AMPERE = (8, 0)
# PyTorch has one switch for all threads of the process
_SWITCHED = threading.RLock()


def default_device() -> torch.device:
    """A CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def full_precision(device: torch.device) -> None:
    """Compute in float32 proper on a GPU, process-wide, wherever :func:`arithmetic` does not say otherwise: TF32 has 10
    bits of mantissa, and no score should depend on them."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def has_tf32(device: torch.device) -> bool:
    """Whether ``device`` can round the factors of float32 products to TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE


@contextmanager
def arithmetic(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """What PyTorch starts on a GPU within the block computes convolutions in TF32, or in float32 proper; as before
    afterwards, also after an error.

    Matrix products stay in float32 proper, as PyTorch has them by default. The switch is the process's, so that another
    thread that asks for an arithmetic waits until the block is left. A backward pass on a GPU runs in a thread of its
    own: never hold the block around one whose functions ask for it too.

    Args:
        device: where is computed; anything but a GPU has float32 alone, and nothing is switched.
        tf32: whether convolutions may round.
    """
    if device.type != "cuda":
        yield
        return
    with _SWITCHED:
        before = _precisions()
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            _restore(before)


def _precisions() -> tuple[str, str, str]:
    """Of convolutions, recurrent networks and matrix products; PyTorch's older switches cannot be read where a host
    has set these apart."""
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]


def _restore(before: tuple[str, str, str]) -> None:
    convolutions, recurrent, products = before
    # the older switches first, which set the newer ones with them
    torch.backends.cudnn.allow_tf32 = convolutions == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    if _precisions() != before:
        torch.backends.cudnn.conv.fp32_precision = convolutions  # type: ignore[attr-defined]
        torch.backends.cudnn.rnn.fp32_precision = recurrent  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = products


def memory_order(device: torch.device) -> torch.memory_format:
    """In which order of memory the gradients of convolutions in float32 come sooner.

    On a processor channels last. On an H100, without TF32, PyTorch's own was 1.1 times as fast for RegNetY-400MF and
    ResNet-101, and for AlexNet once slower and once not (``benchmarks/methods.md``).
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last
