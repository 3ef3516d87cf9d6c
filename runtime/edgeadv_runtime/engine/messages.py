"""What TensorRT says: one logger for each of its modules in a process, and who hears it.

TensorRT keeps the first logger that it is given for all that is global, such as its plugin registry, as long as any
builder or runtime lives, whoever made it. A logger of each plan would be gone before the last use of it, and take the
process
along: there is one, which is never freed, and it passes on what it is told to whoever listens.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# what TensorRT adds behind an error when there is no GPU that it could have asked as well
_ECHO = "catchCudaError"
_LONGEST_MESSAGE = 600
_MOST_KEPT = 100

_LOGGERS: dict[type, Any] = {}
# the listeners with the threads they listen in, the innermost last; one lock for both, taken again by whoever holds it:
# what is freed while it is held may have something to say
_LISTENING: list[tuple[int, Heard]] = []
_LOCK = threading.RLock()


class Heard:
    """What TensorRT said during an operation, at most the first 100 of each kind.

    Attributes:
        errors: one-line strings in the order they came.
        warnings: likewise, each once.
    """

    def __init__(self) -> None:
        """Nothing so far."""
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def add(self, severity: str, text: str) -> None:
        """Keep ``text`` if its severity is an error's or a warning's."""
        kept = {"ERROR": self.errors, "INTERNAL_ERROR": self.errors, "WARNING": self.warnings}.get(severity)
        if kept is not None and len(kept) < _MOST_KEPT and (text := one_line(text)) not in kept:
            kept.append(text)

    def first_error(self, otherwise: str = "it gives no reason") -> str:
        """The error that says what is wrong: those that follow are its echo. If there was none, ``otherwise``."""
        own = [error for error in self.errors if _ECHO not in error]
        return next(iter(own or self.errors), otherwise)


@contextmanager
def listening() -> Iterator[Heard]:
    """Hear what is said in this thread during the block, and in threads in which nobody listens, such as TensorRT's
    own."""
    entry = threading.get_ident(), Heard()
    with _LOCK:
        _LISTENING.append(entry)
    try:
        yield entry[1]
    finally:
        with _LOCK:
            _LISTENING.remove(entry)


def logger_of(module: Any) -> Any:
    """The one ``ILogger`` of ``module`` in this process. It prints nothing."""
    with _LOCK:
        if module.ILogger not in _LOGGERS:

            class Logger(module.ILogger):  # type: ignore[misc]
                def log(self, severity: Any, message: str) -> None:
                    _tell(severity.name, message)

            logger = Logger()
            # not even at the end of the interpreter, which TensorRT's global objects outlive
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(logger))
            _LOGGERS[module.ILogger] = logger
        return _LOGGERS[module.ILogger]


def one_line(text: str) -> str:
    """``text`` without line breaks, and not longer than a terminal can bear."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _tell(severity: str, text: str) -> None:
    me = threading.get_ident()
    with _LOCK:
        mine = [heard for thread, heard in _LISTENING if thread == me]
        for heard in mine[-1:] or [heard for _, heard in _LISTENING]:
            heard.add(severity, text)
