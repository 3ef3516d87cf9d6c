"""Which epoch of a training is kept: the one that stands best under attack, on training images that were not trained
on.

Rice, Wong and Kolter 2020, "Overfitting in adversarially robust deep learning", section 4: robust accuracy on held-out
images falls again long before the training ends, and keeping the best epoch gains more than most changes to the loss.
Neither the choice nor the look at collapse sees a test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..attacks.functions import fgsm, pgd
from ..data.datasets import ImageSet, balanced_subset
from ..data.lists import read_list
from ..data.loading import Loader, to_model_input
from ..models.modes import evaluation_mode

HOLDOUT = 2000
MOST_HELD_OUT = 5  # one image in so many
STEPS = 10
BATCH, _FEWEST = 250, 100


@dataclass(frozen=True)
class Standing:
    """How a network stands on held-out images, in shares of all of them.

    Attributes:
        clean: right without an attack.
        fgsm: right under one step from the image.
        worst_case: right clean, under that step, and under 10 steps of PGD on the margin.
        images: how many there are.
        labels: how many different labels it gives them, without an attack. One that gives one label to everything
            stands every attack on the images of that class, and is good for nothing.
    """

    clean: float
    fgsm: float
    worst_case: float
    images: int
    labels: int = 2

    @property
    def rank(self) -> list[float]:
        """What is compared: a network that gives one label to everything is worse than any other, for with few classes
        its worst case is high."""
        return [float(self.labels > 1), self.worst_case]

    def to_json(self) -> dict[str, float]:
        """As the history of a run keeps it."""
        return {f"holdout_{name}": value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class HeldOut:
    """Training images that are not trained on, as positions in their set, int64, ascending.

    Attributes:
        all: every one of them.
        choosing: those that choose the weights.
        record: what ``run.json`` keeps of the list that named them; empty without one.
    """

    all: NDArray[np.int64]
    choosing: NDArray[np.int64]
    record: dict[str, str]


def hold_out(images: ImageSet, asked: int | None, listed: str | None, *, budget: Eps | None) -> HeldOut:
    """The images of ``images`` that are held out: the same for every seed, possibly none.

    Args:
        images: all training images.
        asked: how many; None takes :data:`HOLDOUT`, at most a fifth of all, if there is a ``budget``, else none.
        listed: the file that names them; ``asked`` is then how many of them choose the weights.
        budget: what the network is trained to stand.

    Raises:
        InputError: fewer than one image in two would be left to train on, or the list cannot be read or names nothing.
    """
    if listed is None:
        chosen = split_off(images.labels, asked, budget=budget)
        return HeldOut(chosen, chosen, {})
    file = Path(listed)
    named, sha256 = read_list(file, images.names, field="holdout_list")
    if 2 * len(named) > len(images):
        raise InputError(
            "holdout_list", f"{file} names {len(named)} of {len(images)} images: at most half can be held out"
        )
    left = np.bincount(np.delete(images.labels, named), minlength=len(images.classes))
    if gone := [name for i, name in enumerate(images.classes.ids) if not left[i] and (images.labels == i).any()]:
        raise InputError("holdout_list", f"{file} leaves no image of class {gone[0]} to train on: hold out some only")
    count = (0 if budget is None else HOLDOUT) if asked is None else asked
    choosing = named[balanced_subset(images.labels[named], count)] if count else named[:0]
    return HeldOut(named, choosing, {"name": file.name, "sha256": sha256})


def split_off(labels: NDArray[np.int64], asked: int | None, *, budget: Eps | None) -> NDArray[np.int64]:
    """Positions of the images that are held out without a list: as many of each class, possibly none.

    Args:
        labels: of all training images, int64 (n,).
        asked: as of :func:`hold_out`.
        budget: as of :func:`hold_out`.

    Raises:
        InputError: fewer than one image in two would be left to train on.
    """
    count = (0 if budget is None else min(HOLDOUT, len(labels) // MOST_HELD_OUT)) if asked is None else asked
    if 2 * count > len(labels):
        raise InputError(f"`holdout` {count} leaves too few of {len(labels)} images to train on: at most half of them")
    return balanced_subset(labels, count) if count else np.empty(0, dtype=np.int64)


def standing(model: nn.Module, source: Loader, order: NDArray[np.int64], eps: Eps) -> Standing:
    """How ``model`` stands on the images of ``source`` at ``order`` at budget ``eps``; its mode and gradients are as
    before afterwards.

    Raises:
        InputError: not one image is readable.
    """
    counts = torch.zeros(3, dtype=torch.long)
    n, given = 0, set[int]()
    with evaluation_mode(model):
        for batch in source.batches(BATCH, order):
            if not len(batch.index):
                continue
            x, labels = to_model_input(batch.pixels).contiguous(), batch.labels
            with torch.no_grad():
                given.update(model(x).argmax(dim=1).tolist())
            counts += torch.tensor([int(flags.sum()) for flags in stands(model, x, labels, eps)])
            n += len(batch.index)
    if not n:
        raise InputError(f"none of the {len(order)} images held out of {source.images.spec} is readable")
    clean, single, least = (count / n for count in counts.tolist())
    return Standing(clean, single, least, n, len(given))


def stands(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, eps: Eps) -> list[torch.Tensor]:
    """Which images are right as they are, of these under one step, and of these under 10 steps of PGD on the margin.

    Args:
        model: in evaluation mode, its parameters without gradients.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: int64 (n,).
        eps: the budget.

    Returns:
        Three times bool (n,).
    """
    right = _right(model, x, labels)
    one = right & _right(model, fgsm(model, x, labels, eps=eps.value)[0].x, labels)
    worst = one.clone()
    if bool(one.any()):
        made = pgd(model, x[one], labels[one], eps=eps.value, steps=STEPS).x
        worst[one] = _right(model, made, labels[one])
    return [right, one, worst]


def _right(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        right: torch.Tensor = model(x).argmax(dim=1) == labels
    return right


def collapse(history: Sequence[dict[str, float]]) -> str | None:
    """Whether the last epoch shows catastrophic overfitting (Wong et al. 2020, section 5), in words; None if not.

    The network has learnt to fool the step that it is trained on: accuracy on the training's own perturbations is no
    lower than at the best epoch before, while under many steps less than half of that epoch's is left, also as a share
    of the images that are right without an attack: after a step that was too large a network is simply bad at
    everything. The best epoch must have stood at least one image in ten, or there was nothing to lose, and fewer than
    100 images are too few to tell.
    """
    if len(history) < 2 or history[-1].get("holdout_images", 0) < _FEWEST:
        return None
    real = [i for i in range(len(history) - 1) if history[i].get("holdout_labels", 2) > 1]
    if not real:
        return None
    # of equal epochs the later one is kept
    k = max(real, key=lambda i: (_stood(history[i])[0], i))
    (best, best_clean), (last, last_clean) = _stood(history[k]), _stood(history[-1])
    fooled = history[k]["train_accuracy"], history[-1]["train_accuracy"]
    # in products, for a network can be right about nothing
    if not (last < best / 2 and best >= 0.1 and 2 * last * best_clean < best * last_clean and fooled[1] >= fooled[0]):
        return None
    return (
        f"catastrophic overfitting in epoch {len(history)}: on the training's own perturbations accuracy went from "
        f"{fooled[0]:.1%} to {fooled[1]:.1%}, under PGD on held-out images from {best:.1%} to {last:.1%}; the best "
        "weights before are kept. Use more steps (at-pgd, trades), or a smaller `eps`"
    )


def _stood(epoch: dict[str, float]) -> tuple[float, float]:
    """Worst case and clean accuracy of the network that was trained: an average hides for a while what became of it."""
    if "clean_of_last" in epoch:
        return epoch["worst_case_of_last"], epoch["clean_of_last"]
    return epoch["holdout_worst_case"], epoch["holdout_clean"]
