"""Adversarial training by one step that begins where the step of the epoch before ended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps

from ..data.augment import crop_flip, crop_flip_back
from ..data.rng import RandomStream
from .adversarial import Defence, Perturbation, check_beta
from .config import EMA
from .objectives import Outcome, Training, logits_of, refuse_together

_FOLLOWED = ("none", "crop-flip")
_RESET = 40
_MOST_BYTES = 1 << 30
_CHUNK = 256


@dataclass(frozen=True)
class PriorGuided(Defence):
    """``fgsm-pgi``: prior-guided adversarial initialisation (Jia et al. 2022, "Prior-Guided Adversarial Initialization
    for Fast Adversarial Training"), the variant FGSM-EP, whose prior is the epoch before.

    Each image has a perturbation ``d`` of -eps, 0 or eps a value. It begins at random signs, anew every 40 epochs as in
    the authors' code. One pass at ``x + d``, in training mode, gives the direction of the step and the answers that the
    second pass, at ``x + d'``, is held to, where ``d' = clip(d + eps sign(gradient), -eps, eps)`` is remembered for the
    next epoch: the loss is ``CE(f(x + d'), y) + beta * mean((f(x + d') - f(x + d))**2)``. The images are clipped to
    [0, 1]; ``d'`` is remembered as it was before, so that three values are all that there are, and int8 holds them.

    Where an image is shifted and mirrored its perturbation is too, and goes back afterwards; what the shift hid of it
    stays. (The authors' code lays it over the augmented image as it is.)

    Attributes:
        beta: weight of the regulariser; the authors' code has 10, at 8/255.
        training: what the objective is part of; None before it began.
        memory: ``"signs"``: int8 (images, channels, H, W), in eps, once an epoch began.
    """

    beta: float = 10.0
    training: Training | None = field(default=None, compare=False, repr=False)
    ema: float = field(default=EMA, init=False)
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_beta(self.beta, self.recipe)

    @classmethod
    def at(cls, eps: Eps, *, beta: float = 10.0) -> PriorGuided:
        """The paper's at ``eps``: one step of eps."""
        return cls("fgsm-pgi", Perturbation(eps, 1, eps.value), beta=beta)

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {**super().to_json(), "beta": self.beta}

    def follow(self, training: Training) -> PriorGuided:
        """The objective of this training, which remembers nothing yet.

        Raises:
            InputError: perturbations cannot follow the images through its augmentation or processes, or the network is
                compiled.
        """
        refuse_together(self.recipe, training)
        if training.config.augment not in _FOLLOWED:
            raise InputError(
                "augment", f"{training.config.augment} moves images where fgsm-pgi cannot follow: none or crop-flip"
            )
        return replace(self, training=training)

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor, stream: RandomStream) -> Outcome:
        """Mean loss over the batch; BatchNorm sees the images before the step and after it."""
        if self.training is None:
            raise TypeError("fgsm-pgi remembers the epochs of a training: see `follow`")
        eps = self.budget.value
        rows = torch.from_numpy(np.searchsorted(self.training.images, stream.index)).to(x.device)
        signs = self._signs(x, stream)
        before = self._moved(signs[rows], stream)
        start = (x + eps * before).clamp(0, 1).requires_grad_()
        first = logits_of(model, start)
        found = functional.cross_entropy(first, labels, reduction="sum", label_smoothing=self.label_smoothing)
        (gradient,) = torch.autograd.grad(found, start, retain_graph=True)
        after = (before + gradient.sign().nan_to_num().to(torch.int8)).clamp(-1, 1)
        back, seen = self._moved_back(after, stream)
        signs[rows] = torch.where(seen, back, signs[rows])
        logits = logits_of(model, (x + eps * after).clamp(0, 1))
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return Outcome(loss + self.beta * functional.mse_loss(logits, first), logits)

    def _signs(self, x: Tensor, stream: RandomStream) -> Tensor:
        """What is remembered of all images, on the device of ``x``; drawn at the first batch of every 40th epoch."""
        assert self.training is not None
        images, begun = self.training.images, stream.epoch - stream.epoch % _RESET
        if int(self.memory.get("drawn", torch.tensor(-1))) < begun:
            size = len(images) * x[0].numel()
            if size > _MOST_BYTES:
                raise InputError(
                    f"fgsm-pgi remembers a perturbation of each of {len(images)} images, {size / 2**30:.1f} GiB, and "
                    "takes at most 1: use `limit`, smaller images, or `recipe` n-fgsm"
                )
            signs = torch.empty((len(images), *x.shape[1:]), dtype=torch.int8, device=x.device)
            for part in range(0, len(images), _CHUNK):
                drawn = replace(stream, epoch=begun, index=images[part : part + _CHUNK]).uniform(x)
                signs[part : part + _CHUNK] = drawn.sign().to(torch.int8)
            self.memory.update(signs=signs, drawn=torch.tensor(begun))
        self.memory["signs"] = self.memory["signs"].to(x.device)
        return self.memory["signs"]

    def _moved(self, signs: Tensor, stream: RandomStream) -> Tensor:
        """Perturbations of images, moved as their augmentation moves them."""
        assert self.training is not None
        config = self.training.config
        return signs if config.augment == "none" else crop_flip(signs, stream, mirror=not config.no_mirror)

    def _moved_back(self, signs: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Back again, and the places that were not out of sight."""
        assert self.training is not None
        config = self.training.config
        if config.augment == "none":
            return signs, torch.ones_like(signs, dtype=torch.bool)
        return crop_flip_back(signs, stream, mirror=not config.no_mirror)
