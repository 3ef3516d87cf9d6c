"""Where another preprocessing departs from a bundle's: the first step that differs, by how much, and what it costs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeadv_runtime import Bundle, InputError, OnnxRuntimeBackend
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.bundle.pictures import load
from edgeadv_runtime.bundle.preprocess import Preprocess, to_tensor
from edgeadv_runtime.bundle.walk import pictures
from edgeadv_runtime.errors import DataError, EdgeAdvError

from ..models.normalization import IMAGENET_MEAN, IMAGENET_STD
from ..models.own_code import in_short, own_code
from .inputs import open_bundle

if TYPE_CHECKING:
    from ..data.pipeline_changes import Change, Pair, Pipeline, Scale

_log = logging.getLogger(__name__)

OtherPipeline = Callable[[Path], Any]
"""From the path of a picture to what the model is given of it."""
_FORMS = (
    "a uint8 array (height, width, channels), or an array or tensor of floats in [0, 1], (channels, height, width) or "
    "(1, channels, height, width)"
)
_BATCH, _LOOKED_AT, _ROUNDS = 16, 5, 3
# half a level: floats that round to the same 8 bits are the same
_SAME = 0.5


@dataclass(frozen=True)
class StepDifference:
    """One step that the other pipeline does otherwise.

    Attributes:
        step: ``"decoding"``, ``"region"``, ``"colour"``, ``"size"``, ``"interpolation"``, ``"antialias"``, ``"crop"``
            or ``"scaling"``, in the order in which a picture passes them.
        what: what it does, in words.
    """

    step: str
    what: str


@dataclass(frozen=True)
class LabelFlip:
    """A picture that gets another first label by way of the other pipeline: ids of classes."""

    file: str
    ours: str
    other: str


@dataclass(frozen=True)
class PipelineComparison:
    """A bundle's preprocessing and another one on the same files.

    Attributes:
        n: pictures that both gave the model's input for.
        different: how many of them differ by more than half a level somewhere.
        largest: largest difference, in levels of 0..255; where the scaling differs, after that is undone.
        share: share of all values that differ by more than half a level, likewise.
        steps: what the other pipeline does otherwise, the first step first.
        unexplained: mean difference in levels that is left where these steps are done as the other pipeline does them.
        explained: whether that is nothing that another decoder of JPEG could not do as well.
        misfits: what was given in another shape, or not at all, one message for each picture.
        flips: pictures whose first label changes; None where the bundle could not be run.
        not_run: why it could not.
    """

    n: int
    different: int
    largest: float
    share: float
    steps: tuple[StepDifference, ...]
    unexplained: float
    explained: bool
    misfits: tuple[str, ...]
    flips: tuple[LabelFlip, ...] | None
    not_run: str | None = None

    @property
    def same(self) -> bool:
        """Whether the two give the same pixels for every picture."""
        return not self.different and not self.misfits


def compare_pipelines(
    bundle: Bundle | str | Path,
    other: OtherPipeline | str,
    data: str | Path,
    *,
    limit: int = 64,
    variant: str | None = None,
    progress: Progress | None = None,
) -> PipelineComparison:
    """Find where another pipeline's pixels differ from the bundle's, by doing one step of ours otherwise after another
    until they agree.

    ::

        found = compare_pipelines("signs.edgeadv", "serving/preprocess.py:prepare", "photos/")
        print(found.steps[0].what, len(found.flips))

    Args:
        bundle: whose preprocessing is right, or where it is.
        other: a function from the path of a picture to what its model is given: a uint8 array (height, width,
            channels), or floats in [0, 1], (channels, height, width) or (1, channels, height, width), an array or a
            tensor. As text, ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``: that code is imported and run.
        data: a folder of pictures, at any depth, or one picture.
        limit: at most so many of them, spread over the folder.
        variant: which artefact is asked for labels; None the first that the bundle carries.
        progress: called with what is done, what there is, and what is being done.

    Raises:
        InputError: there is no such function, it fails, or gives neither of these.
        DataError: there are no pictures.
    """
    from ..data.pipeline_changes import EXPLAINED, Pair, Pipeline, changes, distance

    opened = open_bundle(bundle)
    files, root = _files(Path(data), limit)
    tell = progress or (lambda done, total, text: None)
    if isinstance(other, str):
        _log.info(f"the code of {other} is imported and run, as you asked: do so only with code that you trust")
    with own_code(other, field="other", files=True) if isinstance(other, str) else nullcontext(other) as function:
        if not callable(function):
            raise InputError("other", f"is a function, or FILE.py:FUNCTION, not a {type(function).__name__}")
        given = _Given.read(opened.preprocess, function, files, root, tell)
    ours, scales = Pipeline(opened.preprocess, scale=given.scale), given.scales(opened)
    pairs = [Pair(image, numbers) for image, numbers in zip(given.images, given.numbers, strict=True)]
    found: tuple[Change, ...] = ()
    if given.differing:
        found = _searched(ours, changes(opened.preprocess, scales), pairs, tell)
    pipeline = functools.reduce(lambda made, change: change.apply(made), found, ours)
    left = float(np.mean([distance(pipeline, pair) for pair in pairs])) if found else given.mean
    apart = given.apart(pipeline.scale)
    flips, not_run = _flips(opened, given, variant)
    return PipelineComparison(
        n=len(pairs),
        different=len(given.differing),
        largest=float(max((each.max() for each in apart), default=0.0)),
        share=float(np.mean([(each > _SAME).mean() for each in apart])) if apart else 0.0,
        steps=(*given.shapes, *(StepDifference(change.step, change.what) for change in found)),
        unexplained=left,
        explained=left <= EXPLAINED and not given.misfits,
        misfits=tuple(given.misfits),
        flips=flips,
        not_run=not_run,
    )


def _files(data: Path, limit: int) -> tuple[list[Path], Path]:
    if limit < 1:
        raise InputError(f"`limit` must be at least 1, not {limit}")
    if not data.exists():
        raise DataError(f"`data` {data} does not exist: give a folder of pictures")
    found = pictures(data) if data.is_dir() else [data]
    if not found:
        raise DataError(f"`data` {data} holds no pictures")
    spread = [found[i * len(found) // limit] for i in range(limit)] if len(found) > limit else found
    return spread, data if data.is_dir() else data.parent


class _Given:
    """What the other pipeline gave, beside our own.

    Attributes:
        names: of the pictures that both gave the model's input for.
        images: decoded.
        ours: uint8 (height, width, channels).
        numbers: what was given, float64 of the same shape.
        inputs: the same as the model would be given it, float32 (channels, height, width).
        misfits: a message for each picture of which something else was given.
        shapes: what these are, as a step that differs.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.images: list[Any] = []
        self.ours: list[NDArray[np.uint8]] = []
        self.numbers: list[NDArray[np.float64]] = []
        self.inputs: list[NDArray[np.float32]] = []
        self.misfits: list[str] = []
        self.shapes: tuple[StepDifference, ...] = ()
        self._whole = False

    @classmethod
    def read(
        cls, steps: Preprocess, function: OtherPipeline, files: Sequence[Path], root: Path, tell: Progress
    ) -> _Given:
        """Give every file to both.

        Raises:
            InputError: the function fails, or gives no such array.
            DataError: a file is no picture.
        """
        given = cls()
        for i, file in enumerate(files):
            tell(i, len(files), "giving pictures to both")
            image, name = load(file), str(file.relative_to(root))
            try:
                ours = steps(image)
            except InputError as error:
                raise DataError(f"{file}: {error}") from error
            try:
                value = function(file)
            except (Exception, SystemExit) as error:  # whatever the code does
                raise InputError(f"`other` failed on {file}: {in_short(error)}; it takes a picture's path") from error
            given._add(name, image, ours, value)
        return given

    def _add(self, name: str, image: Any, ours: NDArray[np.uint8], value: Any) -> None:
        array = _array(value)
        whole = array.dtype == np.uint8
        if self.names and whole != self._whole:
            raise InputError(f"`other` gives uint8 for some pictures and floats for others, {name} among them")
        pixels, (height, width, channels) = _channels_last(array, ours.shape), ours.shape
        if pixels is None:
            shape = "x".join(map(str, array.shape))
            due = f"{height}x{width}x{channels}" if whole else f"{channels}x{height}x{width}"
            self.misfits.append(f"{name}: {shape} where {due} is due")
            sides = {height, width} <= set(array.shape)
            what = f"it gives {shape}, where the model takes {due}"
            self.shapes = self.shapes or (StepDifference("colour" if sides else "size", what),)
            return
        if not np.isfinite(pixels).all():
            raise InputError(f"`other` gives NaN or infinity for {name}")
        self._whole = whole
        self.names.append(name)
        self.images.append(image)
        self.ours.append(ours)
        self.numbers.append(pixels.astype(np.float64))
        tensor = to_tensor(pixels[None])[0] if whole else pixels.transpose(2, 0, 1).astype(np.float32)
        self.inputs.append(np.ascontiguousarray(tensor))

    def scale(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels of numbers that are as they must be."""
        return numbers if self._whole else numbers * 255.0

    def apart(self, scale: Scale) -> list[NDArray[np.float64]]:
        """By how many levels each picture differs, value by value."""
        return [np.abs(scale(numbers) - ours) for numbers, ours in zip(self.numbers, self.ours, strict=True)]

    @functools.cached_property
    def differing(self) -> list[int]:
        """The pictures that differ by more than half a level somewhere."""
        return [i for i, each in enumerate(self.apart(self.scale)) if each.max() > _SAME]

    @property
    def mean(self) -> float:
        """By how many levels they differ on average."""
        return float(np.mean([each.mean() for each in self.apart(self.scale)])) if self.ours else 0.0

    def scales(self, bundle: Bundle) -> dict[str, Scale]:
        """What floats may be that are not in [0, 1]."""
        if self._whole:
            return {}
        found: dict[str, Scale] = {
            "its numbers are 0 to 255: they are not divided by 255": lambda x: x,
            "its numbers are -1 to 1": lambda x: (x + 1) * 127.5,
            "its numbers are divided by 256, not by 255": lambda x: x * 256.0,
            "its numbers are divided by 255 twice": lambda x: x * 65025.0,
        }
        architecture = bundle.manifest.architecture
        own, imagenet = (architecture.mean, architecture.std), (IMAGENET_MEAN, IMAGENET_STD)
        # where they are the same it is called ImageNet's
        for (mean, std), whose in {own: "the network's own", imagenet: "ImageNet's"}.items():
            if len(mean) == len(std) == bundle.preprocess.input_shape[0]:
                what = (
                    f"its numbers are normalised with {whose} mean and deviation, which the bundle's graph does again"
                )
                found[what] = functools.partial(_denormalised, mean=np.array(mean), std=np.array(std))
        return found


def _denormalised(x: NDArray[np.float64], *, mean: Any, std: Any) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = (x * std + mean) * 255.0
    return levels


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of other lengths
        raise InputError(f"`other` gives {type(value).__name__} that is no array; it must give {_FORMS}") from error
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"`other` gives {type(value).__name__} of {array.dtype}; it must give {_FORMS}")
    return array[0] if array.ndim == 4 and len(array) == 1 else array


def _channels_last(array: NDArray[Any], due: tuple[int, ...]) -> NDArray[Any] | None:
    if array.ndim == 2:
        array = array[..., None]
    # floats are what a model takes, channels first
    if array.shape == due and (array.dtype == np.uint8 or due[2] == 1):
        return array
    return array.transpose(1, 2, 0) if array.shape == (due[2], *due[:2]) else None


def _searched(ours: Pipeline, options: Sequence[Change], pairs: Sequence[Pair], tell: Progress) -> tuple[Change, ...]:
    """The changes that explain all pictures: some concern only a few of them, such as those with an orientation."""
    from ..data.pipeline_changes import EXPLAINED, STEPS, distance, search

    found: tuple[Change, ...] = ()
    count = 0

    def tried() -> None:
        nonlocal count
        count += 1
        tell(count, max(count, len(options) + 1), "looking for the step that differs")

    for _ in range(_ROUNDS):
        pipeline = functools.reduce(lambda made, change: change.apply(made), found, ours)
        left = [distance(pipeline, pair) for pair in pairs]
        # at first whatever differs, then what is not explained yet
        apart = [i for i, by in enumerate(left) if by > (EXPLAINED if found else 0)]
        if not apart:
            break
        chosen = [apart[i * len(apart) // _LOOKED_AT] for i in range(_LOOKED_AT)] if len(apart) > _LOOKED_AT else apart
        known = {change.step for change in found}
        free = [option for option in options if option.step not in known]
        more = search(pipeline, free, [pairs[i] for i in chosen], progress=tried)
        changed = functools.reduce(lambda made, change: change.apply(made), more, pipeline)
        if not more or float(np.mean([distance(changed, pair) for pair in pairs])) >= float(np.mean(left)):
            break
        found = tuple(sorted((*found, *more), key=lambda change: STEPS.index(change.step)))
    return found


def _flips(bundle: Bundle, given: _Given, variant: str | None) -> tuple[tuple[LabelFlip, ...] | None, str | None]:
    """Labels by way of ours and of the other pipeline, or why there are none."""
    if not given.names:
        return None, "no picture was given in the shape of the model's input"
    try:
        with OnnxRuntimeBackend(bundle, variant=variant or next(iter(bundle.variants), "fp32")) as backend:
            labels = []
            for start in range(0, len(given.names), _BATCH):
                part = slice(start, start + _BATCH)
                pair = backend.infer_pixels(np.stack(given.ours[part])), backend.infer(np.stack(given.inputs[part]))
                labels.append(np.stack([logits.argmax(axis=1) for logits in pair]))
    except InputError:
        raise
    except EdgeAdvError as error:
        return None, str(error)
    ours, other = np.concatenate(labels, axis=1)
    ids = bundle.classes.ids
    flipped = np.flatnonzero(ours != other)
    return tuple(LabelFlip(given.names[i], ids[ours[i]], ids[other[i]]) for i in flipped), None
