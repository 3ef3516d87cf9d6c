"""Patches by gradients, against the optimum that a linear network has in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks.pack_writer import clean_batches
from edgeadv.attacks.patch import PatchAttack
from edgeadv.backends.pytorch import TorchBackend
from edgeadv.data.datasets import ImageSet, balanced_subset
from edgeadv.workflows.patching import STEPS
from edgeadv_runtime import Bundle
from edgeadv_runtime.attacks.base import Attack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.patch_controls import CONTROLS, PatchControl
from edgeadv_runtime.attacks.patches import drawn_places, patch_shape
from edgeadv_runtime.attacks.perturbation import check_crafted
from edgeadv_runtime.bundle.batches import DataInfo
from edgeadv_runtime.evaluation.loop import evaluate
from edgeadv_runtime.records.eps import Eps

AREA = Eps.parse("10%", norm="area")
SIDE = 12


class Linear(nn.Module):
    """Two classes; label 0 is right by so much that no patch breaks it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * SIDE * SIDE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight - 1000
        return torch.stack([-margin / 2, margin / 2], dim=1)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).random((5, 3, SIDE, SIDE), dtype=np.float32), np.zeros(5, dtype=np.int64)


def optimum(model: Linear, x: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """The largest margin with anything in the covered pixels: 1 where the weight is positive, else 0."""
    weight = model.weight.detach().numpy().reshape(3, SIDE, SIDE)
    best = np.where(covered, (weight > 0).astype(np.float32), x)
    return (best * weight).sum(axis=(1, 2, 3)) - 1000


@pytest.mark.parametrize("kind", ["square", "round"])
def test_the_best_content_at_the_worst_place_is_found(images: tuple[np.ndarray, np.ndarray], kind: str) -> None:
    model, (x, y) = Linear(), images
    shape = patch_shape(AREA, SIDE, SIDE, kind)
    (made,) = PatchAttack(model, None, [AREA], steps=20, shape=kind).craft(x, y)
    check_crafted(made.x, x, "patch", AREA, norm="area")
    logits = model(torch.from_numpy(made.x)).detach().numpy()
    every = np.stack([optimum(model, x, shape.at(place)) for place in shape.places()])
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], every.max(axis=0), rtol=1e-6)
    assert not made.zero_gradient.any()


def test_at_a_random_place_it_is_the_images_own(images: tuple[np.ndarray, np.ndarray]) -> None:
    model, (x, y) = Linear(), images
    shape = patch_shape(AREA, SIDE, SIDE)
    (made,) = PatchAttack(model, None, [AREA], steps=20, place="random").craft(x, y)
    places = shape.places()
    for i, number in enumerate(drawn_places(x, places)):
        changed = (made.x[i] != x[i]).any(axis=0)
        assert not (changed & ~shape.at(places[number])).any() and changed.any()
    logits = model(torch.from_numpy(made.x)).detach().numpy()
    best = [optimum(model, x[i : i + 1], shape.at(places[k]))[0] for i, k in enumerate(drawn_places(x, places))]
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], best, rtol=1e-6)


def test_an_image_does_not_notice_its_batch(images: tuple[np.ndarray, np.ndarray]) -> None:
    attack, (x, y) = PatchAttack(Linear(), None, [AREA], steps=5), images
    np.testing.assert_array_equal(attack.craft(x, y)[0].x[2:4], attack.craft(x[2:4], y[2:4])[0].x)


class Misled(torch.autograd.Function):
    """A network's logits, and a gradient that is drawn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module, drawn: torch.Generator) -> Tensor:
        ctx.drawn = drawn
        with torch.no_grad():
            return model(x)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> Any:
        return torch.randn(given.shape[0], 3, 32, 32, generator=ctx.drawn), None, None


class RandomGradients(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.drawn = model, torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return Misled.apply(x, self.model, self.drawn)


@pytest.mark.parametrize(("misled", "verdict"), [(True, "SUSPECT"), (False, "UNCHECKED")])
def test_a_patch_of_random_gradients_is_suspect(
    misled: bool, verdict: str, digits_bundle: Bundle, digits_test: ImageSet
) -> None:
    area = Eps.parse("15%", norm="area")
    reference = TorchBackend(digits_bundle, variant="fp32", device=torch.device("cpu"))
    attacks: list[Attack] = [
        PatchAttack(
            RandomGradients(reference.model) if misled else reference.model,
            reference.gradients_sha256,
            [area],
            STEPS,
            place="random",
        ),
        *(PatchControl(kind, [area], reference, place="random", draws=STEPS + 1) for kind in CONTROLS),
    ]
    images = clean_batches(digits_test, digits_bundle, balanced_subset(digits_test.labels, 80), unreadable=[])
    data = DataInfo("mnist5k", "test", 80, allow_training_images=True)
    made = craft(images, attacks, reference, uint8=False)
    results = evaluate(digits_bundle, made, infos=infos(attacks, uint8=False), data=data, backends=[reference])
    assert results.masking.verdict == verdict
    left = {row.attack: row.correct_top1 for row in results.rows}
    assert left["patch"] < 0.9 * left["clean"] if misled else left["patch"] < 0.3 * left["patch-noise"]
