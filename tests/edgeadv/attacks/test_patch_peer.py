"""Patches beside those of ART's AdversarialPatchPyTorch: same network, images, area and steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeadv.attacks.patch import PatchAttack
from edgeadv.attacks.universal_patch import DEGREES, LARGEST, SMALLEST, universal_patch
from edgeadv.data.datasets import ImageSet
from edgeadv.models.builder import PixelModel
from edgeadv_runtime.attacks.patches import Shape, patch_shape
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.records.eps import Eps

pytestmark = pytest.mark.slow
AREA = Eps.parse("12%", norm="area")
PASSES = 20
# points of accuracy by which ours may be weaker
SLACK = 0.02


def images(data: ImageSet, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chosen = np.random.default_rng(0).permutation(len(data))[:count]
    pixels = np.stack([data.preprocess(data.image(int(i))) for i in chosen])
    return to_tensor(pixels), data.labels[chosen]


def left(model: PixelModel, x: NDArray[np.float32], y: NDArray[np.int64], shape: Shape, content: NDArray) -> float:
    """Accuracy under one content, over all places of the grid."""
    h, w = shape.mask.shape
    hits = []
    for row, column in shape.places():
        covered = x.copy()
        covered[:, :, row : row + h, column : column + w] = content
        with torch.no_grad():
            hits.append((model(torch.from_numpy(covered)).argmax(dim=1).numpy() == y).mean())
    return float(np.mean(hits))


def art_classifier(model: PixelModel, shape: tuple[int, ...]) -> object:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def art_patch(classifier: object, side: int, **more: object) -> object:
    from art.attacks.evasion import AdversarialPatchPyTorch

    whole = 32
    # its scale is of the picture's side, and its patch is enlarged to that first
    settings = {
        "rotation_max": DEGREES,
        "scale_min": SMALLEST * side / whole,
        "scale_max": LARGEST * side / whole,
        "learning_rate": 0.05,
        "max_iter": PASSES,
        "batch_size": 64,
        "patch_shape": (3, side, side),
        "patch_type": "square",
        "optimizer": "Adam",
        "targeted": False,
        "verbose": False,
    }
    return AdversarialPatchPyTorch(classifier, **{**settings, **more})


def test_one_for_all_is_as_strong(digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet) -> None:
    x, y = images(digits_train, 256)
    shape = patch_shape(AREA, *x.shape[2:])
    new_x, new_y = images(digits_test, 300)
    mine, other = [], []
    for seed in (0, 1):
        asked = torch.from_numpy(x), torch.from_numpy(y), shape
        ours = universal_patch(digits_model, *asked, passes=PASSES, seed=seed).numpy()
        torch.manual_seed(seed)
        attack = art_patch(art_classifier(digits_model, x.shape[1:]), len(shape.mask))
        theirs, _ = attack.generate(x=x, y=np.eye(10, dtype=np.float32)[y])  # type: ignore[attr-defined]
        assert theirs.shape == ours.shape and theirs.min() >= 0 and theirs.max() <= 1
        mine.append(left(digits_model, new_x, new_y, shape, ours))
        other.append(left(digits_model, new_x, new_y, shape, theirs))
    assert np.mean(mine) <= np.mean(other) + SLACK, (mine, other)
    # and both found something
    assert np.mean(mine) < left(digits_model, new_x, new_y, shape, np.full_like(ours, 0.5)) - 0.1


def test_one_for_each_image_is_as_strong(digits_model: PixelModel, digits_test: ImageSet) -> None:
    x, y = images(digits_test, 20)
    shape = patch_shape(AREA, *x.shape[2:])
    h, w = shape.mask.shape
    place = shape.places()[4]
    (made,) = PatchAttack(digits_model, None, [AREA], steps=PASSES).craft(x, y)
    with torch.no_grad():
        mine = float((digits_model(torch.from_numpy(made.x)).argmax(dim=1).numpy() == y).mean())
    hits = []
    classifier = art_classifier(digits_model, x.shape[1:])
    for image, label in zip(x, y, strict=True):
        attack = art_patch(
            classifier, h, patch_location=place, rotation_max=0.0, batch_size=1, scale_min=h / 32, scale_max=h / 31
        )
        content, _ = attack.generate(x=image[None], y=np.eye(10, dtype=np.float32)[[label]])  # type: ignore[attr-defined]
        covered = image.copy()
        covered[:, place[0] : place[0] + h, place[1] : place[1] + w] = content
        with torch.no_grad():
            hits.append(int(digits_model(torch.from_numpy(covered[None])).argmax()) == label)
    # theirs has one place; ours has nine to choose from, that one among them
    assert mine <= float(np.mean(hits)) + SLACK
