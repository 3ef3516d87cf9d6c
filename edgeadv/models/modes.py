"""A network as it answers, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module, *, frozen: bool = True) -> Iterator[None]:
    """Run a block with ``model`` in eval mode and, if ``frozen``, its parameters without gradients.

    Every submodule's mode and every parameter's ``requires_grad`` come back afterwards, even after an error.
    """
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        if frozen:
            for parameter, _ in grads:
                parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
