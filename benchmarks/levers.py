"""Ways to have a network's gradients sooner that edgeadv does not use, to be measured: each by name, ``+`` between those to combine.

``bfloat16`` and ``float16`` compute in that precision, ``compiled`` is torch.compile for batches of any size, as attacks need it,
``static`` the same for one size, and ``contiguous`` leaves memory in PyTorch's own order. On a GPU ``tf32`` lets convolutions round to
10 bits of mantissa, which peers do by PyTorch's default and edgeadv does not; ``tuned`` has cuDNN try its algorithms at each new size; and
``graph`` makes CUDA graphs of the forward and the backward pass, for one size of batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeadv.attacks import cross_entropy, input_gradient

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LEVERS = (*PRECISIONS, "compiled", "static", "contiguous", "tf32", "tuned", "graph")
_ON_A_GPU = ("tf32", "tuned", "graph")


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


class InPrecision(nn.Module):
    """A network in another precision that takes float32 pixels and gives float32 logits and gradients.

    Inside, gradients are ``scale`` times as large, a power of two, so that small ones do not round to zero (Micikevicius et al. 2018,
    "Mixed Precision Training", section 3.2).
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype)
        self.dtype, self.scale = dtype, scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32."""
        pixels: Tensor = _Scaled.apply(x, 1 / self.scale)
        logits: Tensor = _Scaled.apply(self.network(pixels.to(self.dtype)).float(), self.scale)
        return logits


def in_precision(network: nn.Module, name: str, x: Tensor, y: Tensor) -> InPrecision:
    """``network`` in a precision of :data:`PRECISIONS`, its gradients as large as stay finite on these images.

    Args:
        network: pixels to logits, in evaluation mode.
        name: of the precision.
        x: float32 (n, 3, H, W) in [0, 1].
        y: labels, int64 (n,).
    """
    made = InPrecision(network, PRECISIONS[name])
    # bfloat16 has the range of float32
    exponent = 24 if name == "float16" else 0
    while exponent:
        made.scale = 2.0**exponent
        if bool(input_gradient(made, x, y, cross_entropy).gradient.isfinite().all()):
            # images to come may have larger ones
            made.scale = 2.0 ** max(exponent - 4, 0)
            break
        exponent -= 1
    return made


def pulled(lever: str, network: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """``network`` with what ``lever`` names; ``tf32`` and ``tuned`` are settings of the process, see :func:`settings`.

    Args:
        lever: names of :data:`LEVERS`, joined by ``+``.
        network: pixels to logits, in evaluation mode, its parameters without gradients.
        x: images of the size that will be attacked, float32 (n, 3, H, W) in [0, 1].
        y: labels, int64 (n,).

    Raises:
        ValueError: a name is unknown, or needs a GPU.
    """
    names = lever.split("+")
    for name in names:
        if name not in LEVERS or (name in _ON_A_GPU and not x.is_cuda):
            raise ValueError(f"lever {name!r}: choose from {', '.join(LEVERS)}; {' and '.join(_ON_A_GPU)} are a GPU's")
    made = network
    for name in names:
        if name in PRECISIONS:
            made = in_precision(made, name, x, y)
    if "contiguous" in names:
        made = copy.deepcopy(made).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if "compiled" in names or "static" in names:
        # what a first call pays, not the second of a day
        torch._inductor.config.force_disable_caches = True
        made = torch.compile(made, dynamic="static" not in names)
        for size in (len(x),) if "static" in names else (len(x), len(x) - 1):
            input_gradient(made, x[:size], y[:size], cross_entropy)
    if "graph" in names:
        made = torch.cuda.make_graphed_callables(made, (x.clone().requires_grad_(),))
    return made


@contextmanager
def settings(lever: str) -> Iterator[None]:
    """What ``lever`` sets for the process, on a GPU, and nothing else; as before afterwards."""
    names = lever.split("+")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = "tf32" in names, "tuned" in names
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
