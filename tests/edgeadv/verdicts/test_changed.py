"""The masking verdict on a trained network of which something was changed: probabilities, chance, gradients that lie or
are absent must be found, and faint changes must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeadv.models.builder import PixelModel
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import (
    FGSM,
    FGSM_RANDOM_START,
    FGSM_RESCALED,
    NOISE,
    PGD_CE,
    PGD_MARGIN,
)
from tests.edgeadv.verdicts.measuring import (
    EFFORTS,
    EPS,
    Changed,
    Measured,
    N,
)

pytestmark = pytest.mark.slow


def test_probabilities_for_logits_are_suspect(
    simple: Measured, undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    softmax = Changed(undefended_cnn, logits=partial(torch.softmax, dim=1))
    measured = measure(softmax, "undefended cnn with a softmax", eps=EPS[:1])
    assert measured.clean == simple.clean
    assert ("probabilities", "SUSPECT") in measured.found
    assert measured.verdict != "PASS"


@pytest.mark.parametrize(
    "images",
    [partial(functional.dropout, p=0.1, training=True), lambda x: x + 0.05 * torch.randn_like(x)],
    ids=["dropout", "noise"],
)
def test_a_network_that_throws_dice_is_found(
    images: Callable[[Tensor], Tensor], undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    torch.manual_seed(0)
    measured = measure(Changed(undefended_cnn, images=images), "cnn at random", eps=EPS[:1])
    assert ("unstable", "MASKED") in measured.found
    assert measured.verdict == "MASKED"


# Gradients that are there and lie: each rule fires on a network that does, and is silent on one that does so little


def waves(x: Tensor) -> Tensor:
    """A wave of each class along a random direction, far shorter than any budget."""
    size = x[0].numel()
    w = torch.randn(size, 10, generator=torch.Generator().manual_seed(0)) / size**0.5
    return torch.sin(3000 * x.flatten(1) @ w)


class Waved(nn.Module):
    """A network with waves on its logits: at 0.3 their slope is a hundred times its own, and they change no
    decision."""

    def __init__(self, model: nn.Module, amplitude: float) -> None:
        super().__init__()
        self.model, self.amplitude = model, amplitude

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + self.amplitude * waves(x)


LYING_EPS = (Eps.parse("0.05"),)


@pytest.fixture(scope="module")
def lying(undefended_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(Waved(undefended_cnn, 0.3), "cnn under waves", eps=LYING_EPS, other=undefended_cnn)


@pytest.fixture(scope="module")
def faint(undefended_cnn: PixelModel, measure: Callable[..., Measured]) -> Measured:
    return measure(Waved(undefended_cnn, 1e-4), "cnn under faint waves", eps=LYING_EPS, other=undefended_cnn)


@pytest.mark.parametrize("rule", ["linearity", "progress", "noise", "transfer"])
def test_a_lying_gradient_is_found_and_a_faint_lie_is_none(rule: str, lying: Measured, faint: Measured) -> None:
    assert lying.verdict == "MASKED" and faint.verdict == "PASS"
    assert rule in {name for name, _ in lying.found}
    # a restart more may find an image more
    assert faint.lower_bound(rule) <= 0.005
    # its own gradients leave far more standing than images of the network without the waves
    assert lying.standing[PGD_MARGIN, "0.05"] > faint.standing[PGD_MARGIN, "0.05"] + 0.05 * N


@pytest.mark.parametrize(("amplitude", "finding"), [(0.02, True), (0.0005, False)])
def test_gradients_of_the_surroundings_see_through_shattered_ones(
    amplitude: float, finding: bool, undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    shattered = Changed(undefended_cnn, images=lambda x: x + amplitude * torch.sin(250 * x))
    measured = measure(shattered, f"cnn, pixels in waves of {amplitude}", eps=EPS[:1])
    assert ("smoothed" in {name for name, _ in measured.found}) == finding
    assert (measured.verdict == "PASS") == (not finding)


@pytest.mark.parametrize("levels", [4, 100_000])
def test_without_a_path_for_gradients_queries_tell(
    levels: int, undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    """Comparisons have none: zero gradients end MASKED, and Square finds what they left."""
    coarse = Changed(undefended_cnn, images=lambda x: torch.round(x * levels) / levels)
    measured = measure(coarse, f"cnn, {levels} levels", eps=Eps.parse_list("0.2"))
    assert {("zero-gradient", "MASKED"), ("linearity", "MASKED")} <= measured.found and measured.verdict == "MASKED"
    assert "query" in {name for name, _ in measured.found}
    assert measured.worst["0.2"] < measured.standing[PGD_MARGIN, "0.2"] - 0.1 * N


def test_gradients_of_a_random_network_are_averaged(
    undefended_cnn: PixelModel, measure: Callable[..., Measured]
) -> None:
    """The mean of ten draws breaks what single ones leave; the verdict still says that figures depend on the throw."""
    torch.manual_seed(0)
    noisy = Changed(undefended_cnn, images=lambda x: x + 0.3 * torch.randn_like(x))
    few = {name: replace(effort, steps=min(effort.steps, 4)) for name, effort in EFFORTS.items()}
    single = measure(noisy, "cnn in noise, one draw", eps=EPS[:1], efforts=few)
    averaged = measure(noisy, "cnn in noise, ten draws", eps=EPS[:1], draws=10, efforts=few)
    assert averaged.standing[FGSM, "0.1"] < single.standing[FGSM, "0.1"]
    assert averaged.verdict == "MASKED" and ("unstable", "MASKED") in averaged.found


def test_what_is_measured_does_not_depend_on_what_else_runs(
    undefended_cnn: PixelModel, simple: Measured, measure: Callable[..., Measured]
) -> None:
    """One budget alone gives the figures that it gives among three."""
    alone = measure(undefended_cnn, "undefended cnn, eps 0.1 alone", eps=EPS[:1])
    for name in (FGSM, FGSM_RESCALED, FGSM_RANDOM_START, PGD_CE, PGD_MARGIN, NOISE):
        np.testing.assert_array_equal(alone.images[name, "0.1"], simple.images[name, "0.1"])
    assert alone.worst["0.1"] == simple.worst["0.1"]
