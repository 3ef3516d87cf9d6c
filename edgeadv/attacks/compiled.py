"""A copy in float16 compiled for the sizes of batch that a job meets most; other sizes stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from .float16 import HalfCopy
from .losses import input_gradient, margin

PAYS_AFTER = 800_000
"""Gradients of an image after which compiling for one size of batch has paid for itself.

It took 20.5 s, and a gradient came 27 µs sooner: RegNetY-400MF at 224 pixels in float16 on an H100, 9,922 images a
second as it is (``benchmarks/results/crafting-levers-regnet_y_400mf-cuda.json``) and 13,526 compiled
(``crafting-levers-compiled-cuda.json``). That was without CUDA graphs, which are used here.
"""
MOST_SIZES = 4
# the cosine of gradients with those of the network as it was, and the share of images that may be below it
_SAME, _WORST = 0.99, 0.05


def sizes_that_pay(gradients: int, largest: int) -> list[int]:
    """The sizes of batch to compile for: as many as pay, the largest first, each half of the one before.

    An attack's batch shrinks by halves on a GPU as its images break.

    Args:
        gradients: of an image, how many a job takes at the most: images × steps, of all attacks.
        largest: size of a whole batch, a power of two.
    """
    count = min(gradients // PAYS_AFTER, MOST_SIZES, largest.bit_length())
    return [largest >> i for i in range(count)]


class BySize(nn.Module):
    """A network that is compiled for some sizes of batch; without gradients it runs as it is.

    Attributes:
        net: the network as it is.
        made: what is called instead, by size.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: nn.Module = net
        self.made: dict[int, Callable[[Tensor], Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of ``x``."""
        made = self.made.get(len(x)) if torch.is_grad_enabled() and x.requires_grad else None
        answer: Tensor = self.net(x) if made is None else made(x)
        return answer


def compile_for(half: HalfCopy, sizes: Sequence[int], sample: Tensor) -> str | None:
    """Compile what computes in float16, on a GPU with one CUDA graph a pass, and see that gradients stay what they are.

    Args:
        half: changed, unless it cannot be compiled.
        sizes: of batches.
        sample: images, float32 (n, 3, H, W) in [0, 1], at least one; such as are going to be attacked.

    Returns:
        Why it was not compiled, in words; None where it was.
    """
    before = half.net
    compiled = half.net = BySize(before)
    mode = "reduce-overhead" if sample.is_cuda else "default"
    try:
        for size in sizes:
            images = sample[torch.arange(size, device=sample.device) % len(sample)]
            labels = torch.zeros(size, dtype=torch.int64, device=sample.device)
            due = input_gradient(half, images, labels, margin).gradient
            compiled.made[size] = _compiled(half, images, mode)
            # a CUDA graph is recorded on the way, and replayed from the third call on
            for _ in range(3):
                found = input_gradient(half, images, labels, margin).gradient
            alike = functional.cosine_similarity(found.flatten(1), due.flatten(1))
            # an image without a gradient has no direction either
            alike = torch.where((due.flatten(1) == 0).all(dim=1), (found.flatten(1) == 0).all(dim=1).float(), alike)
            if not float(alike.nan_to_num().quantile(_WORST)) > _SAME:
                half.net = before
                return f"its gradients are others for batches of {size}"
    except Exception as error:  # of the compiler, of Triton, of CUDA graphs, or of memory
        half.net = before
        return " ".join(str(error).split()).partition(" Set TORCH")[0][:160] or type(error).__name__
    return None


def _compiled(half: HalfCopy, images: Tensor, mode: str) -> Any:
    """What computes in float16, for batches of the size of ``images``, its shapes computed."""
    with torch.no_grad():
        inner = half.prepared(images).to(torch.float16).contiguous(memory_format=torch.channels_last)
        traced = make_fx(half.net)(inner)
    # fullgraph: what cannot be compiled is an error, where PyTorch would run it uncompiled and say so in a log
    return torch.compile(traced, dynamic=False, fullgraph=True, mode=mode)
