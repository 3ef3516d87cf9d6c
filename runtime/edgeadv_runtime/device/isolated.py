"""One call in a process of its own, for what may crash a library: its death is one sentence, not ours.

The process is a fresh interpreter, not a copy of this one and not one that runs the caller's script again: it is the
same in a script without a main guard, in a notebook, under pytest and among threads.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any, TypeVar

from ..errors import EdgeAdvError, ExportError
from .facts import read_memory
from .processes import end_with_parent

T = TypeVar("T")

# the child finds its modules where this process finds them; before that it must not look into the working directory
_START = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
    "from edgeadv_runtime.device.isolated import answer; answer(int(sys.argv[1]), int(sys.argv[2]))"
)
_LONGEST_WORDS = 200
SECONDS = 3600.0
"""How long a call may take: a graph may compute for ever, and no look at it tells."""
# of the memory that is available, what a call may take; with less than the second no library loads
_SHARE, _LEAST_MIB = 0.8, 1024
ADVICE = "install another version of it"


def call_isolated(
    function: Callable[..., T],
    *args: Any,
    what: str,
    library: str = "onnxruntime",
    advice: str = ADVICE,
    seconds: float = SECONDS,
    memory_mib: int | None = None,
) -> T:
    """``function(*args)`` in a process of its own, which has this one's environment, working directory and module path.

    What it prints is not shown. It ends with this process, and with whatever interrupts the call.

    ::

        logits = call_isolated(run_alone, bundle, "fp16", pixels, what="fp16 of resnet18")

    Args:
        function: of the top level of an imported module, not of the script that runs.
        args: what pickle takes; arrays may be large. Their classes too are found in imported modules only.
        what: is run, for messages.
        library: the module that would be to blame for a crash; its version is told.
        advice: what to do after a crash.
        seconds: after which it is ended.
        memory_mib: that it may take; None is most of what is available, so that it ends before this machine does.

    Returns:
        What ``function`` returned, pickled and read again.

    Raises:
        EdgeAdvError: ``function`` raised it.
        ExportError: the process crashed, was killed, ended without an answer, took too long, found no memory or cannot
            be started.
        Exception: any other that ``function`` raised, caused by one that holds its traceback.
    """
    request = pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL)
    limit = _most_memory() if memory_mib is None else memory_mib
    command = [sys.executable, "-c", _START, str(os.getpid()), str(limit), "\n".join(sys.path)]
    try:
        # a session of its own: Ctrl-C is for this process, which ends the child
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise ExportError(f"{what} cannot be tried in a process of its own: {error.strerror or error}") from error
    with child:
        try:
            reply, chatter = child.communicate(request, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"{what} was ended after {seconds:g} s: it may compute for ever; {advice}") from error
        finally:
            child.kill()
    if child.returncode != 0:
        raise ExportError(f"{what} {_death(child.returncode, library, chatter)}: {advice}")
    try:
        result, raised, trace = pickle.loads(reply)
    except (EOFError, pickle.UnpicklingError) as error:
        raise ExportError(f"{what} ended a process of its own without an answer: {advice}") from error
    if isinstance(raised, MemoryError):
        raise ExportError(f"{what} finds too little memory: close other programs, or use a larger machine")
    if raised is not None:
        raise raised from (None if isinstance(raised, EdgeAdvError) else RuntimeError(f"in another process:\n{trace}"))
    return result  # type: ignore[no-any-return]


def _most_memory() -> int:
    """MiB that a child may take."""
    available = read_memory().get("available_mib")
    return max(_LEAST_MIB, int(_SHARE * available)) if available is not None else 0


def answer(parent: int, memory_mib: int = 0) -> None:
    """What the child does: call what standard input holds, write the answer to standard output, and end.

    Args:
        parent: process id; when that process is gone, so is this one.
        memory_mib: that it may take for data of its own; 0 is any.
    """
    end_with_parent()
    if memory_mib:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20,) * 2)
    if os.getppid() != parent:  # it died before we said so
        os._exit(1)
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    reply: tuple[Any, Exception | None, str] = (None, None, "")
    try:
        function, args = pickle.load(sys.stdin.buffer)
        reply = (function(*args), None, "")
        data = pickle.dumps(reply, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        data = _raised(error)
    _finish(stream, data)


def _raised(error: Exception) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps((None, error, trace))
        pickle.loads(data)
    except Exception:  # classes of others may not be made of their own arguments
        data = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return data


def _finish(stream: IO[bytes], data: bytes) -> None:
    with stream:
        stream.write(data)
    # libraries that fail while the interpreter is taken down have delivered
    os._exit(0)


def _death(status: int, library: str, chatter: bytes) -> str:
    """Why a process that left no answer is gone."""
    words = chatter.decode(errors="replace").strip().splitlines()
    said = f", its last words: {' '.join(words[-1].split())[:_LONGEST_WORDS]}" if words else ""
    name = f"{library} {_version(library)}".rstrip()
    if status == -signal.SIGKILL:
        return f"was killed in {name} (signal SIGKILL), probably out of memory{said}"
    if status < 0:
        return f"crashed {name} (signal {_signal(-status)}){said}"
    return f"ended {name} with status {status}{said}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _version(library: str) -> str:
    try:
        return str(getattr(__import__(library), "__version__", ""))
    except ImportError:
        return ""
