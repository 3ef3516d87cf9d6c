"""Progress of a training as scalars for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgeadv_runtime.errors import require
from edgeadv_runtime.files import ensure_writable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from .loop import Progress

# what the history of a run calls them, under the headings that a page of charts wants
_MEASURED = {
    "test_accuracy": "accuracy/test",
    "holdout_clean": "held out/clean",
    "holdout_fgsm": "held out/fgsm",
    "holdout_worst_case": "held out/worst case",
}


class Scalars:
    """A report of training that writes event files, a folder for each stage (``train``, ``teacher``, ``student``).

    A training that is resumed replaces what was written after the point where it goes on. Close it, or use it with
    ``with``.

    Args:
        folder: where the event files go.

    Raises:
        MissingDependencyError: tensorboard is not installed.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        require("tensorboard", extra="train")
        ensure_writable(folder)
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def __call__(self, progress: Progress) -> None:
        """Write what this moment of a training says."""
        step = (progress.epoch - 1) * progress.steps + progress.step
        writer = self._writer(progress.stage, step)
        if progress.measured is None:
            now = {
                "loss": progress.loss,
                "accuracy/train": progress.accuracy,
                "learning rate": progress.lr,
                "speed/images per second": progress.images_per_s,
                "speed/share of waiting": progress.waiting,
            }
        else:
            now = {name: progress.measured[key] for key, name in _MEASURED.items() if key in progress.measured}
        for name, value in now.items():
            writer.add_scalar(name, value, step)

    def _writer(self, stage: str, step: int) -> SummaryWriter:
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[stage] = SummaryWriter(str(self._folder / stage), purge_step=step)
        return self._writers[stage]

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
