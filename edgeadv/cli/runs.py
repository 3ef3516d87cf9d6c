"""``edgeadv runs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from edgeadv_runtime.errors import EdgeAdvError, InputError

from ..workflows.extras import need
from ._fields import as_options
from ._shared import wide_console

if TYPE_CHECKING:
    from edgeadv.training.runs import Run


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, in all folders below too.")] = Path("runs"),
) -> None:
    """List training runs: recipe, clean accuracy, what stood on held-out images, and how long they took.

    The clean accuracy is on the test images. The worst case is of PGD with 10 steps on training images that were held out, at
    the budget of the recipe, and chose the epoch: it is no result. `edgeadv evaluate` measures one.
    """
    need("train")
    from edgeadv.training.checkpoint import STATE_FILE
    from edgeadv.training.runs import RUN_FILE, Run

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name the one that holds the runs")
    found = sorted({file.parent for name in (RUN_FILE, STATE_FILE) for file in folder.rglob(name)})
    if not found:
        raise InputError(f"there is no run in {folder}: edgeadv train and edgeadv distill make them")
    table = Table()
    for heading in ("run", "recipe", "clean", "held-out worst case", "epoch", "minutes"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("run", "recipe") else "right")
    for path in found:
        name = str(path.relative_to(folder)) if path != folder else path.name
        try:
            table.add_row(*(Text(cell) for cell in (name, *_cells(Run.open(path)))))
        except (KeyError, IndexError, TypeError) as error:
            table.add_row(
                Text(name), Text(f"is a damaged run ({error!r}); copy it again or train again"), "", "", "", ""
            )
        except EdgeAdvError as error:
            table.add_row(Text(name), Text(as_options(str(error).removeprefix(f"{path} "))), "", "", "", "")
    console = wide_console(120)
    console.print(table)


def _cells(run: Run) -> list[str]:
    stage: dict[str, Any] = run.info["stages"][-1]
    epochs: list[dict[str, float]] = stage["epochs"]
    kept = stage.get("kept_epoch", len(epochs))
    chosen = epochs[kept - 1]
    low, high = stage["test_accuracy_ci95"]
    worst = (
        f"{chosen['holdout_worst_case']:.1%} at {run.info['recipe']['eps']}" if "holdout_worst_case" in chosen else ""
    )
    minutes = sum(epoch["duration_s"] + epoch.get("measured_s", 0.0) for epoch in epochs) / 60
    stopped = ", stopped" if "stopped" in stage else ""
    return [
        run.title, f"{stage['test_accuracy']:.1%} [{low:.1%}, {high:.1%}]", worst, f"{kept} of {len(epochs)}{stopped}",
        f"{minutes:.1f}",
    ]  # fmt: skip
