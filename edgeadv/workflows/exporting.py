"""Export a run, an architecture with a weight file, or a network of own code, to a bundle. The one workflow that needs
``edgeadv_export``.

Loading this module loads no PyTorch: the command line makes options of its groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgeadv_runtime import Bundle, Eps, InputError, Preprocess
from edgeadv_runtime.bundle.bundle import Classes, check_out, check_replaceable
from edgeadv_runtime.bundle.variants import INT8, VARIANTS, expanded, precision_of
from edgeadv_runtime.decoding import Options
from edgeadv_runtime.errors import DataError, StorageError
from edgeadv_runtime.files import ensure_writable

from ..models.normalization import Normalize
from .alone import alone
from .extras import need
from .inputs import names
from .networks import (
    IMAGENET,
    Beside,
    Frames,
    Labels,
    ModelSource,
    Progress,
    WithoutRun,
    frame_images,
    from_object,
    from_source,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgeadv_export import ConfidencePlan, Int8Plan
    from edgeadv_runtime.bundle.training_images import TrainingImages

    from ..data.datasets import ImageSet, Split
    from ..data.sources import Data, Source
    from ..training.runs import Run

PRECISIONS = ("fp32", "fp16")
_MOST_COUNTED = 1 << 16
_FEW = 8


@dataclass(frozen=True, kw_only=True)
class Int8Options(Options):
    """What int8 is made from and what it must keep."""

    calibration_data: Annotated[
        str | None, "int8: a folder of images, or train for those of the run (default); never test images."
    ] = None
    calibration_list: Annotated[
        Path | None, "int8: a file that names those of them to choose from, a name or a pattern a line."
    ] = None
    calibration_count: Annotated[int | None, "int8: how many of them; default 512, or all if they are fewer."] = None
    calibration_seed: Annotated[int | None, "int8: seed of their choice; default 0."] = None
    max_drop: Annotated[
        float | None,
        "int8: points of top-1 that may be lost against fp32, judged at the interval's upper end; default 1.",
    ] = None
    gate_data: Annotated[
        Path | None, "int8: class folders to measure that on; default the run's test images, or what calibration left."
    ] = None
    gate_limit: Annotated[int | None, "int8: at most this many of them, balanced."] = None
    gate_eps: Annotated[str | None, "int8: hold the worst case under attack at this budget to it too, e.g. 8/255."] = (
        None
    )
    allow_training_images: Annotated[bool, "int8: measure it on more than 1% of images that were trained on."] = False


@dataclass(frozen=True, kw_only=True)
class ConfidenceOptions(Options):
    """What temperature and rejection threshold are made from."""

    confidence_data: Annotated[
        str | None,
        "Labelled images not trained on: half of them sets temperature and rejection threshold, half measures them. "
        "A folder or name as for `data`, or test for those of the run.",
    ] = None
    confidence_limit: Annotated[int | None, "At most this many of them, balanced; default 2000."] = None
    coverage: Annotated[float | None, "Share of clean images that the rejection threshold answers; default 0.95."] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class TrainingDataOptions(Options):
    """What the network was trained on, so that evaluation can tell."""

    training_data: Annotated[
        str | None,
        "What the network was trained on, a name as for `data` or a folder of images, so that evaluate can tell; a run "
        "knows its own.",
    ] = None
    workers: Annotated[int, "Processes that decode the images of `training_data`."] = 0
    data_root: Annotated[Path | None, "Where torchvision keeps these data, and those of the run."] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise InputError("workers", f"must be at least 0, not {self.workers}")


@alone()
def export(
    source: Run | ModelSource | nn.Module | Callable[[], nn.Module] | str | Path,
    out: str | Path,
    *,
    precisions: str | Iterable[str] = PRECISIONS,
    data: Source | Data | None = None,
    frames: str | Path | Frames | None = None,
    classes: Labels | None = None,
    preprocess: Preprocess | str | None = None,
    normalize: Normalize | None = None,
    training: TrainingDataOptions = TrainingDataOptions(),
    int8: Int8Options = Int8Options(),
    confidence: ConfidenceOptions = ConfidenceOptions(),
    keep_going: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export to ONNX, compare every artefact with PyTorch on real images, and write the bundle only if they agree.

    ::

        bundle = export("runs/student", "signs.edgeadv", precisions=["fp32", "fp16", "int8"])

    Args:
        source: a finished run or its folder; a network without one; or a network of one's own, any ``nn.Module`` that
            takes pixels in [0, 1] (or normalised ones, see ``normalize``), or a function or class that makes it.
        out: the bundle to make; by custom it is called ``NAME.edgeadv``.
        precisions: variants; ``"int8"`` is both of its variants. With ``-u8in`` behind it a variant takes uint8 pixels.
        data: what the network was trained and tested on; None opens what the run names.
        frames: a folder of real images to compare on, 64 of them spread over it, or a list: Pillow's images, or arrays,
            uint8 RGB of shape (height, width, 3) or, where ``preprocess`` has a window, uint16 of shape (height,
            width). None takes the test images of ``data``.
        classes: of a network of one's own: names in logit order, or ``{"id", "name"}`` of each, or a file, see
            :class:`ModelSource`.
        preprocess: of a network of one's own: how a frame becomes its input.
        normalize: of a network of one's own: ``"imagenet"``, or (mean, std) of pixels in [0, 1]; None where it takes
            pixels.
        training: what the network was trained on beside what its run knows, and where torchvision keeps data.
        int8: what int8 is made from and what it must keep.
        confidence: what temperature and rejection threshold are made from; neither is shipped without data.
        keep_going: write the bundle with the variants that work, if any does; the manifest says why another was
            refused.
        overwrite: replace a bundle that is there.
        progress: called in a few words with what begins.

    Raises:
        InputError: an argument is wrong; it names the field.
        ExportError: the model cannot be exported, or a variant is not the model or crashes ONNX Runtime; no bundle is
            left then.
        EdgeAdvError: the run or the data cannot be read, or ``out`` cannot be written.
    """
    need("export")
    import edgeadv_export

    from ..data.sources import load_data
    from ..training.runs import Run

    precisions = names(precisions, field="precisions")
    out, tell = Path(out), progress or (lambda _: None)
    check_out(out, overwrite=overwrite)
    variants = _variants(precisions)
    wants_int8 = any(precision_of(variant) == INT8 for variant in variants)
    if not wants_int8 and (given := given_fields(int8)):
        raise InputError("precisions", f"{','.join(precisions)} has no int8: leave {given} out, or add int8")
    if confidence.confidence_data is None and (given := given_fields(confidence)):
        raise InputError(f"{given} needs `confidence_data`: name labelled images that were not trained on")
    beside, data_root = Beside(classes=classes, preprocess=preprocess, normalize=normalize), training.data_root
    opened = None if data is None else load_data(data, root=data_root)
    run: Run | WithoutRun
    if isinstance(source, Run | ModelSource | str | Path):
        if own := [f"`{name}`" for name, value in vars(beside).items() if value is not None]:
            raise InputError(
                f"{', '.join(own)} belong to a network that is an object; a run has its own, and ModelSource takes "
                "those of a network by name"
            )
    elif not callable(source):
        raise InputError(
            "source", f"is a run, its folder, a ModelSource or a torch.nn.Module, not a {type(source).__name__}"
        )
    if isinstance(source, ModelSource):
        run = from_source(source, classes_of, has_frames=frames is not None or opened is not None, progress=tell)
    elif isinstance(source, Run | str | Path):
        run = source if isinstance(source, Run) else Run.open(source)
        opened = opened or _own_data(run, data_root)
    else:
        run = from_object(source, beside, classes_of, has_frames=frames is not None or opened is not None)
    model = run.load_model()
    if frames is not None:
        images, where = golden_images(frames, run.preprocess)
    else:
        assert opened is not None
        images, where = edgeadv_export.data_frames(opened.test, preprocess=run.preprocess), f"{opened.name} test"
    training_images = run.training_images
    if training.training_data is not None:
        training_images = hashed(training, run.preprocess, tell) | training_images
    provenance = {**run.provenance, "frames": {"origin": where, "count": len(images)}}
    plan = _confidence_plan(confidence, run.classes, opened, data_root)
    quantised = _int8_plan(int8, run, opened, tell) if wants_int8 else None
    warn_of_few(images, tell)
    return edgeadv_export.export_bundle(
        model,
        out,
        classes=run.classes,
        preprocess=run.preprocess,
        frames=images,
        variants=variants,
        origin=edgeadv_export.Origin(title=run.title, provenance=provenance, training_images=training_images),
        confidence=plan,
        int8=quantised,
        keep_going=keep_going,
        overwrite=overwrite,
        progress=tell,
    )


def export_after_training(
    run: Run, out: str | Path, *, data_root: Path | None = None, progress: Progress | None = None
) -> Bundle:
    """Export a run that was just trained in fp32 and fp16, or in the one of them that works.

    Raises:
        EdgeAdvError: as :func:`export`.
    """
    # a training went before: what can be had of it is better than nothing
    return export(run, out, training=TrainingDataOptions(data_root=data_root), keep_going=True, progress=progress)


def check_export(out: Path, *, field: str, may_exist: bool) -> None:
    """Refuse, before a training, a bundle that could not be written after it.

    Raises:
        InputError: ``out``, which ``field`` names, is there, or its folder cannot be written.
    """
    check_replaceable(out)
    if out.exists() and not may_exist:
        raise InputError(f"{out} exists: choose another `{field}`")
    try:
        ensure_writable(out.absolute().parent)
    except StorageError as error:
        raise InputError(field, f"{out}: {error}") from error


def given_fields(options: ModelSource | Int8Options | ConfidenceOptions) -> str:
    """The fields of ``options`` that are not as they are by default, for a message."""
    return ", ".join(f"`{f.name}`" for f in fields(options) if getattr(options, f.name) != f.default)


def _variants(precisions: Sequence[str]) -> list[str]:
    """The variants that ``precisions`` names, each once."""
    variants = expanded(list(precisions), VARIANTS)
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        raise InputError("precisions", f"{unknown[0]!r} is no variant: choose from {', '.join(VARIANTS)}")
    if len(set(variants)) != len(variants):
        both = expanded([INT8], VARIANTS)
        raise InputError("precisions", f"{','.join(precisions)} names a variant twice: {INT8} is {' and '.join(both)}")
    return variants


def _own_data(run: Run, root: str | Path | None) -> Data:
    """What the run names: a data set by name, or a folder; what was in memory, or is gone, must be given."""
    from ..data.datasets import EMBEDDED, TORCHVISION
    from ..data.sources import Data, load_data

    folder = Path(run.data)
    if run.data in (EMBEDDED, *TORCHVISION) or (folder.is_absolute() and folder.is_dir()):
        return load_data(run.data, root=root)

    def missing(split: Split) -> ImageSet:
        raise DataError(
            "data",
            f"is needed: {run.path} was trained on {folder.name}, a folder that is not here or a data set in memory",
        )

    return Data(folder.name, missing)


def classes_of(given: Labels | None) -> Classes:
    """The classes that somebody names: as they are, by a file or a number, or in a list.

    Raises:
        InputError: they are none of these.
    """
    from edgeadv_export import imagenet_classes, read_classes

    if isinstance(given, Classes):
        return given
    if isinstance(given, str | Path):
        if str(given).isdecimal():
            return _counted(int(str(given)))
        return imagenet_classes() if str(given) == IMAGENET else read_classes(Path(given))
    entries = [{"id": each, "name": each} if isinstance(each, str) else each for each in given or ()]
    if not all(
        isinstance(each, Mapping) and all(isinstance(each.get(key), str) for key in ("id", "name")) for each in entries
    ):
        raise InputError("classes", "are names in logit order, or each a dictionary of the texts id and name")
    return Classes.from_json(entries)


def _counted(number: int) -> Classes:
    if not 2 <= number <= _MOST_COUNTED:
        raise InputError("classes", f"{number} is not a number from 2 to {_MOST_COUNTED}")
    ids = tuple(map(str, range(number)))
    return Classes(ids, ids)


def hashed(training: TrainingDataOptions, preprocess: Preprocess, tell: Progress) -> TrainingImages:
    """The images that ``training_data`` names."""
    from edgeadv_export.int8_quality import paced

    from ..data import training_images

    spec = str(training.training_data)
    data = training_images.training_data(spec, root=training.data_root)
    report = paced(tell, f"hashing {len(data)} images of {spec}", "images")
    return training_images.hashed(data, preprocess, workers=training.workers, progress=report)


def _int8_plan(options: Int8Options, run: Run | WithoutRun, data: Data | None, tell: Progress) -> Int8Plan:
    """Choose the calibration images and the labelled ones, before anything is measured."""
    from edgeadv_export import Int8Plan, calibration_images, choose_calibration, gate_images
    from edgeadv_export.calibration import ADVISED
    from edgeadv_export.int8_quality import MAX_DROP

    from ..data.lists import named_by
    from .int8_judge import Int8Judge

    eps = None if options.gate_eps is None else Eps.parse(options.gate_eps)
    choice = calibration_images(options.calibration_data, run_data=data)
    if options.calibration_list is not None:
        choice = choice.at(named_by(Path(options.calibration_list), choice.names, field="calibration_list"))
    calibration = choose_calibration(
        choice,
        run.preprocess,
        count=options.calibration_count,
        seed=options.calibration_seed or 0,
    )
    images, order = gate_images(
        calibration,
        run.classes,
        folder=None if options.gate_data is None else Path(options.gate_data),
        run_data=data,
        limit=options.gate_limit,
        allow_training_images=options.allow_training_images,
    )
    plan = Int8Plan(
        calibration=calibration,
        images=images,
        order=order,
        eps=eps,
        max_drop=MAX_DROP if options.max_drop is None else options.max_drop,
        allow_training_images=options.allow_training_images,
        make_judge=Int8Judge,
    )
    if unreadable := calibration.unreadable:
        tell(
            f"{len(unreadable)} image(s) of {calibration.origin} cannot be read and were passed over, "
            f"e.g. {unreadable[0]}"
        )
    if (n := len(calibration.index)) < ADVISED:
        tell(f"int8 is calibrated on {n} images; {ADVISED} or more are advised")
    return plan


def _confidence_plan(
    options: ConfidenceOptions, classes: Classes, data: Data | None, root: str | Path | None
) -> ConfidencePlan | None:
    """Choose the images for temperature and threshold; None where none were named."""
    from edgeadv_export import ConfidencePlan, confidence_images
    from edgeadv_export.confidence_fit import COVERAGE

    if options.confidence_data is None:
        return None
    images, order = confidence_images(
        options.confidence_data,
        classes,
        run_data=data,
        root=None if root is None else Path(root),
        limit=options.confidence_limit,
    )
    coverage = COVERAGE if options.coverage is None else options.coverage
    return ConfidencePlan(images=images, order=order, coverage=coverage)


def golden_images(given: str | Path | Frames, preprocess: Preprocess) -> tuple[Sequence[NDArray[Any]], str]:
    """The frames that artefacts are compared on, and where they are from: a folder, or pictures in memory.

    Raises:
        InputError: they are neither, none, or no pictures that ``preprocess`` takes.
        EdgeAdvError: the folder or one of its pictures cannot be read.
    """
    import edgeadv_export

    if isinstance(given, str | Path):
        images, where = edgeadv_export.folder_frames(Path(given), preprocess=preprocess), Path(given).resolve().name
    else:
        images, where = frame_images(given, preprocess), "in memory"
    return images, where


def warn_of_few(images: Sequence[NDArray[Any]], tell: Progress) -> None:
    """Say that few images prove little."""
    if len(images) < _FEW:
        tell(f"warning: {len(images)} image(s) show little of a difference; give {_FEW} or more that are not alike")
