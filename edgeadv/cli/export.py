"""``edgeadv export``: a training run, or an architecture with a weight file, becomes a bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from edgeadv_runtime.bundle.bundle import Bundle, Classes, check_replaceable
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.variants import INT8, VARIANTS, expanded, precision_of
from edgeadv_runtime.errors import ExportError, InputError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.records.eps import Eps

from ..workflows.extras import need
from ..workflows.inputs import names
from ._fields import say
from .bundle import print_summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeadv.models.builder import PixelModel
    from edgeadv_export import ConfidencePlan, Int8Plan
    from edgeadv_runtime.bundle.training_images import TrainingImages

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
    data: str | None = None  # of the run
    training_images: TrainingImages | None = None


@dataclass(frozen=True, kw_only=True)
class _Int8Options:
    """What the command line says of int8; None is not given."""

    calibration_data: str | None
    calibration_count: int | None
    calibration_seed: int | None
    max_drop: float | None
    gate_data: Path | None
    gate_limit: int | None
    gate_eps: str | None
    allow_training_images: bool | None


@dataclass(frozen=True, kw_only=True)
class _ConfidenceOptions:
    """What the command line says of temperature and threshold; None is not given."""

    confidence_data: str | None
    confidence_limit: int | None
    coverage: float | None

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            InputError: they do not.
        """
        others = {name: value for name, value in vars(self).items() if name != "confidence_data"}
        if self.confidence_data is None and (given := [name for name, value in others.items() if value is not None]):
            listed = ", ".join("--" + name.replace("_", "-") for name in given)
            raise InputError(f"{listed} needs --confidence-data: name labelled images that were not trained on")


def export(
    out: Annotated[Path, typer.Option(help="The bundle to make; by custom it is called NAME.edgeadv.")],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A finished training run; without one, give --arch.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Comma-separated variants to export; int8 is int8-s8s8 and int8-u8s8. With -u8in behind it a variant takes "
            "uint8 pixels: fp32-u8in, int8-u8in."
        ),
    ] = "fp32,fp16",
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Folder of real images to compare on, 64 of them spread over it; a run has test images of its own."
        ),
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
    training_data: Annotated[
        str | None,
        typer.Option(
            help="What the network was trained on, a name as for --data or a folder of images, so that evaluate can tell; a run knows its own."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode the images of --training-data.")] = 0,
    calibration_data: Annotated[
        str | None,
        typer.Option(help="int8: a folder of images, or train for those of the run (default); never test images."),
    ] = None,
    calibration_count: Annotated[
        int | None, typer.Option(help="int8: how many of them; default 512, or all if they are fewer.")
    ] = None,
    calibration_seed: Annotated[int | None, typer.Option(help="int8: seed of their choice; default 0.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="int8: points of top-1 that may be lost against fp32, judged at the interval's upper end; default 1."
        ),
    ] = None,
    gate_data: Annotated[
        Path | None,
        typer.Option(
            help="int8: class folders to measure that on; default the run's test images, or what calibration left."
        ),
    ] = None,
    gate_limit: Annotated[int | None, typer.Option(help="int8: at most this many of them, balanced.")] = None,
    gate_eps: Annotated[
        str | None, typer.Option(help="int8: hold the worst case under attack at this budget to it too, e.g. 8/255.")
    ] = None,
    allow_training_images: Annotated[
        bool,
        typer.Option(
            "--allow-training-images", help="int8: measure it on more than 1% of images that were trained on."
        ),
    ] = False,
    confidence_data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images not trained on: half of them sets temperature and rejection threshold, half measures them. "
            "A folder or name as for --data, or test for those of the run."
        ),
    ] = None,
    confidence_limit: Annotated[
        int | None, typer.Option(help="At most this many of them, balanced; default 2000.")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Share of clean images that the rejection threshold answers; default 0.95.")
    ] = None,
) -> None:
    """Export to ONNX, compare every artefact with PyTorch on real images, and write the bundle only if they agree.

    Give a RUN, or --arch with --weights, --classes, --preprocess and --golden. int8 is written only if it is shown
    to lose no more accuracy than --max-drop; its most sensitive layers stay in float32 where that helps.
    """
    need("export")
    import edgeadv_export

    variants = _variants(precision)
    int8_options = _Int8Options(
        calibration_data=calibration_data, calibration_count=calibration_count, calibration_seed=calibration_seed,
        max_drop=max_drop, gate_data=gate_data, gate_limit=gate_limit, gate_eps=gate_eps,
        allow_training_images=allow_training_images or None,
    )  # fmt: skip
    confidence_options = _ConfidenceOptions(
        confidence_data=confidence_data, confidence_limit=confidence_limit, coverage=coverage
    )
    confidence_options.check()
    wants_int8 = any(precision_of(variant) == INT8 for variant in variants)
    if not wants_int8 and (given := [name for name, value in vars(int8_options).items() if value is not None]):
        listed = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"--precision {precision} has no int8: leave {listed} out, or add int8")

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
    check_replaceable(out)
    source = _with_training_data(source, training_data, data_root, workers=workers)
    confidence = _confidence_plan(confidence_options, source, data_root)
    int8 = _int8_plan(int8_options, source, data_root) if wants_int8 else None
    bundle = edgeadv_export.export_bundle(
        source.model, out, classes=source.classes, preprocess=source.preprocess, frames=source.frames,
        variants=variants, title=source.title, provenance=source.provenance, int8=int8, confidence=confidence,
        training_images=source.training_images, overwrite=overwrite, progress=_say,
    )  # fmt: skip
    print_summary(bundle)


def export_run(run: Path, out: Path, *, data_root: Path | None) -> None:
    """Export a finished run in fp32 and fp16, or in fp32 where fp16 is refused, and print what is in the bundle.

    Raises:
        EdgeAdvError: as ``edgeadv export`` does.
    """
    import edgeadv_export

    source = _from_run(run, None, data_root)

    def export(*variants: str) -> Bundle:
        return edgeadv_export.export_bundle(
            source.model, out, classes=source.classes, preprocess=source.preprocess, frames=source.frames,
            variants=list(variants), title=source.title, provenance=source.provenance,
            training_images=source.training_images, progress=_say,
        )  # fmt: skip

    try:
        bundle = export("fp32", "fp16")
    except ExportError as error:
        # a training went before: what can be had of it is better than nothing
        _say(f"warning: {error}; exporting fp32 alone")
        bundle = export("fp32")
    print_summary(bundle)


def _say(text: str) -> None:
    say(text, err=True)


def _variants(precision: str) -> list[str]:
    """Read ``--precision``; ``int8`` is both of its variants, and ``int8-u8in`` both with that suffix."""
    variants = expanded(list(names(precision, field="precisions")), VARIANTS)
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        raise InputError(f"--precision {unknown[0]!r} is no variant: choose from {', '.join(VARIANTS)}")
    if len(set(variants)) != len(variants):
        both = expanded([INT8], VARIANTS)
        raise InputError(f"--precision {precision!r} names a variant twice: {INT8} is {' and '.join(both)}")
    return variants


def _int8_plan(options: _Int8Options, source: _Source, root: Path | None) -> Int8Plan:
    """Choose the calibration images and the labelled ones, before anything is measured."""
    from edgeadv.data.datasets import DEFAULT_ROOT
    from edgeadv_export import Int8Plan, calibration_images, choose_calibration, gate_images
    from edgeadv_export.calibration import ADVISED
    from edgeadv_export.int8_quality import MAX_DROP

    eps = None if options.gate_eps is None else Eps.parse(options.gate_eps)
    root = root or DEFAULT_ROOT
    calibration = choose_calibration(
        calibration_images(options.calibration_data, run_data=source.data, root=root), source.preprocess,
        count=options.calibration_count, seed=options.calibration_seed or 0,
    )  # fmt: skip
    images, order = gate_images(
        calibration, source.classes, folder=options.gate_data, run_data=source.data, root=root, limit=options.gate_limit,
        allow_training_images=bool(options.allow_training_images),
    )  # fmt: skip
    plan = Int8Plan(
        calibration=calibration, images=images, order=order, eps=eps,
        max_drop=MAX_DROP if options.max_drop is None else options.max_drop,
        allow_training_images=bool(options.allow_training_images),
    )  # fmt: skip
    if calibration.unreadable:
        n = len(calibration.unreadable)
        _say(
            f"{n} image(s) of {calibration.origin} cannot be read and were passed over, e.g. {calibration.unreadable[0]}"
        )
    if (n := len(calibration.index)) < ADVISED:
        _say(f"int8 is calibrated on {n} images; {ADVISED} or more are advised")
    return plan


def _confidence_plan(options: _ConfidenceOptions, source: _Source, root: Path | None) -> ConfidencePlan | None:
    """Choose the images for temperature and threshold; None where none were named."""
    from edgeadv.data.datasets import DEFAULT_ROOT
    from edgeadv_export import ConfidencePlan, confidence_images
    from edgeadv_export.confidence_fit import COVERAGE

    if options.confidence_data is None:
        return None
    images, order = confidence_images(
        options.confidence_data, source.classes, run_data=source.data, root=root or DEFAULT_ROOT,
        limit=options.confidence_limit,
    )  # fmt: skip
    coverage = COVERAGE if options.coverage is None else options.coverage
    return ConfidencePlan(images=images, order=order, coverage=coverage)


def _from_run(path: Path, golden: Path | None, data_root: Path | None) -> _Source:
    from edgeadv.data.datasets import DEFAULT_ROOT, open_data
    from edgeadv.training.runs import Run
    from edgeadv_export import data_frames, folder_frames

    run = Run.open(path)
    if golden is None:
        frames = data_frames(open_data(run.data, split="test", root=data_root or DEFAULT_ROOT))
        origin = f"{Path(run.data).name} test"
    else:
        frames, origin = folder_frames(golden), golden.resolve().name
    return _Source(
        model=run.load_model(), classes=run.classes, preprocess=run.preprocess, frames=frames, title=run.title,
        provenance={**run.provenance, "frames": {"origin": origin, "count": len(frames)}}, data=run.data,
        training_images=run.training_images,
    )  # fmt: skip


def _with_training_data(source: _Source, spec: str | None, root: Path | None, *, workers: int) -> _Source:
    """``source`` with the images that ``--training-data`` names besides those that its run knows."""
    from edgeadv.data.datasets import DEFAULT_ROOT
    from edgeadv.data.training_images import hashed, training_data
    from edgeadv_export.int8_quality import paced

    if spec is None:
        return source
    data = training_data(spec, root=root or DEFAULT_ROOT)
    tell = paced(_say, f"hashing {len(data)} images of {spec}", "images")
    images = hashed(data, source.preprocess, workers=workers, progress=tell)
    return replace(source, training_images=images | source.training_images)


def _from_weights(
    arch: str, weights: str, classes: str, preprocess: str, golden: Path, *, weights_map: str, upsample: int
) -> _Source:
    from edgeadv.models.builder import Architecture, WeightsMap, load_pretrained
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
