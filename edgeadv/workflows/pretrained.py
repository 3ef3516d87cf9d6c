"""A study of pre-trained ImageNet classifiers, from their names; :mod:`edgeadv.workflows.study` does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.decoding import Options
from edgeadv_runtime.errors import DataError
from edgeadv_runtime.records.study import Study

from .alone import alone
from .extras import need
from .inputs import Budgets, budgets, names

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data

IMAGES = 1000


@dataclass(frozen=True, kw_only=True)
class Pretrained(Options):
    """Which weights, and how pictures become their input."""

    weights: Annotated[str, "default, downloaded from the library's own source; or files: ARCH=FILE,ARCH=FILE."] = (
        "default"
    )
    weights_map: Annotated[str, "by-name, or by-position for files that have other names."] = "by-name"
    preprocess: Annotated[
        str | None, "For all: resize=256,crop=224,interp=bicubic; by default what is published with each."
    ] = None


@alone()
def study(
    arch: str | Sequence[str],
    data: ImageSet | Data | str | Path,
    *,
    eps: Budgets,
    out: str | Path,
    n: int = IMAGES,
    seed: int = 0,
    pretrained: Pretrained | None = None,
    provider: str = "cpu",
    workers: int = 0,
    allow_unreadable: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Study:
    """Top-1 and top-5 error of pre-trained ImageNet classifiers, without attack and under FGSM.

    FGSM is one step, so its errors are lower bounds. A study that was interrupted goes on with ``resume``::

        found = study(["resnet101", "regnet_y_400mf"], "imagenet/val", eps=["1/255", "8/255"], out="study")

    Args:
        arch: torchvision or timm classifiers of ImageNet-1k.
        data: images, or a folder of class folders named by WordNet id, or that has them in ``val/``.
        eps: budgets in pixels of [0, 1], ascending.
        out: the folder to make: ``study.json``, ``study.md`` and ``study.html``.
        n: images to choose at random, as many of each class.
        seed: of their choice.
        pretrained: which weights, and how pictures become their input.
        provider: ``"cpu"`` or ``"cuda"``; there is no fallback.
        workers: processes that decode images.
        allow_unreadable: accept more than 1% of unreadable images.
        resume: go on with the classifiers that are not finished.
        progress: called with the images done, all images, and the classifier.

    Raises:
        InputError: a name, a file or a number does not fit.
        DataError: the images cannot be opened, or too many are unreadable.
        StorageError: ``out`` exists or cannot be written, or holds an unfinished study and ``resume`` is false.
    """
    need("train")
    need("report")
    from edgeadv.data.datasets import ImageSet, imagenet_classes, open_data
    from edgeadv.data.sources import Data

    from .study import make_subjects, run_study

    classes, wanted = imagenet_classes(), budgets(eps)
    subjects = make_subjects(names(arch, field="arch"), classes, **vars(pretrained or Pretrained()))
    if isinstance(data, Data):
        data = data.test
    if not isinstance(data, ImageSet):
        if not Path(data).is_dir():
            raise DataError("data", f"{data} is not a folder: it takes class folders of images, named by WordNet id")
        data = open_data(str(data), split="test")
    return run_study(
        Path(out),
        subjects=subjects,
        images=data.relabel(classes),
        n=n,
        eps=wanted,
        seed=seed,
        provider=provider,
        resume=resume,
        allow_unreadable=allow_unreadable,
        workers=workers,
        progress=progress,
    )
