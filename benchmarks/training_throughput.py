"""Training images/s of edgeadv and of a plain PyTorch loop of the same recipe, as paired ratios.

The plain loop is what its users write: a ``DataLoader`` whose workers augment image by image with torchvision,
channels-last memory, bf16 autocast on CUDA, SGD with a one-cycle rate; for ``n-fgsm`` one step from noise, as in the
code of de Jorge et al.
2022. Both train the same network on the same images, decoded beforehand; edgeadv's first epoch, in which it decodes, is
      left out.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from paired import named, ratio, save
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgeadv.data.datasets import ImageSet, balanced_subset, open_data
from edgeadv.models.builder import Architecture, build
from edgeadv.models.device import default_device
from edgeadv.training.adversarial import AdversarialTraining
from edgeadv.training.config import TrainConfig
from edgeadv.training.loop import fit
from edgeadv.training.objectives import HardLabels
from edgeadv_runtime.records.eps import Eps

EPS = Eps.parse("8/255")
LR = 0.02


class Pictures(Dataset[tuple[Tensor, int]]):
    """Decoded images, augmented one by one."""

    def __init__(self, images: ImageSet, order: np.ndarray) -> None:
        self.pixels = [
            torch.from_numpy(np.array(images.preprocess(images.image(int(i))))).permute(2, 0, 1) for i in order
        ]
        self.labels = images.labels[order].tolist()
        side = self.pixels[0].shape[-1]
        self.augment = v2.Compose(
            [
                v2.RandomCrop(side, padding=side // 8, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.augment(self.pixels[i]), self.labels[i]


def plain(
    pictures: Pictures, architecture: Architecture, recipe: str, options: argparse.Namespace, device: torch.device
) -> float:
    """Images per second of the plain loop, over one epoch after one that warms up."""
    model = build(architecture).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    loader = DataLoader(
        pictures,
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=options.workers > 0,
    )
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=2 * len(loader), cycle_momentum=False)
    rate = 0.0
    for _ in range(2):
        seen, start = 0, time.perf_counter()
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                if recipe == "n-fgsm":
                    noisy = (x + (torch.rand_like(x) * 4 - 2) * EPS.value).requires_grad_()
                    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(noisy), y), noisy)
                    x = (noisy + EPS.value * gradient.sign()).clamp(0, 1).detach()
                loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seen += len(x)
        loss.item()  # waits for the device
        rate = seen / (time.perf_counter() - start)
    return rate


def ours(
    images: ImageSet, architecture: Architecture, recipe: str, options: argparse.Namespace, device: torch.device
) -> float:
    """Images per second of edgeadv, in its second epoch."""
    objective = HardLabels() if recipe == "undefended" else AdversarialTraining.n_fgsm(EPS)
    config = TrainConfig(
        epochs=2,
        batch_size=options.batch,
        lr=LR,
        augment="crop-flip",
        limit=options.images,
        holdout=0,
        workers=options.workers,
        compile=options.compile,
    )
    few = open_data(options.data, split="test")
    with tempfile.TemporaryDirectory() as folder:
        made = fit(
            build(architecture),
            objective,
            images,
            few,
            preprocess=images.preprocess,
            config=config,
            out=Path(folder),
            device=device,
        )
    return float(made["epochs"][1]["images_per_s"])


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--arch", default="regnet_y_400mf")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="edgeadv's --compile; the plain loop is not compiled")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = default_device()
    images = open_data(options.data, split="train")
    pictures = Pictures(images, balanced_subset(images.labels, options.images))
    architecture = Architecture.find(options.arch, num_classes=len(images.classes))
    rows = []
    for recipe in ("undefended", "n-fgsm"):
        rates: dict[str, list[float]] = {"edgeadv": [], "plain": []}
        for i in range(options.rounds):
            for name in random.Random(i).sample(list(rates), len(rates)):
                if name == "edgeadv":
                    rates[name].append(ours(images, architecture, recipe, options, device))
                else:
                    rates[name].append(plain(pictures, architecture, recipe, options, device))
        rows.append(
            {
                "recipe": recipe,
                "on": named(device, options.threads),
                **{f"{name}_images_per_s_median": round(statistics.median(rate), 2) for name, rate in rates.items()},
                "edgeadv_speedup": ratio(rates["edgeadv"], rates["plain"]),
            }
        )
        print(rows[-1], flush=True)
        save(options.out, "training_throughput", vars(options), rows)


if __name__ == "__main__":
    main()
