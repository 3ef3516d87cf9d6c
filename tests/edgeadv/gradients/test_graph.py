"""ONNX graphs in PyTorch: operators against ONNX Runtime, the gradient against closed forms, whole artefacts on
images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from edgeadv.attacks import build_attacks, fgsm, margin, pgd
from edgeadv.attacks.linearity import LinearityControl, linearity
from edgeadv.data.datasets import ImageSet, batches
from edgeadv.gradients.artefact import ArtefactGraph, open_graph
from edgeadv.gradients.graph import Graph, GraphModule, Node
from edgeadv.gradients.operators import OPERATORS
from edgeadv.gradients.read_onnx import nodes_of, read_graph
from edgeadv.models.builder import PixelModel
from edgeadv.models.modes import evaluation_mode
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import base_of
from edgeadv_runtime.errors import EdgeAdvError, InputError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.suites import PER_ARTEFACT, SUITES

CPU = torch.device("cpu")
VARIANTS = ("int8-s8s8", "int8-u8s8")
LAST = np.iinfo(np.int64).max


# --- operators


def model_of(
    nodes: Sequence[Any], shape: tuple[int, ...], tensors: dict[str, Any] | None = None, *, output: str = "y"
) -> Any:
    """An ONNX model of ``nodes`` from ``image`` to ``output``."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *shape[1:]])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (tensors or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def in_onnxruntime(proto: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """As written, without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"image": x})[0]
    return found


def in_torch(proto: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = GraphModule(nodes_of(proto), "graph")(torch.from_numpy(x)).numpy()
    return found


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


F = np.float32
IMAGES = (3, 4, 9, 8)
# name of the case: operator, its other inputs in order (None is absent), its attributes, and shape of the image
CASES: dict[str, tuple[str, list[Any], dict[str, Any], tuple[int, ...]]] = {
    "add": ("Add", [random(4, 1, 1)], {}, IMAGES),
    "sub": ("Sub", [random(4, 1, 1)], {}, IMAGES),
    "mul": ("Mul", [random(4, 1, 1)], {}, IMAGES),
    "div": ("Div", [random(4, 1, 1)], {}, IMAGES),
    "relu": ("Relu", [], {}, IMAGES),
    "sigmoid": ("Sigmoid", [], {}, IMAGES),
    "tanh": ("Tanh", [], {}, IMAGES),
    "erf": ("Erf", [], {}, IMAGES),
    "identity": ("Identity", [], {}, IMAGES),
    "hard swish": ("HardSwish", [], {}, IMAGES),
    "hard sigmoid": ("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.4}, IMAGES),
    "hard sigmoid by default": ("HardSigmoid", [], {}, IMAGES),
    "gelu": ("Gelu", [], {}, IMAGES),
    "gelu, tanh": ("Gelu", [], {"approximate": "tanh"}, IMAGES),
    "softmax": ("Softmax", [], {"axis": 1}, IMAGES),
    "softmax by default": ("Softmax", [], {}, IMAGES),
    "clip": ("Clip", [F(0), F(0.7)], {}, IMAGES),
    "clip below": ("Clip", [F(-0.1)], {}, IMAGES),
    "clip above": ("Clip", [None, F(0.3)], {}, IMAGES),
    "cast": ("Cast", [], {"to": 1}, IMAGES),
    "conv": ("Conv", [random(6, 4, 3, 3), random(6)], {"pads": [1, 1, 1, 1]}, IMAGES),
    "conv, bare": ("Conv", [random(6, 4, 3, 2)], {}, IMAGES),
    "conv, uneven": ("Conv", [random(6, 4, 3, 3)], {"pads": [0, 1, 1, 2], "strides": [2, 1]}, IMAGES),
    "conv, grouped": ("Conv", [random(8, 2, 3, 3)], {"group": 2, "dilations": [2, 1], "strides": [1, 2]}, IMAGES),
    "conv, of a line": ("Conv", [random(5, 4, 3)], {"pads": [1, 1]}, (3, 4, 9)),
    "max pool": ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGES),
    "max pool, ceil": ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, IMAGES),
    "max pool, uneven": ("MaxPool", [], {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}, IMAGES),
    "average pool": ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGES),
    "average pool, padding counts": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1},
        IMAGES,
    ),
    "average pool, ceil": ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, IMAGES),
    "global average": ("GlobalAveragePool", [], {}, IMAGES),
    "mean": ("ReduceMean", [whole(2, 3)], {"keepdims": 0}, IMAGES),
    "mean, kept": ("ReduceMean", [whole(-1)], {}, IMAGES),
    "mean of all": ("ReduceMean", [], {"keepdims": 0}, IMAGES),
    "mean of none": ("ReduceMean", [], {"noop_with_empty_axes": 1}, IMAGES),
    "length": ("ReduceL2", [whole(1)], {}, IMAGES),
    "layer norm": ("LayerNormalization", [random(8), random(8, seed=1)], {"epsilon": 1e-3}, IMAGES),
    "layer norm, of two axes": ("LayerNormalization", [random(9, 8)], {"axis": 2}, IMAGES),
    "batch norm": (
        "BatchNormalization",
        [random(4), random(4, seed=1), random(4, seed=2), np.abs(random(4, seed=3)) + F(0.5)],
        {"epsilon": 1e-3},
        IMAGES,
    ),
    "gemm": ("Gemm", [random(7, 5), random(7)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, (3, 5)),
    "gemm, turned": ("Gemm", [random(3, 4)], {"transA": 1}, (3, 5)),
    "matmul": ("MatMul", [random(8, 5)], {}, IMAGES),
    "flatten": ("Flatten", [], {}, IMAGES),
    "flatten, later": ("Flatten", [], {"axis": -1}, IMAGES),
    "reshape": ("Reshape", [whole(0, 2, -1, 8)], {}, IMAGES),
    "transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}, IMAGES),
    "transpose by default": ("Transpose", [], {}, IMAGES),
    "squeeze": ("Squeeze", [whole(1, -1)], {}, (3, 1, 5, 1)),
    "squeeze all": ("Squeeze", [], {}, (3, 1, 5, 1)),
    "unsqueeze": ("Unsqueeze", [whole(0, -1)], {}, (3, 5)),
    "expand": ("Expand", [whole(2, 3, 1, 9, 5)], {}, (3, 4, 9, 1)),
    "concat": ("Concat", [random(3, 2, 9, 8)], {"axis": 1}, IMAGES),
    "slice": ("Slice", [whole(1, -3), whole(LAST, LAST), whole(1, -1), whole(1, 2)], {}, IMAGES),
    "slice, all axes": ("Slice", [whole(1), whole(-1)], {}, IMAGES),
    "gather": ("Gather", [whole(0, -1)], {"axis": 1}, IMAGES),
    "gather one": ("Gather", [np.int64(1)], {"axis": 2}, IMAGES),
    "gather in a table": ("Gather", [np.array([[0, 2], [1, 1]])], {"axis": 1}, IMAGES),
    "gather by places": ("GatherND", [np.array([[[0, 1]], [[2, 3]]])], {}, IMAGES),
    "scatter": ("ScatterND", [np.array([[0, 1], [2, 3]]), random(2, 9, 8)], {}, IMAGES),
    "pad": ("Pad", [whole(0, 0, 1, 0, 0, 2, 3, 0)], {}, IMAGES),
    "pad, a value and axes": ("Pad", [whole(1, 2, 3, 0), F(0.25), whole(-1, 1)], {}, IMAGES),
    "enlarge": ("Resize", [None, np.array([1, 1, 2, 2], F)], {"mode": "linear"}, IMAGES),
    "enlarge oddly": ("Resize", [None, np.array([1, 1, 1.5, 2.25], F)], {"mode": "linear"}, IMAGES),
    "enlarge to": ("Resize", [None, None, whole(3, 4, 20, 11)], {"mode": "linear"}, IMAGES),
    "enlarge, nearest": (
        "Resize",
        [None, np.array([1, 1, 2, 3], F)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        IMAGES,
    ),
    "einsum": ("Einsum", [random(3, 6, 8)], {"equation": "b c h w, b d w -> b c h d"}, IMAGES),
}


def one_node(case: str) -> tuple[Any, NDArray[np.float32]]:
    op, others, attributes, shape = CASES[case]
    names = ["image", *("" if other is None else f"t{i}" for i, other in enumerate(others))]
    tensors = {f"t{i}": other for i, other in enumerate(others) if other is not None}
    return model_of([helper.make_node(op, names, ["y"], **attributes)], shape, tensors), random(*shape, seed=9)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_onnxruntimes(case: str) -> None:
    proto, x = one_node(case)
    expected = in_onnxruntime(proto, x)
    found = in_torch(proto, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def shapes() -> Any:
    """Shape arithmetic as exports do it, that ends in a Reshape, an Expand and a Where."""
    node = helper.make_node
    return model_of(
        [
            node("Shape", ["image"], ["batch"], start=0, end=1),
            node("Shape", ["image"], ["all"]),
            node("Constant", [], ["one"], value=numpy_helper.from_array(whole(1))),
            node("Gather", ["all", "one"], ["channels"]),
            node("Constant", [], ["axis"], value_ints=[0]),
            node("Squeeze", ["channels", "axis"], ["limit"]),
            node("Range", ["zero", "limit", "step"], ["places"]),
            node("Div", ["places", "two"], ["halves"]),
            node("Equal", ["places", "halves"], ["even"]),
            node("Not", ["even"], ["odd"]),
            node("ConstantOfShape", ["channels"], ["fill"], value=numpy_helper.from_array(np.array([0.5], F))),
            node("Cast", ["places"], ["numbers"], to=1),
            node("Where", ["odd", "numbers", "fill"], ["vector"]),
            node("Concat", ["batch", "minus"], ["flat"], axis=0),
            node("Reshape", ["image", "flat"], ["rows"]),
            node("Split", ["rows"], ["first", "second"], axis=1, num_outputs=2),
            node("Split", ["first", "cut"], ["a", "b"], axis=1),
            node("Concat", ["batch", "channels"], ["matrix"], axis=0),
            node("Expand", ["vector", "matrix"], ["many"]),
            node("Concat", ["b", "second", "a", "many"], ["y"], axis=1),
        ],
        IMAGES,
        {"zero": np.int64(0), "step": np.int64(1), "two": np.int64(2), "minus": whole(-1), "cut": whole(44, 100)},
    )


def test_shape_arithmetic_is_onnxruntimes() -> None:
    """For any size of the batch: the shapes are computed and not remembered."""
    proto = shapes()
    for n in (1, 3):
        x = random(n, *IMAGES[1:])
        np.testing.assert_array_equal(in_torch(proto, x), in_onnxruntime(proto, x))


quantised_ops = ("QuantizeLinear", "DequantizeLinear")


def rounded(scale: Any, zero: Any, shape: tuple[int, ...], **attributes: int) -> Any:
    nodes = [
        helper.make_node(op, [a, "scale", "zero"], [b], **attributes)
        for op, a, b in zip(quantised_ops, ("image", "q"), ("q", "y"), strict=True)
    ]
    return model_of(nodes, shape, {"scale": np.asarray(scale, F), "zero": zero})


@pytest.mark.parametrize("zero", [np.int8(0), np.int8(-7), np.uint8(0), np.uint8(128)])
@pytest.mark.parametrize("scale", [0.5, 0.0173, 1e-3])
def test_rounding_is_onnxruntimes_bit_for_bit(scale: float, zero: Any) -> None:
    """Halves, which go to the even number, and what is out of range among them."""
    halves = np.arange(-600, 600, dtype=F) * F(scale) / 2
    x = np.concatenate([halves, random(5000) * F(90 * scale)]).reshape(1, -1)
    proto = rounded(scale, zero, x.shape)
    np.testing.assert_array_equal(in_torch(proto, x), in_onnxruntime(proto, x))


def test_rounding_runs_where_the_image_is() -> None:
    """On a GPU, of which only shapes and devices are looked at here: zero points stay behind when a network moves
    there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    attributes: dict[str, Any] = {}
    with FakeTensorMode():
        x = torch.empty(2, 3, device="cuda")
        scale, zero = torch.empty((), device="cuda"), torch.empty(1, dtype=torch.uint8)
        steps = OPERATORS["QuantizeLinear"](attributes, x, scale, zero)
        assert OPERATORS["DequantizeLinear"](attributes, steps, scale, zero).device.type == "cuda"  # type: ignore[union-attr]


@pytest.mark.parametrize("axis", [1, -1])
def test_rounding_along_an_axis(axis: int) -> None:
    size = IMAGES[axis]
    zero = np.arange(size, dtype=np.int8)
    proto = rounded(np.abs(random(size)) + F(0.01), zero, IMAGES, axis=axis)
    x = random(*IMAGES) * F(20)
    np.testing.assert_array_equal(in_torch(proto, x), in_onnxruntime(proto, x))


# --- the gradient


def linear(scale: float, zero: Any, weight: NDArray[np.float32]) -> GraphModule:
    """``weight`` times the rounded input, as nodes."""
    nodes = [
        Node("QuantizeLinear", ("image", "s", "z"), ("q",), {}),
        Node("DequantizeLinear", ("q", "s", "z"), ("x",), {}),
        Node("Gemm", ("x", "w"), ("logits",), {"transB": 1}),
    ]
    tensors = {"s": torch.tensor(scale), "z": torch.tensor(zero), "w": torch.from_numpy(weight)}
    return GraphModule(Graph(("image",), ("logits",), tuple(nodes), tensors), "layer")


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of the sum of all logits."""
    x = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(model(x).sum(), x)
    return found


def test_the_gradient_of_a_rounded_linear_layer_in_closed_form() -> None:
    """Within the range it is that of the layer without rounding, beyond it 0."""
    scale, zero, weight = 0.01, np.uint8(100), random(5, 4)
    x = torch.tensor([[-1.2, -1.0, 0.3, 1.55], [-1.00499, 1.5549, 9.0, 0.0]])
    inside = torch.tensor([[False, True, True, True], [True, True, False, True]])
    expected = torch.from_numpy(weight.sum(axis=0)) * inside
    torch.testing.assert_close(gradient(linear(scale, zero, weight), x), expected, rtol=1e-6, atol=0)


def test_the_straight_through_gradient_is_torchs() -> None:
    """Against ``torch.fake_quantize``, which is another implementation of the same estimator."""
    x = torch.from_numpy(random(50, 40) * F(2))
    ours = gradient(linear(0.015, np.uint8(120), np.eye(40, dtype=F)), x)
    theirs = gradient(lambda v: torch.fake_quantize_per_tensor_affine(v, 0.015, 120, 0, 255), x)  # type: ignore[arg-type]
    assert 0.1 < float((theirs == 0).float().mean()) < 0.9
    torch.testing.assert_close(ours, theirs)


def test_a_pixel_at_the_end_of_the_range_keeps_its_gradient() -> None:
    """A zero point is a whole number, so the range begins up to half a step before or after the least value."""
    low, high = -2.1179, 2.2489  # black and white after the normalisation of ImageNet
    scale = (high - low) / 255
    zero = np.uint8(round(-low / scale))
    assert not (0 - int(zero)) * scale <= low <= high <= (255 - int(zero)) * scale
    found = gradient(linear(scale, zero, np.ones((1, 2), F)), torch.tensor([[low, high]]))
    torch.testing.assert_close(found, torch.ones(1, 2))


def test_where_rounding_vanishes_the_gradient_is_the_networks(
    digits_bundle: Bundle, digits_model: PixelModel, digits_test: ImageSet
) -> None:
    """The graph of ``int8-s8s8`` as written, with steps so fine that float32 hardly notices them, its weights not
    rounded at all."""
    graph = read_graph(digits_bundle.onnx("int8-s8s8"), "graph")
    fine, nodes = dict(graph.tensors), []
    weights = [w for w in digits_model.net.state_dict().values() if w.ndim > 1]
    for node in graph.nodes:
        if node.op == "DequantizeLinear" and node.inputs[0] in fine:
            nodes.append(Node("Identity", node.inputs[:1], node.outputs, {}))
            original = next(w for w in weights if w.shape == fine[node.inputs[0]].shape and close(w, fine, node.inputs))
            fine[node.inputs[0]] = original
        elif node.op in quantised_ops:
            name = f"{node.inputs[1]} wide"
            fine |= {name: fine[node.inputs[1]] / 2**16, f"{name} zero": torch.tensor(0, dtype=torch.int32)}
            nodes.append(Node(node.op, (node.inputs[0], name, f"{name} zero"), node.outputs, node.attributes))
        else:
            nodes.append(node)
    smooth = GraphModule(Graph(graph.inputs, graph.outputs, tuple(nodes), fine), "smooth")
    x, y = images(digits_test, 32)
    losses = [margin(net(torch.from_numpy(x)), torch.from_numpy(y)) for net in (smooth, digits_model)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    ours, truth = (gradient(net, torch.from_numpy(x)) for net in (smooth, digits_model))
    torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))


def close(weight: torch.Tensor, tensors: dict[str, torch.Tensor], inputs: Sequence[str]) -> bool:
    """Whether ``weight`` is what ``inputs`` of a DequantizeLinear round."""
    scale = tensors[inputs[1]].reshape(-1, *[1] * (weight.ndim - 1))
    return bool(((tensors[inputs[0]] * scale - weight).abs() <= 0.51 * scale).all())


# --- whole networks


def images(data: ImageSet, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    batch = next(batches(data, data.preprocess, batch_size=n))
    return to_tensor(batch.pixels), batch.labels


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def agreement(graph: nn.Module, backend: OnnxRuntimeBackend, x: NDArray[np.float32]) -> float:
    with torch.no_grad():
        ours = graph(torch.from_numpy(x)).numpy().argmax(axis=1)
    return float((ours == backend.infer(x).argmax(axis=1)).mean())


def test_it_agrees_with_onnxruntime_on_clean_and_adversarial_images(
    digits_bundle: Bundle, digits_model: PixelModel, digits_test: ImageSet, variant: str
) -> None:
    x, y = images(digits_test, 500)
    graph = open_graph(digits_bundle, variant, device=CPU)
    pixels, labels = torch.from_numpy(x), torch.from_numpy(y)
    with OnnxRuntimeBackend(digits_bundle, variant=variant, threads=1) as backend:
        assert agreement(graph, backend, x) >= 0.99
        for source in (graph, digits_model):
            (one,) = fgsm(source, pixels, labels, eps=0.1)
            many = pgd(source, pixels[:200], labels[:200], eps=0.1, steps=10)
            assert agreement(graph, backend, one.x.numpy()) >= 0.98
            assert agreement(graph, backend, many.x.numpy()) >= 0.98
            assert not one.zero_gradient.any()


def test_its_own_gradients_find_the_artefacts_errors(
    digits_bundle: Bundle, digits_model: PixelModel, digits_test: ImageSet, variant: str
) -> None:
    """White-box is at least about as strong as what is transferred from float32: never weaker by more than noise."""
    x, y = images(digits_test, 200)
    right = {}
    with OnnxRuntimeBackend(digits_bundle, variant=variant, threads=1) as backend:
        clean = (backend.infer(x).argmax(axis=1) == y).sum()
        for model in (open_graph(digits_bundle, variant, device=CPU), digits_model):
            crafted = pgd(model, torch.from_numpy(x), torch.from_numpy(y), eps=0.1, steps=10).x.numpy()
            right[type(model)] = (backend.infer(crafted).argmax(axis=1) == y).sum()
    assert clean > 180
    assert right[ArtefactGraph] <= right[PixelModel] + 4
    assert right[ArtefactGraph] < clean - 20


def test_the_gradients_of_float32_are_those_of_the_weights(
    digits_bundle: Bundle, digits_model: PixelModel, digits_test: ImageSet
) -> None:
    """In float32 nothing is rounded, so the graph's gradients are the network's."""
    pixels = torch.from_numpy(images(digits_test, 32)[0])
    ours, truth = (gradient(net, pixels) for net in (open_graph(digits_bundle, "fp32", device=CPU), digits_model))
    torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))


def test_the_attacks_of_the_suite_take_it(digits_bundle: Bundle, digits_test: ImageSet, variant: str) -> None:
    x, y = images(digits_test, 8)
    graph = open_graph(digits_bundle, variant, device=CPU)
    assert graph.sha256 == digits_bundle.artifact_sha256(variant)
    eps = Eps.parse("0.1")
    efforts = {name: SUITES["standard"][name] for name in PER_ARTEFACT}
    for attack in build_attacks(graph, [eps], efforts=efforts, classes=10, gradients_sha256=graph.sha256):
        (crafted,) = attack.craft(x, y)
        assert crafted.x.dtype == np.float32 and 0.05 < np.abs(crafted.x - x).max() <= 0.1 + 1e-6
    with evaluation_mode(graph):
        assert not graph.training and not any(p.requires_grad for p in graph.parameters())
    assert not graph.training and next(graph.parameters()).device == CPU


def test_an_image_does_not_depend_on_its_batch(digits_bundle: Bundle, digits_test: ImageSet, variant: str) -> None:
    x = torch.from_numpy(images(digits_test, 6)[0])
    graph = open_graph(digits_bundle, variant, device=CPU)
    with torch.no_grad():
        together = graph(x)
        # a float32 sum in another order may round one activation to the next step
        scale = float(together.abs().max())
        torch.testing.assert_close(torch.cat([graph(one[None]) for one in x]), together, rtol=0, atol=0.02 * scale)


WORDS = {
    "fp32": "graph of fp32",
    "fp16": "graph of fp16, in float32",
    "int8-s8s8": "graph of int8-s8s8, straight-through",
    "int8-u8s8": "graph of int8-u8s8, straight-through",
}


def test_with_uint8_input_the_gradients_are_those_of_the_floats(
    digits_bundle: Bundle, digits_test: ImageSet, tmp_path: Path
) -> None:
    """Where the one with float input is not carried too, the graph with uint8 input is followed: the same function."""
    pixels = torch.from_numpy(images(digits_test, 4)[0])
    for name in (name for name in digits_bundle.variants if name.endswith("-u8in")):
        alone = digits_bundle.slim(tmp_path / name, variants=[name], weights=False)
        graph, floats = open_graph(alone, name, device=CPU), open_graph(digits_bundle, base_of(name), device=CPU)
        assert graph.sha256 == floats.sha256 == digits_bundle.artifact_sha256(base_of(name))
        assert graph.gradients == floats.gradients == WORDS[base_of(name)]
        torch.testing.assert_close(graph(pixels), floats(pixels), rtol=0, atol=0.02 * float(floats(pixels).abs().max()))
        similar = nn.functional.cosine_similarity(
            gradient(graph, pixels).flatten(1), gradient(floats, pixels).flatten(1)
        )
        assert float(similar.min()) > 0.95


def test_a_graph_in_two(digits_bundle: Bundle, digits_test: ImageSet) -> None:
    """What is done to pixels before the first product, and the rest."""
    graph = open_graph(digits_bundle, "fp32", device=CPU)
    before, after = graph.split()
    x = torch.from_numpy(images(digits_test, 4)[0])
    assert torch.equal(after(before(x)), graph(x)) and not torch.equal(before(x), x)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(before(x), expected)


# --- what is refused


def test_a_file_that_is_no_model(digits_bundle: Bundle) -> None:
    for data in (b"text", b"", digits_bundle.onnx("fp32")[:-1], b"\x3a\x02\x0a\x00"):
        with pytest.raises(EdgeAdvError, match=r"model|ONNX"):
            read_graph(data, "model.onnx")
    with pytest.raises(InputError, match="int4"):
        open_graph(digits_bundle, "int4", device=CPU)


def graph_of(*nodes: Node, **tensors: torch.Tensor) -> GraphModule:
    return GraphModule(Graph(("image",), ("y",), nodes, tensors), "the graph of fp32")


def test_an_operator_that_is_not_known_is_named() -> None:
    message = (
        r"^the graph of fp32 has no gradients here: Loop \(node of 'p'\) is an operator without any \(nor have Det\); "
        r"docs/reference/operators.md lists those that have$"
    )
    with pytest.raises(InputError, match=message):
        graph_of(Node("Loop", ("image",), ("p",), {}), Node("Det", ("p",), ("y",), {}))


@pytest.mark.parametrize(
    ("op", "attributes", "others", "message"),
    [
        ("Resize", {"mode": "area"}, ["", "scales"], "Resize with mode area"),
        ("Pad", {"mode": "mirror"}, ["pads"], "Pad with mode mirror"),
        ("BatchNormalization", {"training_mode": 1}, ["bias"] * 4, "BatchNormalization with training_mode 1"),
        ("Cast", {"to": 8}, [], "Cast to ONNX's type 8"),
    ],
)
def test_an_option_that_is_not_known_is_named(op: str, attributes: Any, others: list[str], message: str) -> None:
    graph = graph_of(
        Node(op, ("image", *others), ("y",), attributes),
        scales=torch.tensor([1.0, 1.0, 2.0, 2.0]),
        pads=torch.ones(8, dtype=torch.int64),
        bias=torch.ones(3),
        weight=torch.ones(1, 3, 2, 2),
    )
    with pytest.raises(InputError, match=f"^{message} is not known here"):
        graph(torch.zeros(1, 3, 4, 4))


def test_a_graph_that_lacks_a_tensor() -> None:
    with pytest.raises(InputError, match=r"lacks the tensor 'bias', which Add \(node of 'y'\) takes"):
        graph_of(Node("Add", ("image", "bias"), ("y",), {}))


def test_the_step_that_pixels_are_rounded_to() -> None:
    """The scale of the first Q over the slope before it; behind a convolution it is no step of pixels."""
    scaled = (
        Node("Div", ("image", "deviation"), ("x",), {}),
        Node("QuantizeLinear", ("x", "scale", "zero"), ("q",), {}),
        Node("DequantizeLinear", ("q", "scale", "zero"), ("y",), {}),
    )
    about = {"deviation": torch.tensor([0.5, 0.25]).view(2, 1, 1), "scale": torch.tensor(0.01)}
    graph = graph_of(*scaled, zero=torch.tensor(0, dtype=torch.int8), **about)
    assert graph.input_step(torch.rand(1, 2, 3, 3)) == pytest.approx(0.01 * 0.5)
    behind = graph_of(Node("Conv", ("image", "w"), ("y",), {}), w=torch.ones(1, 2, 1, 1))
    assert behind.input_step(torch.rand(1, 2, 3, 3)) == 0


def test_linearity_of_a_rounded_graph_is_measured_in_steps_that_it_notices(
    digits_bundle: Bundle, digits_test: ImageSet
) -> None:
    """Within a step of 8 bits the margin stands still or jumps, whatever its gradient says."""
    x, y = images(digits_test, 60)
    graph = open_graph(digits_bundle, "int8-s8s8", device=CPU)
    eps = Eps.parse("8/255")
    control = LinearityControl(graph, [eps], graph.sha256, graph.gradients)
    (measured,) = control.craft(x, y)
    assert measured.linearity is not None
    fine = linearity(graph, torch.from_numpy(x), torch.from_numpy(y), length=eps.value / 64).numpy()
    assert np.abs(np.median(measured.linearity, axis=0) - 1).max() < 0.2
    # a 64th of the budget is an eighth of a step
    assert np.mean(np.abs(fine - 1) > 0.5) > 2 * np.mean(np.abs(measured.linearity - 1) > 0.5)


def test_nothing_before_the_rounding_that_has_a_gradient() -> None:
    cast = (Node("Cast", ("image",), ("whole",), {"to": 2}), Node("Cast", ("whole",), ("x",), {"to": 1}))
    rounding = Node("QuantizeLinear", ("x", "scale", "zero"), ("y",), {})
    graph = graph_of(*cast, rounding, scale=torch.tensor(0.1), zero=torch.tensor(0, dtype=torch.int8))
    assert graph.input_step(torch.rand(1, 2, 3, 3)) == 0


def rewritten(bundle: Bundle, folder: Path, **entry: Any) -> Bundle:
    """A copy of ``bundle`` whose manifest says something else of fp32's gradients."""
    path = Path(shutil.copytree(bundle.path, folder))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["variants"]["fp32"].pop("gradients", None)
    manifest["variants"]["fp32"] |= entry
    manifest["bundle_id"] = bundle_id(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(path)


def test_gradients_that_were_found_to_be_another_networks_are_not_followed(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    told = "the graph of fp32 in PyTorch does not compute what ONNX Runtime does"
    for number, entry in enumerate(({"gradients": {"missing": told}}, {"surrogate": {"not_made": told}})):
        bundle = rewritten(digits_bundle, tmp_path / str(number), **entry)
        assert bundle.no_gradients("fp32") == told
        for variant in ("fp32", "fp32-u8in"):
            with pytest.raises(InputError, match=f"was made with no gradients of fp32: {told}"):
                open_graph(bundle, variant, device=CPU)
    assert rewritten(digits_bundle, tmp_path / "silent").no_gradients("fp32") is None


def test_a_graph_that_fails_only_when_it_runs_has_no_gradients(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever PyTorch raises, it is one sentence and not an attack that ends in the middle."""

    def fails(*_: Any) -> torch.Tensor:
        raise RuntimeError("linalg.vector_norm: expected a floating point tensor\nas input")

    bundle = rewritten(digits_bundle, tmp_path / "silent")
    monkeypatch.setitem(OPERATORS, "Relu", fails)
    with pytest.raises(InputError, match=r"^the graph of fp32 has no gradients here: linalg.vector_norm: .* as input$"):
        open_graph(bundle, "fp32", device=CPU)
