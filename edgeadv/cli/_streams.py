"""Standard output and standard error of a command: what the one does not take is an error, what the other does not take
is lost."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

from edgeadv_runtime.errors import StorageError

T = TypeVar("T")


class OutputError(StorageError):
    """Standard output takes no more."""


class _Stream:
    """A text stream that writes what its encoding lacks as ``\\x..``, as Python's standard error does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``."""
        encoding = self._stream.encoding or "utf-8"
        return self._tried(lambda: self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding)), 0)

    def flush(self) -> None:
        """Hand on what was written."""
        self._tried(self._stream.flush, None)

    def _tried(self, what: Callable[[], T], instead: T) -> T:
        raise NotImplementedError


class Output(_Stream):
    """Standard output.

    Attributes:
        failure: why something is lost that should have been said, or None.
    """

    failure: OutputError | None = None

    def _tried(self, what: Callable[[], T], instead: T) -> T:
        try:
            if self.failure is None:
                return what()
        except (OSError, ValueError) as error:  # full, or closed by its reader; closed by this process
            why = getattr(error, "strerror", None) or str(error)
            self.failure = OutputError(f"standard output takes no more ({why}): not all that there is to say was said")
            with contextlib.suppress(OSError, ValueError):  # or Python tries to write what is left when it ends
                _give_up(self._stream.fileno())
        # raised again too: whoever printed may have taken it for an error of its own
        raise self.failure


class Errors(_Stream):
    """Standard error: nothing ends because nobody hears of it."""

    def _tried(self, what: Callable[[], T], instead: T) -> T:
        try:
            return what()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                _give_up(self._stream.fileno())
            return instead


def _give_up(number: int) -> None:
    """Let what is written to a descriptor vanish from now on."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), number)


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Both streams as a command needs them, until the block ends; where there is no standard output it has failed
    already.
    """
    output, errors = Output(sys.stdout or io.StringIO()), Errors(sys.stderr or io.StringIO())
    if sys.stdout is None:
        output.failure = OutputError("standard output is closed: send it to /dev/null if nobody reads it")
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield output
