"""A network that no run of ours made: by its architecture and a weight file, or as an object of the caller's.

Loading this module loads no PyTorch: the command line makes options of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from edgeadv_runtime import InputError, Preprocess
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.decoding import Options
from edgeadv_runtime.files import sha256_file

from ..models.normalization import Normalize, normalization
from .inputs import one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import nn

    from edgeadv_runtime.bundle.training_images import TrainingImages

    from ..models.builder import PixelModel

IMAGENET = "imagenet1k"
Progress = Callable[[str], None]
Frames = Sequence["NDArray[Any] | Image.Image"]
Labels = Classes | str | Path | Sequence[str | Mapping[str, str]]
LabelsOf = Callable[[Labels | None], Classes]
"""Reads classes; it comes from the workflow that may."""


@dataclass(frozen=True, kw_only=True)
class ModelSource(Options):
    """A network without a run: ``arch``, ``weights``, ``classes`` and ``preprocess`` must be given."""

    arch: Annotated[
        str | None,
        "Without a run: a torchvision or timm architecture; or package.module:factory, a function of your own code "
        "that makes the network. That code is imported from the current directory, and run.",
    ] = None
    weights: Annotated[
        str | None, "Without a run: a weight file, or default; or none, which of your own code is as it is made."
    ] = None
    classes: Annotated[
        str | None,
        f"Without a run: {IMAGENET}, a file of id<TAB>name in logit order, or a number for classes called 0, 1, 2, ...",
    ] = None
    preprocess: Annotated[str | None, "Without a run: written resize=256,crop=224,interp=bicubic."] = None
    weights_map: Annotated[
        str | None, "Without a run: by-name (default), or by-position if the file has other names."
    ] = None
    upsample: Annotated[int | None, "Without a run: whole factor by which the model enlarges its input."] = None
    normalize: Annotated[
        str | None,
        "Without a run: imagenet, none, or MEAN/STD such as 0.5,0.5,0.5/0.25,0.25,0.25, put inside the graph; by "
        "default the library's, and none for your own code.",
    ] = None


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What export takes beside a network that is an object.

    Attributes:
        classes: names in logit order, or ``{"id", "name"}`` of each, or what ``ModelSource`` takes.
        preprocess: how a frame becomes the network's input, or its text.
        normalize: (mean, std) of pixels in [0, 1], or text as ``ModelSource`` takes it; None where the network takes
            pixels.
    """

    classes: Labels | None
    preprocess: Preprocess | str | None
    normalize: Normalize | None


@dataclass(frozen=True, kw_only=True)
class WithoutRun:
    """A network that no run of ours made, as a run has it."""

    model: PixelModel
    classes: Classes
    preprocess: Preprocess
    title: str
    provenance: dict[str, Any]
    training_images: TrainingImages | None = None

    def load_model(self) -> PixelModel:
        """The network."""
        return self.model


def from_source(source: ModelSource, labels_of: LabelsOf, *, has_frames: bool, progress: Progress) -> WithoutRun:
    """Build what ``source`` names, and give it its weights.

    Raises:
        InputError: something is missing or wrong; it names the field.
    """
    from ..models.builder import Architecture, load_pretrained
    from ..models.checkpoints import WeightsMap

    needed: dict[str, Any] = {name: getattr(source, name) for name in ("arch", "weights", "classes", "preprocess")}
    if missing := [f"`{name}`" for name, value in {**needed, "frames": has_frames}.items() if not value]:
        raise InputError(f"without a run, export also needs {', '.join(missing)}")
    arch, weights, classes, preprocess = needed.values()
    weights_map = one_of(source.weights_map or "by-name", get_args(WeightsMap), field="weights_map")
    steps = Preprocess.parse(preprocess)
    labels = labels_of(classes)
    upsample = 1 if source.upsample is None else source.upsample
    architecture = Architecture.find(
        arch, num_classes=len(labels), upsample=upsample, normalize=source.normalize or None
    )
    origin = {"name": Path(weights).name, "map": weights_map}
    if Path(weights).is_file():
        origin["sha256"] = sha256_file(Path(weights))
    return WithoutRun(
        model=load_pretrained(architecture, weights, weights_map=weights_map, progress=progress),
        classes=labels,
        preprocess=steps,
        title=architecture.name,
        provenance={"weights": origin},
    )


def from_object(
    network: nn.Module | Callable[[], nn.Module], given: Beside, labels_of: LabelsOf, *, has_frames: bool
) -> WithoutRun:
    """Take the caller's network as it is, or let his function or class make it.

    Raises:
        InputError: something is missing or wrong; it names the field.
    """
    import torch
    from torch import nn
    from torch.nn.parameter import is_lazy

    from ..models.builder import Architecture, PixelModel
    from ..models.modules import factory_name

    needed = {"classes": given.classes, "preprocess": given.preprocess, "frames": has_frames or None}
    if missing := [f"`{name}`" for name, value in needed.items() if value is None]:
        raise InputError(f"for a network that is an object, export also needs {', '.join(missing)}")
    labels, preprocess, normalize = labels_of(given.classes), given.preprocess, given.normalize
    steps = preprocess if isinstance(preprocess, Preprocess) else Preprocess.parse(preprocess or "")
    name = None
    if not isinstance(network, nn.Module):
        # of a function in a script the bundle cannot say where it is
        with suppress(InputError):
            name = factory_name(network)
        network = network()
    if not isinstance(network, nn.Module):
        raise InputError("source", f"gives a {type(network).__name__}, not a torch.nn.Module")
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError("source", "is a TorchScript program: give the module it was made from")
    if isinstance(network, PixelModel):
        if normalize is not None:
            raise InputError("normalize", "is inside this network already: leave it out")
        model, title = network, network.architecture.name
    else:
        # what runs or parallelises a network is not the network
        while inner := getattr(network, "_orig_mod", None) or _parallel(network):
            network = inner
        kind = type(network)
        mean, std = ((), ()) if normalize is None else normalization(normalize)
        architecture = Architecture(
            name=name or f"{kind.__module__}.{kind.__qualname__}",
            source="module",
            num_classes=len(labels),
            mean=mean,
            std=std,
        )
        model, title = PixelModel(network, architecture), kind.__name__
    if any(is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        raise InputError(f"{title} has layers of a size that is not known yet: show it one batch of images first")
    return WithoutRun(
        model=model,
        classes=labels,
        preprocess=steps,
        title=title,
        provenance={"weights": {"name": "in memory"}},
    )


def frame_images(given: Any, preprocess: Preprocess) -> list[NDArray[Any]]:
    """Frames from memory as arrays, as ``preprocess`` has frames of its own: turned by their EXIF, or in 16 bits.

    Raises:
        InputError: they are no list of pictures that it takes, or none.
    """
    if not isinstance(given, Iterable) or not (pictures := list(given)):
        raise InputError("frames", "is a folder of real images, or a list of them, with one at least")
    return [_frame(each, number, preprocess) for number, each in enumerate(pictures)]


def _frame(picture: Any, number: int, preprocess: Preprocess) -> NDArray[Any]:
    import numpy as np
    from PIL import Image

    if isinstance(picture, Image.Image):
        try:
            return preprocess.frame(picture)
        except InputError as error:
            raise InputError("frames", f"number {number}: {error}") from error
    kind = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
    if kind == np.uint16 and preprocess.window is None:
        raise InputError(
            "frames",
            f"number {number} is uint16: state in `preprocess` which levels become black and white, window=LOW:HIGH",
        )
    if kind != (np.uint8 if preprocess.window is None else np.uint16):
        due = "uint8 arrays" if preprocess.window is None else "uint16 arrays, for `preprocess` has window=,"
        raise InputError("frames", f"holds {due} or Pillow's images; number {number} is {kind}")
    return picture  # type: ignore[no-any-return]


def _parallel(network: nn.Module) -> nn.Module | None:
    from torch import nn

    return network.module if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel) else None
