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
from ..workflows.zoo import zoo
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
    zoo: Annotated[str | None, "In place of a RUN: a network that edgeadv's project trained, e.g. signs-robust."] = None
    zoo_from: Annotated[
        str | None,
        "A folder like examples/models of the project, or its address, that holds it; by default the checkout, or what "
        "was fetched before.",
    ] = None
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

    Give a RUN, --zoo, or --arch with --weights, --classes, --preprocess and --golden. A network of your own is --model
    package.module:factory. That code is imported from the current directory and run. int8 is written only if it is
    shown to lose no more accuracy than --max-drop; its most sensitive layers stay in float32 where that helps.
    """
    options = {"frames": asked.golden, **vars(asked)}
    name, place = options.pop("zoo"), options.pop("zoo_from")
    del options["golden"]
    if run is not None and name is not None:
        raise InputError("zoo", f"cannot be given beside a run: leave one out, {run} or {name}")
    if name is None and place is not None:
        raise InputError("zoo_from", "belongs to `zoo`, which names the network: add it")
    source = run if name is None else zoo(name, zoo_from=place)
    if source is not None and (given := given_fields(model)):
        raise InputError(f"{given} cannot be given beside a run, which brings its own: {run or name}")
    print_summary(exporting.export(source or model, **options, progress=partial(say, err=True)))
