"""What training runs there are below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadv_runtime import EdgeAdvError, InputError

from .extras import need

if TYPE_CHECKING:
    from ..training.runs import Run


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A folder that holds a run, or one that is not finished.

    Attributes:
        path: the folder.
        run: the run; None where it cannot be opened.
        problem: why it cannot, else empty.
    """

    path: Path
    run: Run | None = None
    problem: str = ""


def list_runs(folder: str | Path) -> list[ListedRun]:
    """The training runs in ``folder`` and all folders below it, by path.

    ::

        for each in list_runs("runs"):
            print(each)

    Raises:
        InputError: it is no folder, or holds no run.
    """
    need("train")
    from ..training.checkpoint import STATE_FILE
    from ..training.runs import RUN_FILE, Run

    home = Path(folder)
    if not home.is_dir():
        raise InputError(f"{home} is not a folder: name the one that holds the runs")
    found = sorted({file.parent for name in (RUN_FILE, STATE_FILE) for file in home.rglob(name)})
    if not found:
        raise InputError(f"there is no run in {home}: edgeadv train and edgeadv distill make them")
    listed = []
    for path in found:
        try:
            listed.append(ListedRun(path=path, run=Run.open(path)))
        except EdgeAdvError as error:
            listed.append(ListedRun(path=path, problem=str(error).removeprefix(f"{path} ")))
    return listed
