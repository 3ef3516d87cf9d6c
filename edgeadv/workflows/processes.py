"""One job in several processes, as ``torchrun`` starts them: who does what, and how they begin and end together."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from edgeadv_runtime.errors import BackendError, InputError

# a process may have to wait for as long as the slowest one attacks, or builds a plan
_PATIENCE = timedelta(days=30)
_SHARED = ("train", "distill", "evaluate")


class PeerError(BackendError):
    """The first process failed, and says why: the others end without a word."""


@dataclass(frozen=True)
class Processes:
    """This process among those that do one evaluation.

    Attributes:
        rank: its number; 0 is the one that speaks and writes the file.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` batches are this process's."""
        return range(self.rank, count, self.world)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process runs the block, then the others do; what it cannot do they need not try.

        Raises:
            PeerError: the first one failed.
        """
        if self.world == 1:
            yield
        elif self.first:
            done = False
            try:
                yield
                done = True
            finally:
                self._tell(done)
        else:
            if not self._tell(None):
                raise PeerError("the first process failed: see what it says")
            yield

    def _tell(self, done: bool | None) -> bool:
        from torch import distributed

        said: list[bool | None] = [done]
        _together(lambda: distributed.broadcast_object_list(said, src=0))
        return bool(said[0])

    def wait(self) -> None:
        """Until all are here.

        Raises:
            BackendError: one of them failed.
        """
        if self.world > 1:
            from torch import distributed

            _together(distributed.barrier)


def _together(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        raise BackendError("another process failed: see what it says; `resume` goes on") from error


def refuse_processes(arguments: Sequence[str]) -> None:
    """Refuse to run a command in several processes that would each do all of it, into the same place.

    Args:
        arguments: the command line, the command's name first.

    Raises:
        InputError: ``torchrun`` started several, and it is none of ``train``, ``distill`` and ``evaluate``.
    """
    if _world() > 1 and arguments and arguments[0] not in _SHARED:
        raise InputError(
            f"edgeadv {arguments[0]} runs in one process: start it without torchrun; {', '.join(_SHARED)} share their "
            "work"
        )


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


@contextmanager
def join(*, own_gpu: bool = False, on_gpu: bool = False) -> Iterator[Processes]:
    """Find the other processes, if ``torchrun`` started any; the group is made here unless it is there already.

    Args:
        own_gpu: let this process see only the GPU of its own number among those of its machine, for good: for
            commands, before anything looks at GPUs. A program that calls the library chooses its GPU itself.
        on_gpu: let them exchange what is on GPUs, where there are any, by NCCL.

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    world = _world()
    if world == 1:
        yield Processes()
        return
    if own_gpu:
        narrow(int(os.environ["LOCAL_RANK"]))
    from torch import cuda, distributed

    if distributed.is_initialized():
        yield Processes(distributed.get_rank(), world)
        return
    backend = "cpu:gloo,cuda:nccl" if on_gpu and cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    yield Processes(distributed.get_rank(), world)
    # only where all went well: there is nobody to say goodbye to otherwise
    distributed.destroy_process_group()


def gpus_may_be_here() -> bool:
    """Whether NVIDIA's driver is installed and GPUs are not hidden; it is not started, which would fix what it sees."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    from edgeadv_runtime.device.cuda import LIBRARY

    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def narrow(local_rank: int) -> None:
    """Let this process see only GPU ``local_rank`` of those that it was started with.

    Raises:
        InputError: there are not as many.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(local_rank + 1)] if visible is None else [g for g in visible.split(",") if g.strip()]
    if local_rank >= len(gpus):
        raise InputError(
            f"process {local_rank} of this machine has no GPU: CUDA_VISIBLE_DEVICES lists {len(gpus)}; start as many "
            "processes"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank]


def is_first() -> bool:
    """Whether this process is the one that speaks: the first that ``torchrun`` started, or one on its own."""
    return _world() == 1 or os.environ.get("RANK") == "0"
