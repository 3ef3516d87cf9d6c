"""``edgeadv`` in processes of its own that begin at once, alone or together as ``torchrun`` starts them.

They are forked from one that has everything imported and has computed nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil

PRELOADED = (
    "onnxruntime",
    "timm",
    "torchvision",
    "torch._dynamo",
    "torch.distributed",
    "edgeadv_export",
    "tests.forking",
)


def forked(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """A process of its own, started, that calls ``target``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def children(pid: int | None = None) -> list[psutil.Process]:
    """Processes that ``pid``, or this one, started, but for those that wait to be forked from."""
    return [process for process in psutil.Process(pid).children() if not _waits(process)]


def _waits(process: psutil.Process) -> bool:
    try:
        return "multiprocessing." in " ".join(process.cmdline())
    except psutil.Error:
        return False


class Job:
    """A command that runs in ``processes``, with a thread each.

    Args:
        arguments: the command line.
        cwd: the folder in which it runs.
        processes: how many do it together; each of several has the environment that ``torchrun`` gives it.
    """

    def __init__(self, *arguments: object, cwd: Path, processes: int = 1) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._logs = [cwd.parent / f"{cwd.name}-{rank}" for rank in range(processes)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.running = []
        for rank, log in enumerate(self._logs):
            world: dict[str, Any] = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            world |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
            environment = {key: str(value) for key, value in world.items()} if processes > 1 else {}
            self.running.append(forked(_command, self._arguments, str(cwd), environment, str(log)))

    def kill(self) -> None:
        """``kill -9`` all."""
        for process in self.running:
            process.kill()
        self.wait()

    def wait(self) -> CompletedProcess[str]:
        """Until all have ended; where one fails the others are ended, as ``torchrun`` does, and its status is the
        whole's."""
        status, left = 0, {process.sentinel: process for process in self.running}
        while left:
            for ended in map(left.pop, wait(list(left))):
                ended.join()
                if ended.exitcode and not status:
                    status = ended.exitcode
                    for process in left.values():
                        process.terminate()
        said = [Path(f"{log}.{stream}") for stream in ("out", "err") for log in self._logs]
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in said]
        for path in said:
            path.unlink(missing_ok=True)
        half = len(self._logs)
        return CompletedProcess(self._arguments, status, "".join(texts[:half]), "".join(texts[half:]))


def run(*arguments: object, cwd: Path, processes: int = 1) -> CompletedProcess[str]:
    """Run a command to its end, as :class:`Job` does."""
    return Job(*arguments, cwd=cwd, processes=processes).wait()


def _command(arguments: list[str], cwd: str, environment: dict[str, str], log: str) -> None:
    import torch

    from edgeadv.cli import main

    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    status = 1
    try:
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
