"""The device that PyTorch computes on."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """A CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def full_precision(device: torch.device) -> None:
    """Compute in float32 proper on a GPU, process-wide: TF32 has 10 bits of mantissa, and no gradient's sign should
    depend on them."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def memory_order(device: torch.device) -> torch.memory_format:
    """In which order of memory the gradients of convolutions in float32 come sooner.

    On a processor channels last. On an H100, without TF32, PyTorch's own was 1.1 times as fast for RegNetY-400MF and
    ResNet-101, and for AlexNet once slower and once not (``benchmarks/README.md``).
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last
