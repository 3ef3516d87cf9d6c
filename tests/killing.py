"""Runs ``edgeadv`` in processes of its own that are killed before the n-th operation that they do on files.

The commands run in children forked from one process that has everything imported and has computed nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; -9 where it was killed.
        operations: how many it did on files below its folder; None where it was killed.
        err: what it said on standard error.
    """

    status: int
    operations: int | None
    err: str


class Runner:
    """Runs commands; see :func:`runner`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, home: Path, *arguments: object, kill_before: int | None = None, umask: int = 0o022) -> Ended:
        """Run ``edgeadv`` with ``arguments`` in the folder ``home``.

        Args:
            home: the working directory; operations on files below it count.
            arguments: the command line.
            kill_before: number of the operation, from 1, before which it is killed by SIGKILL; None lets it end.
            umask: the command's.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = [str(home), [str(argument) for argument in arguments], kill_before, umask]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@contextmanager
def runner() -> Iterator[Runner]:
    """A process that runs commands, one after the other."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Runner(process)
        assert process.stdin is not None
        process.stdin.close()


class _Operations:
    """Counts the operations of this process on files below a folder, and kills it before one of them."""

    def __init__(self, home: str, kill_before: int | None) -> None:
        self.count, self._home, self._kill_before = 0, home, kill_before

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._counts(event, args):
            return
        self.count += 1
        if self.count == self._kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counts(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlsym":
            return bool(args[1] == "renameat2")
        if event == "open":
            return bool(args[2] & _WRITING) and self._below(args[0])
        if event in _CHANGES:
            # rmtree names what is in a folder by the open folder
            return (isinstance(args[-1], int) and args[-1] >= 0 and event != "os.mkdir") or self._below(args[0])
        return False

    def _below(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        return os.path.join(os.getcwd(), os.fsdecode(path)).startswith(self._home + os.sep)  # noqa: PTH109, PTH118


def _child(home: str, arguments: list[str], kill_before: int | None, umask: int, log: int, report: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(home)
    os.umask(umask)
    from edgeadv.cli import main

    operations = _Operations(home, kill_before)
    sys.addaudithook(operations)
    status = main(arguments)
    count = operations.count
    sys.stderr.flush()
    os.pwrite(report, str(count).encode(), 0)
    os._exit(status)


def _serve() -> None:
    import onnxruntime  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    import edgeadv_export  # noqa: F401
    from edgeadv.cli import _SUMMARIES, subcommand

    torch.set_num_threads(1)
    for name in _SUMMARIES:
        subcommand(name)
    for line in sys.stdin:
        home, arguments, kill_before, umask = json.loads(line)
        with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as report:
            if not (child := os.fork()):
                try:
                    _child(home, arguments, kill_before, umask, log.fileno(), report.fileno())
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    sys.stderr.flush()
                finally:
                    os._exit(99)
            _, status = os.waitpid(child, 0)
            log.seek(0)
            report.seek(0)
            count = report.read()
            ended = {
                "status": os.waitstatus_to_exitcode(status),
                "operations": int(count) if count else None,
                "err": log.read().decode(errors="replace"),
            }
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    _serve()
