"""Paired timing: every call in each round, in random order, so that what else the machine does meets all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import write_json

if TYPE_CHECKING:  # the runtime is measured without PyTorch in the process
    import torch

Seconds = dict[str, list[float]]


def in_turn(calls: Mapping[str, Callable[[int], object]], *, rounds: int, warm_up: int) -> Seconds:
    """Seconds of each call in each round after ``warm_up`` others; a call is given the number of its round."""
    seconds: Seconds = {name: [] for name in calls}
    for i in range(-warm_up, rounds):
        for name in random.Random(i).sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name](i)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of what one took over what the other took in the same round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(above, below, strict=True)], n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def named(device: torch.device, threads: int) -> str:
    """What ran: the name of a GPU, or how many of the processor's threads."""
    if device.type != "cuda":
        return f"{threads} thread" + "s" * (threads != 1)
    from torch.cuda import get_device_name

    return get_device_name(device)


def save(path: Path, benchmark: str, arguments: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the JSON of a benchmark: what was asked, on what, and what came of it."""
    # a folder's place says something about the machine and nothing about the figures
    asked = {
        key: Path(value).name if isinstance(value, Path) or (isinstance(value, str) and "data" in key) else value
        for key, value in arguments.items()
        if key != "out"
    }
    write_json(path, {"benchmark": benchmark, "arguments": asked, "environment": environment(), "rows": list(rows)})
