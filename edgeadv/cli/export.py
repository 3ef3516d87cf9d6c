"""``edgeadv export``: a training run, or an architecture with a weight file, becomes a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from edgeadv_runtime.bundle import Classes
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.preprocess import Preprocess

from ._shared import names, need
from .bundle import print_summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeadv.models import PixelModel

IMAGENET = "imagenet1k"


@dataclass(frozen=True)
class _Source:
    """What a bundle is made from."""

    model: PixelModel
    classes: Classes
    preprocess: Preprocess
    frames: list[NDArray[np.uint8]]
    title: str
    provenance: dict[str, Any]


def export(
    out: Annotated[Path, typer.Option(help="The bundle to make; by custom it is called NAME.edgeadv.")],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A finished training run; without one, give --arch.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Comma-separated variants to export.")] = "fp32,fp16",
    golden: Annotated[
        Path | None,
        typer.Option(help="Folder of real images to compare on, the first 64; a run has test images of its own."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision keeps the data set of the run.")] = None,
    arch: Annotated[str | None, typer.Option(help="Without a run: a torchvision or timm architecture.")] = None,
    weights: Annotated[str | None, typer.Option(help="Without a run: a weight file, or default.")] = None,
    weights_map: Annotated[
        str | None, typer.Option(help="Without a run: by-name (default), or by-position if the file has other names.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help=f"Without a run: {IMAGENET}, or a file of id<TAB>name in logit order.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(help="Without a run: written resize=256,crop=224,interp=bicubic.")
    ] = None,
    upsample: Annotated[
        int | None,
        typer.Option(help="Without a run: whole factor by which the model enlarges its input."),
    ] = None,
) -> None:
    """Export to ONNX, compare every artefact with PyTorch on real images, and write the bundle only if they agree.

    Give a RUN, or --arch with --weights, --classes, --preprocess and --golden.
    """
    need("export")
    import edgeadv_export

    if run is not None:
        options = {
            "--arch": arch, "--weights": weights, "--classes": classes, "--preprocess": preprocess,
            "--weights-map": weights_map, "--upsample": upsample,
        }  # fmt: skip
        if given := [option for option, value in options.items() if value is not None]:
            raise InputError(f"{', '.join(given)} cannot be given beside a run, which brings its own: {run}")
        source = _from_run(run, golden, data_root)
    else:
        needed = {
            "--arch": arch, "--weights": weights, "--classes": classes, "--preprocess": preprocess, "--golden": golden
        }  # fmt: skip
        if missing := [option for option, value in needed.items() if not value]:
            raise InputError(f"without a RUN folder, export also needs {', '.join(missing)}")
        assert arch and weights and classes and preprocess and golden
        source = _from_weights(
            arch, weights, classes, preprocess, golden, weights_map=weights_map or "by-name",
            upsample=1 if upsample is None else upsample,
        )  # fmt: skip
    bundle = edgeadv_export.export_bundle(
        source.model, out, classes=source.classes, preprocess=source.preprocess, frames=source.frames,
        variants=names(precision, option="--precision"), title=source.title, provenance=source.provenance,
        overwrite=overwrite, progress=lambda text: typer.echo(text, err=True),
    )  # fmt: skip
    print_summary(bundle)


def _from_run(path: Path, golden: Path | None, data_root: Path | None) -> _Source:
    from edgeadv.data import DEFAULT_ROOT, open_data
    from edgeadv.runs import Run
    from edgeadv_export import data_frames, folder_frames

    run = Run.open(path)
    if golden is None:
        frames = data_frames(open_data(run.data, split="test", root=data_root or DEFAULT_ROOT))
        origin = f"{Path(run.data).name} test"
    else:
        frames, origin = folder_frames(golden), golden.resolve().name
    return _Source(
        model=run.load_model(), classes=run.classes, preprocess=run.preprocess, frames=frames, title=run.title,
        provenance={**run.provenance, "frames": {"origin": origin, "count": len(frames)}},
    )  # fmt: skip


def _from_weights(
    arch: str, weights: str, classes: str, preprocess: str, golden: Path, *, weights_map: str, upsample: int
) -> _Source:
    from edgeadv.models import Architecture, WeightsMap, load_pretrained
    from edgeadv_export import folder_frames, imagenet_classes, read_classes

    if weights_map not in get_args(WeightsMap):
        raise InputError(f"--weights-map {weights_map!r} is not one of {', '.join(get_args(WeightsMap))}")
    steps = Preprocess.parse(preprocess)
    labels = imagenet_classes() if classes == IMAGENET else read_classes(Path(classes))
    architecture = Architecture.find(arch, num_classes=len(labels), upsample=upsample)
    model = load_pretrained(architecture, weights, weights_map=weights_map)  # type: ignore[arg-type]
    origin: dict[str, Any] = {"name": Path(weights).name, "map": weights_map}
    if Path(weights).is_file():
        origin["sha256"] = sha256_file(Path(weights))
    frames = folder_frames(golden)
    return _Source(
        model=model, classes=labels, preprocess=steps, frames=frames, title=architecture.name,
        provenance={"weights": origin, "frames": {"origin": golden.resolve().name, "count": len(frames)}},
    )  # fmt: skip
