"""How many threads PyTorch's operations take on the processor, and how these wait for one another.

PyTorch's OpenMP reads both from the environment, once, when it is loaded.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from edgeadv_runtime.device.facts import quota_cores, running_threads, usable_cores
from edgeadv_runtime.errors import InputError

AUTO, ACTIVE, PASSIVE = "auto", "active", "passive"
_POLICY, _TURNS, _THREADS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"
# KMP_BLOCKTIME is that of Intel's OpenMP, which some builds of PyTorch have
_WAITS = (_POLICY, _TURNS, "KMP_BLOCKTIME")
# left alone, libgomp turns 300,000 times, some milliseconds: benchmarks/threads.py compares
_ALONE_TURNS, _BESIDE_TURNS = 3000, 300
# how often, and how many seconds apart, it is looked whether others run
_LOOKS, _APART_S = 5, 0.004


def configure(threads: int | None = None, wait: str | int | None = None) -> None:
    """Decide how PyTorch's threads share the processor, for this process and those that it starts.

    Call it before anything that loads PyTorch. The command does ``configure(wait="auto")``, the library by itself
    nothing::

        import edgeadv as ea

        ea.configure(threads=2, wait="passive")

    Args:
        threads: of an operation; also later. None leaves them to ``OMP_NUM_THREADS``, or where that is not set to
            PyTorch, which takes one for each core; with ``wait`` fewer where a container's quota leaves fewer.
        wait: what a thread does that has nothing to do until another is done. ``"passive"`` sleeps at once, which
            leaves its core to other programs and costs time where there are none; ``"active"`` keeps it busy; a number
            turns so often before it sleeps (libgomp, the OpenMP of PyTorch's wheels for Linux). ``"auto"`` leaves
            what the environment says, and else looks whether others run: alone it turns 3,000 times, which is as
            fast as ``"active"``, beside others 300 times. None changes nothing. Results are the same.

    Raises:
        InputError: an argument is out of range, or ``wait`` comes after PyTorch was loaded.
    """
    torch = sys.modules.get("torch")
    if threads is not None and threads < 1:
        raise InputError("threads", f"must be at least 1, not {threads}")
    number = isinstance(wait, int) and not isinstance(wait, bool)
    if wait is not None and (wait < 0 if number else wait not in (AUTO, ACTIVE, PASSIVE)):  # type: ignore[operator]
        raise InputError("wait", f"is {AUTO}, {ACTIVE}, {PASSIVE} or a number of turns from 0, not {wait!r}")
    if wait is not None and torch is not None:
        raise InputError(
            "wait", "must be chosen before PyTorch is loaded, and it is already: call configure before anything else"
        )
    if threads is not None:
        os.environ[_THREADS] = str(threads)
        if torch is not None:
            torch.set_num_threads(threads)
    if wait == AUTO:
        share_processor()
    elif wait is not None:
        _heed_quota()
        for name in _WAITS:
            os.environ.pop(name, None)
        os.environ[_TURNS if number else _POLICY] = str(wait).upper()


def share_processor() -> None:
    """Have PyTorch, once it is loaded, take no more threads than a container's quota has cores, and let them sleep
    soon; what the environment says of either is left alone. Too late it does nothing."""
    if "torch" in sys.modules:
        return
    _heed_quota()
    if not any(name in os.environ for name in _WAITS):
        os.environ[_TURNS] = str(_BESIDE_TURNS if _crowded() else _ALONE_TURNS)


def _crowded() -> bool:
    """Whether other programs run now on cores that PyTorch's threads would take; without knowing, not."""
    seen = []
    for look in range(_LOOKS):
        time.sleep(_APART_S if look else 0)
        if (running := running_threads()) is None:
            return False
        seen.append(running - 1)
    wanted = os.environ.get(_THREADS, "")
    threads = int(wanted) if wanted.isdecimal() else usable_cores() or 1
    return threads > 1 and statistics.median(seen) + threads > (os.cpu_count() or threads)


def _heed_quota() -> None:
    if (cores := quota_cores()) is not None:
        os.environ.setdefault(_THREADS, str(cores))
