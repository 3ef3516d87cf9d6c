"""A network of our own with one input channel and no square: exported in every variant, attacked by its gradients and
by queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadv.attacks.functions import fgsm, pgd
from edgeadv.data.datasets import ImageSet, batches
from edgeadv.models.builder import Architecture, PixelModel
from edgeadv.models.checks import check_input_size
from edgeadv_export import Int8Plan, Origin, choose_calibration, data_frames, export_bundle
from edgeadv_runtime import Bundle, Classifier, Eps, OnnxRuntimeBackend, Preprocess, SquareAttack
from edgeadv_runtime.attacks.base import CleanBatch
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import VARIANTS
from edgeadv_runtime.errors import ExportError, InputError

STEPS = Preprocess.parse("letterbox=24x40,fill=0,color=gray")


class OneChannel(nn.Module):
    """Two convolutions on one channel, and a linear layer that wants 24 x 40 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24 * 6 * 10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def model(digits_train: ImageSet) -> PixelModel:
    """After a few seconds of training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture = Architecture(name="one-channel", source="timm", num_classes=10, mean=(0.2,), std=(0.4,))
        model = PixelModel(OneChannel(), architecture)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        everything = next(batches(digits_train, STEPS, batch_size=len(digits_train)))
        x, y = torch.from_numpy(to_tensor(everything.pixels)), torch.from_numpy(everything.labels)
        for _ in range(4):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, model: PixelModel, digits_train: ImageSet, digits_test: ImageSet
) -> Bundle:
    calibration = choose_calibration(digits_train, STEPS, count=64)
    return export_bundle(
        model,
        tmp_path_factory.mktemp("bundles") / "one.edgeadv",
        classes=digits_test.classes,
        preprocess=STEPS,
        frames=data_frames(digits_test),
        variants=VARIANTS,
        origin=Origin(title="one channel", provenance={}),
        int8=Int8Plan(calibration=calibration, images=digits_test, order=np.arange(300), max_drop=5.0),
    )


@pytest.fixture(scope="module")
def test_batch(digits_test: ImageSet) -> CleanBatch:
    batch = next(batches(digits_test, STEPS, batch_size=100, order=np.arange(0, 1000, 10)))
    return CleanBatch(batch.index, batch.pixels, batch.labels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_right(bundle: Bundle, test_batch: CleanBatch, variant: str) -> None:
    assert bundle.preprocess == STEPS
    with OnnxRuntimeBackend(bundle, variant=variant) as backend:
        assert backend.input_shape == (1, 24, 40)
        logits = backend.infer_pixels(test_batch.pixels)
        assert (logits.argmax(axis=1) == test_batch.labels).mean() > 0.85
        with pytest.raises(InputError, match=r"\(n, 24, 40, 1\)"):
            backend.infer_pixels(np.repeat(test_batch.pixels, 3, axis=3))


def test_attacks_break_it_within_eps(bundle: Bundle, model: PixelModel, test_batch: CleanBatch) -> None:
    x, y = torch.from_numpy(to_tensor(test_batch.pixels)), torch.from_numpy(test_batch.labels)
    clean = (model(x).argmax(dim=1) == y).sum()
    left = {}
    for name, (found,) in (
        ("fgsm", fgsm(model, x, y, eps=0.1)),
        ("pgd", [pgd(model, x, y, eps=0.1, steps=10, step_size=0.02)]),
    ):
        assert found.x.shape == x.shape and float((found.x - x).abs().max()) <= 0.1 + 1e-6
        left[name] = int((model(found.x).argmax(dim=1) == y).sum())
    with OnnxRuntimeBackend(bundle, variant="fp32-u8in") as backend:
        attack = SquareAttack(backend, [Eps.parse("26/255")], queries=200)
        (crafted,) = attack.craft(to_tensor(test_batch.pixels), test_batch.labels)
        left["square"] = int((backend.infer(crafted.x).argmax(axis=1) == test_batch.labels).sum())
    assert left["pgd"] <= left["fgsm"] < clean and left["square"] < clean, left


def test_the_classifier_takes_frames(bundle: Bundle, digits_test: ImageSet) -> None:
    image = digits_test.image(0)
    with Classifier.open(bundle.path) as classifier:
        best = classifier.classify(np.asarray(image.convert("L")))[0]
        assert best == classifier.classify(image)[0]
        assert best.index == digits_test.labels[0]


def test_colour_for_a_net_of_one_channel_is_one_line(model: PixelModel, tmp_path: Path, digits_test: ImageSet) -> None:
    with pytest.raises(InputError, match="one-channel takes 1 channel and not 3: `preprocess` color=gray"):
        check_input_size(model, (3, 24, 40))
    with pytest.raises(InputError, match="cannot take images of 28x28 pixels"):
        check_input_size(model, (1, 28, 28))
    with pytest.raises((InputError, ExportError), match="color=gray"):
        export_bundle(
            model,
            tmp_path / "no.edgeadv",
            classes=digits_test.classes,
            preprocess=Preprocess(resize=32, crop=32),
            frames=data_frames(digits_test, limit=8),
            origin=Origin(title="no", provenance={}),
        )
    assert not (tmp_path / "no.edgeadv").exists()
