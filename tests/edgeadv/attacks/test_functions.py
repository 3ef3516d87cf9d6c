"""The attacks against closed forms: on a linear model every gradient and every optimum can be written down."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeadv.attacks import (
    L2,
    NAMES,
    AutoSteps,
    Linf,
    apgd,
    apgd_targeted,
    ascend,
    build_attacks,
    cross_entropy,
    dlr,
    fgsm,
    input_gradient,
    margin,
    mi_fgsm,
    no_direction,
    pgd,
    rescaled_cross_entropy,
    targeted_dlr,
    targeted_margin,
    towards,
)
from edgeadv.attacks.losses import Slope
from edgeadv.attacks.norms import Box, ball
from edgeadv.models.builder import PixelModel
from edgeadv_runtime.attacks.base import Attack, Crafted, CumulativeAttack
from edgeadv_runtime.attacks.noise import NoiseAttack
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams
from edgeadv_runtime.records.suites import PER_INT8, SUITES, TRANSFER, Effort

SHAPE = (3, 6, 5)
SIZE = 3 * 6 * 5


class Linear(nn.Module):
    """Softmax regression on pixels; it keeps what it was asked."""

    def __init__(self, classes: int, *, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        torch.set_num_threads(1)
        rng = np.random.default_rng(seed)
        self.layer = nn.Linear(SIZE, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(rng.normal(size=(classes, SIZE))))
            self.layer.bias.copy_(torch.from_numpy(rng.normal(size=classes)))
        self.scale = scale
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.layer(x.flatten(1)) * self.scale

    @property
    def w(self) -> NDArray[np.float64]:
        return self.layer.weight.detach().double().numpy()

    def logits(self, x: Tensor) -> NDArray[np.float64]:
        return self.scale * (x.flatten(1).double().numpy() @ self.w.T + self.layer.bias.detach().double().numpy())


def images(n: int, seed: int = 1) -> Tensor:
    x = torch.from_numpy(np.random.default_rng(seed).random((n, *SHAPE), dtype=np.float32))
    # some pixels at the ends of the range, so that clipping shows
    x[:, 0, 0, 0], x[:, 1, 1, 1] = 0.0, 1.0
    return x


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ce_gradient(model: Linear, x: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """W^T (p - y), by hand."""
    p = softmax(model.logits(x)) - np.eye(len(model.w))[labels.numpy()]
    return model.scale * (p @ model.w).reshape(-1, *SHAPE)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3, 1.0])
def test_fgsm_is_its_closed_form(eps: float, targeted: bool) -> None:
    model, x, labels = Linear(7), images(9), torch.arange(9) % 7
    (result,) = fgsm(model, x, labels, eps=eps, targeted=targeted)
    sign = np.sign(ce_gradient(model, x, labels)) * (-1 if targeted else 1)
    expected = np.clip(x.numpy().astype(np.float64) + eps * sign, 0, 1)
    np.testing.assert_allclose(result.x.numpy(), expected, atol=1e-6)
    assert result.x.dtype == torch.float32
    assert not result.zero_gradient.any()
    # untargeted it goes up in the loss, targeted it goes down
    before, after = (cross_entropy(model(z), labels) for z in (x, result.x))
    assert ((after < before) if targeted else (after > before)).all()


def test_rescaled_fgsm_is_its_closed_form() -> None:
    """The scale is a constant: the gradient is W^T (softmax(z / max|z|) - y) / max|z|, by hand."""
    model, x, labels = Linear(7), images(9), torch.arange(9) % 7
    z = model.logits(x)
    p = softmax(z / np.abs(z).max(axis=1, keepdims=True)) - np.eye(7)[labels.numpy()]
    gradient = input_gradient(model, x, labels, rescaled_cross_entropy).gradient
    expected = (p / np.abs(z).max(axis=1, keepdims=True)) @ model.w
    np.testing.assert_allclose(gradient.flatten(1).numpy(), expected, atol=1e-5)


def test_the_losses_are_what_they_say() -> None:
    model, x, labels = Linear(5), images(8), torch.arange(8) % 5
    z = model.logits(x)
    rows = np.arange(8)
    logits = torch.from_numpy(z)
    np.testing.assert_allclose(cross_entropy(logits, labels).numpy(), -np.log(softmax(z)[rows, labels]), rtol=1e-9)
    scaled = z / np.abs(z).max(axis=1, keepdims=True)
    np.testing.assert_allclose(
        rescaled_cross_entropy(logits, labels).numpy(), -np.log(softmax(scaled)[rows, labels]), rtol=1e-9
    )
    wrong = z.copy()
    wrong[rows, labels] = -np.inf
    np.testing.assert_allclose(margin(logits, labels).numpy(), wrong.max(axis=1) - z[rows, labels], rtol=1e-9)


def test_dlr_by_hand() -> None:
    """Eq. 6 and 7 of Croce and Hein 2020, on logits whose order is easily seen."""
    logits = torch.tensor([[4.0, 1.0, 3.0, -2.0], [4.0, 1.0, 3.0, -2.0], [0.0, 9.0, 5.0, 7.0]])
    labels = torch.tensor([0, 3, 2])
    # right: -(4 - 3) / (4 - 1); wrong: (4 + 2) / (4 - 1), (9 - 5) / (9 - 5)
    np.testing.assert_allclose(dlr(logits, labels).numpy(), [-1 / 3, 2, 1], rtol=1e-6)
    # -(4 - 1) / (4 - (1 - 2) / 2), (3 + 2) / 4.5, (0 - 5) / (9 - (5 + 0) / 2)
    expected = [-3 / 4.5, 5 / 4.5, -5 / 6.5]
    np.testing.assert_allclose(targeted_dlr(logits, labels, torch.tensor([1, 2, 0])).numpy(), expected, rtol=1e-6)
    for loss in (dlr, lambda z, y: targeted_dlr(z, y, (y + 1) % 4)):
        torch.testing.assert_close(loss(logits * 1e5 + 7, labels), loss(logits, labels))
    assert torch.isfinite(dlr(torch.ones(1, 4), torch.tensor([0]))).all()
    np.testing.assert_allclose(targeted_margin(logits, labels, torch.tensor([1, 2, 0])).numpy(), [-3, 5, -5])
    with pytest.raises(InputError, match="at least 3 classes, not 2"):
        dlr(logits[:, :2], torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match="at least 4 classes, not 3"):
        targeted_dlr(logits[:, :3], torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))


def test_rescaled_logits_of_zero_are_left_alone() -> None:
    logits, labels = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3])
    losses = rescaled_cross_entropy(logits, labels)
    np.testing.assert_allclose(losses.detach().numpy(), np.log(4), rtol=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [cross_entropy, rescaled_cross_entropy, margin, dlr])
def test_an_images_gradient_does_not_depend_on_its_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, x, labels = Linear(5), images(7), torch.arange(7) % 5
    whole, losses, logits = input_gradient(model, x, labels, loss)
    for i in range(7):
        alone, own, _ = input_gradient(model, x[i : i + 1], labels[i : i + 1], loss)
        torch.testing.assert_close(alone[0], whole[i])
        torch.testing.assert_close(own[0], losses[i])
    np.testing.assert_allclose(logits.numpy(), model.logits(x), atol=1e-4)
    assert not any(t.requires_grad for t in (whole, losses, logits, x))


def test_several_budgets_use_one_gradient_and_keep_their_order() -> None:
    model, x, labels = Linear(4), images(3), torch.tensor([0, 1, 2])
    budgets = [0.1, 8 / 255, 1.0]
    results = fgsm(model, x, labels, eps=budgets)
    assert len(model.asked) == 1
    for budget, result in zip(budgets, results, strict=True):
        (alone,) = fgsm(model, x, labels, eps=budget)
        torch.testing.assert_close(result.x, alone.x, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [cross_entropy, rescaled_cross_entropy])
def test_the_originals_stay_as_they_are(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, x, labels = Linear(4), images(3), torch.tensor([0, 1, 2])
    before = x.clone()
    fgsm(model, x, labels, eps=0.1, loss=loss)
    pgd(model, x, labels, eps=0.1, loss=loss, start=torch.full_like(x, 0.05))
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("eps", [8 / 255, 0.3])
@pytest.mark.parametrize("loss", [margin, cross_entropy])
def test_pgd_reaches_the_closed_form_optimum_of_two_classes(
    loss: Callable[[Tensor, Tensor], Tensor], eps: float
) -> None:
    """Both losses rise with (w_other - w_own) x, so the best point of the ball is a corner."""
    model, x, labels = Linear(2, scale=0.1), images(6), torch.arange(6) % 2
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.uniform(-eps, eps, x.shape).astype(np.float32))
    for begin in (None, start):
        result = pgd(model, x, labels, eps=eps, loss=loss, start=begin, leave=math.inf)
        direction = np.sign(model.w[1 - labels.numpy()] - model.w[labels.numpy()]).reshape(x.shape)
        optimum = np.clip(x.numpy().astype(np.float64) + eps * direction, 0, 1)
        np.testing.assert_allclose(result.x.numpy(), optimum, atol=1e-6)
        assert not result.zero_gradient.any()


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("step_size", [None, 0.004, 0.5])
def test_pgd_stays_in_the_ball_and_keeps_the_best_iterate(steps: int, step_size: float | None) -> None:
    model, x, labels = Linear(6), images(8), torch.arange(8) % 6
    eps = 0.06
    start = torch.from_numpy(np.random.default_rng(3).uniform(-eps, eps, x.shape).astype(np.float32))

    # a loss that does not rise with the margin, so that the last iterate is not the best
    def wave(logits: Tensor, y: Tensor) -> Tensor:
        return torch.sin(5 * margin(logits, y))

    result = pgd(model, x, labels, eps=eps, steps=steps, step_size=step_size, loss=wave, start=start, leave=math.inf)
    assert len(model.asked) == steps + 1
    iterates = torch.stack(model.asked)
    assert float((iterates - x).abs().max()) <= eps + 1e-6
    assert float(iterates.min()) >= 0 and float(iterates.max()) <= 1
    margins = torch.stack([margin(model(z), labels) for z in iterates])
    best = margins.argmax(dim=0)
    torch.testing.assert_close(result.x, iterates[best, torch.arange(8)], rtol=0, atol=0)
    if steps == 20:
        assert (best < steps).any()
    torch.testing.assert_close(iterates[0], (x + start).clamp(0, 1))


def test_pgd_steps_as_madry_does() -> None:
    """2.5 * eps / steps unless told otherwise, along the sign of the gradient, from the start or the image."""
    model, x, labels = Linear(2), images(2), torch.tensor([0, 1])
    for step_size, expected in ((None, 2.5 * 0.1 / 10), (0.002, 0.002)):
        model.asked.clear()
        pgd(model, x, labels, eps=0.1, steps=10, step_size=step_size, leave=math.inf)
        torch.testing.assert_close(model.asked[0], x)
        inner = (model.asked[1] > 0) & (model.asked[1] < 1)
        moved = (model.asked[1] - model.asked[0]).abs()[inner]
        torch.testing.assert_close(moved, torch.full_like(moved, expected), atol=1e-6, rtol=0)


class Moody(Linear):
    """Linear, with a part whose gradient at a black first pixel is not finite, or that never has one."""

    def __init__(self, kind: str) -> None:
        super().__init__(4)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        first = x[:, 0, 0, :1]
        if self.kind == "nan":
            # 0 * inf at 0
            return z + torch.sqrt(first) * 0
        if self.kind == "inf":
            return z + torch.sqrt(first) * torch.tensor([1.0, 0.0, 0.0, 0.0])
        return torch.where(first == 0, z.detach(), z)


@pytest.mark.parametrize("kind", ["nan", "inf", "constant"])
def test_images_without_a_direction_are_flagged_and_left_alone(kind: str) -> None:
    model, x = Moody(kind), images(5)
    x[:, 0, 0, 0] = 0.5
    x[[1, 4], 0, 0, 0] = 0.0
    labels = model(x).argmax(dim=1)  # one that is wrong already needs no gradient
    flat = torch.tensor([False, True, False, False, True])
    for result in (
        *fgsm(model, x, labels, eps=[0.1, 0.5]),
        pgd(model, x, labels, eps=0.1, loss=cross_entropy, leave=math.inf),
    ):
        assert result.zero_gradient.tolist() == flat.tolist()
        torch.testing.assert_close(result.x[flat], x[flat], rtol=0, atol=0)
        assert ((result.x[~flat] - x[~flat]).abs().flatten(1).max(dim=1).values > 0.09).all()


def test_pgd_flags_what_had_no_direction_at_its_start_only() -> None:
    """An image that reaches a flat place was attacked: here its first pixel goes down to where there is no gradient."""
    model, x, labels = Moody("constant"), images(3), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        model.layer.weight[0, 0], model.layer.weight[1:, 0] = 5.0, -5.0
    x[:, 0, 0, 0] = torch.tensor([0.02, 0.0, 0.9])
    result = pgd(model, x, labels, eps=0.1, steps=20, leave=math.inf)
    assert result.zero_gradient.tolist() == [False, True, False]
    assert float(result.x[0, 0, 0, 0]) == 0
    assert float((result.x[0] - x[0]).abs().max()) > 0.005


def test_no_direction_by_hand() -> None:
    gradient = torch.zeros(5, 3, 2, 2)
    gradient[1, 0, 0, 0] = 1e-38
    gradient[2, 0, 0, 0], gradient[2, 1, 1, 1] = 1.0, float("nan")
    gradient[3, 2, 1, 0] = float("-inf")
    gradient[4] = -1.0
    assert no_direction(gradient).tolist() == [True, False, True, True, False]


def test_a_saturated_softmax_is_flagged_and_rescaling_or_the_margin_is_not_fooled() -> None:
    model, x = Linear(5, scale=1e5), images(20)
    labels = torch.from_numpy(model.logits(x).argmax(axis=1))
    (plain,) = fgsm(model, x, labels, eps=0.2)
    assert plain.zero_gradient.all()
    torch.testing.assert_close(plain.x, x, rtol=0, atol=0)
    (rescaled,) = fgsm(model, x, labels, eps=0.2, loss=rescaled_cross_entropy)
    strong = pgd(model, x, labels, eps=0.2, leave=math.inf)
    for result in (rescaled, strong):
        assert not result.zero_gradient.any()
        assert ((result.x - x).abs().flatten(1).max(dim=1).values > 0.19).all()
    # a wrong label does not saturate: its image still has a gradient
    (wrong,) = fgsm(model, x, (labels + 1) % 5, eps=0.2)
    assert not wrong.zero_gradient.any()


class Steady(nn.Module):
    """A network in double precision, its logits times ``scale``.

    Twenty signs in a row make much of the last digit of a float32; in double precision it plays no part.
    """

    def __init__(self, model: PixelModel, scale: float = 1.0) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).double()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.double()) * self.scale


@pytest.fixture(scope="module")
def steady(tiny_model: PixelModel) -> Steady:
    return Steady(tiny_model)


@pytest.mark.parametrize("scale", [1e-3, 1e5])
def test_the_size_of_the_logits_does_not_help(
    scale: float, tiny_model: PixelModel, steady: Steady, pixels: Tensor
) -> None:
    scaled = Steady(tiny_model, scale)
    labels = steady(pixels).argmax(dim=1)
    rescaled = [fgsm(model, pixels, labels, eps=8 / 255, loss=rescaled_cross_entropy)[0] for model in (steady, scaled)]
    assert same_share(rescaled[0].x, rescaled[1].x) > 0.999
    for attack in (pgd, apgd_targeted):
        found = [attack(model, pixels, labels, eps=8 / 255, steps=10).x for model in (steady, scaled)]
        assert same_share(*found) > 0.999
    # which cannot be said of plain FGSM
    plain = [fgsm(model, pixels, labels, eps=8 / 255)[0] for model in (steady, scaled)]
    assert same_share(plain[0].x, plain[1].x) < 0.999


def same_share(a: Tensor, b: Tensor) -> float:
    """Share of pixels that agree: a gradient within rounding of 0 may take either sign."""
    return float(((a - b).abs() < 1e-6).float().mean())


@pytest.fixture(scope="module")
def pixels(photographs: list[NDArray[np.uint8]]) -> Tensor:
    """Seven 32 x 32 cut-outs of photographs."""
    return torch.from_numpy(to_tensor(np.stack([frame[:32, :32] for frame in photographs[:7]])))


def modes(model: nn.Module) -> list[tuple[bool, list[bool]]]:
    return [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in model.modules()]


class Refuses(Linear):
    """Fails at its third image batch, and is half in training, half frozen."""

    def __init__(self) -> None:
        super().__init__(4)
        self.other = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
        self.other[0].eval()
        self.other[0].bias.requires_grad_(False)
        self.seen: list[list[tuple[bool, list[bool]]]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(modes(self))
        if len(self.seen) == 3:
            raise RuntimeError("out of memory")
        return super().forward(x)


def test_mode_and_requires_grad_come_back_even_after_an_error() -> None:
    model, x, labels = Refuses(), images(2), torch.tensor([0, 1])
    before = modes(model)
    assert [training for training, _ in before] == [True, True, True, False, True]
    fgsm(model, x, labels, eps=0.1)
    assert modes(model) == before
    with pytest.raises(RuntimeError, match="out of memory"):
        pgd(model, x, labels, eps=0.1)
    assert modes(model) == before
    # and while it was asked it was in evaluation mode, without gradients of its weights
    assert len(model.seen) == 3
    assert all(not training and not any(grads) for seen in model.seen for training, grads in seen)


def test_gradients_are_taken_where_the_caller_switched_them_off() -> None:
    model, x, labels = Linear(4), images(2), torch.tensor([0, 1])
    (expected,) = fgsm(model, x, labels, eps=0.1)
    with torch.no_grad():
        (result,) = fgsm(model, x, labels, eps=0.1)
        pgd(model, x, labels, eps=0.1, steps=2)
    torch.testing.assert_close(result.x, expected.x, rtol=0, atol=0)
    assert not result.x.requires_grad


@pytest.mark.parametrize("eps", [0, 0.0, -0.1, 1.0001, 8, float("nan"), float("inf")])
def test_a_budget_out_of_range_is_refused(eps: float) -> None:
    model, x, labels = Linear(4), images(2), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"eps must be in \(0, 1\]"):
        fgsm(model, x, labels, eps=eps)
    with pytest.raises(InputError, match=r"eps must be in \(0, 1\]"):
        fgsm(model, x, labels, eps=[0.1, eps])
    with pytest.raises(InputError, match=r"eps must be in \(0, 1\]"):
        pgd(model, x, labels, eps=eps)
    assert model.asked == []


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0, float("nan"), float("inf")])
def test_images_out_of_range_are_refused(value: float) -> None:
    x = images(2)
    x[1, 2, 3, 4] = value
    for attack in (
        lambda: fgsm(Linear(4), x, torch.tensor([0, 1]), eps=0.1),
        lambda: pgd(Linear(4), x, torch.tensor([0, 1]), eps=0.1),
    ):
        with pytest.raises(InputError, match=r"out of \[0, 1\]"):
            attack()


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (images(2)[0], torch.tensor([0, 1])),
        (images(2).double(), torch.tensor([0, 1])),
        ((images(2) * 255).to(torch.uint8), torch.tensor([0, 1])),
        (images(2), torch.tensor([0])),
        (images(2), torch.tensor([[0], [1]])),
    ],
    ids=["one image", "float64", "uint8", "too few labels", "labels of two axes"],
)
def test_what_is_no_batch_is_refused(x: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match=r"images are float32 \(n, 3, H, W\)"):
        fgsm(Linear(4), x, labels, eps=0.1)
    with pytest.raises(InputError, match=r"images are float32 \(n, 3, H, W\)"):
        pgd(Linear(4), x, labels, eps=0.1)


def test_pgd_takes_at_least_one_step() -> None:
    for steps in (0, -1):
        with pytest.raises(InputError, match="at least 1 step"):
            pgd(Linear(4), images(2), torch.tensor([0, 1]), eps=0.1, steps=steps)


# Balls


def test_l2_projection_is_its_closed_form() -> None:
    x = torch.full((3, *SHAPE), 0.5)
    delta = torch.from_numpy(np.random.default_rng(0).normal(size=x.shape).astype(np.float32))
    lengths = torch.tensor([0.05, 0.2, 3.0])[:, None, None, None]
    delta = delta / delta.flatten(1).norm(dim=1)[:, None, None, None] * lengths
    torch.testing.assert_close(L2(0.2).project(x + delta, x), x + delta * (0.2 / lengths).clamp_max(1))
    # with pixels at the ends of the range: still within both
    edge = images(3)
    made = L2(0.2).project(edge + delta, edge)
    assert float((made - edge).flatten(1).norm(dim=1).max()) <= 0.2 + 1e-6
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    torch.testing.assert_close(made, (edge + delta * (0.2 / lengths).clamp_max(1)).clamp(0, 1))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e20])
def test_the_steepest_direction_has_length_one(size: float) -> None:
    gradient = torch.from_numpy(np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)) * size
    gradient[3] = 0
    direction = L2(0.3).steepest(gradient)
    expected = gradient.double() / gradient.double().flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
    torch.testing.assert_close(direction, expected.float())
    torch.testing.assert_close(Linf(0.3).steepest(gradient), gradient.sign())


def test_random_points_are_even_in_their_ball() -> None:
    """L2: the d-th power of the length is even, and so is the direction; L-infinity: each pixel is."""
    from scipy import stats

    rng = np.random.default_rng(0)
    drawn = np.stack([L2(0.3).random(rng, (3, 1, 2)) for _ in range(4000)]).reshape(4000, 6).astype(np.float64)
    lengths = np.linalg.norm(drawn, axis=1)
    assert lengths.max() <= 0.3 + 1e-6
    assert stats.kstest((lengths / 0.3) ** 6, "uniform").pvalue > 1e-3
    # a coordinate of a point of the unit sphere in d dimensions, squared, is beta(1/2, (d - 1)/2)
    squares = (drawn / lengths[:, None]) ** 2
    assert all(stats.kstest(squares[:, k], stats.beta(0.5, 2.5).cdf).pvalue > 1e-3 for k in range(6))
    assert np.abs(np.sign(drawn).mean(axis=0)).max() < 4 / math.sqrt(4000)
    pixels = np.stack([Linf(0.3).random(rng, (3, 1, 2)) for _ in range(4000)])
    assert stats.kstest(pixels.ravel() / 0.6 + 0.5, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("around", [Linf(0.1), L2(0.4)])
def test_a_random_start_belongs_to_its_image(around: Linf | L2) -> None:
    x = images(5)
    whole = around.starts(x, seed=3)
    for i in (4, 1):
        torch.testing.assert_close(around.starts(x[i : i + 1], seed=3)[0], whole[i], rtol=0, atol=0)
    deltas = [whole - x, around.starts(x, seed=4) - x, around.starts(x, seed=3, restart=1) - x]
    # no two images, seeds or restarts have one in common
    rows = torch.cat(deltas).flatten(1)
    assert len({tuple(row.round(decimals=5).tolist()) for row in rows}) == 15
    torch.testing.assert_close(around.project(whole, x), whole, rtol=0, atol=1e-6)
    assert around.starts(x[:0], seed=3).shape == (0, *SHAPE)


# Auto-PGD


def test_apgd_looks_back_when_the_paper_says() -> None:
    """p = 0, 0.22, then p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), in steps rounded up."""
    by_hand = {
        # 0.22 + 0.19 + 0.16 + 0.13 + 0.10 + 0.07 + 0.06 + 0.06
        100: [22, 41, 57, 70, 80, 87, 93, 99],
        50: [11, 21, 29, 35, 40, 44, 47, 50],
        20: [5, 9, 12, 14, 16, 18, 19, 20],
        10: [3, 5, 6, 7, 8, 9, 10],
    }
    for count, expected in by_hand.items():
        assert sorted(AutoSteps(Linf(0.1), count).checkpoints) == expected


def algorithm_1(
    f: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    x: NDArray[np.float64],
    begin: NDArray[np.float64],
    eps: float,
    count: int,
    checkpoints: Sequence[int],
) -> tuple[list[NDArray[np.float64]], list[float]]:
    """The paper's Algorithm 1 on one image, line by line: where its steps begin and the last ends, and the size of
    each.

    Line 14 sets x_(k+1) to the best image so far; as in the authors' code, f of the iterate that it takes the place of
    is what the next one is compared with.
    """

    def project(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.clip(z, x - eps, x + eps), 0, 1)

    eta, w = 2 * eps, [0, *checkpoints]
    path = [begin, project(begin + eta * np.sign(f(begin)[1]))]
    values, etas = [f(z)[0] for z in path], [eta]
    best, x_best = max(values), path[int(np.argmax(values))]
    best_then, eta_then = values[0], math.inf
    for k in range(1, count):
        if k in w:
            j = w.index(k)
            rises = sum(values[i + 1] > values[i] for i in range(w[j - 1], k))
            stuck = eta_then == eta and best_then == best
            best_then, eta_then = best, eta
            if rises < 0.75 * (k - w[j - 1]) or stuck:
                eta, path[k] = eta / 2, x_best
        z = project(path[k] + eta * np.sign(f(path[k])[1]))
        path.append(project(path[k] + 0.75 * (z - path[k]) + 0.25 * (path[k] - path[k - 1])))
        values.append(f(path[-1])[0])
        etas.append(eta)
        if values[-1] > best:
            best, x_best = values[-1], path[-1]
    return path, etas


class Pixels(nn.Module):
    """The pixels as logits; ``exact`` are those of the last call, which the attack rounds to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        self.exact = x.flatten(1)
        return self.exact


@pytest.mark.parametrize("frequency", [3.0, 10.0, 30.0])
def test_apgd_is_algorithm_1(frequency: float) -> None:
    """Eight images at once, each with decisions of its own, on losses with more or fewer humps."""
    n, eps, count = 8, 0.3, 100
    rng = np.random.default_rng(1)
    x, weights, mixed = rng.random((n, 3, 1, 2)), rng.normal(size=(n, 6)), rng.normal(size=(n, 6, 6))
    phases = rng.uniform(0, 6, (n, 6))
    begin = np.clip(x + rng.uniform(-eps, eps, x.shape), 0, 1)

    model, sizes = Pixels(), list[Tensor]()

    def hump(_: Tensor, rows: Tensor) -> Tensor:
        w, m, p = (torch.from_numpy(values)[rows] for values in (weights, mixed, phases))
        return (w * torch.sin(frequency * torch.einsum("nij,nj->ni", m, model.exact) + p)).sum(dim=1)

    class Watched(AutoSteps):
        def move(self, *arguments: Any) -> Tensor:
            moved = super().move(*arguments)
            sizes.append(self.memory["step"].clone())
            return moved

    ascend(
        model,
        torch.from_numpy(x),
        torch.arange(n),
        steps=Watched(Linf(eps), count),
        loss=hump,
        start=torch.from_numpy(begin),
        rank=lambda z, _: z.sum(dim=1),
        leave=math.inf,
    )
    halved = []
    for i in range(n):

        def f(z: NDArray[np.float64], i: int = i) -> tuple[float, NDArray[np.float64]]:
            angle = frequency * mixed[i] @ z.ravel() + phases[i]
            slope = mixed[i].T @ (weights[i] * frequency * np.cos(angle))
            return float(weights[i] @ np.sin(angle)), slope.reshape(z.shape)

        path, etas = algorithm_1(f, x[i], begin[i], eps, count, sorted(AutoSteps(Linf(eps), count).checkpoints))
        np.testing.assert_allclose([float(size[i]) for size in sizes], etas, rtol=1e-12)
        np.testing.assert_allclose(model.asked[-1][i].numpy(), path[-1], atol=1e-9)
        halved.append(2 * eps / etas[-1])
    # each image at its own pace
    assert len(set(halved)) > 1


def test_apgd_halves_for_the_two_reasons_of_the_paper_only() -> None:
    """Told losses that were made up: which checkpoints halve the step follows from conditions 1 and 2 by hand."""

    def then(*rises: float) -> list[float]:
        return list(np.cumsum([0.0, *rises]))

    up = [1.0] * 100
    made_up = {
        "always rises": (then(*up), []),
        "never rises": (then(*[0.0] * 100), [22, 41, 57, 70, 80, 87, 93, 99]),
        # steps 42 to 57 are 16, of which 12 are 75%: not fewer
        "12 of 16 rise": (then(*up[:41], *([1, 1, 1, -0.5] * 4), *up[57:]), []),
        "11 of 16 rise": (then(*up[:41], *([1, 1, 1, -0.5] * 3), 1, 1, -0.5, -0.5, *up[57:]), [57]),
        # falls far and climbs without reaching its best again: condition 2, which does not hold twice running
        "below its best": (then(*up[:22], -200.0, *[0.1] * 77), [41, 70, 87, 99]),
    }
    losses = np.stack([values for values, _ in made_up.values()])
    n, x = len(made_up), torch.full((len(made_up), 3, 1, 1), 0.5)
    steps = AutoSteps(Linf(0.1), 100)
    halved: list[list[int]] = [[] for _ in range(n)]
    before = torch.zeros(n)
    for i in range(100):
        steps.move(i, x, Slope(torch.ones_like(x), torch.from_numpy(losses[:, i]), torch.zeros(n, 2)), x)
        now = steps.memory["step"]
        for k in torch.nonzero(now < before).squeeze(1).tolist():
            halved[k].append(i)
        before = now
    assert dict(zip(made_up, halved, strict=True)) == {name: expected for name, (_, expected) in made_up.items()}


def test_apgd_halves_its_step_where_nothing_is_gained() -> None:
    """A linear loss: the first step reaches the best corner, so at each checkpoint none of the steps since made
    progress."""
    model, eps = Pixels(), 0.1
    steps = AutoSteps(Linf(eps), 100)
    x = torch.full((1, 3, 1, 2), 0.5)
    found = ascend(
        model,
        x,
        torch.zeros(1, dtype=torch.long),
        steps=steps,
        loss=lambda z, _: z.sum(dim=1),
        start=x,
        leave=math.inf,
        rank=lambda z, _: z.sum(dim=1),
    )
    torch.testing.assert_close(found.x, x + eps)
    assert float(steps.memory["step"]) == pytest.approx(2 * eps / 2**8)


@pytest.mark.parametrize("loss", [cross_entropy, dlr])
def test_apgd_never_returns_less_than_it_began_with(
    loss: Callable[[Tensor, Tensor], Tensor], tiny_model: PixelModel, pixels: Tensor
) -> None:
    labels = tiny_model(pixels).argmax(dim=1)
    for norm, eps in (("linf", 4 / 255), ("l2", 0.5)):
        begin = (Linf(eps) if norm == "linf" else L2(eps)).starts(pixels, seed=0)
        made = apgd(tiny_model, pixels, labels, eps=eps, steps=10, loss=loss, norm=norm, leave=math.inf).x
        with torch.no_grad():
            clean, first, last = (margin(tiny_model(z), labels) for z in (pixels, begin, made))
        assert (last >= first).all() and (last > clean).all()


# Who leaves, who is attacked again, and towards what


@pytest.mark.parametrize(
    ("attack", "how"),
    [
        (pgd, {"eps": 0.03}),
        (pgd, {"eps": 0.25, "norm": "l2"}),
        (apgd, {"eps": 0.03}),
        (apgd, {"eps": 0.25, "norm": "l2"}),
        (mi_fgsm, {"eps": 0.03}),
    ],
    ids=["pgd", "pgd-l2", "apgd", "apgd-l2", "mi-fgsm"],
)
def test_an_image_leaves_once_it_is_clearly_broken(attack: Callable[..., Any], how: dict[str, Any]) -> None:
    model, x = Linear(6), images(40)
    labels = torch.from_numpy(model.logits(x).argmax(axis=1))
    labels[:3] = (labels[:3] + 1) % 6
    model.asked.clear()
    found = attack(model, x, labels, steps=10, **how)
    rows = [len(z) for z in model.asked]
    assert rows == sorted(rows, reverse=True) and rows[0] == 40 and 0 < rows[-1] < 37 and len(rows) == 11
    z = model.logits(found.x)
    own = z[np.arange(40), labels]
    wrong = np.where(np.eye(6)[labels] > 0, -np.inf, z).max(axis=1)
    share = (wrong - own) / np.abs(z).max(axis=1)
    # those who went, and nobody else, are wrong by a tenth
    assert (share >= 0.1 - 1e-5).sum() >= 40 - rows[-1]
    assert found.broken.numpy().tolist() == (share >= 0.1).tolist()
    np.testing.assert_allclose(found.rank.numpy(), wrong - own, atol=1e-4)
    # and they went at the first image that is that wrong, not at one that is more so: the mildest are only just
    assert share[share >= 0.1].min() < 0.3


def test_no_forward_pass_is_made_for_a_batch_that_is_broken() -> None:
    model, x = Linear(6), images(8)
    labels = torch.from_numpy((model.logits(x).argmax(axis=1) + 1) % 6)
    z = model.logits(x)
    clear = (z.max(axis=1) - z[np.arange(8), labels]) >= 0.1 * np.abs(z).max(axis=1)
    assert clear.sum() >= 5
    model.asked.clear()
    result = pgd(model, x[clear], labels[clear], eps=0.1, restarts=3)
    assert len(model.asked) == 1
    torch.testing.assert_close(result.x, x[clear], rtol=0, atol=0)


def test_only_what_stands_is_attacked_again() -> None:
    model, x = Linear(6), images(60)
    labels = torch.from_numpy(model.logits(x).argmax(axis=1))
    model.asked.clear()
    once = pgd(model, x, labels, eps=0.02, steps=4, seed=5)
    assert len(model.asked) == 5
    stand = ~once.broken
    assert 5 < int(stand.sum()) < 55
    model.asked.clear()
    again = pgd(model, x, labels, eps=0.02, steps=4, restarts=3, seed=5)
    begun = [z for z in model.asked[5:] if len(z) == int(stand.sum())]
    torch.testing.assert_close(begun[0], Linf(0.02).starts(x[stand], seed=5, restart=1), rtol=0, atol=0)
    # nobody comes back to the batch, and who was broken stays as it was
    assert max(len(z) for z in model.asked[5:]) == int(stand.sum())
    torch.testing.assert_close(again.x[~stand], once.x[~stand], rtol=0, atol=0)
    # of the others the worst version of all restarts
    assert (again.rank >= once.rank).all()
    np.testing.assert_allclose(margin(model(again.x), labels).detach().numpy(), again.rank.numpy(), atol=1e-4)


def test_apgd_t_moves_towards_the_classes_that_come_next() -> None:
    """Three classes, so the loss is a difference of two logits: each attempt ends in a corner that can be written
    down."""
    model, x, eps = Linear(3, scale=0.01), images(6), 0.004
    order = np.argsort(-model.logits(x), axis=1)
    labels = torch.from_numpy(order[:, 0].copy())
    model.asked.clear()
    found = apgd_targeted(model, x, labels, eps=eps, steps=30, targets=2)
    # one call for the order, and of few images both attempts of 31 calls at once
    assert [len(z) for z in model.asked] == [6, *[12] * 31] and not found.broken.any()
    reached = []
    for number, last in zip((1, 2), model.asked[31].chunk(2), strict=True):
        direction = np.sign(model.w[order[:, number]] - model.w[order[:, 0]]).reshape(x.shape)
        corner = np.clip(x.numpy().astype(np.float64) + eps * direction, 0, 1)
        np.testing.assert_allclose(last.numpy(), corner, atol=1e-6)
        reached.append(margin(model(last), labels))
    np.testing.assert_allclose(found.rank.numpy(), torch.stack(reached).max(dim=0).values.detach(), atol=1e-6)
    # no more attempts than there are wrong classes
    model.asked.clear()
    apgd_targeted(model, x, labels, eps=eps, steps=5, targets=9)
    assert [len(z) for z in model.asked] == [6, *[12] * 6]


@pytest.mark.parametrize("eps", [0.01, 0.02, 0.03])
def test_attempts_at_once_end_as_attempts_one_after_another(eps: float) -> None:
    model, x = Linear(6), images(80)
    labels = torch.from_numpy(model.logits(x).argmax(axis=1))
    for attack in (
        partial(pgd, steps=3, restarts=4, start=torch.zeros_like(x[:1])),
        partial(apgd_targeted, steps=6, targets=4),
    ):
        model.asked.clear()
        # 80 are too many to be attacked from several points at once
        whole = attack(model, x, labels, eps=eps)
        assert max(len(z) for z in model.asked) == 80 and 0 < int(whole.broken.sum()) < 80
        model.asked.clear()
        alone = [attack(model, x[i : i + 1], labels[i : i + 1], eps=eps) for i in range(80)]
        assert max(len(z) for z in model.asked) == 4
        torch.testing.assert_close(torch.cat([each.x for each in alone]), whole.x, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.cat([each.broken for each in alone]), whole.broken)
        torch.testing.assert_close(torch.cat([each.zero_gradient for each in alone]), whole.zero_gradient)


def test_targeted_dlr_raises_each_target() -> None:
    model, x = Linear(6), images(6)
    order = np.argsort(-model.logits(x), axis=1)
    labels = torch.from_numpy(order[:, 0].copy())
    for number in (1, 2, 3):
        target = torch.from_numpy(order[:, number].copy())
        ascend(
            model,
            x,
            labels,
            steps=AutoSteps(Linf(0.01), 20),
            loss=targeted_dlr,
            start=x,
            targets=target,
            leave=math.inf,
        )
        ahead = model.asked[-1]
        with torch.no_grad():
            gained = targeted_dlr(model(ahead), labels, target) - targeted_dlr(model(x), labels, target)
        assert (gained > 0).all()


def test_towards_a_target_broken_means_that_the_model_says_it() -> None:
    model, x = Linear(5), images(20)
    target = torch.full((20,), 3)
    found = pgd(model, x, target, eps=0.12, steps=10, targeted=True)
    z = model.logits(found.x)
    lead = z[:, 3] - np.delete(z, 3, axis=1).max(axis=1)
    assert found.broken.tolist() == (lead >= 0.1 * np.abs(z).max(axis=1)).tolist() and found.broken.any()
    np.testing.assert_allclose(found.rank.numpy(), lead, atol=1e-4)
    torch.testing.assert_close(towards(margin)(torch.from_numpy(z), target), torch.from_numpy(lead))


def test_a_batch_of_no_images_gives_none() -> None:
    x, y = images(0), np.empty(0, dtype=np.int64)
    for name in NAMES:
        attack = build(Linear(10), name)
        made = attack.craft(x.numpy(), y)
        assert [crafted.x.shape for crafted in made] == [(0, *SHAPE)] * len(attack.eps)


# The attacks as the evaluation runs them.

EPS = Eps.parse_list("2/255,8/255")
QUICK = {name: Effort(steps=5, restarts=2, targets=2) for name in NAMES}


def build(model: nn.Module, name: str, *, classes: int = 10, target: int | None = None) -> Attack:
    (attack,) = build_attacks(
        model, EPS, efforts={name: QUICK[name]}, classes=classes, gradients_sha256="a" * 64, target=target
    )
    return attack


def run(attack: Attack, x: NDArray[np.float32], y: NDArray[np.int64], size: int) -> list[Crafted]:
    parts = [attack.craft(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    joined = []
    for k in range(len(attack.eps)):
        flags = [part[k].zero_gradient for part in parts]
        assert all(f is not None for f in flags)
        joined.append(Crafted(np.concatenate([part[k].x for part in parts]), np.concatenate(flags)))  # type: ignore[arg-type]
    return joined


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_the_batch_does_not_matter(name: str, steady: Steady, pixels: Tensor) -> None:
    """One image, three or seven: also where BatchNorm would couple them, and for the random start."""
    attack = build(copy.deepcopy(steady).train(), name)
    x = pixels.numpy()
    y = steady(pixels).argmax(dim=1).numpy()
    whole = run(attack, x, y, 7)
    for size in (1, 3):
        for a, b in zip(whole, run(attack, x, y, size), strict=True):
            assert same_share(torch.from_numpy(a.x), torch.from_numpy(b.x)) > 0.999, size
            np.testing.assert_array_equal(a.zero_gradient, b.zero_gradient)
    # and the order of the images does not either
    turned = run(attack, x[::-1].copy(), y[::-1].copy(), 7)
    assert same_share(torch.from_numpy(whole[-1].x), torch.from_numpy(turned[-1].x[::-1].copy())) > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_keeps_to_its_budgets(name: str, tiny_model: PixelModel, pixels: Tensor) -> None:
    attack = build(tiny_model, name)
    x = pixels.numpy()
    assert (attack.name, attack.gradients, attack.gradients_sha256) == (name, "torch fp32", "a" * 64)
    assert attack.queried is None and attack.control == (name == "pgd-large-eps")
    y = tiny_model.eval()(pixels).argmax(dim=1).numpy()
    made = attack.craft(x, y)
    assert [eps.text for eps in attack.eps] == (["1"] if attack.control else ["2/255", "8/255"])
    for eps, crafted in zip(attack.eps, made, strict=True):
        assert crafted.x.shape == x.shape and crafted.x.dtype == np.float32
        assert crafted.x.min() >= 0 and crafted.x.max() <= 1
        delta = (crafted.x - x).reshape(len(x), -1)
        moved = np.linalg.norm(delta, axis=1) if name == "pgd-l2" else np.abs(delta).max(axis=1)
        assert moved.max() <= eps.value + 1e-6 and moved.min() > 0
        assert crafted.zero_gradient is not None and crafted.zero_gradient.tolist() == [False] * 7


def test_one_step_from_a_random_point() -> None:
    """fgsm-rs on a linear model: start within eps / 2, one step of eps, back into the ball."""
    model, x = Linear(2, scale=0.05), images(3)
    labels = torch.from_numpy(model.logits(x).argmax(axis=1))
    sign = np.sign(model.w[1 - labels.numpy()] - model.w[labels.numpy()]).reshape(x.shape)
    attack = build(model, "fgsm-rs", classes=2)
    for eps, crafted in zip(EPS, attack.craft(x.numpy(), labels.numpy()), strict=True):
        begin = Linf(eps.value / 2).starts(x, seed=0).numpy()
        expected = np.clip(
            begin + eps.value * sign, np.maximum(x.numpy() - eps.value, 0), np.minimum(x.numpy() + eps.value, 1)
        )
        np.testing.assert_allclose(crafted.x, expected, atol=1e-6)


def test_pgd_on_either_loss_begins_at_the_same_point(tiny_model: PixelModel, pixels: Tensor) -> None:
    """The verdict compares them image by image: nothing but the loss may differ."""
    y = tiny_model.eval()(pixels).argmax(dim=1).numpy()
    seen: dict[str, Tensor] = {}
    for name in ("pgd-ce", "pgd-margin"):
        asked: list[Tensor] = []
        hook = tiny_model.register_forward_pre_hook(lambda _, arguments, to=asked: to.append(arguments[0].detach()))
        build(tiny_model, name).craft(pixels.numpy(), y)
        hook.remove()
        seen[name] = asked[0]
    torch.testing.assert_close(seen["pgd-ce"], seen["pgd-margin"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fgsm", "fgsm-rescaled"])
def test_a_target_is_moved_towards(name: str) -> None:
    model, x = Linear(5), images(6)
    y = np.arange(6) % 5
    attack = build(model, name, classes=5, target=3)
    made = attack.craft(x.numpy(), y)[-1]
    target = torch.full((6,), 3)
    with torch.no_grad():
        before, after = (margin(model(z), target) for z in (x, torch.from_numpy(made.x)))
    own = torch.from_numpy(y == 3)
    assert (after < before)[(before > 0) & ~own].all()
    assert attack.params(EPS[0]).target == "3"
    # towards its own class an image would only be confirmed: it is left, and counted as not attacked
    assert made.zero_gradient is not None and made.zero_gradient.tolist() == own.tolist()
    assert np.array_equal(made.x[y == 3], x.numpy()[y == 3])


def test_what_looks_for_the_worst_case_takes_no_target(tiny_model: PixelModel) -> None:
    by_name = {
        a.name: a.params(EPS[0]).target
        for a in build_attacks(tiny_model, EPS, efforts=SUITES["standard"], classes=10, gradients_sha256=None, target=3)
    }
    assert {name for name, target in by_name.items() if target is not None} == {"fgsm", "fgsm-rescaled"}


def test_attacks_that_no_rule_compares_run_on_what_stands(tiny_model: PixelModel) -> None:
    def adding(efforts: Mapping[str, Effort], **options: Any) -> set[str]:
        made = build_attacks(tiny_model, EPS, efforts=efforts, classes=10, gradients_sha256=None, **options)
        return {attack.name for attack in made if isinstance(attack, CumulativeAttack) and not attack.control}

    rest = {"mi-fgsm", "apgd-t", "pgd-smoothed"}
    assert adding(SUITES["standard"]) == {"apgd-ce", "apgd-dlr", *rest}
    # where nobody attacks an artefact by its own gradients, it meets all that APGD makes
    assert adding(SUITES["standard"], everywhere=True) == rest
    # APGD on both losses is compared where PGD on both does not run
    assert adding({name: Effort(steps=2) for name in ("pgd-ce", "apgd-ce", "apgd-dlr")}) == set()
    # what fell on the reference may stand on an artefact
    own = {name: Effort(steps=2) for name in PER_INT8}
    assert adding(own, suffix="@int8-s8s8") == set()
    assert adding({TRANSFER: Effort(steps=2)}, suffix="@0a1b2c3d") == {"transfer@0a1b2c3d"}


def test_parameters_are_told_as_they_are_run(tiny_model: PixelModel) -> None:
    attacks = build_attacks(tiny_model, EPS, efforts=SUITES["full"], classes=10, gradients_sha256=None)
    told = {attack.name: attack.params(EPS[1]) for attack in attacks}
    assert set(told) == {name for name in SUITES["full"] if name not in ("noise", "square")}
    assert told["fgsm"] == AttackParams(norm="linf", loss="cross-entropy", steps=1, step_size="8/255", restarts=1)
    assert told["fgsm-rescaled"].loss == "cross-entropy of logits / max|logit|"
    assert told["fgsm-rs"] == AttackParams(
        norm="linf", loss="cross-entropy", steps=1, step_size="8/255", restarts=1, seed=0
    )
    assert told["pgd-margin"] == AttackParams(
        norm="linf", loss="logit margin", steps=100, step_size="2.5*8/255/100", restarts=5, seed=0
    )
    assert told["apgd-t"] == AttackParams(
        norm="linf", loss="targeted DLR", steps=100, step_size="2*8/255, halved by APGD's schedule", restarts=9, seed=0
    )


@pytest.mark.parametrize(("classes", "losses"), [(2, ("logit margin", "logit margin")), (3, ("DLR", "logit margin"))])
def test_with_few_classes_the_margin_takes_the_place_of_dlr_and_is_told(classes: int, losses: tuple[str, str]) -> None:
    model, x = Linear(classes, scale=0.1), images(4)
    y = model.logits(x).argmax(axis=1)
    for name, said in zip(("apgd-dlr", "apgd-t"), losses, strict=True):
        attack = build(model, name, classes=classes)
        assert attack.params(EPS[1]).loss == said
        (_, made) = attack.craft(x.numpy(), y)
        with torch.no_grad():
            assert (
                margin(model(torch.from_numpy(made.x)), torch.from_numpy(y)) > margin(model(x), torch.from_numpy(y))
            ).all()


@pytest.mark.parametrize("names", [["fgsm", "pdg"], ["FGSM"], []])
def test_an_unknown_attack_is_named(tiny_model: PixelModel, names: Sequence[str]) -> None:
    with pytest.raises(
        InputError, match=rf"unknown attack ({names[-1] if names else 'none'}|.none.): choose from fgsm"
    ):
        build_attacks(tiny_model, EPS, efforts=dict.fromkeys(names, Effort()), classes=10, gradients_sha256=None)


def test_fgsm_attack_is_fgsm(tiny_model: PixelModel, pixels: Tensor) -> None:
    labels = torch.arange(7)
    for name, loss in (("fgsm", cross_entropy), ("fgsm-rescaled", rescaled_cross_entropy)):
        made = build(tiny_model, name).craft(pixels.numpy(), labels.numpy())
        expected = fgsm(tiny_model, pixels, labels, eps=[eps.value for eps in EPS], loss=loss)
        for a, b in zip(made, expected, strict=True):
            assert same_share(torch.from_numpy(a.x), b.x) > 0.999


def test_noise_is_not_the_start_of_pgd(tiny_model: PixelModel) -> None:
    """It would be no evidence: PGD keeps its start where nothing better comes."""
    x = images(4)
    drawn = NoiseAttack([EPS[1]]).craft(x.numpy(), np.zeros(4, np.int64))[0].x - x.numpy()
    for restart in range(3):
        begun = (ball("linf", EPS[1].value).starts(x, seed=0, restart=restart) - x).numpy()
        assert abs(np.corrcoef(drawn.ravel(), begun.ravel())[0, 1]) < 0.1


def test_a_box_has_its_own_ends_for_every_number() -> None:
    lower, upper = (
        torch.tensor([[-1.0, 0.2, 0.5]]).reshape(1, 1, 1, 3),
        torch.tensor([[3.0, 0.2, 0.6]]).reshape(1, 1, 1, 3),
    )
    box, x = Box(lower, upper), torch.zeros(4, 1, 1, 3)
    assert box.project(x + 9, x).equal(upper.expand_as(x)) and box.project(x - 9, x).equal(lower.expand_as(x))
    # half a side in the direction of the gradient, so that one step from the middle reaches the end
    torch.testing.assert_close((lower + upper) / 2 + box.steepest(torch.tensor([1.0, 1.0, 1.0])), upper)
    starts = box.starts(torch.zeros(500, 1, 1, 3), seed=0)
    assert bool(((starts >= lower) & (starts <= upper)).all())
    assert starts[..., 0].min() < -0.9 and starts[..., 0].max() > 2.9
    assert not starts.equal(box.starts(torch.zeros(500, 1, 1, 3), seed=0, restart=1))
