"""Make a bundle of somebody else's ONNX file, or tell whether that can be done.

Loading this module loads no PyTorch: the command line makes options of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edgeadv_runtime import Bundle, InputError, Preprocess
from edgeadv_runtime.bundle.bundle import check_out
from edgeadv_runtime.decoding import Options

from .alone import alone
from .exporting import TrainingDataOptions, classes_of, golden_images, hashed, warn_of_few
from .extras import need
from .networks import IMAGENET, Frames

if TYPE_CHECKING:
    from edgeadv_export import Asked

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """How a file takes a picture and what its numbers mean; what the file tells by itself need not be given."""

    input: Annotated[str | None, "Name of the input that takes the picture; by default the only one."] = None
    layout: Annotated[
        str | None,
        "nchw, nhwc, flat (channel by channel) or flat-nhwc (pixel by pixel); by default as the shape tells.",
    ] = None
    scale: Annotated[
        str | None,
        "What the numbers of a picture are: 0..1, 0..255, imagenet, or MEAN/STD of each channel; by default as a "
        "normalisation inside the file tells.",
    ] = None
    color: Annotated[str | None, "Order of the channels: rgb, bgr or gray."] = None
    output: Annotated[str | None, "Name of the tensor that holds the logits; by default the only output."] = None
    classes: Annotated[
        str | None, f"{IMAGENET}, a file of id<TAB>name in logit order, or a number for classes called 0, 1, 2, ..."
    ] = None
    preprocess: Annotated[
        str | None, "How a frame becomes the file's picture, written resize=256,crop=224,interp=bicubic."
    ] = None


@dataclass(frozen=True, kw_only=True)
class OnnxCheck:
    """What :func:`check_onnx` found.

    Attributes:
        path: the file.
        variant: what the bundle would call it: ``"fp32"``, ``"fp16"``, ``"int8-s8s8"`` or ``"int8-u8s8"``.
        notes: what was read off the file, was guessed from it or was asked for.
        needed: fields that must be given to :func:`import_onnx`, each with what it has to say.
        no_gradients: why its gradients cannot be had here, so that only queries attack it; None where they can.
        ran: whether it was run and rewritten, which needs all that has to do with pictures.
        images: how many real ones it was run on; 0 for noise and plain pictures.
    """

    path: Path
    variant: str
    notes: tuple[str, ...]
    needed: tuple[tuple[str, str], ...]
    no_gradients: str | None
    ran: bool
    images: int = 0


@alone()
def import_onnx(
    path: str | Path,
    out: str | Path,
    *,
    frames: str | Path | Frames | None = None,
    options: ImportOptions = ImportOptions(),
    training: TrainingDataOptions = TrainingDataOptions(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of somebody else's ONNX file, if on real images it gives what the file gives.

    ::

        options = ImportOptions(scale="imagenet", color="rgb", classes="imagenet1k", preprocess="resize=256,crop=224")
        bundle = import_onnx("theirs.onnx", "theirs.edgeadv", frames="photos/", options=options)

    Args:
        path: the file; weights that it keeps beside it are taken in.
        out: the bundle to make; by custom it is called ``NAME.edgeadv``.
        frames: a folder of real images to compare on, 64 of them spread over it, or a list, as of :func:`export`.
        options: what is known of the file.
        training: what the network was trained on, as far as that is known.
        overwrite: replace a bundle that is there.
        progress: called in a few words with what begins, and what was read off the file.

    Raises:
        InputError: the file is no classifier that a bundle can hold, or an option is missing or wrong; it names the
            field.
        ExportError: the rewritten graph is not the file; no bundle is left then.
        EdgeAdvError: data or images cannot be read, or ``out`` cannot be written.
    """
    need("export")
    import edgeadv_export
    from edgeadv_export.examination import refuse_needed

    file, folder = _file(path), Path(out)
    check_out(folder, overwrite=overwrite)
    steps = None if options.preprocess is None else Preprocess.parse(options.preprocess)
    asked = _asked(options, steps)
    missing = _missing(options, frames is not None)
    if steps is None or options.classes is None or frames is None:
        # what else the file leaves open is better said at once
        found = edgeadv_export.examine(file, asked, None)
        refuse_needed(file, dict(found.needed) | missing)
    assert steps is not None and options.classes is not None and frames is not None
    tell = progress or (lambda _: None)
    images, where = golden_images(frames, steps)
    listed = None if training.training_data is None else hashed(training, steps, tell)
    warn_of_few(images, tell)
    return edgeadv_export.import_bundle(
        file,
        folder,
        classes=classes_of(options.classes),
        preprocess=steps,
        frames=images,
        asked=asked,
        provenance={"frames": {"origin": where, "count": len(images)}},
        training_images=listed,
        overwrite=overwrite,
        progress=tell,
    )


def check_onnx(
    path: str | Path, *, frames: str | Path | Frames | None = None, options: ImportOptions = ImportOptions()
) -> OnnxCheck:
    """Tell whether a file can be imported, what was guessed of it, and what must be given; nothing is written.

    ::

        check = check_onnx("theirs.onnx")
        print(check.needed, check.no_gradients)

    Args:
        path: the file.
        frames: real images to try it on, as of :func:`import_onnx`; without them, or without ``preprocess``, it is
            tried on noise and plain pictures.
        options: what is known of it.

    Raises:
        InputError: it is no classifier that a bundle can hold, or an option does not fit it.
        ExportError: it does not run, or the rewritten graph is not the file.
    """
    need("export")
    import edgeadv_export
    from edgeadv_export.examination import no_gradients
    from edgeadv_export.frames import preprocessed

    file = _file(path)
    steps = None if options.preprocess is None else Preprocess.parse(options.preprocess)
    pixels = None
    if frames is not None and steps is not None:
        pixels = preprocessed(golden_images(frames, steps)[0], steps)
    found = edgeadv_export.examine(file, _asked(options, steps), pixels)
    return OnnxCheck(
        path=file,
        variant=found.variant,
        notes=found.notes,
        needed=tuple((dict(found.needed) | _missing(options, frames is not None)).items()),
        no_gradients=no_gradients(file),
        ran=found.model is not None,
        images=0 if pixels is None else len(pixels),
    )


def _file(path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} is no file: give an ONNX model")
    return file


def _asked(options: ImportOptions, steps: Preprocess | None) -> Asked:
    from edgeadv_export import Asked

    return Asked(
        input=options.input,
        output=options.output,
        layout=options.layout,
        scale=options.scale,
        color=options.color,
        shape=None if steps is None else steps.input_shape,
        classes=None if options.classes is None else len(classes_of(options.classes)),
    )


def _missing(options: ImportOptions, has_frames: bool) -> dict[str, str]:
    """What no file tells."""
    found = {}
    if options.classes is None:
        found["classes"] = f"{IMAGENET}, a file of id<TAB>name in logit order, or their number"
    if not has_frames:
        found["frames"] = "a folder of real images to compare on"
    return found
