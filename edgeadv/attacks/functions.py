"""The gradient attacks as functions on tensors, in pixels of [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgeadv_runtime.attacks.margins import LEAVE_MARGIN
from edgeadv_runtime.errors import InputError

from ..models.modes import evaluation_mode
from .iterate import Adversarial, AutoSteps, Found, MomentumSteps, Steps, again
from .losses import Loss, cross_entropy, input_gradient, margin, no_direction, targeted_dlr, targeted_margin, towards
from .norms import LINF, Ball, ball


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
        One result per budget, in the order given. The step is taken whatever comes of it: an image that was wrong
        before may be right afterwards.

    Raises:
        InputError: ``x`` is out of range, or a budget is not in (0, 1].
    """
    balls = [ball(LINF, budget) for budget in ([eps] if isinstance(eps, (int, float)) else eps)]
    _check(x, labels)
    with evaluation_mode(model):
        slope = input_gradient(model, x, labels, towards(loss) if targeted else loss)
    flat = no_direction(slope.gradient)
    # a NaN must never reach a pixel
    gradient = torch.where(flat[:, None, None, None], 0.0, slope.gradient)
    return [Adversarial(b.project(x + b.eps * b.steepest(gradient), x), flat, logits=slope.logits) for b in balls]


def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    loss: Loss = margin,
    start: Tensor | None = None,
    norm: str = LINF,
    restarts: int = 1,
    seed: int = 0,
    targeted: bool = False,
    leave: float = LEAVE_MARGIN,
) -> Adversarial:
    """Projected gradient descent (Madry et al. 2018, eq. 3), keeping of each image the version it is most wrong about.

    Args:
        model: pixels in [0, 1] to logits; normalisation inside.
        x: float32 (n, 3, H, W) in [0, 1].
        labels: int64 (n,); the true labels, or the targets if ``targeted``.
        eps: budget, in (0, 1] for L-infinity.
        steps: gradient steps of a restart, at least 1.
        step_size: None takes ``2.5 * eps / steps`` (Madry et al. 2018).
        loss: per-image loss to ascend; the margin is free of the softmax and so of its saturation.
        start: float32 like ``x``, a first perturbation of the first restart; None starts at ``x``, which makes it BIM
            (Kurakin et al. 2017). Other restarts begin at random points, by ``seed`` and image.
        norm: ``"linf"`` or ``"l2"``.
        restarts: how often it begins on the images that still stand.
        seed: of the random points.
        targeted: move towards ``labels``; an image is then broken when the model says so.
        leave: an image is left alone once it is misclassified by this share of its largest absolute logit; see
            :func:`edgeadv.attacks.ascend`.

    Returns:
        The images with the largest logit margin that were met, the start included.

    Raises:
        InputError: images, budget, norm, steps or restarts are out of range.
    """
    _check(x, labels, steps, restarts)
    around = ball(norm, eps)
    size = 2.5 * eps / steps if step_size is None else step_size
    return _restarted(
        model,
        x,
        labels,
        around,
        lambda: Steps(around, steps, size),
        loss=loss,
        start=start,
        restarts=restarts,
        seed=seed,
        targeted=targeted,
        leave=leave,
    )


def mi_fgsm(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 10,
    decay: float = 1.0,
    loss: Loss = cross_entropy,
    start: Tensor | None = None,
    targeted: bool = False,
    leave: float = LEAVE_MARGIN,
) -> Adversarial:
    """Momentum iterative FGSM (Dong et al. 2018): ``steps`` steps of ``eps / steps`` along the accumulated gradient.

    Momentum makes what is found work better on other models; arguments and result as for :func:`pgd`, L-infinity.

    Args:
        decay: factor of the gradients that came before; the paper's mu.
    """
    _check(x, labels, steps)
    around = ball(LINF, eps)
    return _restarted(
        model,
        x,
        labels,
        around,
        lambda: MomentumSteps(around, steps, eps / steps, decay=decay),
        loss=loss,
        start=start,
        targeted=targeted,
        leave=leave,
    )


def apgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 100,
    loss: Loss = cross_entropy,
    norm: str = LINF,
    restarts: int = 1,
    seed: int = 0,
    start: Tensor | None = None,
    targeted: bool = False,
    leave: float = LEAVE_MARGIN,
) -> Adversarial:
    """Auto-PGD (Croce and Hein 2020, Algorithm 1): no step size to choose; see :class:`edgeadv.attacks.AutoSteps`.

    Arguments and result as for :func:`pgd`.

    Args:
        start: a first perturbation of the first restart; None begins at a random point, as the paper does.
    """
    _check(x, labels, steps, restarts)
    around = ball(norm, eps)
    first = around.starts(x, seed=seed) - x if start is None else start
    return _restarted(
        model,
        x,
        labels,
        around,
        lambda: AutoSteps(around, steps),
        loss=loss,
        start=first,
        restarts=restarts,
        seed=seed,
        targeted=targeted,
        leave=leave,
    )


def apgd_targeted(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 100,
    targets: int = 9,
    norm: str = LINF,
    seed: int = 0,
    start: Tensor | None = None,
) -> Adversarial:
    """APGD towards the ``targets`` classes that come next on the clean image, one after another (Croce and Hein 2020,
    4.1).

    It moves towards a class, and has broken an image when the model gives it any wrong label. The loss is the targeted
    DLR, for fewer than four classes the difference of the two logits.

    Args:
        labels: true labels.
        targets: how many classes; no more than there are wrong ones.
        start: a first perturbation, for the first class; None begins at a random point.

    Raises:
        InputError: images, budget, norm, steps or targets are out of range.
    """
    _check(x, labels, steps, targets)
    around = ball(norm, eps)
    with evaluation_mode(model):
        with torch.no_grad():
            logits = model(x).float()
        classes = logits.shape[1]
        order = logits.scatter(1, labels[:, None], float("-inf")).argsort(dim=1, descending=True)
        loss: Loss = targeted_dlr if classes >= 4 else targeted_margin

        def begin(number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            own = around.starts(x[rows], seed=seed, restart=number)
            if number == 0 and start is not None:
                own = around.project(x + start, x)
            return own, order[rows, number]

        return again(
            model, x, labels, begin, min(targets, classes - 1), steps=lambda: AutoSteps(around, steps), loss=loss
        )


def _restarted(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    around: Ball,
    fresh: Callable[[], Steps],
    *,
    loss: Loss,
    start: Tensor | None,
    targeted: bool,
    leave: float,
    restarts: int = 1,
    seed: int = 0,
) -> Found:
    ascended, rank = (towards(loss), towards(margin)) if targeted else (loss, margin)

    def begin(number: int, rows: Tensor) -> tuple[Tensor, None]:
        if number:
            return around.starts(x[rows], seed=seed, restart=number), None
        return x if start is None else around.project(x + start, x), None

    with evaluation_mode(model):
        return again(model, x, labels, begin, restarts, steps=fresh, loss=ascended, rank=rank, leave=leave)


def _check(x: Tensor, labels: Tensor, *counts: int) -> None:
    for count in counts:
        if count < 1:
            raise InputError(f"an attack needs at least 1 step, restart and target, not {count}")
    if x.ndim != 4 or x.dtype != torch.float32 or labels.shape != x.shape[:1]:
        raise InputError(
            f"images are float32 (n, 3, H, W) with n labels, not {x.dtype} {tuple(x.shape)} and {tuple(labels.shape)}"
        )
    if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise InputError(
            "images are out of [0, 1]: pass pixels, not normalised tensors; the model normalises by itself"
        )
