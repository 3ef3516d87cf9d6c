"""Somebody else's ONNX file as a bundle: the same function of the pixels, whatever conventions its maker had."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime import quantization

import edgeadv as ea
from edgeadv_export import Asked, examine
from edgeadv_export.from_onnx import import_bundle
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.bundle.variants import is_x86
from edgeadv_runtime.errors import ExportError, InputError
from tests.foreign import CLASSES, SIDE, convolutional, saved, weights

STEPS = Preprocess(resize=SIDE, crop=SIDE)
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
Make = Callable[..., Bundle]


@pytest.fixture
def frames(photographs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return photographs


@pytest.fixture
def made(tmp_path: Path, frames: list[NDArray[np.uint8]]) -> Make:
    """Imports a model, from memory or a file."""

    def make(
        proto: Any,
        *,
        classes: int = CLASSES,
        steps: Preprocess = STEPS,
        tell: list[str] | None = None,
        **asked: Any,
    ) -> Bundle:
        path = proto if isinstance(proto, Path) else saved(proto, tmp_path / "theirs.onnx")
        ids = tuple(map(str, range(classes)))
        return import_bundle(
            path,
            tmp_path / "theirs.edgeadv",
            classes=Classes(ids, ids),
            preprocess=steps,
            frames=frames,
            asked=Asked(**asked),
            provenance={},
            overwrite=True,
            progress=None if tell is None else tell.append,
        )

    return make


def pictures(frames: list[NDArray[np.uint8]], steps: Preprocess = STEPS) -> NDArray[np.float32]:
    """NCHW in [0, 1]."""
    pixels = np.stack([steps(frame, color_order="rgb") for frame in frames])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def run(proto: Any, x: NDArray[Any]) -> NDArray[Any]:
    """First output of the file as it came, one picture at a time."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (given, *_) = session.get_inputs()
    return np.concatenate([session.run(None, {given.name: x[i : i + 1]})[0] for i in range(len(x))])


def answers(bundle: Bundle, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the bundle, all in one batch."""
    with OnnxRuntimeBackend(bundle, variant=bundle.variants[0]) as backend:
        return backend.infer(x)


def test_a_plain_file_enters_as_it_is(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional()
    bundle = made(proto, scale="0..1", color="rgb")
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(proto, x), rtol=1e-6, atol=1e-6)
    manifest, entry = bundle.manifest, bundle.manifest.variants["fp32"]
    assert (manifest.weights, manifest.requires) == (None, ("no-weights",))
    assert (manifest.architecture.name, manifest.architecture.source) == ("theirs", "onnx")
    assert entry.parity is not None and entry.parity.frames == len(frames) and not entry.parity.flips
    assert entry.parity.reference.startswith("theirs.onnx in onnxruntime")
    assert (entry.opset, entry.batch, entry.compute) == (17, None, {"conv": "Float", "logits": "Float"})
    with pytest.raises(InputError, match="was imported from ONNX and has no PyTorch weights"):
        _ = bundle.weights_path
    assert bundle.weights_sha256 == entry.sha256


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("scale", "factor", "mean", "std"),
    [
        ("0..1", 1, 0, 1),
        ("0..255", 255, 0, 1),
        ("imagenet", 1, MEAN, STD),
        ("127.5/127.5", 255, 127.5, 127.5),
        ("0.1,0.2,0.3/1,0.5,0.25", 1, np.array([0.1, 0.2, 0.3]), np.array([1, 0.5, 0.25])),
    ],
)
def test_every_convention_of_pictures(
    made: Make, frames: list[NDArray[np.uint8]], color: str, layout: str, scale: str, factor: Any, mean: Any, std: Any
) -> None:
    """By an own computation of what the file is fed."""
    turn = helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2])
    nhwc = layout == "nhwc"
    proto = convolutional(
        shape=(1, SIDE, SIDE, 3) if nhwc else (1, 3, SIDE, SIDE),
        first=[turn] if nhwc else [],
        begin="turned" if nhwc else "x",
        output_shape=(1, CLASSES),
    )
    bundle = made(proto, scale=scale, color=color)
    x = pictures(frames)
    fed = x.transpose(0, 2, 3, 1).astype(np.float64) * factor
    if scale == "imagenet":
        fed = (fed - mean) / std
        fed = fed[..., ::-1] if color == "bgr" else fed
    else:
        fed = fed[..., ::-1] if color == "bgr" else fed
        fed = (fed - mean) / std
    fed = fed if nhwc else fed.transpose(0, 3, 1, 2)
    wanted = run(proto, np.ascontiguousarray(fed.astype(np.float32)))
    np.testing.assert_allclose(answers(bundle, x), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert bundle.manifest.variants["fp32"].batch is None, "the file fixes a batch of 1, its graph does not"


@pytest.mark.parametrize("shape", [(1, SIDE * SIDE), (1, SIDE * SIDE, 1), (1, 1, SIDE, SIDE), (1, SIDE, SIDE)])
def test_one_channel_in_every_shape(made: Make, frames: list[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    fold = helper.make_node("Reshape", ["x", "to"], ["folded"])
    proto = convolutional(
        shape=shape,
        channels=1,
        first=[fold],
        begin="folded",
        held={"to": np.array([1, 1, SIDE, SIDE])},
        output_shape=(1, CLASSES),
    )
    with pytest.raises(InputError, match=r"three channels, and the file takes one: add color=gray to `preprocess`$"):
        made(proto, scale="0..1")
    tell: list[str] = []
    gray = Preprocess(resize=SIDE, crop=SIDE, color="gray")
    bundle = made(proto, scale="0..1", steps=gray, tell=tell)
    x = pictures(frames, gray)
    wanted = run(proto, x.reshape(-1, *shape[1:]))
    np.testing.assert_allclose(answers(bundle, x), wanted, rtol=1e-4, atol=1e-5)
    assert "color gray, by the file itself" in tell
    # Reshape to a literal batch of 1 is taken back
    assert bundle.manifest.variants["fp32"].batch is None and "any batch" in tell


@pytest.mark.parametrize(("layout", "order"), [("flat", (0, 1, 2, 3)), ("flat-nhwc", (0, 2, 3, 1))])
def test_flat_colours_in_both_orders(
    made: Make, frames: list[NDArray[np.uint8]], layout: str, order: tuple[int, ...]
) -> None:
    matrix = {"m": weights(SIDE * SIDE * 3, CLASSES)}
    proto = convolutional(
        shape=("n", SIDE * SIDE * 3),
        last=[helper.make_node("MatMul", ["x", "m"], ["y"])],
        output="y",
        held=matrix,
    )
    for node in list(proto.graph.node)[:-1]:
        proto.graph.node.remove(node)
    x = pictures(frames)
    bundle = made(proto, layout=layout, scale="0..1", color="rgb")
    wanted = run(proto, np.ascontiguousarray(x.transpose(order)).reshape(len(x), -1))
    np.testing.assert_allclose(answers(bundle, x), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"^`layout` is needed .*: flat, or flat-nhwc"):
        made(proto, scale="0..1", color="rgb")


def test_a_shape_that_is_computed_from_the_picture(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    """As PyTorch's older exporter writes ``x.view(x.size(0), -1)``."""
    proto = convolutional(
        last=[
            helper.make_node("Shape", ["scores"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["rows"], axis=0),
            helper.make_node("Unsqueeze", ["rows", "axes"], ["row"]),
            helper.make_node("Concat", ["row", "rest"], ["to"], axis=0),
            helper.make_node("Reshape", ["scores", "to"], ["y"]),
        ],
        output="y",
        held={"first": np.array(0), "axes": np.array([0]), "rest": np.array([-1])},
    )
    tell: list[str] = []
    bundle = made(proto, scale="0..1", color="rgb", tell=tell)
    assert not [said for said in tell if said.startswith("warning")] and not bundle.fixed_batch("fp32")
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(proto, x), rtol=1e-5)


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    path = saved(convolutional(), tmp_path / "theirs.onnx")
    assert [field for field, _ in examine(path, Asked(), None).needed] == ["scale", "color", "preprocess"]
    ambiguous = saved(convolutional(shape=("n", 3, SIDE, 3)), tmp_path / "both.onnx")
    assert "layout" in dict(examine(ambiguous, Asked(), None).needed)
    with pytest.raises(
        InputError, match=r"^`scale` is needed .*, and so is `color`, `preprocess`, `classes`, `frames`"
    ):
        ea.import_onnx(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [9, 17])
def test_a_softmax_at_the_end_is_cut_off(made: Make, frames: list[NDArray[np.uint8]], op: str, opset: int) -> None:
    """TensorFlow's way: pictures as NHWC, a transposition, and one softmax behind an Identity."""
    proto = convolutional(
        shape=("unk__1", SIDE, SIDE, 3),
        first=[helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2])],
        begin="turned",
        last=[
            helper.make_node(op, ["scores"], ["soft"], axis=1),
            helper.make_node("Identity", ["soft"], ["Identity:0"]),
        ],
        output="Identity:0",
        opset=opset,
    )
    tell: list[str] = []
    bundle = made(proto, scale="0..1", color="rgb", tell=tell)
    x = pictures(frames)
    logits, theirs = answers(bundle, x).astype(np.float64), run(proto, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.log(soft) if op == "LogSoftmax" else soft, theirs, rtol=1e-4, atol=1e-5)
    assert "the softmax at the end is cut off: 'scores' are the logits" in tell
    assert not any(node.op_type == op for node in onnx.load(bundle.onnx_path("fp32")).graph.node)


def test_one_sigmoid_becomes_two_logits(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(
        classes=1, last=[helper.make_node("Sigmoid", ["scores"], ["p"])], output="p", output_shape=("n", 1)
    )
    bundle = made(proto, scale="0..1", color="rgb", classes=2)
    x = pictures(frames)
    logits, p = answers(bundle, x), run(proto, x)[:, 0]
    assert logits.shape == (len(x), 2) and (logits[:, 0] == 0).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 1])), p, rtol=1e-5)
    np.testing.assert_array_equal(logits.argmax(axis=1), p > 0.5)


def test_logits_with_places_of_size_one_and_in_float16(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(
        last=[
            helper.make_node("Reshape", ["scores", "four"], ["wide"]),
            helper.make_node("Cast", ["wide"], ["half"], to=TensorProto.FLOAT16),
        ],
        held={"four": np.array([-1, CLASSES, 1, 1])},
        outputs=[helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["n", CLASSES, 1, 1])],
    )
    bundle = made(proto, scale="0..1", color="rgb")
    x = pictures(frames)
    np.testing.assert_array_equal(answers(bundle, x), run(proto, x)[:, :, 0, 0].astype(np.float32))


def test_a_file_in_float16_is_fp16(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = convert_float_to_float16(convolutional(), keep_io_types=False)
    bundle = made(proto, scale="0..1", color="rgb")
    assert bundle.variants == ("fp16",) and bundle.written_in("fp16") == {"Half"}
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(proto, x.astype(np.float16)).astype(np.float32), rtol=1e-2)


def test_a_file_that_takes_bytes(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(
        kind=TensorProto.UINT8,
        first=[
            helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "levels"], ["unit"]),
        ],
        begin="unit",
        held={"levels": np.array(255, np.float32)},
    )
    tell: list[str] = []
    bundle = made(proto, color="rgb", tell=tell)
    x = pictures(frames)
    wanted = run(proto, np.rint(x * 255).astype(np.uint8))
    np.testing.assert_allclose(answers(bundle, x), wanted, rtol=1e-4, atol=1e-5)
    assert "scale 0..255 (the input is uint8), by the file itself" in tell


def test_the_output_that_was_asked_for(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("relu", "scores")]
    proto = convolutional(outputs=ends)
    with pytest.raises(InputError, match=r"^`output` is needed, for the graph has 2: relu, scores"):
        made(proto, scale="0..1", color="rgb")
    bundle = made(proto, scale="0..1", color="rgb", output="scores")
    assert answers(bundle, pictures(frames)).shape == (len(frames), CLASSES)
    with pytest.raises(InputError, match=r"of shape \(1, 8, 8, 8\): a classifier gives one number a class"):
        made(proto, scale="0..1", color="rgb", output="relu")


def test_a_tensor_that_is_called_as_ours(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional()
    names = {"x": "logits", "relu": "image", "conv.w": "before_conv_0_0", "scores": "after_x"}
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for each in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        each.name = names.get(each.name, each.name)
    bundle = made(proto, scale="0..255", color="bgr")
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(proto, np.ascontiguousarray(x[:, ::-1] * 255)), rtol=1e-5)


def test_a_graph_that_fixes_its_batch_is_asked_one_picture_at_a_time(
    made: Make, frames: list[NDArray[np.uint8]]
) -> None:
    """A mean over the batch: of one picture it is nothing, of two another network."""
    proto = convolutional(
        shape=(1, 3, SIDE, SIDE),
        first=[
            helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=1),
            helper.make_node("Div", ["x", "peak"], ["even"]),
        ],
        begin="even",
        output_shape=(1, CLASSES),
    )
    tell: list[str] = []
    bundle = made(proto, scale="0..1", color="rgb", tell=tell)
    assert bundle.manifest.variants["fp32"].batch == 1 and bundle.fixed_batch("fp32")
    assert bundle.manifest.requires == ("no-weights", "fixed-batch")
    assert "one picture a call: its graph fixes the batch" in tell
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(proto, x), rtol=1e-5)


def test_a_picture_without_a_batch(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(
        shape=(3, SIDE, SIDE),
        first=[helper.make_node("Unsqueeze", ["x", "zero"], ["one"])],
        begin="one",
        last=[helper.make_node("Squeeze", ["scores", "zero"], ["y"])],
        output="y",
        output_shape=(CLASSES,),
        held={"zero": np.array([0])},
    )
    bundle = made(proto, scale="0..1", color="rgb")
    x = pictures(frames)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = np.stack([session.run(None, {"x": each})[0] for each in x])
    np.testing.assert_allclose(answers(bundle, x), wanted, rtol=1e-5)
    assert bundle.fixed_batch("fp32")


def test_a_batch_of_two_is_taken_back_where_only_the_shape_says_so(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(shape=(2, 3, SIDE, SIDE), output_shape=(2, CLASSES))
    bundle = made(proto, scale="0..1", color="rgb")
    assert answers(bundle, pictures(frames)).shape == (len(frames), CLASSES)


@pytest.mark.parametrize("opset", [1, 5, 7, 9, 11, 13, 20, 23])
def test_opsets(made: Make, frames: list[NDArray[np.uint8]], opset: int) -> None:
    proto = convolutional(opset=opset)
    if opset < 7:
        proto.ir_version = 3
        held = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
        proto.graph.input.extend(held)
        # before opset 7 Gemm broadcast its bias only when told to
        gemm = proto.graph.node[-1]
        gemm.attribute.append(helper.make_attribute("broadcast", 1))
    bundle = made(proto, scale="0..1", color="rgb")
    assert bundle.manifest.variants["fp32"].opset == max(opset, 7)
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(convolutional(opset=9), x), rtol=1e-5)


def test_functions_of_the_model_are_written_out(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(last=[helper.make_node("Twice", ["scores"], ["y"], domain="mine")], output="y")
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    proto.functions.append(twice)
    bundle = made(proto, scale="0..1", color="rgb")
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), 2 * run(convolutional(), x), rtol=1e-5)


def test_weights_beside_the_file_are_taken_in(made: Make, tmp_path: Path, frames: list[NDArray[np.uint8]]) -> None:
    path = tmp_path / "beside.onnx"
    onnx.save_model(convolutional(), path, save_as_external_data=True, location="beside.bin", size_threshold=0)
    bundle = made(path, scale="0..1", color="rgb")
    assert sorted(bundle.files) == ["golden.npz", "model.fp32.onnx"]
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(convolutional(), x), rtol=1e-6)


class _Calibration(quantization.CalibrationDataReader):
    def __init__(self, x: NDArray[np.float32]) -> None:
        self._rows = iter(x)

    def get_next(self) -> Any:
        row = next(self._rows, None)
        return None if row is None else {"x": row[None]}


@pytest.mark.parametrize(
    ("form", "activations", "variant"),
    [
        ("QDQ", "QInt8", "int8-s8s8"),
        ("QDQ", "QUInt8", "int8-u8s8"),
        ("QOperator", "QUInt8", "int8-u8s8"),
    ],
)
def test_what_others_quantised_enters_as_it_is(
    made: Make, tmp_path: Path, frames: list[NDArray[np.uint8]], form: str, activations: str, variant: str
) -> None:
    x = pictures(frames)
    source = saved(
        convolutional(last=[helper.make_node("Softmax", ["scores"], ["p"])], output="p"), tmp_path / "f.onnx"
    )
    quantised = tmp_path / "theirs.onnx"
    quantization.quantize_static(
        source,
        quantised,
        _Calibration(x),
        quant_format=quantization.QuantFormat[form],
        activation_type=quantization.QuantType[activations],
        weight_type=quantization.QuantType.QInt8,
    )
    before = onnx.load(quantised)
    tell: list[str] = []
    bundle = made(quantised, scale="0..1", color="rgb", tell=tell)
    assert bundle.variants == (variant,)
    entry = bundle.manifest.variants[variant]
    assert entry.gate is None and entry.precision == "int8" and entry.surrogate is None
    after = onnx.load(bundle.onnx_path(variant))
    kept = [node.op_type for node in after.graph.node]
    for op in ("QLinearConv", "QuantizeLinear"):
        assert kept.count(op) <= sum(node.op_type == op for node in before.graph.node)
    assert ("QLinearConv" in kept) == (form == "QOperator")
    assert not {"Softmax", "QLinearSoftmax"} & set(kept)
    assert not [said for said in tell if "queries only" in said]
    assert bundle.manifest.variants[variant].gradients.parity.top1_agreement == 1
    theirs = run(before, x)
    agree = answers(bundle, x).argmax(axis=1) == theirs.argmax(axis=1)
    assert agree.all()


@pytest.mark.skipif(not is_x86(), reason="only there is the exact sum another kernel")
def test_int8_that_onnxruntime_would_not_sum_exactly(
    made: Make, tmp_path: Path, frames: list[NDArray[np.uint8]]
) -> None:
    source, quantised = saved(convolutional(), tmp_path / "f.onnx"), tmp_path / "theirs.onnx"
    quantization.quantize_static(
        source,
        quantised,
        _Calibration(pictures(frames)),
        quant_format=quantization.QuantFormat.QOperator,
        activation_type=quantization.QuantType.QInt8,
    )
    with pytest.raises(InputError, match="no exact int8 QGemm: quantise the network with uint8 activations, or in QDQ"):
        made(quantised, scale="0..1", color="rgb")


def test_a_graph_that_the_gradient_side_does_not_know_is_said(made: Make, tmp_path: Path) -> None:
    proto = convolutional(
        last=[helper.make_node("QuickGelu", ["scores"], ["y"], domain="com.microsoft")],
        output="y",
        domains=["com.microsoft"],
    )
    tell: list[str] = []
    made(proto, scale="0..1", color="rgb", tell=tell)
    (warning,) = [said for said in tell if said.startswith("warning")]
    assert "by queries only" in warning and "QuickGelu" in warning


def test_a_rewritten_graph_that_is_another_network_is_no_bundle(
    made: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Were the steps before the graph wrong, nobody would get a bundle."""
    from edgeadv_export import examination, rewrite

    def wrong(made: Any, convention: Any, *, free: bool) -> str:
        return str(made.add("Mul", "image", np.array(0.5, np.float32)))

    monkeypatch.setattr(rewrite, "_before", wrong)
    # another process would not know of that
    monkeypatch.setattr(examination, "call_isolated", lambda function, *args, **_: function(*args))
    with pytest.raises(ExportError, match="the rewritten graph is not the file that came in: its logits differ"):
        made(convolutional(), scale="0..1", color="rgb")
    assert not (tmp_path / "theirs.edgeadv").exists()


def test_a_gradient_side_that_is_another_network_is_no_bundle(
    made: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeadv.gradients import operators

    monkeypatch.setitem(operators.OPERATORS, "Relu", lambda attributes, x: x)
    with pytest.raises(ExportError, match="fp32 in PyTorch does not compute what ONNX Runtime does"):
        made(convolutional(), scale="0..1", color="rgb")
    assert not (tmp_path / "theirs.edgeadv").exists()


def test_the_first_look_can_be_had_in_another_process(tmp_path: Path) -> None:
    path = saved(convolutional(), tmp_path / "theirs.onnx")
    asked = Asked(scale="0..1", color="rgb", shape=(3, SIDE, SIDE))
    assert pickle.loads(pickle.dumps((examine, path, asked, None)))[0] is examine
    found = examine(path, asked, None)
    again = pickle.loads(pickle.dumps(found))
    assert again.model == found.model and again.notes == found.notes


def test_from_pytorch(made: Make, frames: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    """What torch.onnx makes of a network of ours, with a fixed batch of 1."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 7 * 7, CLASSES),
    ).eval()
    path = tmp_path / "torch.onnx"
    torch.onnx.export(net, (torch.zeros(1, 3, SIDE, SIDE),), path, dynamo=True, external_data=False, verbose=False)
    bundle = made(path, scale="imagenet", color="rgb")
    x = pictures(frames)
    with torch.no_grad():
        wanted = net(torch.from_numpy((x - MEAN[:, None, None]) / STD[:, None, None])).numpy()
    np.testing.assert_allclose(answers(bundle, x), wanted, rtol=1e-4, atol=1e-4)
    assert not bundle.fixed_batch("fp32")


def test_the_same_file_gives_the_same_bytes(made: Make) -> None:
    first = made(convolutional(), scale="0..1", color="rgb").artifact_sha256("fp32")
    assert made(copy.deepcopy(convolutional()), scale="0..1", color="rgb").artifact_sha256("fp32") == first


def test_several_sigmoids_are_cut_off(made: Make, frames: list[NDArray[np.uint8]]) -> None:
    proto = convolutional(last=[helper.make_node("Sigmoid", ["scores"], ["p"])], output="p")
    bundle = made(proto, scale="0..1", color="rgb")
    x = pictures(frames)
    np.testing.assert_allclose(1 / (1 + np.exp(-answers(bundle, x))), run(proto, x), rtol=1e-5)


def test_what_is_quantised_as_it_runs_is_asked_one_picture_at_a_time(
    made: Make, tmp_path: Path, frames: list[NDArray[np.uint8]]
) -> None:
    """Its steps are those of the whole batch."""
    source, quantised = saved(convolutional(), tmp_path / "f.onnx"), tmp_path / "theirs.onnx"
    quantization.quantize_dynamic(source, quantised, weight_type=quantization.QuantType.QUInt8)
    bundle = made(quantised, scale="0..1", color="rgb")
    assert bundle.variants == ("int8-u8s8",) and bundle.fixed_batch("int8-u8s8")
    x = pictures(frames)
    np.testing.assert_allclose(answers(bundle, x), run(onnx.load(quantised), x), rtol=1e-4, atol=1e-4)
