"""One perturbation for all images, for the demonstration of ``edgeadv camera``.

Sign steps on one shared perturbation up the mean loss of one batch after another, kept within eps (Shafahi et al. 2020,
"Universal Adversarial Training", algorithm 1; the goal is that of Moosavi-Dezfooli et al. 2017). It is no measure of
robustness: an attack on each image by itself is much stronger.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeadv_runtime.errors import InputError

from ..models.modes import evaluation_mode
from .losses import input_gradient, margin

_STEP = 0.1  # of eps


def universal_sign(
    model: nn.Module, x: Tensor, labels: Tensor, *, eps: float, passes: int = 10, batch_size: int = 64
) -> Tensor:
    """The direction of one perturbation that breaks as many images as it can.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: int64 (n,), the true labels.
        eps: budget, in (0, 1].
        passes: over the images.
        batch_size: images per step.

    Returns:
        int8 (channels, H, W): where the perturbation of ``eps`` goes up, down, or nowhere.

    Raises:
        InputError: ``eps`` or ``passes`` is out of range, or there are no images.
    """
    if not 0 < eps <= 1 or passes < 1 or not len(x):
        raise InputError("a universal perturbation needs images, eps in (0, 1] and at least 1 pass")
    moved = torch.zeros_like(x[0])
    with evaluation_mode(model):
        for _ in range(passes):
            for start in range(0, len(x), batch_size):
                part = slice(start, start + batch_size)
                # of a clipped value the gradient counts all the same: other images are not clipped there
                gradient = input_gradient(model, (x[part] + moved).clamp(0, 1), labels[part], margin).gradient
                moved = (moved + _STEP * eps * gradient.sum(dim=0).sign()).clamp(-eps, eps)
    # whole steps make most values reach the budget; the rest is moved all the way too
    return moved.sign().to(torch.int8)
