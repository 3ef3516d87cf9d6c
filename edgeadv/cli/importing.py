"""``edgeadv import``: somebody else's ONNX file becomes a bundle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import InputError

from ..workflows import importing
from ..workflows.exporting import TrainingDataOptions
from ..workflows.importing import ImportOptions, OnnxCheck
from ._fields import say
from .bundle import print_summary


def import_onnx(
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    options: ImportOptions,
    training: TrainingDataOptions,
    out: Annotated[Path | None, "The bundle to make; by custom it is called NAME.edgeadv."] = None,
    golden: Annotated[Path | None, "Folder of real images to compare on, 64 of them spread over it."] = None,
    check: Annotated[bool, "Only tell whether the file will do, and what must be given."] = False,
    overwrite: Annotated[bool, "Replace a bundle that is there."] = False,
) -> None:
    """Make a bundle of somebody else's ONNX file, if on real images it gives what the file gives.

    What the file tells by itself need not be given: shape, type, a normalisation inside, a softmax at its end. What it
    does not tell is asked for in one line; nothing is assumed.
    """
    if check:
        _tell(importing.check_onnx(path, frames=golden, options=options))
        return
    if out is None:
        raise InputError("out", "is needed: the bundle to make; or pass `check`")
    bundle = importing.import_onnx(
        path,
        out,
        frames=golden,
        options=options,
        training=training,
        overwrite=overwrite,
        progress=partial(say, err=True),
    )
    print_summary(bundle)


def _tell(check: OnnxCheck) -> None:
    say(f"file               {check.path}")
    say(f"variant            {check.variant}")
    for note in check.notes:
        say(f"read               {note}")
    gradients = "of its own graph" if check.no_gradients is None else f"none, so queries only: {check.no_gradients}"
    say(f"gradients          {gradients}")
    for field, what in check.needed:
        say(f"needed             `{field}`: {what}")
    shown = f"{check.images} images" if check.images else "noise"
    done = f"run and rewritten on {shown}, with the same logits" if check.ran else "not run yet: it needs what is above"
    say(f"tried              {done}")
