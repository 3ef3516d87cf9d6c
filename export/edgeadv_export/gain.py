"""What an int8 artefact gains: bytes, and latency where this machine is one that it is made for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.variants import U8S8, is_x86

from .draft import Draft

ROUNDS, _WARM_UP = 30, 3


def gain(draft: Draft, variant: str, images: NDArray[np.float32]) -> dict[str, Any]:
    """What ``variant`` gains over fp32: bytes, and latency where this machine is one that it is made for.

    Args:
        draft: holds both graphs.
        variant: the int8 one.
        images: float32 (n, channels, height, width) to time with.
    """
    fp32, int8 = draft.path("fp32").stat().st_size, draft.path(variant).stat().st_size
    size = {"fp32_bytes": fp32, "int8_bytes": int8, "smaller": fp32 / int8}
    if variant != U8S8:
        return {
            **size,
            "latency": {"not_measured": "it is made for TensorRT and ARM, not for the machine that exports"},
        }
    if not is_x86():
        return {**size, "latency": {"not_measured": "it is made for x86 processors, and this is none"}}
    # one thread, so that the figure does not depend on how many cores are idle just now
    with draft.backend("fp32", threads=1) as slow, draft.backend(variant, threads=1) as fast:
        times = _interleaved([slow, fast], images)
    p50 = np.median(times, axis=0) / 1e6
    return {
        **size,
        "latency": {
            "faster": float(np.median(times[:, 0] / times[:, 1])),
            "fp32_ms": float(p50[0]),
            "int8_ms": float(p50[1]),
            "rounds": ROUNDS,
            "batch": 1,
            "threads": 1,
            "backend": slow.name,
            "provider": slow.provider,
            "device": slow.device,
        },
    }


def _interleaved(backends: Sequence[Backend], images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Nanoseconds of each call, int64 (rounds, backends): one image a round through all of them, in alternating
    order."""
    times = np.empty((ROUNDS, len(backends)), dtype=np.int64)
    for i in range(-_WARM_UP, ROUNDS):
        x = images[i % len(images)][None]
        for k in range(len(backends)) if i % 2 else reversed(range(len(backends))):
            start = time.perf_counter_ns()
            backends[k].infer(x)
            if i >= 0:
                times[i, k] = time.perf_counter_ns() - start
    return times
