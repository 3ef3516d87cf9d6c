"""``edgeadv diff``: where another preprocessing departs from a bundle's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows.comparing import compare_pipelines
from ._arguments import at_least
from ._fields import say
from ._shared import progress_bar

# levels that arithmetic in float32 may leave
_ROUNDING = 0.005


def diff(
    bundle: Annotated[Path, "The bundle whose preprocessing is right."],
    other: Annotated[str, "FILE.py:FUNCTION or package.module:FUNCTION; this code is imported and run."],
    data: Annotated[Path, "A folder of pictures, or one."],
    limit: Annotated[int, at_least(1, "At most so many pictures, spread over the folder.")] = 64,
    variant: Annotated[str | None, "Which artefact is asked for labels; by default the first."] = None,
) -> None:
    """Find where another preprocessing's pixels differ from a bundle's: the first step, the largest level, the labels
    that change.

    The code behind --with is imported and run. Its function takes the path of a picture and gives what the model is
    given of it: uint8 (height, width, channels), or floats in [0, 1], (channels, height, width) with or without a batch
    of one. The exit status is 1 where the pixels differ, as with diff.
    """
    with progress_bar() as progress:
        found = compare_pipelines(bundle, other, data, limit=limit, variant=variant, progress=progress)
    if found.same:
        say(f"the same pixels for all {found.n} pictures")
        return
    for number, step in enumerate(found.steps):
        say(f"{'first differing step' if not number else 'then'}: {step.step}: {step.what}")
    if found.n:
        scaled = any(step.step == "scaling" for step in found.steps)
        undone = ", its scaling undone" if scaled else ""
        by = f"by {found.largest:.4g} levels of 255 at most, in {found.share:.1%} of all values"
        if scaled and not found.share:
            undone, by = "", "by their scaling alone"
        say(f"{found.different} of {found.n} pictures differ{undone}: {by}")
    if not found.explained and found.n:
        known = "these steps explain only part of it" if found.steps else "no step that is known here explains it"
        say(f"{known}: {found.unexplained:.2g} levels are left on average")
    elif found.steps and found.n:
        but = f", but for {found.unexplained:.2g} levels on average" if found.unexplained >= _ROUNDING else ""
        say(f"with {'this step' if len(found.steps) == 1 else 'these steps'} done so ours gives the same{but}")
    for misfit in found.misfits[:5]:
        say(f"another shape: {misfit}")
    if found.flips is None:
        say(f"labels not compared: {found.not_run}")
    else:
        say(f"{len(found.flips)} of {found.n} first labels change")
        for flip in found.flips:
            say(f"  {flip.file}: {flip.ours} becomes {flip.other}")
    raise typer.Exit(1)
