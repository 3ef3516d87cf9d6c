"""``edgeadv export``: a training run, an architecture with a weight file, or own code becomes a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime import InputError

from ..workflows import exporting
from ..workflows.exporting import PRECISIONS, ConfidenceOptions, Int8Options, TrainingDataOptions, given_fields
from ..workflows.networks import ModelSource
from ._fields import say
from .bundle import print_summary


@dataclass(kw_only=True)
class _Export:
    out: Annotated[Path, "The bundle to make; by custom it is called NAME.edgeadv."]
    precisions: Annotated[
        tuple[str, ...],
        "Comma-separated variants to export; int8 is int8-s8s8 and int8-u8s8. With -u8in behind it a variant "
        "takes uint8 pixels: fp32-u8in, int8-u8in.",
    ] = PRECISIONS
    data: Annotated[
        str | None, "What the network was trained and tested on; a run names its own, which may have moved."
    ] = None
    golden: Annotated[
        Path | None, "Folder of real images to compare on, 64 of them spread over it; a run has test images of its own."
    ] = None
    keep_going: Annotated[
        bool, "Write the bundle with the variants that work, if any does, and say why the others were refused."
    ] = False
    overwrite: Annotated[bool, "Replace a bundle that is there."] = False
    training: TrainingDataOptions
    int8: Int8Options
    confidence: ConfidenceOptions


def export(
    asked: _Export,
    model: ModelSource,
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A finished training run; without one, give --arch.")
    ] = None,
) -> None:
    """Export to ONNX, compare every artefact with PyTorch on real images, and write the bundle only if they agree.

    Give a RUN, or --arch with --weights, --classes, --preprocess and --golden. A network of your own is --model
    package.module:factory. That code is imported from the current directory and run. int8 is written only if it is
    shown to lose no more accuracy than --max-drop; its most sensitive layers stay in float32 where that helps.
    """
    if run is not None and (given := given_fields(model)):
        raise InputError(f"{given} cannot be given beside a run, which brings its own: {run}")
    options = {"frames": asked.golden, **vars(asked)}
    del options["golden"]
    print_summary(exporting.export(run or model, **options, progress=partial(say, err=True)))
