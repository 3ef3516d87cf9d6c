"""``edgeadv runs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..workflows.runs import list_runs
from ._fields import as_options
from ._shared import print_table

if TYPE_CHECKING:
    from edgeadv.training.runs import Run


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, in all folders below too.")] = Path("runs"),
) -> None:
    """List training runs: recipe, clean accuracy, what stood on held-out images, and how long they took.

    The clean accuracy is on the test images. The worst case is of PGD with 10 steps on training images that were held
    out, at the budget of the recipe, and chose the epoch: it is no result. `edgeadv evaluate` measures one.
    """
    listed = list_runs(folder)
    named = [
        (str(found.path.relative_to(folder)) if found.path != folder else found.path.name, found) for found in listed
    ]
    rows = [[name, *_cells(found.run)] for name, found in named if found.run is not None]
    tell = print_table(("run", "recipe", "clean", "held-out worst case", "epoch", "minutes"), rows, left=2)
    for name, found in named:
        if found.run is None:
            tell(f"{name}: {as_options(found.problem)}")


def _cells(run: Run) -> list[str]:
    stage = run.info.stage
    low, high = stage.test_accuracy_ci95
    worst = stage.kept.get("holdout_worst_case")
    minutes = sum(epoch.get("duration_s", 0.0) + epoch.get("measured_s", 0.0) for epoch in stage.epochs) / 60
    return [
        run.title,
        f"{stage.test_accuracy:.1%} [{low:.1%}, {high:.1%}]",
        "" if worst is None else f"{worst:.1%} at {run.info.recipe.get('eps')}",
        f"{stage.kept_epoch or len(stage.epochs)} of {len(stage.epochs)}{', stopped' if stage.stopped else ''}",
        f"{minutes:.1f}",
    ]
