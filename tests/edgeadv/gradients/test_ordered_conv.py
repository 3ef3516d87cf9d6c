"""Convolution in ONNX Runtime's order: against a loop in NumPy, against ONNX Runtime, its gradient against
PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeadv.gradients.ordered_conv import OrderedConv

F = np.float32
# image, weight, stride, padding, dilation, groups
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Sequence[int], Sequence[int], Sequence[int], int]] = {
    "3 x 3": ((2, 20, 9, 8), (24, 20, 3, 3), [1, 1], [1, 1], [1, 1], 1),
    "strided": ((2, 16, 9, 8), (24, 16, 3, 2), [2, 1], [0, 1], [1, 2], 1),
    "1 x 1": ((2, 300, 12, 12), (16, 300, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    "1 x 1 of few columns": ((3, 600, 3, 3), (16, 600, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    "grouped": ((2, 12, 9, 8), (24, 4, 3, 3), [1, 2], [1, 0], [1, 1], 3),
    "depthwise": ((2, 16, 9, 8), (16, 1, 3, 3), [1, 1], [1, 1], [1, 1], 16),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(F)


def ordered(case: Any, x: torch.Tensor, weight: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
    result: torch.Tensor = OrderedConv.apply(x, weight, start, *case[2:])
    return result


@CASE
def test_it_is_the_convolution(case: Any) -> None:
    x, weight = torch.from_numpy(random(*case[0])), torch.from_numpy(random(*case[1], seed=1))
    _, _, stride, padding, dilation, groups = case
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
    torch.testing.assert_close(ordered(case, x, weight).double(), exact, rtol=1e-5, atol=1e-4)
    start = torch.from_numpy(random(*exact.shape, seed=2))
    torch.testing.assert_close(ordered(case, x, weight, start).double(), exact + start, rtol=1e-5, atol=1e-4)


@CASE
def test_its_gradient_is_pytorchs(case: Any) -> None:
    x, weight = torch.from_numpy(random(*case[0])), torch.from_numpy(random(*case[1], seed=1))
    begun = torch.zeros_like(ordered(case, x, weight))
    towards = torch.from_numpy(random(*begun.shape, seed=2))
    inputs = [x.requires_grad_(True), begun.requires_grad_(True)]
    ours = torch.autograd.grad((ordered(case, x, weight, begun) * towards).sum(), inputs)
    _, _, stride, padding, dilation, groups = case
    plain = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups) + begun
    for found, expected in zip(ours, torch.autograd.grad((plain * towards).sum(), inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_single_row_is_summed_by_fours_then_two_then_one() -> None:
    """Depthwise, 5 x 3: 15 products, so three fours, a two and a one. Adding from left to right gives other last
    bits."""
    x, weight = random(1, 40, 5, 3), random(40, 1, 5, 3, seed=1)
    found = ordered((None, None, [1, 1], [0, 0], [1, 1], 40), torch.from_numpy(x), torch.from_numpy(weight)).numpy()
    expected, plain = np.zeros(40, F), np.zeros(40, F)
    for channel in range(40):
        products = (x[0, channel] * weight[channel, 0]).ravel()
        for i in range(0, 12, 4):
            four = F(F(F(products[i] + products[i + 1]) + products[i + 2]) + products[i + 3])
            expected[channel] = F(expected[channel] + four) if i else four
        expected[channel] = F(expected[channel] + F(products[12] + products[13]))
        expected[channel] = F(expected[channel] + products[14])
        plain[channel] = products[0]
        for product in products[1:]:
            plain[channel] = F(plain[channel] + product)
    np.testing.assert_array_equal(found.ravel(), expected)
    assert (plain != expected).any()


def test_blocks_are_added_one_after_another() -> None:
    """300 products of 1 and tiny numbers: what a block loses to rounding against the total is lost once per block."""
    tiny = F(2**-25)
    x, weight = np.full((1, 300, 12, 12), tiny, F), np.ones((2, 300, 1, 1), F)
    start = torch.ones(1, 2, 12, 12)
    found = ordered((None, None, [1, 1], [0, 0], [1, 1], 1), torch.from_numpy(x), torch.from_numpy(weight), start)
    total = F(1)
    for count in (128, 128, 44):
        total = F(total + F(count * tiny))
    assert (found.numpy() == total).all()
    one_by_one = F(1)
    for _ in range(300):
        one_by_one = F(one_by_one + tiny)
    assert one_by_one == 1 != total


@CASE
def test_it_is_onnxruntimes_sum(case: Any) -> None:
    """To the last bit where the kernels are those of AVX-512, but for narrow results; other processors have other
    orders."""
    shape, weights, stride, padding, dilation, groups = case
    node = helper.make_node(
        "Conv",
        ["image", "w"],
        ["y"],
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
    )
    weight, x = random(*weights, seed=1), random(*shape)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # the optimiser would choose the layout in channels of 16, whose order is another one; int8-s8s8 has none of it
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": x})
    found = ordered(case, torch.from_numpy(x), torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and case is not CASES["1 x 1 of few columns"]:
        np.testing.assert_array_equal(found, expected)
