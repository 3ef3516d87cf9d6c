"""What the C library does with memory that PyTorch frees."""

from __future__ import annotations

import ctypes
import os

# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for what is allocated next, for the whole process and until it ends.

    By default (mallopt(3)) it gives every block over 32 MiB back to the system, and the kernel clears the pages of the
    next one. The activations of a batch of photographs are such blocks. What is not in use any more stays with the
    process, whose peak was 13% higher where it was measured (``benchmarks/evaluation_pipeline.py``). Somebody who has
    settled it in the environment, or has another allocator or system, is left alone.

    Returns:
        Whether glibc was told.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
