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
