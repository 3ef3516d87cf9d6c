"""Losses an attack ascends, and their gradient with respect to the pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv_runtime.errors import InputError

Loss = Callable[..., Tensor]
"""Logits (n, classes) and labels int64 (n,) to one loss per image, float32 (n,); a targeted loss takes targets (n,)
too."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (Goodfellow et al. 2015). In float32 its gradient is 0 where the softmax
    saturates."""
    return functional.cross_entropy(logits, labels, reduction="none")


def rescaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits divided, per image, by their largest absolute value, which is taken as a constant.

    The gradient cannot vanish by the size of the logits: what defensive distillation hides behind comes off
    (the remedy of Carlini and Wagner 2016, "Defensive Distillation is Not Robust to Adversarial Examples").
    """
    scale = logits.detach().abs().amax(dim=1, keepdim=True)
    return cross_entropy(logits / torch.where(scale > 0, scale, 1.0), labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest wrong logit minus the logit of the label; above 0 the image is misclassified.

    Carlini and Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", f6 with its sign turned.
    """
    own = functional.one_hot(labels, logits.shape[1]).bool()
    wrong = logits.masked_fill(own, float("-inf")).amax(dim=1)
    return wrong - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over the distance of the first logit from the third.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", eq. 6. It does not change when logits are shifted or scaled.

    Raises:
        InputError: there are fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"the DLR loss needs at least 3 classes, not {logits.shape[1]}: use the margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(_SMALLEST)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The same towards a class: how far ``targets`` lie above ``labels`` (Croce and Hein 2020, eq. 7).

    Raises:
        InputError: there are fewer than 4 classes.
    """
    if logits.shape[1] < 4:
        raise InputError(f"the targeted DLR loss needs at least 4 classes, not {logits.shape[1]}: use the margin")
    top = logits.topk(4, dim=1).values
    spread = (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_SMALLEST)
    return targeted_margin(logits, labels, targets) / spread


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Logit of ``targets`` minus logit of ``labels``; above 0 the image is misclassified, though perhaps not as the
    target."""
    return _of(logits, targets) - _of(logits, labels)


def towards(loss: Loss) -> Loss:
    """``loss`` with its sign turned: ascending it with a target in the place of the label moves towards that class."""

    def negative(logits: Tensor, targets: Tensor) -> Tensor:
        return -loss(logits, targets)

    return negative


_SMALLEST = 1e-12


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


class Slope(NamedTuple):
    """A model at a batch of images; all detached.

    Attributes:
        gradient: of the loss, float32 of the shape of the images.
        losses: float32 (n,).
        logits: float32 (n, classes).
    """

    gradient: Tensor
    losses: Tensor
    logits: Tensor


def input_gradient(model: nn.Module, x: Tensor, labels: Tensor, loss: Loss, *, targets: Tensor | None = None) -> Slope:
    """Gradient of the summed loss, so that an image's gradient does not depend on the batch it is in.

    A network without any path from the logits back to the pixels, such as one that compares them with a threshold, has
    the gradient 0.

    Args:
        model: pixels to logits, in evaluation mode.
        x: float32 (n, 3, H, W).
        labels: int64 (n,).
        loss: per-image loss.
        targets: int64 (n,), for a loss that takes them.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x).float()
        losses = loss(logits, labels) if targets is None else loss(logits, labels, targets)
        gradient = gradient_of(losses.sum(), x)
    return Slope(gradient, losses.detach(), logits.detach())


def gradient_of(values: Tensor, x: Tensor, given: Tensor | None = None) -> Tensor:
    """The gradient of ``(values * given).sum()`` with respect to ``x``; 0 where there is no path for one."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values, x, given, materialize_grads=True)
    return gradient.detach()


def no_direction(gradient: Tensor) -> Tensor:
    """Images whose gradient is all zero or anywhere not finite: bool (n,). A sign step does not attack them."""
    # a NaN anywhere is the largest
    largest = gradient.flatten(1).abs().amax(dim=1)
    return (largest == 0) | ~torch.isfinite(largest)
