"""Which epoch of a training is kept: the one that stands best under attack, on training images that were not trained
on.

Rice, Wong and Kolter 2020, "Overfitting in adversarially robust deep learning", section 4: robust accuracy on held-out
images falls again long before the training ends, and keeping the best epoch gains more than most changes to the loss.
Neither the choice nor the look at collapse sees a test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..attacks.functions import fgsm, pgd
from ..data.datasets import balanced_subset
from ..data.loading import Loader, to_model_input
from ..models.modes import evaluation_mode

HOLDOUT = 2000
MOST_HELD_OUT = 5  # one image in so many
STEPS = 10
_BATCH, _FEWEST = 250, 100


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

    def to_json(self) -> dict[str, float]:
        """As the history of a run keeps it."""
        return {f"holdout_{name}": value for name, value in asdict(self).items()}


def split_off(labels: NDArray[np.int64], asked: int | None, *, budget: Eps | None) -> NDArray[np.int64]:
    """Positions of the images that are held out: the same for every seed, as many of each class, possibly none.

    Args:
        labels: of all training images, int64 (n,).
        asked: how many; None takes :data:`HOLDOUT`, at most a fifth of all, if there is a ``budget``, else none.
        budget: what the network is trained to stand.

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
        for batch in source.batches(_BATCH, order):
            if not len(batch.index):
                continue
            x, labels = to_model_input(batch.pixels).contiguous(), batch.labels
            with torch.no_grad():
                answers = model(x).argmax(dim=1)
            given.update(answers.tolist())
            right = answers == labels
            one = right & _right(model, fgsm(model, x, labels, eps=eps.value)[0].x, labels)
            worst = one.clone()
            if bool(one.any()):
                made = pgd(model, x[one], labels[one], eps=eps.value, steps=STEPS).x
                worst[one] = _right(model, made, labels[one])
            counts += torch.tensor([int(flags.sum()) for flags in (right, one, worst)])
            n += len(batch.index)
    if not n:
        raise InputError(f"none of the {len(order)} images held out of {source.images.spec} is readable")
    clean, single, least = (count / n for count in counts.tolist())
    return Standing(clean, single, least, n, len(given))


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
    k = max(real, key=lambda i: (history[i]["holdout_worst_case"], i))
    best, last = history[k], history[-1]
    fell = last["holdout_worst_case"] < best["holdout_worst_case"] / 2 and best["holdout_worst_case"] >= 0.1
    # in products, for a network can be right about nothing
    share_fell = (
        2 * last["holdout_worst_case"] * best["holdout_clean"] < best["holdout_worst_case"] * last["holdout_clean"]
    )
    if not fell or not share_fell or last["train_accuracy"] < best["train_accuracy"]:
        return None
    return (
        f"catastrophic overfitting in epoch {len(history)}: on the training's own perturbations accuracy went from "
        f"{best['train_accuracy']:.1%} to {last['train_accuracy']:.1%}, under PGD on held-out images from "
        f"{best['holdout_worst_case']:.1%} to {last['holdout_worst_case']:.1%}; the weights of epoch {k + 1} are "
        "kept. Use more steps "
        "(at-pgd, trades), n-fgsm, or a smaller `at_eps`"
    )
