"""Hyper-parameters of a training, and how it ends when its time is over.

Loading this module loads no PyTorch: the command line makes options of the fields.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from edgeadv_runtime.decoding import Options
from edgeadv_runtime.errors import InputError

# torch takes no larger ones; a teacher's seed and those of several processes are a little larger
_SEEDS = 2**62
EMA = 0.9995
"""Decay of the average of the weights where a recipe has a budget and none is given."""
SCHEDULES = {
    "one-cycle": "one-cycle, cosine, without cycling the momentum",
    "cosine": "cosine to 0",
    "steps": "a tenth after 1/2 and again after 3/4 of the updates",
}
"""What ``run.json`` says of each."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Hyper-parameters of one training; all of them are kept in ``run.json``.

    ``lr`` is the peak of the ``schedule`` (SGD, Nesterov momentum 0.9): ``"one-cycle"`` rises to it in the first 30% of
    the updates and falls to almost nothing (Smith and Topin 2018), ``"cosine"`` falls from it to nothing, ``"steps"``
    takes a tenth of it after half of the updates and a hundredth after three quarters (Rice et al. 2020). With
    ``accumulate`` the gradient is that of the whole batch; BatchNorm takes the statistics of each part. ``ema``
    averages BatchNorm's statistics too; None takes 0.9995 where the recipe has a budget, 0.995 for ``adr``, whose
    labels the average makes, and no average where there is no budget. ``holdout`` images are not trained on: the
    weights that do best on them are kept; None takes 2,000, or a fifth of all if they are fewer than 10,000, where the
    recipe has a budget, and none where it has not. With ``holdout_list`` none of the images that it names is trained
    on, and ``holdout`` says how many of them choose the weights. ``no_mirror`` leaves mirroring out of ``augment``.
    ``limit_seed`` chooses the images of ``limit``; None takes ``seed``: a teacher has a seed of its own and its
    student's images.

    Raises:
        InputError: a value is of another type or out of range.
    """

    epochs: Annotated[int, "Passes over the training images, of each training."] = 8
    batch_size: Annotated[int, "Images per step, of all processes together."] = 64
    accumulate: Annotated[int, "Parts that a batch passes in one after another, to need less memory."] = 1
    lr: Annotated[float | None, "Peak learning rate; by default 0.02, or 0.01 without BatchNorm."] = None
    schedule: Annotated[str, "Of the learning rate: one-cycle, cosine, or steps."] = "one-cycle"
    weight_decay: Annotated[float, "L2 penalty."] = 5e-4
    clip: Annotated[float | None, "Largest norm of the gradient; by default not clipped."] = None
    ema: Annotated[
        float | None,
        "Decay of an average of the weights, measured beside them; 0 makes none. By default 0.9995 with adversarial "
        "images, 0.995 of adr.",
    ] = None
    holdout: Annotated[
        int | None, "Training images held out to choose the epoch; by default 2,000 with adversarial images."
    ] = None
    holdout_list: Annotated[
        str | None, "A file that names the images to hold out, a name or a pattern such as 00000/00003_* a line."
    ] = None
    seed: Annotated[int, "Of weights, order, augmentation and random starts."] = 0
    augment: Annotated[str, "none, crop-flip, resized-crop, affine or trivial."] = "none"
    no_mirror: Annotated[
        bool, "Leave mirroring out of `augment`: where it makes another class of an image, as of signs and digits."
    ] = False
    limit: Annotated[int | None, "Train on at most this many images, as many of each class."] = None
    workers: Annotated[int, "Processes that decode images."] = 0
    compile: Annotated[bool, "Fuse the network by torch.compile: minutes at the start, faster steps."] = False
    limit_seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("epochs", 1), ("batch_size", 2), ("seed", 0), ("workers", 0), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise InputError(name, f"must be at least {least}, not {getattr(self, name)}")
        if self.seed >= _SEEDS:
            raise InputError("seed", f"must be below {_SEEDS}, not {self.seed}")
        if self.lr is not None and not 0 < self.lr <= 100:
            raise InputError("lr", f"must be in (0, 100], not {self.lr}")
        if self.schedule not in SCHEDULES:
            raise InputError("schedule", f"is one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if not 0 <= self.weight_decay <= 1:
            raise InputError("weight_decay", f"must be in [0, 1], not {self.weight_decay}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError("ema", f"must be in [0, 1), not {self.ema}")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise InputError("clip", f"must be above 0, not {self.clip}")
        if self.holdout is not None and self.holdout < 0:
            raise InputError("holdout", f"must be at least 0, not {self.holdout}")
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise InputError(
                f"a `batch_size` of {self.batch_size} cannot be passed in {self.accumulate} equal parts of at least 2 "
                "images (`accumulate`)"
            )

    def with_seed(self, offset: int) -> TrainConfig:
        """The same settings and images under another seed: teacher and student do not start from the same weights."""
        images = self.limit_seed if self.limit is None or self.limit_seed is not None else self.seed
        return replace(self, seed=self.seed + offset, limit_seed=images)

    def resume_settings(self) -> dict[str, Any]:
        """What a training cannot be resumed without; more workers, a compiled network or another place of the list
        change nothing of it."""
        return {key: value for key, value in asdict(self).items() if key not in ("workers", "compile", "holdout_list")}

    @classmethod
    def before(cls, name: str) -> Any:
        """What ``name`` was in trainings of an edgeadv that did not have it yet: its default."""
        return {field.name: field.default for field in fields(cls)}.get(name)


class OutOfTimeError(Exception):
    """The time that was given is over; what is done is saved and can be resumed.

    Attributes:
        done: epochs that are done.
        epochs: of this training.
    """

    def __init__(self, stage: str, done: int, epochs: int, seconds: float | None = None) -> None:
        each = "" if seconds is None else f"; an epoch takes {seconds:.0f} s, and one that does not fit is not begun"
        super().__init__(f"{stage}: {done} of {epochs} epochs are done and saved{each}; `resume` continues")
        self.done, self.epochs = done, epochs
