"""Do gradients say what happens? The control that compares the margin's rise along its gradient with what that
predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv_runtime.attacks.base import Crafted
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams
from edgeadv_runtime.records.suites import LINEARITY

from ..gradients.graph import GraphModule
from ..models.modes import evaluation_mode
from .batching import device_of, in_parts, tensors
from .losses import input_gradient, margin

AT_IMAGE, AT_WORST = (1 / 16, 1 / 4), (1 / 64, 1 / 16)
"""Lengths of the step, as shares of eps: at the image itself, and at the version with the largest margin, where
networks bend more."""


def linearity(model: nn.Module, x: Tensor, labels: Tensor, *, length: float) -> Tensor:
    """``(m(x') - m(x)) / (g (x' - x))`` for the logit margin m, its gradient g and ``x' = clip(x + length * sign(g))``.

    A first-order expansion (the local linearity measure of Qin et al. 2019, section 4, along the sign of the gradient).
    1 where the margin is linear, 0 where the gradient says nothing about it or is zero.

    Args:
        model: pixels in [0, 1] to logits, in evaluation mode.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: int64 (n,).
        length: of the step, in pixels of [0, 1].

    Returns:
        float32 (n,).
    """
    with evaluation_mode(model):
        slope = input_gradient(model, x, labels, margin)
        gradient = torch.nan_to_num(slope.gradient, nan=0.0, posinf=0.0, neginf=0.0)
        moved = (x + length * gradient.sign()).clamp(0, 1)
        with torch.no_grad():
            rise = margin(model(moved).float(), labels) - slope.losses
    # in float64: the products of a small gradient are below float32
    predicted = (gradient.double() * (moved - x).double()).flatten(1).sum(dim=1)
    ratio = rise.double() / torch.where(predicted > 0, predicted, 1.0)
    # what is not finite there is not what the gradient predicts
    return torch.where((predicted > 0) & ratio.isfinite(), ratio, 0.0).float()


@dataclass(frozen=True)
class LinearityControl:
    """:func:`linearity` of the images that stand, as a control of the evaluation.

    Attributes:
        model: pixels to logits, on the device to compute on.
        eps: budgets.
        gradients_sha256: hash of the artefact that the gradients belong to.
        gradients: where they come from, in words.
    """

    model: nn.Module
    eps: Sequence[Eps]
    gradients_sha256: str | None
    gradients: str
    name = LINEARITY
    queried = asked = None
    control = True

    def params(self, eps: Eps) -> AttackParams:
        """How it is measured."""
        return AttackParams(norm="linf", loss="logit margin", steps=1)

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """At every budget, from the images themselves."""
        return [self.craft_from(x, y, x, eps) for eps in self.eps]

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        """Measure, with steps no shorter than those that a quantised graph rounds pixels to; the images are left as
        they are.

        Returns:
            ``linearity`` float32 (n, 4): for each of :data:`AT_IMAGE` at ``x``, then of :data:`AT_WORST` at ``start``.
        """
        shortest = 0.0
        if isinstance(self.model, GraphModule) and len(x):
            # within a step of 8 bits a rounded network does not move, or jumps
            shortest = self.model.input_step(tensors(x[:1], y[:1], device_of(self.model))[0])
        points = [(x, fraction) for fraction in AT_IMAGE] + [(start, fraction) for fraction in AT_WORST]

        def measured(part: slice) -> NDArray[np.float32]:
            columns = []
            for point, fraction in points:
                images, labels = tensors(point[part], y[part], device_of(self.model))
                length = max(fraction * eps.value, shortest)
                columns.append(linearity(self.model, images, labels, length=length).cpu().numpy())
            return np.stack(columns, axis=1)

        return Crafted(x, None, linearity=np.concatenate(in_parts(measured, x, device_of(self.model))))
