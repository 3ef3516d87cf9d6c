"""What a robust teacher has to hand on, measured before a student is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..data.loading import Loader, to_model_input
from ..models.modes import evaluation_mode
from .selection import BATCH, stands

IMAGES = 500
WEAK, SURE = 0.05, 0.2


@dataclass(frozen=True)
class TeacherStanding:
    """A teacher on images that its student is not trained on.

    Which images a student will not learn shows only when it is trained. Those on which the teacher itself does not
    stand are measured in their place: a smaller network rarely stands where its teacher falls.

    Attributes:
        stood: images that are right under one step and under 10 steps of PGD on the margin.
        images: all of them.
        doubt: mean entropy of the teacher's answers, at T = 1, to the images that did not stand, before any
            perturbation, as a share of the entropy of a guess, ln(classes): 0 where it is sure, 1 where it guesses.
            None where all stood.
    """

    stood: int
    images: int
    doubt: float | None

    @property
    def worst_case(self) -> float:
        """Share of the images that stood."""
        return self.stood / self.images

    @property
    def helps(self) -> bool:
        """By a rule of thumb that is an edgeadv default: at least one image in 20 stands, and the doubt is at least a
        fifth (of ten classes about that of a network that is 91% sure)."""
        return self.worst_case >= WEAK and (self.doubt is None or self.doubt >= SURE)

    @property
    def said(self) -> str:
        """What was measured and what it means, in a line."""
        fell = self.images - self.stood
        figures = f"the teacher stands on {self.worst_case:.1%} of {self.images} images held out"
        if self.doubt is not None:
            figures += f"; its answers to the other {fell} have {self.doubt:.0%} of the entropy of a guess"
        if self.worst_case < WEAK:
            return f"{figures}: it has little robustness to hand on; train without a teacher, by trades or at-pgd"
        if not self.helps:
            return f"{figures}: it is sure of what its student will hardly learn; compare with trades without a teacher"
        return f"{figures}: by this rule of thumb it can help; what it is worth shows beside trades without a teacher"


def teacher_standing(teacher: nn.Module, source: Loader, order: NDArray[np.int64], eps: Eps) -> TeacherStanding:
    """How ``teacher`` stands on the images of ``source`` at ``order``, and how sure it is of those where it falls.

    Args:
        teacher: pixels to logits; left as it is.
        source: images on the device of ``teacher``.
        order: int64 (n,), positions.
        eps: what its student is to stand.

    Raises:
        InputError: not one image is readable.
    """
    stood = images = 0
    doubts: list[Tensor] = []
    with evaluation_mode(teacher):
        for batch in source.batches(BATCH, order):
            if not len(batch.index):
                continue
            x = to_model_input(batch.pixels).contiguous()
            standing = stands(teacher, x, batch.labels, eps)[-1]
            if not bool(standing.all()):
                with torch.no_grad():
                    answers = teacher(x[~standing]).float().softmax(dim=1)
                doubts.append(torch.special.entr(answers).sum(dim=1) / math.log(answers.shape[1]))
            stood, images = stood + int(standing.sum()), images + len(x)
    if not images:
        raise InputError(f"none of the {len(order)} images held out of {source.images.spec} is readable")
    return TeacherStanding(stood, images, float(torch.cat(doubts).mean()) if doubts else None)
