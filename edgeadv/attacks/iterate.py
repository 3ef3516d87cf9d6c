"""The one loop of the iterated attacks, and the steps that make one attack differ from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgeadv_runtime.attacks.margins import LEAVE_MARGIN

from .batching import copies_at_once
from .losses import Loss, Slope, input_gradient, margin, no_direction
from .norms import Ball


@dataclass(frozen=True)
class Adversarial:
    """What a gradient attack made of a batch.

    Attributes:
        x: adversarial images, float32 (n, 3, H, W) in [0, 1], within eps of the originals.
        zero_gradient: bool (n,): the gradient at the first image looked at was zero or not finite, so a step left it as
            it was; it is not an image that withstood the attack.
        logits: of the images as they were, float32 (n, classes); None where the attack begins elsewhere.
    """

    x: Tensor
    zero_gradient: Tensor
    logits: Tensor | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Found(Adversarial):
    """What the loop found, with how far it got.

    Attributes:
        rank: float32 (n,), how wrong the model is about ``x``; above 0 it is wrong.
        broken: bool (n,): so wrong that the image left the batch; see :func:`ascend`.
    """

    rank: Tensor
    broken: Tensor

    def split(self, count: int) -> list[Found]:
        """``count`` results of as many images each."""
        parts = zip(*(each.chunk(count) for each in (self.x, self.zero_gradient, self.rank, self.broken)), strict=True)
        return [Found(*part) for part in parts]


class Steps:
    """How the next image is chosen: plain projected gradient ascent (Madry et al. 2018, eq. 3).

    A subclass keeps what it must remember of each image in ``memory``, tensors with one row an image; :meth:`keep`
    drops the rows of images that have left.

    Attributes:
        ball: where the images stay.
        count: how many steps there are.
    """

    def __init__(self, ball: Ball, count: int, step_size: float) -> None:
        self.ball = ball
        self.count = count
        self.step_size = step_size
        self.memory: dict[str, Tensor] = {}

    def move(self, i: int, current: Tensor, slope: Slope, x: Tensor) -> Tensor:
        """The next images, from step ``i`` (from 0), the images now, what the model says there, and the originals."""
        return self.ball.project(current + self.step_size * self.ball.steepest(slope.gradient), x)

    def keep(self, rows: Tensor) -> None:
        """Forget the images whose positions are not in ``rows``, int64 (k,)."""
        self.memory = {name: values[rows] for name, values in self.memory.items()}


class MomentumSteps(Steps):
    """MI-FGSM (Dong et al. 2018, "Boosting Adversarial Attacks with Momentum", Algorithm 1).

    The gradients, each divided by the sum of its absolute values, add up with decay factor ``decay``; the step follows
    the sum.
    """

    def __init__(self, ball: Ball, count: int, step_size: float, *, decay: float = 1.0) -> None:
        super().__init__(ball, count, step_size)
        self.decay = decay

    def move(self, i: int, current: Tensor, slope: Slope, x: Tensor) -> Tensor:
        """One step along the accumulated gradient."""
        size = slope.gradient.flatten(1).abs().sum(dim=1)[:, None, None, None]
        direction = slope.gradient / torch.where(size > 0, size, 1.0)
        if self.memory:
            direction = direction + self.decay * self.memory["momentum"]
        self.memory["momentum"] = direction
        return self.ball.project(current + self.step_size * self.ball.steepest(direction), x)


class AutoSteps(Steps):
    """APGD (Croce and Hein 2020, Algorithm 1): the step size of each image halves when it stops making progress.

    It begins at 2 eps. At checkpoints, which come closer together, an image whose loss rose in fewer than 75% of the
    steps since the last one, or whose step size and best loss have both stayed the same since, halves its step size and
    goes on from its best image. Each step keeps 25% of the last one.
    """

    RISE, MOMENTUM = 0.75, 0.75

    def __init__(self, ball: Ball, count: int) -> None:
        super().__init__(ball, count, 2 * ball.eps)
        self.checkpoints = _checkpoints(count)

    def move(self, i: int, current: Tensor, slope: Slope, x: Tensor) -> Tensor:
        """One step with momentum; at a checkpoint from the best image where its step size was halved."""
        memory = self.memory
        if not memory:
            step = torch.full_like(slope.losses, self.step_size)
            memory |= {
                "previous": current,
                "step": step,
                "best": current,
                "best_gradient": slope.gradient,
                "best_loss": slope.losses,
                "last_loss": slope.losses,
                "rises": torch.zeros_like(step),
                "checkpoint_loss": slope.losses,
                "halved": torch.ones_like(step, dtype=torch.bool),
            }
            return self.ball.project(current + _wide(step) * self.ball.steepest(slope.gradient), x)
        memory["rises"] = memory["rises"] + (slope.losses > memory["last_loss"])
        memory["last_loss"] = slope.losses
        better = slope.losses > memory["best_loss"]
        memory["best_loss"] = torch.where(better, slope.losses, memory["best_loss"])
        memory["best"] = torch.where(_wide(better), current, memory["best"])
        memory["best_gradient"] = torch.where(_wide(better), slope.gradient, memory["best_gradient"])
        gradient = slope.gradient
        if i in self.checkpoints:
            halve = self._stalled(i)
            current = torch.where(_wide(halve), memory["best"], current)
            gradient = torch.where(_wide(halve), memory["best_gradient"], gradient)
        step = _wide(memory["step"])
        ahead = self.ball.project(current + step * self.ball.steepest(gradient), x)
        moved = current + self.MOMENTUM * (ahead - current) + (1 - self.MOMENTUM) * (current - memory["previous"])
        memory["previous"] = current
        return self.ball.project(moved, x)

    def _stalled(self, i: int) -> Tensor:
        """Halve the steps of images that make no progress at checkpoint ``i``; which those are, bool (n,)."""
        memory = self.memory
        since = i - max([0, *(c for c in self.checkpoints if c < i)])
        few = memory["rises"] < self.RISE * since
        same = ~memory["halved"] & (memory["best_loss"] <= memory["checkpoint_loss"])
        halve = few | same
        memory["step"] = torch.where(halve, memory["step"] / 2, memory["step"])
        memory["halved"] = halve
        memory["checkpoint_loss"] = memory["best_loss"]
        memory["rises"] = torch.zeros_like(memory["rises"])
        return halve


def _checkpoints(count: int) -> frozenset[int]:
    """Steps at which APGD looks back: p_1 = 0.22, then p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), times
    ``count``."""
    # in whole per cent: as floats, 57% of 100 steps round up to 58
    before, now = 0, 22
    found = []
    while now <= 100:
        found.append(-(-now * count // 100))
        before, now = now, now + max(now - before - 3, 6)
    return frozenset(found)


def ascend(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    steps: Steps,
    loss: Loss,
    start: Tensor,
    rank: Loss = margin,
    targets: Tensor | None = None,
    leave: float = LEAVE_MARGIN,
) -> Found:
    """Ascend ``loss`` from ``start`` and return each image where the model is most wrong about it.

    An image leaves the batch as soon as it is misclassified by at least ``leave`` of its largest logit: with the
    default the margin survives the rounding of fp16 and int8, and the time goes to the images that stand. One that has
    only just crossed the boundary stays in.

    Args:
        model: pixels in [0, 1] to logits, in evaluation mode, normalisation inside.
        x: the originals, float32 (n, 3, H, W) in [0, 1].
        labels: int64 (n,).
        steps: what to do, fresh.
        loss: per-image loss to ascend.
        start: where to begin, float32 like ``x``, within the ball.
        rank: which image counts as most wrong, and above 0 as wrong: the logit margin, or its negative for an attack
            towards ``labels``.
        targets: int64 (n,), for a loss that takes them.
        leave: the margin at which an image leaves, as a share of its largest absolute logit; infinity takes all steps.
    """
    n = len(x)
    best, best_rank = start.clone(), torch.full((n,), float("-inf"), device=x.device)
    zero = torch.zeros(n, dtype=torch.bool, device=x.device)
    broken = torch.zeros_like(zero)
    row = _filled(n, x.device)
    # rows of images in the attack; others only fill up
    stays = torch.arange(len(row), device=x.device) < n
    current = start
    if len(row) > n:
        x, labels, current = x[row], labels[row], current[row]
        targets = None if targets is None else targets[row]
    for i in range(steps.count + 1):
        last = i == steps.count
        slope = _at(model, current, labels, loss, targets, gradient=not last)
        ranks = rank(slope.logits, labels)
        better = stays & (ranks > best_rank[row])
        best[row[better]], best_rank[row[better]] = current[better], ranks[better]
        leaves = stays & (ranks >= leave * slope.logits.abs().amax(dim=1).clamp_min(1e-30))
        broken[row[leaves]] = True
        if last:
            break
        flat = no_direction(slope.gradient)
        if i == 0:
            # DLR, for one, is constant where the label has come third: an image that is wrong already needs no gradient
            zero = (flat & ~(ranks > 0))[:n]
        stays = stays & ~leaves
        count = int(stays.sum())
        if not count:
            break
        # a NaN must never reach a pixel
        gradient = torch.where(_wide(flat), 0.0, slope.gradient)
        current = steps.move(i, current, slope._replace(gradient=gradient), x)
        size = _size(count, x.device)
        if size < len(row):
            rows = stays.to(torch.uint8).argsort(descending=True, stable=True)[:size]
            steps.keep(rows)
            x, labels, row, current, stays = x[rows], labels[rows], row[rows], current[rows], stays[rows]
            targets = None if targets is None else targets[rows]
    return Found(best, zero, best_rank, broken)


def _size(count: int, device: torch.device) -> int:
    """How many rows ``count`` images take: on a GPU a power of two, for cuDNN prepares every layer anew for each size
    of a batch."""
    return 1 << (count - 1).bit_length() if count and _in_steps(device) else count


def _in_steps(device: torch.device) -> bool:
    return device.type == "cuda"


def _filled(count: int, device: torch.device) -> Tensor:
    """The positions of ``count`` images, and after them the first one's up to the size that they take."""
    rows = torch.arange(_size(count, device), device=device)
    return torch.where(rows < count, rows, 0)


def again(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    begin: Callable[[int, Tensor], tuple[Tensor, Tensor | None]],
    count: int,
    *,
    steps: Callable[[], Steps],
    loss: Loss,
    rank: Loss = margin,
    leave: float = LEAVE_MARGIN,
) -> Found:
    """:func:`ascend` up to ``count`` times from different points, on the images that still stand; of each image the
    worst version is kept.

    Few images are attacked from several points at once, for a network takes little longer over them. What comes out is
    the same: an image that fell is left as it was then.

    Args:
        model: as for :func:`ascend`.
        x: as for :func:`ascend`.
        labels: as for :func:`ascend`.
        begin: given the number of an attempt, from 0, and the positions of the images to attack, int64 (k,), their
            starts and, for a loss that takes them, their targets.
        count: most attempts, at least 1; they end early when no image stands.
        steps: what to do, fresh.
        loss: as for :func:`ascend`.
        rank: as for :func:`ascend`.
        leave: as for :func:`ascend`.
    """
    found: Found | None = None
    number = 0
    while number < count:
        rows = torch.arange(len(x), device=x.device)
        rows = rows if found is None else rows[~found.broken]
        if found is not None and not len(rows):
            break
        numbers = range(number, min(count, number + copies_at_once(x, len(rows))))
        begun = [begin(each, rows) for each in numbers]
        all_rows = rows.repeat(len(numbers))
        targets = [aims for _, aims in begun if aims is not None]
        other = ascend(
            model,
            x[all_rows],
            labels[all_rows],
            steps=steps(),
            loss=loss,
            start=torch.cat([start for start, _ in begun]),
            rank=rank,
            targets=torch.cat(targets) if targets else None,
            leave=leave,
        )
        for made in other.split(len(numbers)):
            found = made if found is None else merged(found, made, rows)
        number = numbers.stop
    assert found is not None
    return found


def merged(found: Found, made: Found, rows: Tensor) -> Found:
    """``found``, with what another attempt ``made`` of ``rows`` where the image still stood and the model is more wrong
    about it now."""
    stood = ~found.broken[rows]
    chosen = stood & (made.rank > found.rank[rows])
    x, rank, zero, broken = (t.clone() for t in (found.x, found.rank, found.zero_gradient, found.broken))
    x[rows[chosen]], rank[rows[chosen]] = made.x[chosen], made.rank[chosen]
    # without a gradient in every attempt: only then it was not attacked
    zero[rows[stood]] &= made.zero_gradient[stood]
    broken[rows[stood]] |= made.broken[stood]
    return Found(x, zero, rank, broken)


def _at(model: nn.Module, x: Tensor, labels: Tensor, loss: Loss, targets: Tensor | None, *, gradient: bool) -> Slope:
    if gradient:
        return input_gradient(model, x, labels, loss, targets=targets)
    with torch.no_grad():
        logits = model(x).float()
    return Slope(torch.empty(0), torch.empty(0), logits)


def _wide(values: Tensor) -> Tensor:
    """One value an image, against its pixels: (n,) to (n, 1, 1, 1)."""
    return values[:, None, None, None]
