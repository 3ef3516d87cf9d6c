"""Losses an attack ascends, and their gradient with respect to the pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, classes) and labels int64 (n,) to one loss per image, float32 (n,)."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (Goodfellow et al. 2015). In float32 its gradient is 0 where the softmax saturates."""
    return functional.cross_entropy(logits, labels, reduction="none")


def rescaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits divided, per image, by their largest absolute value, which is taken as a constant.

    The gradient cannot vanish by the size of the logits: what defensive distillation hides behind comes off
    (the remedy of Carlini and Wagner 2016, "Defensive Distillation is Not Robust to Adversarial Examples").
    """
    scale = logits.detach().abs().amax(dim=1, keepdim=True)
    return cross_entropy(logits / torch.where(scale > 0, scale, torch.ones_like(scale)), labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest wrong logit minus the logit of the label; above 0 the image is misclassified.

    Carlini and Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", f6 with its sign turned.
    """
    own = functional.one_hot(labels, logits.shape[1]).bool()
    wrong = logits.masked_fill(own, float("-inf")).amax(dim=1)
    return wrong - logits.gather(1, labels[:, None]).squeeze(1)


def input_gradient(model: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss, so that an image's gradient does not depend on the batch it is in.

    Args:
        model: pixels to logits, in evaluation mode.
        x: float32 (n, 3, H, W).
        labels: int64 (n,).
        loss: per-image loss.

    Returns:
        The gradient, of the shape of ``x``, and each image's loss (n,), both detached.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        losses = loss(model(x).float(), labels)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return gradient.detach(), losses.detach()


def no_direction(gradient: Tensor) -> Tensor:
    """Images whose gradient is all zero or anywhere not finite: bool (n,). A sign step does not attack them."""
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1) | ~torch.isfinite(flat).all(dim=1)
