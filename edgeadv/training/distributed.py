"""The processes that train one network together, each on its part of every batch, as ``torchrun`` starts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from edgeadv_runtime.errors import TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among them; on its own by default.

    Attributes:
        rank: its number; 0 measures, saves and speaks.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that measures, saves and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` so that a backward pass averages the gradients of all processes.

        On a GPU BatchNorm takes the statistics of the whole batch (SyncBatchNorm, which there is for GPUs only). On a
        CPU each process takes those of its own part, which is another recipe; the running statistics kept are those of
        process 0.
        """
        if self.world == 1:
            return model
        if next(model.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(model, broadcast_buffers=False)

    def sum(self, *values: Tensor) -> list[float]:
        """The sum of each number over all processes.

        Raises:
            TrainingError: another process is gone.
        """
        together = torch.stack([value.double() for value in values])
        if self.world > 1:
            _together(lambda: distributed.all_reduce(together))
        return [float(value) for value in together]

    def tell(self, value: T) -> T:
        """What process 0 passes here, in all processes.

        Raises:
            TrainingError: another process is gone.
        """
        if self.world == 1:
            return value
        said = [value]
        _together(lambda: distributed.broadcast_object_list(said, src=0))
        return said[0]

    def wait(self) -> None:
        """Until all are here.

        Raises:
            TrainingError: another process is gone.
        """
        self.tell(None)


def bare(model: nn.Module) -> nn.Module:
    """The network itself: looking for a perturbation is no business of the other processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def together(call: Callable[[], T]) -> T:
    """Run a backward pass, which waits for the other processes.

    Raises:
        TrainingError: another process is gone.
    """
    try:
        return call()
    except RuntimeError as error:
        if "onnection" in str(error) or "gloo" in str(error).lower() or "NCCL" in str(error):
            raise TrainingError(_GONE) from error
        raise


_GONE = "another process of this training is gone: see what it says; what is saved is whole, `resume` goes on"


def _together(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        raise TrainingError(_GONE) from error
