"""Build a plan in a process of its own, and make one sentence of whatever happens to that process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from .. import errors
from ..decoding import convert
from ..device.facts import read_memory
from ..errors import EngineError, InputError
from ..files import atomic_file
from ..reading import opened
from .library import MIB, Library
from .messages import one_line
from .options import EngineOptions
from .records import BuildReport

if TYPE_CHECKING:
    from ..device.cuda import Gpu

Progress = Callable[[str], None]
# the worker finds its modules where this process finds them; before that it must not look into the working directory
_START = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
    "from edgeadv_runtime.engine.worker import main; sys.exit(main())"
)
# seconds: what is over sooner needs no words about its progress
_PROGRESS_EVERY_S = 5.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# host memory of a build: measured with TensorRT-RTX 1.7 on models of 8 to 244 MiB
_BASE_MIB, _TIMES_MODEL = 256, 4


def build_plan(
    onnx: Path,
    out: Path,
    *,
    options: EngineOptions,
    library: Library,
    gpu: Gpu | None = None,
    onnx_sha256: str | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the plan of ``onnx`` and write it to ``out``, whole or not at all.

    Args:
        onnx: the file that holds the model; its weights are inside.
        out: the plan to write; one that is there is replaced.
        options: what for.
        library: what builds it.
        gpu: the GPU present, without which ``options`` must name targets.
        onnx_sha256: what the model must hash to, if known.
        progress: called with what is being done.

    Raises:
        EngineError: TensorRT refuses, in its own words; or its process died, or would find too little memory.
        InputError: a target that this library does not know, or neither a target nor a GPU.
        BundleError: the model cannot be read.
        IntegrityError: the model has another hash.
        StorageError: the plan cannot be written.
    """
    request = {
        "library": library.name,
        "targets": build_targets(library, options, gpu),
        "onnx_sha256": onnx_sha256,
        "options": msgspec.to_builtins(replace(options, workspace_mib=_workspace(options, gpu))),
        "parent": os.getpid(),
        "every_s": _PROGRESS_EVERY_S,
    }
    # the worker hashes the bytes that it is given
    with opened(onnx, what="ONNX file") as stream, atomic_file(out) as temporary:
        request["out"] = str(temporary.resolve())
        try:
            model_bytes, available_mib = os.fstat(stream.fileno()).st_size, read_memory().get("available_mib")
            if progress is not None and (warning := memory_warning(model_bytes, available_mib)):
                progress(warning)
            return _run(request, stream, onnx.name, library, gpu, progress)
        except OSError as error:  # whoever writes the plan would take it for his own
            raise EngineError(
                f"{onnx.name}: the build broke off ({error.strerror or error}): make room in {tempfile.gettempdir()}, "
                "and keep open what its messages go to"
            ) from error


def build_targets(library: Library, options: EngineOptions, gpu: Gpu | None) -> tuple[str, ...]:
    """GPUs to name to the library: those of ``options``, else the one present if the library wants it named.

    Raises:
        InputError: the library does not know one of them, or there is neither a target nor a GPU.
    """
    targets = options.targets
    if not targets:
        if gpu is None:
            raise InputError(
                f"{library} has no GPU here to build for: name one as a target, such as sm_86, with tensorrt-rtx"
            )
        targets = (gpu.sm,) if library.can_target else ()
    library.check_targets(targets)
    return targets


def _workspace(options: EngineOptions, gpu: Gpu | None) -> int | None:
    """The limit to give to TensorRT in MiB, after a look at the memory that there is.

    Only the GPU present can be looked at: the workspace of a plan for another one is in that one's memory.
    """
    if options.targets or gpu is None:
        return options.workspace_mib
    free = min(gpu.free_mib, read_memory().get("available_mib") or gpu.free_mib) if gpu.integrated else gpu.free_mib
    if options.workspace_mib is None:
        # an integrated GPU shares its memory with this process; TensorRT would take it for all its own, and be killed
        return max(1, free // 2) if gpu.integrated else None
    if options.workspace_mib > free:
        raise EngineError(
            f"a workspace of {options.workspace_mib} MiB does not fit into the {free} MiB that are free on {gpu.name}: "
            "give a smaller `workspace` or close what uses the memory"
        )
    return options.workspace_mib


def memory_warning(model_bytes: int, available_mib: int | None) -> str | None:
    """What to say before a build that may run out of memory, or None. Not an error: there may be swap space.

    Args:
        model_bytes: size of the ONNX file.
        available_mib: memory that programs can still have; None if not known.
    """
    needed = _BASE_MIB + _TIMES_MODEL * model_bytes // MIB
    if available_mib is None or available_mib >= needed:
        return None
    return (
        f"a build takes about {needed} MiB of memory and {available_mib} are available: it may be killed; close "
        "other programs"
    )


def _run(
    request: Mapping[str, Any], onnx: IO[bytes], name: str, library: Library, gpu: Gpu | None, progress: Progress | None
) -> BuildReport:
    """Have the worker do what ``request`` says; returns its report."""
    command = [sys.executable, "-c", _START, json.dumps(request), "\n".join(sys.path)]
    answer: dict[str, Any] = {}
    start = time.monotonic()
    with tempfile.TemporaryFile() as chatter:
        try:
            # a session of its own: Ctrl-C is for this process, which ends the worker
            worker = subprocess.Popen(
                command,
                stdin=onnx,
                stdout=subprocess.PIPE,
                stderr=chatter,
                start_new_session=True,
                env=worker_environment(os.environ, gpu),
            )
        except OSError as error:
            raise EngineError(f"the process that builds engines cannot be started: {error.strerror}") from error
        with worker:
            try:
                assert worker.stdout is not None
                for line in worker.stdout:
                    with suppress(ValueError):  # half a line: it was killed while it spoke
                        answer = json.loads(line)
                    if progress is not None and "phase" in answer:
                        seconds = time.monotonic() - start
                        progress(f"{seconds:.0f} s: {answer['phase']} {answer['step']}/{answer['steps']}")
                status = worker.wait()
            finally:
                worker.kill()
        if "built" in answer and status == 0:
            return convert(answer["built"], BuildReport, what="report of a build")
        if "error" in answer:
            raise _error_class(answer["kind"])(f"{name}: {answer['error']}")
        chatter.seek(0)
        raise EngineError(f"{name}: {_death(status, library, chatter.read().decode(errors='replace'))}")


def worker_environment(environment: Mapping[str, str], gpu: Gpu | None) -> dict[str, str]:
    """``environment`` in which the GPU to build for is the only one: TensorRT takes the first that it sees."""
    if gpu is None:
        return dict(environment)
    visible = [part.strip() for part in environment.get(_VISIBLE, "").split(",") if part.strip()]
    return {**environment, _VISIBLE: visible[gpu.index] if gpu.index < len(visible) else str(gpu.index)}


def _error_class(kind: str) -> type[Exception]:
    found = getattr(errors, kind, EngineError)
    # MissingDependencyError is made of a module and an extra
    return found if found is not errors.MissingDependencyError else EngineError


def _death(status: int, library: Library, chatter: str) -> str:
    """Why a worker that left no answer is gone."""
    words = chatter.strip().splitlines()
    said = f"; its last words: {one_line(words[-1])}" if words else ""
    if status == -signal.SIGKILL:
        return (
            f"{library} was killed (signal 9) during the build: probably out of memory; close other programs, "
            "give a smaller `workspace`, or build on a larger machine"
        )
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = "unknown"
        return f"{library} crashed during the build (signal {-status}, {name}){said}; try another version of it"
    return f"{library} ended with status {status} before the plan was built{said}"
