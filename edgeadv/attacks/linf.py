"""FGSM and projected gradient descent in the L-infinity ball, in pixels of [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeadv_runtime.errors import InputError

from ..models import evaluation_mode
from .gradients import Loss, cross_entropy, input_gradient, margin, no_direction


@dataclass(frozen=True)
class Adversarial:
    """What a gradient attack made of a batch.

    Attributes:
        x: adversarial images, float32 (n, 3, H, W) in [0, 1], within eps of the originals.
        zero_gradient: bool (n,): the gradient at the original was zero or not finite, so a sign step left the image as
            it was; it is not an image that withstood the attack.
    """

    x: Tensor
    zero_gradient: Tensor


def fgsm(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    loss: Loss = cross_entropy,
    targeted: bool = False,
) -> list[Adversarial]:
    """Fast gradient sign method: ``clip(x + eps * sign(grad))`` (Goodfellow et al. 2015, section 4).

    The model's mode and its parameters' ``requires_grad`` are as before afterwards, also after an error.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: int64 (n,); the true labels, or the targets if ``targeted``.
        eps: one budget or several, each in (0, 1]; all use one gradient.
        loss: per-image loss to ascend, to descend if ``targeted``.
        targeted: move towards ``labels``.

    Returns:
        One result per budget, in the order given.

    Raises:
        InputError: ``x`` is out of range, or a budget is not in (0, 1].
    """
    budgets = [eps] if isinstance(eps, (int, float)) else list(eps)
    for budget in budgets:
        _check(x, labels, budget)
    with evaluation_mode(model):
        gradient, _ = input_gradient(model, x, labels, loss)
    flat = no_direction(gradient)
    direction = _sign(gradient, flat) * (-1.0 if targeted else 1.0)
    return [Adversarial((x + budget * direction).clamp(0, 1), flat) for budget in budgets]


def pgd(
    model: nn.Module, x: Tensor, labels: Tensor, *, eps: float, steps: int = 20, step_size: float | None = None,
    loss: Loss = margin, start: Tensor | None = None,
) -> Adversarial:  # fmt: skip
    """Projected gradient descent (Madry et al. 2018, eq. 3) on ``loss``, keeping each image's best iterate.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: true labels, int64 (n,).
        eps: budget in (0, 1].
        steps: gradient steps, at least 1.
        step_size: None takes ``2.5 * eps / steps`` (Madry et al. 2018).
        loss: per-image loss to ascend; the margin is free of the softmax and so of its saturation.
        start: float32 like ``x``, a first perturbation within eps; None starts at ``x``.

    Returns:
        The iterate with the highest loss of each image, the start included. All steps are always taken: an iterate that
        has only just crossed the boundary here may not have crossed it on another artefact.

    Raises:
        InputError: as :func:`fgsm`, or ``steps`` is below 1.
    """
    _check(x, labels, eps)
    if steps < 1:
        raise InputError(f"PGD needs at least 1 step, not {steps}")
    step = 2.5 * eps / steps if step_size is None else step_size
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    current = x if start is None else (x + start).clamp(lower, upper)
    best, best_loss = current, torch.full((len(x),), float("-inf"), device=x.device)
    zero = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with evaluation_mode(model):
        for i in range(steps):
            gradient, losses = input_gradient(model, current, labels, loss)
            best, best_loss = _keep_better(best, best_loss, current, losses)
            flat = no_direction(gradient)
            zero = flat if i == 0 else zero
            current = (current + step * _sign(gradient, flat)).clamp(lower, upper)
        with torch.no_grad():
            best, _ = _keep_better(best, best_loss, current, loss(model(current).float(), labels))
    return Adversarial(best, zero)


def _keep_better(best: Tensor, best_loss: Tensor, current: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    better = losses > best_loss
    return torch.where(better[:, None, None, None], current, best), torch.where(better, losses, best_loss)


def _sign(gradient: Tensor, flat: Tensor) -> Tensor:
    """Sign of the gradient; zero for images that have no direction, so that a NaN never reaches a pixel."""
    return torch.where(flat[:, None, None, None], torch.zeros_like(gradient), gradient.sign())


def _check(x: Tensor, labels: Tensor, eps: float) -> None:
    if not 0 < eps <= 1:
        raise InputError(f"eps must be in (0, 1], in pixels of [0, 1], not {eps}")
    if x.ndim != 4 or x.dtype != torch.float32 or labels.shape != x.shape[:1]:
        raise InputError(
            f"images are float32 (n, 3, H, W) with n labels, not {x.dtype} {tuple(x.shape)} and {tuple(labels.shape)}"
        )
    if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise InputError(
            "images are out of [0, 1]: pass pixels, not normalised tensors; the model normalises by itself"
        )
