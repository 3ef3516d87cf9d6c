"""Ways to have a network's gradients sooner, to be measured: each by name, ``+`` between those to combine.

``float32``, ``tf32`` and ``float16`` are what edgeadv's commands follow with ``--gradients``, the latter two on a GPU,
and ``job`` compiles float16 as a large job of theirs does. ``bfloat16`` is a network rounded to that precision,
``compiled`` torch.compile for batches of any size, as attacks need it, ``static`` the same for one size, and
``contiguous`` and ``channels_last`` are orders of memory, one of which edgeadv takes by itself. On a GPU ``tuned`` has
cuDNN try its algorithms at each new size; and ``graph`` makes CUDA graphs of the forward and the backward pass, for one
size of batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgeadv.attacks import cross_entropy, input_gradient
from edgeadv.attacks.compiled import compile_for
from edgeadv.attacks.float16 import HalfCopy
from edgeadv.attacks.tf32 import Tf32Copy
from edgeadv.gradients.graph import GraphModule

PRECISIONS = ("bfloat16", "float16")
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEVERS = ("float32", *PRECISIONS, "job", "compiled", "static", *ORDERS, "tf32", "tuned", "graph")
_ON_A_GPU = ("tf32", "tuned", "graph")


class Bfloat16(nn.Module):
    """A network in bfloat16 that takes float32 pixels and gives float32 logits and gradients; it has float32's range
    and 8 bits of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(network).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32."""
        logits: Tensor = self.net(x.to(torch.bfloat16)).float()
        return logits


def pulled(lever: str, network: GraphModule, x: Tensor, y: Tensor) -> nn.Module:
    """``network`` with what ``lever`` names; ``tuned`` is a setting of the process, see :func:`settings`, and so is
    ``tf32`` with an order of memory.

    Args:
        lever: names of :data:`LEVERS`, joined by ``+``.
        network: pixels to logits, in evaluation mode, its parameters without gradients.
        x: images of the size that will be attacked, float32 (n, 3, H, W) in [0, 1].
        y: labels, int64 (n,).

    Raises:
        ValueError: a name is unknown, needs a GPU, or does not go with another.
        RuntimeError: it does not compile.
    """
    names = lever.split("+")
    for name in names:
        if name not in LEVERS or (name in _ON_A_GPU and not x.is_cuda):
            raise ValueError(f"lever {name!r}: choose from {', '.join(LEVERS)}; {', '.join(_ON_A_GPU)} are a GPU's")
    if set(ORDERS) & set(names) and set(PRECISIONS) & set(names):
        raise ValueError(f"lever {lever!r}: an order of memory is for float32")
    made: nn.Module = network
    if "float16" in names or "job" in names:
        made = HalfCopy(network, x[:16])
        if "job" in names and (reason := compile_for(made, [len(x)], x)) is not None:
            raise RuntimeError(f"not compiled: {reason}")
    elif "bfloat16" in names:
        made = Bfloat16(network)
    elif "tf32" in names and not set(ORDERS) & set(names):
        made = Tf32Copy(network)
    for name in set(ORDERS) & set(names):
        made = copy.deepcopy(network).to(memory_format=ORDERS[name])  # type: ignore[call-overload]
    if "compiled" in names or "static" in names:
        # what a first call pays, not the second of a day
        torch._inductor.config.force_disable_caches = True
        made = _inside(made, lambda net, _: torch.compile(net, dynamic="static" not in names), x)
        for size in (len(x),) if "static" in names else (len(x), len(x) - 1):
            input_gradient(made, x[:size], y[:size], cross_entropy)
    if "graph" in names:
        made = _inside(made, lambda net, given: torch.cuda.make_graphed_callables(net, (given.requires_grad_(),)), x)
    return made


def in_order(lever: str, x: Tensor) -> Tensor:
    """``x`` in the order of memory that ``lever`` names, if it names one."""
    for name in set(ORDERS) & set(lever.split("+")):
        return x.contiguous(memory_format=ORDERS[name])
    return x


def _inside(network: nn.Module, change: Callable[[nn.Module, Tensor], nn.Module], x: Tensor) -> nn.Module:
    """``network`` after ``change``, which is given what it is called with; of a copy in float16 only what computes in
    it changes."""
    if not isinstance(network, HalfCopy):
        return change(network, x.clone())
    given = network.prepared(x).to(torch.float16).contiguous(memory_format=torch.channels_last)
    network.net = change(network.net, given)
    return network


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
