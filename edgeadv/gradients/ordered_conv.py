"""Convolution in float32 with the sums in the order of ONNX Runtime's kernels for x86 processors (MLAS).

The order changes the last bit of a sum. Where a sum is rounded to 8 bits afterwards, the last bit decides now and then
which of two steps it becomes; one step moves what follows, and at the logits of a deep network nothing tells that it
was one bit
only: 1 label in 33 was another one on EfficientNet-Lite0 and ImageNet photographs, and none is where the order is the
    same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

# MLAS adds products in blocks of so many; for a narrow result it makes the blocks longer, and those PyTorch's product
# does not add in the same order: there the last bit may differ
_BLOCK, _NARROWEST = 128, 16


class OrderedConv(torch.autograd.Function):
    """Two-dimensional convolution without bias, starting from ``start``; the gradient is that of ``torch.conv2d``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        start: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        """Sums, float32 (n, channels, height, width); on a GPU in that one's own order.

        Args:
            ctx: kept for the gradient.
            x: float32 (n, channels, height, width).
            weight: float32 (channels, channels of a group, height, width).
            start: what the products are added to, of the shape of the result; None is 0.
            stride: of the two axes, as ``padding``, which is the same on both sides, and ``dilation``.
            padding: zeros around ``x``.
            dilation: distance of the weights.
            groups: of channels.
        """
        ctx.save_for_backward(weight)
        ctx.about = x.shape, list(stride), list(padding), list(dilation), groups
        if x.device.type != "cpu":
            result = functional.conv2d(x, weight, None, ctx.about[1], ctx.about[2], ctx.about[3], groups)
            return result if start is None else start + result
        sides = [
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
            for i in range(2)
        ]
        columns = functional.unfold(x, tuple(weight.shape[2:]), tuple(dilation), tuple(padding), tuple(stride))
        columns = columns.reshape(len(x), groups, -1, math.prod(sides))
        rows = weight.reshape(groups, len(weight) // groups, -1)
        begun = None if start is None else start.reshape(len(x), groups, rows.shape[1], -1)
        add = _one_row if rows.shape[1] == 1 else _many_rows
        return add(rows, columns, begun).reshape(len(x), len(weight), *sides)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of ``x`` and of ``start``; the weights are constants."""
        shape, stride, padding, dilation, groups = ctx.about
        x = conv2d_input(shape, ctx.saved_tensors[0], gradients[0], stride, padding, dilation, groups)  # type: ignore[no-untyped-call]
        return x, None, gradients[0] if ctx.needs_input_grad[2] else None, None, None, None, None


def _many_rows(rows: Tensor, columns: Tensor, total: Tensor | None) -> Tensor:
    """Matrix products (groups, rows, k) by (n, groups, k, columns), block by block of k, onto ``total``."""
    k, n = columns.shape[2:]
    block, width = _BLOCK, _BLOCK
    while n < k and width > _NARROWEST and width // 2 >= n:
        block, width = 2 * block, width // 2
    for i in range(0, k, block):
        product = rows[:, :, i : i + block] @ columns[:, :, i : i + block]
        total = product if total is None else total + product
    assert total is not None
    return total


def _one_row(rows: Tensor, columns: Tensor, total: Tensor | None) -> Tensor:
    """The same for a single row in each group: four products are added up, then to the total; of the rest two, then
    one."""
    k, i = columns.shape[2], 0
    while i < k:
        count = 4 if k - i >= 4 else 2 if k - i >= 2 else 1
        products = [rows[:, :, j] * columns[:, :, j] for j in range(i, i + count)]
        part = products[0]
        for product in products[1:]:
            part = part + product
        total = part[:, :, None] if total is None else total + part[:, :, None]
        i += count
    assert total is not None
    return total
