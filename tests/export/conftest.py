"""A small network that has learned digits: int8 can lose accuracy only where there is some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeadv.data import ImageSet, batches, open_data
from edgeadv.models import Architecture, PixelModel
from edgeadv_runtime.preprocess import to_tensor

LAYERS = 8


class Digits(nn.Module):
    """Seven convolutions in a row and a linear layer: ``body.0`` to ``body.6`` and ``head``."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 16, 24, 24, 32, 32, 32), (2, 1, 2, 1, 2, 1, 1)
        self.body = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in zip(widths, widths[1:], strides, strict=False)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.body:
            x = torch.relu(convolution(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="session")
def digits_train() -> ImageSet:
    return open_data("mnist5k", split="train")


@pytest.fixture(scope="session")
def digits_test() -> ImageSet:
    return open_data("mnist5k", split="test")


@pytest.fixture(scope="session")
def digits_model(digits_train: ImageSet) -> PixelModel:
    """:class:`Digits` after a few seconds of training, about 95% right on the test images. Shared: do not change it."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelModel(Digits(), Architecture(name="digits", source="timm", num_classes=10))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        everything = next(batches(digits_train, digits_train.preprocess, batch_size=len(digits_train)))
        x, y = torch.from_numpy(to_tensor(everything.pixels)), torch.from_numpy(everything.labels)
        for _ in range(5):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)
