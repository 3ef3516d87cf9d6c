"""Whether PyTorch can compile here, asked before the work that needs it."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor


def why_not(device: torch.device) -> str | None:
    """Compile a small function with its gradient for ``device``, which takes seconds; what keeps it from that, and
    what to install, or None."""
    torch._dynamo.reset()
    # of a size that was not compiled before: a cache would hide that the compiler is gone
    x = torch.ones(1000 + secrets.randbelow(1 << 20), device=device, requires_grad=True)
    try:
        torch.compile(_small, fullgraph=True, dynamic=False)(x).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # of the compiler, of Triton, or of the cache's folder
        reason = " ".join(str(error).split()).partition(" Set TORCH")[0][:110]
        return (
            f"torch {torch.__version__} cannot compile here ({reason}): it takes a C++ compiler (apt-get install g++), "
            "on a GPU Triton, and a folder that TORCHINDUCTOR_CACHE_DIR names"
        )
    return None


def _small(x: Tensor) -> Tensor:
    return (x.sin() * 2).sum()
