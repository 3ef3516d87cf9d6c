"""Processes that are not to outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
# looked up when this is loaded: a child that was just forked should do as little as it can
_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Called in a child: have the kernel kill it with the thread that started it, even if that is killed; on Linux
    only."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
