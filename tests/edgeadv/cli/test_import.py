"""``edgeadv import`` and what it refuses: one line that says what is wrong, exit status 2, and no bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeadv.cli import main
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.pictures import load
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.files import sha256_bytes
from tests.foreign import CLASSES, SIDE, convolutional, model, saved, value, weights

GIVEN = {
    "scale": "0..1",
    "color": "rgb",
    "classes": str(CLASSES),
    "preprocess": f"resize={SIDE},crop={SIDE}",
}
PICTURE = ("n", 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photographs: list[Any]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, frame in enumerate(photographs):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


def run(path: Path, photos: Path, *more: str, **options: str) -> int:
    given = [part for key, text in {**GIVEN, **options}.items() if text for part in (f"--{key}", text)]
    return main(
        ["import", str(path), *given, "--golden", str(photos), "--out", str(path.parent / "net.edgeadv"), *more]
    )


def test_from_file_to_device(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads a bundle copes with one that has no weights."""
    monkeypatch.chdir(tmp_path)
    path = saved(convolutional(), tmp_path / "theirs.onnx")
    assert run(path, photos) == 0
    captured = capsys.readouterr()
    assert "layout nchw, by the file itself" in captured.err and "imported from ONNX" in captured.out
    out, slim = tmp_path / "net.edgeadv", tmp_path / "slim.edgeadv"
    for command in (
        ["bundle", "show", out],
        ["bundle", "slim", out, "--variant", "fp32", "--weights", "--out", slim],
        ["verify", slim],
        ["bench", slim, "--backend", "onnxruntime", "--runs", "5"],
        ["doctor", slim],
    ):
        assert main(list(map(str, command))) == 0, capsys.readouterr().err
    assert Bundle.open(slim).id == Bundle.open(out).id
    capsys.readouterr()
    assert run(path, photos) == 2 and "exists" in capsys.readouterr().err
    assert run(path, photos, "--overwrite") == 0


def test_a_graph_of_one_picture_serves_batches(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    peak = helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=1)
    even = helper.make_node("Div", ["x", "peak"], ["even"])
    shape = (1, 3, SIDE, SIDE)
    proto = convolutional(shape=shape, first=[peak, even], begin="even", output_shape=(1, CLASSES))
    assert run(saved(proto, tmp_path / "theirs.onnx"), photos) == 0
    assert "one image a call   fp32" in capsys.readouterr().out
    assert main(["verify", "net.edgeadv"]) == 0
    assert main(["bench", "net.edgeadv", "--backend", "onnxruntime", "--batch", "1,3", "--runs", "5"]) == 0


def test_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(convolutional(), tmp_path / "theirs.onnx")
    assert main(["import", "--check", str(path)]) == 0
    told = capsys.readouterr().out
    for text in ("scale", "color", "preprocess", "classes", "golden"):
        assert f"needed             --{text}: " in told
    assert "not run yet" in told and "of its own graph" in told
    given = [part for key, text in GIVEN.items() for part in (f"--{key}", text)]
    assert main(["import", "--check", str(path), *given]) == 0
    told = capsys.readouterr().out
    assert "--scale" not in told and "run and rewritten on noise" in told and "any batch" in told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["theirs.onnx"]


def test_a_dry_run_shows_the_images_that_it_is_given(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(convolutional(), tmp_path / "theirs.onnx")
    given = [part for key, text in GIVEN.items() for part in (f"--{key}", text)]
    assert main(["import", "--check", str(path), *given, "--golden", str(photos)]) == 0
    told = capsys.readouterr().out
    assert "needed" not in told and "run and rewritten on 12 images" in told


def test_a_network_that_tells_no_noise_apart_passes_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of noise is grey, whatever the noise; the mean of real digits is not."""
    limit = np.array(0.3, np.float32)
    first = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Sub", ["limit", "mean"], ["less"]),
        helper.make_node("Relu", ["less"], ["dark"]),
        helper.make_node("Mul", ["x", "dark"], ["seen"]),
    ]
    proto = convolutional(first=first, begin="seen", held={"limit": limit})
    path = saved(proto, tmp_path / "theirs.onnx")
    given = [part for key, text in GIVEN.items() for part in (f"--{key}", text)]
    assert main(["import", "--check", str(path), *given]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "due"),
    [
        (("n", 3, 32, 32), "becomes 32x32, e.g. size=32x32,interp=bilinear"),
        (("n", 3, 224, 224), "becomes 224x224, e.g. resize=256,crop=224,interp=bilinear"),
        (("n", 1, 120, 160), "becomes 120x160, e.g. size=120x160,interp=bilinear,color=gray"),
        (("n", 1, 784), "becomes 28x28, e.g. size=28x28,interp=bilinear,color=gray"),
    ],
)
def test_a_preprocessing_is_proposed_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[Any, ...], due: str
) -> None:
    proto = convolutional(shape=shape, channels=1 if shape[1] == 1 else 3)
    assert main(["import", "--check", str(saved(proto, tmp_path / "theirs.onnx"))]) == 0
    assert due in capsys.readouterr().out


def test_probabilities_are_refused(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the mean of two softmaxes: the logits of neither are those of the answer
    parts = [node("Softmax", "scores", out="one"), node("Mul", "scores", "three", out="more")]
    parts += [node("Softmax", "more", out="two"), node("Add", "one", "two", out="both"), node("Div", "both", "half")]
    proto = convolutional(
        last=parts,
        outputs=[value("y", ("n", CLASSES))],
        held={"three": np.array(3, np.float32), "half": np.array(2, np.float32)},
    )
    path = saved(proto, tmp_path / "theirs.onnx")
    assert run(path, photos) == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert told.startswith("edgeadv: --output 'y' holds probabilities, on which attacks find less than there is")
    assert not (tmp_path / "net.edgeadv").exists() and run(path, photos, output="scores") == 0


def test_pictures_of_other_kinds(tmp_path: Path, photographs: list[Any]) -> None:
    """16-bit grey, and pictures that EXIF turns: the proof is on what the bundle's preprocessing makes of them."""
    turned, deep = tmp_path / "turned", tmp_path / "deep"
    turned.mkdir()
    deep.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, frame in enumerate(photographs[:3]):
        Image.fromarray(frame).save(turned / f"{i}.png", exif=exif)
        Image.fromarray(frame.astype(np.uint16)[..., 1] * 16).save(deep / f"{i}.png")
    size = f"size={SIDE}x{SIDE}"
    gray = saved(convolutional(shape=("n", 1, SIDE, SIDE), channels=1), tmp_path / "gray.onnx")
    color = saved(convolutional(), tmp_path / "color.onnx")
    for path, folder, steps, order in (
        (color, turned, f"exif=apply,{size}", "rgb"),
        (color, turned, f"roi=0.5:0:1:1,{size}", "rgb"),
        (gray, deep, f"window=0:4080,color=gray,{size}", "gray"),
    ):
        assert run(path, folder, "--overwrite", preprocess=steps, color=order) == 0
        bundle = Bundle.open(tmp_path / "net.edgeadv")
        wanted = [Preprocess.parse(steps)(load(folder / f"{i}.png")) for i in range(3)]
        np.testing.assert_array_equal(bundle.golden().pixels, np.stack(wanted))
        assert main(["verify", str(bundle.path)]) == 0


def test_what_it_was_trained_on_can_be_told(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(convolutional(), tmp_path / "theirs.onnx")
    assert run(path, photos) == 0
    assert "evaluate cannot tell them: see import --training-data" in capsys.readouterr().out
    assert run(path, photos, "--overwrite", "--training-data", str(photos)) == 0
    assert "training images    12, known by hash" in capsys.readouterr().out
    listed, bundle = Bundle.open("net.edgeadv").training_images, Bundle.open("net.edgeadv")
    seen = [sha256_bytes(bundle.preprocess(load(file)).tobytes()) for file in sorted(photos.iterdir())]
    assert listed is not None and listed.count(seen) == len(listed) == 12
    assert main(["verify", "net.edgeadv"]) == 0
    assert run(path, photos, "--overwrite", "--training-data", "nowhere") == 2
    assert "neither a folder nor one of" in capsys.readouterr().err


def node(op: str, *inputs: str, out: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), [out], **attributes)


def behind(op: str, *inputs: str, **attributes: Any) -> Any:
    """A network with one more node behind its scores."""
    domain = attributes.get("domain")
    known = [domain] if domain and domain not in ("ai.onnx",) else []
    shape = attributes.pop("shape", None)
    kind = attributes.pop("kind", TensorProto.FLOAT)
    held = attributes.pop("held", {})
    ends = [value("y", shape or ("n", CLASSES), kind)]
    return convolutional(last=[node(op, *inputs, **attributes)], outputs=ends, held=held, domains=known)


def changed(change: Callable[[Any], None]) -> Any:
    proto = convolutional()
    change(proto)
    return proto


def beside(tensor: str, location: str, *, size: int | None = None, length: int | None = None) -> Callable[[Path], Path]:
    """A file one of whose weights is said to lie in ``location``."""

    def make(folder: Path) -> Path:
        (folder.parent / "outside.bin").write_bytes(bytes(4096))
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        proto = convolutional()
        (held,) = [each for each in proto.graph.initializer if each.name == tensor]
        held.ClearField("raw_data")
        held.data_location = TensorProto.EXTERNAL
        about = {"location": location} | ({} if length is None else {"length": str(length)})
        held.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in about.items())
        if size is not None:
            with (folder / location).open("wb") as stream:
                os.truncate(stream.fileno(), size)  # no block of the disk is taken
        return saved(proto, folder / "bad.onnx")

    return make


def raw(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "bad.onnx").write_bytes(data)
        return folder / "bad.onnx"

    return make


def huge(folder: Path) -> Path:
    with (folder / "bad.onnx").open("wb") as stream:
        os.truncate(stream.fileno(), (1 << 31) + 1)
    return folder / "bad.onnx"


def twice_named(proto: Any) -> None:
    proto.graph.node[1].output[0] = "conv"


def unsorted(proto: Any) -> None:
    first = onnx.NodeProto()
    first.CopyFrom(proto.graph.node[0])
    del proto.graph.node[0]
    proto.graph.node.append(first)


def cyclic(proto: Any) -> None:
    proto.graph.node[0].input[0] = "relu"


def not_numbers(proto: Any) -> None:
    held = weights(8, 3, 3, 3)
    held[0, 0, 0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(held, "conv.w"))


def too_long(proto: Any) -> None:
    proto.graph.initializer.add(name="bytes", data_type=TensorProto.INT8, dims=[4], raw_data=bytes(16))


def cut_short(proto: Any) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def sparse(proto: Any) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    where = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4]))


def branches() -> Any:
    def branch(name: str) -> Any:
        return helper.make_graph([node("Identity", "scores", out=name)], name, [], [value(name, None)])

    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    proto = behind("If", "yes", then_branch=branch("a"), else_branch=branch("b"))
    proto.graph.initializer.append(yes)
    return proto


def loops() -> Any:
    body = helper.make_graph(
        [node("Identity", "go", out="go_on"), node("Identity", "v", out="v_on")],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", None)],
        [value("go_on", [], TensorProto.BOOL), value("v_on", None)],
    )
    proto = behind("Loop", "times", "", "scores", body=body)
    proto.graph.initializer.append(helper.make_tensor("times", TensorProto.INT64, [], [2]))
    return proto


def trained(proto: Any) -> None:
    held = {name: np.ones(8, np.float32) for name in ("s", "b", "m", "v")}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in held.items())
    proto.graph.node.insert(
        1, helper.make_node("BatchNormalization", ["conv", *held], ["bn", "m2", "v2"], training_mode=1)
    )
    proto.graph.node[2].input[0] = "bn"


def recursive(proto: Any) -> None:
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    own = [helper.make_node("F", ["a"], ["b"], domain="mine")]
    proto.functions.append(helper.make_function("mine", "F", ["a"], ["b"], own, [helper.make_opsetid("mine", 1)]))
    proto.graph.node.append(helper.make_node("F", ["scores"], ["y"], domain="mine"))
    proto.graph.output[0].name = "y"


def trees() -> Any:
    one = {"nodes_treeids": [0], "nodes_nodeids": [0], "nodes_modes": ["LEAF"], "nodes_featureids": [0]}
    one |= {"nodes_values": [0.0], "nodes_truenodeids": [0], "nodes_falsenodeids": [0]}
    one |= {"class_treeids": [0], "class_nodeids": [0], "class_ids": [0], "class_weights": [1.0]}
    tree = helper.make_node(
        "TreeEnsembleClassifier", ["flat_x"], ["label", "y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1], **one
    )
    return model(
        [node("Flatten", "x", out="flat_x"), tree],
        [value("x", PICTURE)],
        [value("y", ("n", 2))],
        {},
        domains=["ai.onnx.ml"],
    )


def of_sequence() -> Any:
    proto = behind("SequenceConstruct", "scores")
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(kind)))
    return proto


def no_shape(proto: Any) -> None:
    proto.graph.input[0].type.tensor_type.ClearField("shape")


def fixed_two() -> Any:
    """Reshaped so that the pictures of a batch are no longer apart."""
    return convolutional(
        shape=(2, 3, SIDE, SIDE),
        first=[
            node("Reshape", "x", "s1", out="all"),
            node("Softmax", "all", out="soft", axis=1),
            node("Reshape", "soft", "s2", out="back"),
        ],
        begin="back",
        held={"s1": np.array([1, 2 * 3 * SIDE * SIDE]), "s2": np.array([2, 3, SIDE, SIDE])},
        output_shape=(2, CLASSES),
    )


def behind_input(kind: int) -> Any:
    cast = helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT)
    return convolutional(kind=kind, first=[cast], begin="float")


def in_bfloat16() -> Any:
    """Weights and arithmetic."""
    proto = convolutional(
        first=[helper.make_node("Cast", ["x"], ["brain"], to=TensorProto.BFLOAT16)],
        begin="brain",
        last=[helper.make_node("Cast", ["scores"], ["y"], to=TensorProto.FLOAT)],
        output="y",
        opset=23,
    )
    for held in proto.graph.initializer:
        numbers = numpy_helper.to_array(held).ravel().tolist()
        held.CopyFrom(helper.make_tensor(held.name, TensorProto.BFLOAT16, held.dims, numbers))
    return proto


def two_inputs() -> Any:
    return convolutional(last=[node("Add", "scores", "more")], output="y", inputs=[value("more", ("n", CLASSES))])


def no_inputs(proto: Any) -> None:
    del proto.graph.input[:]
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3, SIDE, SIDE), np.float32), "x"))


def flat() -> Any:
    return convolutional(
        shape=("n", SIDE * SIDE),
        channels=1,
        first=[node("Reshape", "x", "to", out="folded")],
        begin="folded",
        held={"to": np.array([-1, 1, SIDE, SIDE])},
    )


def of_opset(version: int) -> Callable[[Any], None]:
    return lambda proto: setattr(proto.opset_import[0], "version", version)


def normalised() -> Any:
    """By ImageNet's means and deviations, in the order BGR."""
    numbers = {"mean": [0.406, 0.456, 0.485], "std": [0.225, 0.224, 0.229]}
    return convolutional(
        first=[node("Sub", "x", "mean", out="less"), node("Div", "less", "std", out="norm")],
        begin="norm",
        held={name: np.array(each, np.float32).reshape(1, 3, 1, 1) for name, each in numbers.items()},
    )


ZERO = {"zero": np.zeros((1, CLASSES), np.float32)}
BAD: dict[str, tuple[Any, str, dict[str, str]]] = {
    "truncated": (raw(convolutional().SerializeToString()[:-300]), "is cut off or not ONNX", {}),
    "empty": (raw(b""), "is empty", {}),
    "noise": (raw(np.random.default_rng(0).bytes(5000)), "is cut off or not ONNX", {}),
    "text of protobuf": (raw(b'ir_version: 8\ngraph { name: "net" }\n'), "is text", {}),
    "text of ONNX": (
        raw(b'<ir_version: 8, opset_import: ["" : 17]>\nnet (float[1] x) => (float[1] y) {}'),
        "is text",
        {},
    ),
    "a checkpoint": (raw(b"PK\x03\x04" + bytes(100)), "a zip archive, as PyTorch's checkpoints are", {}),
    "a pickle": (raw(b"\x80\x04\x95" + bytes(100)), "is a pickle", {}),
    "TensorFlow Lite": (raw(b"\x1c\x00\x00\x00TFL3" + bytes(100)), "TensorFlow Lite", {}),
    "Keras": (raw(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5", {}),
    "a folder": (lambda folder: folder, "is no file", {}),
    "not there": (lambda folder: folder / "bad.onnx", "is no file", {}),
    "no graph": (raw(onnx.ModelProto(ir_version=8).SerializeToString()), "holds no graph", {}),
    "larger than 2 GiB": (huge, "at most 2147483647 are read", {}),
    "weights that are not there": (beside("conv.w", "gone.bin"), "'gone.bin', which is not beside it", {}),
    "weights outside": (beside("conv.w", "../outside.bin"), "outside its folder", {}),
    "weights by an absolute path": (beside("conv.w", "/etc/hostname"), "outside its folder", {}),
    "weights by a link": (beside("conv.w", "link.bin"), "outside its folder", {}),
    "weights cut off": (beside("conv.w", "w.bin", size=100, length=864), "is cut off", {}),
    "weights of over 2 GiB": (beside("conv.w", "w.bin", size=(1 << 31) + 9, length=1 << 31), "larger than 2 GiB", {}),
    "weights of another size": (beside("conv.w", "w.bin", size=4000), "'conv.w' is damaged", {}),
    "no such input": (convolutional(), "--input 'pixels' is none of the graph; it takes x", {"input": "pixels"}),
    "no such output": (convolutional(), "--output 'p' is made by no node of the graph", {"output": "p"}),
    "no such layout": (convolutional(), "--layout 'hwc' is not one of nchw, nhwc", {"layout": "hwc"}),
    "no such color": (convolutional(), "--color 'grb' is not one of rgb, bgr, gray", {"color": "grb"}),
    "no such scale": (convolutional(), "--scale '0-1' is not 0..1, 0..255", {"scale": "0-1"}),
    "a scale by its ends": (convolutional(), r"--scale '-1\.\.1' is written 0\.5/0\.5$", {"scale": "-1..1"}),
    "gray of a colour picture": (
        convolutional(shape=("n", 1, SIDE, SIDE), channels=1),
        "--preprocess gives three channels, and the file takes one: add color=gray to --preprocess$",
        {"color": ""},
    ),
    "another scale than inside": (
        normalised(),
        r"--scale 0\.\.255 was given, and the file takes 0\.\.1, for .* is inside: leave --scale out$",
        {"scale": "0..255", "color": "bgr"},
    ),
    "another color than inside": (normalised(), "--color rgb was given, and the file takes bgr: .* leave --color", {}),
    "flat of a picture": (convolutional(), "--layout flat needs one dimension", {"layout": "flat"}),
    "gray of three channels": (convolutional(), "--color gray was given, and the file takes three", {"color": "gray"}),
    "no scale": (convolutional(), "--scale is needed", {"scale": ""}),
    "no color": (convolutional(), "--color is needed", {"color": ""}),
    "no classes": (convolutional(), "--classes is needed", {"classes": ""}),
    "free sizes": (convolutional(shape=("n", 3, None, None)), "--preprocess is needed", {"preprocess": ""}),
    "no dimensions": (changed(no_shape), "does not say how many dimensions", {}),
    "five numbers": (
        convolutional(shape=("n", 5), first=[node("Identity", "x", out="i")], begin="i"),
        "--preprocess gives 16x16 pixels, and the input 'x' takes 5 numbers",
        {},
    ),
    "branches": (branches(), "is If, control flow", {}),
    "loops": (loops(), "is Loop, control flow", {}),
    "operators of others": (behind("Magic", "scores", domain="com.example"), "Magic of 'com.example'", {}),
    "no such operator": (behind("Magic", "scores"), "is not valid ONNX", {}),
    "trees": (trees(), "TreeEnsembleClassifier of 'ai.onnx.ml'", {}),
    "a sequence": (of_sequence(), "'y' is a sequence, not a tensor", {}),
    "strings": (behind_input(TensorProto.STRING), "takes string: a picture is", {}),
    "int64": (behind_input(TensorProto.INT64), "takes int64: a picture is", {}),
    "float64": (behind_input(TensorProto.DOUBLE), "takes double: a picture is", {}),
    "NaN weights": (changed(not_numbers), "'conv.w' holds NaN", {}),
    "infinite logits": (behind("Div", "scores", "zero", held=ZERO), "gives NaN or infinite logits", {}),
    "a weight cut short": (changed(cut_short), "'conv.w' is damaged", {}),
    "bytes of another shape": (changed(too_long), "'bytes' is damaged", {}),
    "a weight that is not there": (changed(lambda p: p.graph.initializer.pop(0)), "is not valid ONNX", {}),
    "sparse weights": (changed(sparse), "holds sparse weights", {}),
    "0 classes": (convolutional(classes=0, output_shape=("n", 0)), "is 0 numbers a picture", {}),
    "1 class": (convolutional(classes=1, output_shape=("n", 1)), "at least two classes are due", {}),
    "one class asked for": (convolutional(), "--classes 1 is not a number from 2", {"classes": "1"}),
    "other classes": (convolutional(), "--classes are 7, and .* gives 4 numbers", {"classes": "7"}),
    "a map": (
        convolutional(outputs=[value("relu", ("n", 8, 8, 8))]),
        r"of shape \(1, 8, 8, 8\): a classifier gives one number a class",
        {},
    ),
    "labels": (
        behind("ArgMax", "scores", axis=1, kind=TensorProto.INT64, shape=("n", 1)),
        "logits are float; name their tensor with --output",
        {},
    ),
    "two inputs": (two_inputs(), "depends on 2 inputs", {}),
    "no inputs": (changed(no_inputs), "has no inputs", {}),
    "no outputs": (changed(lambda p: p.graph.ClearField("output")), "has no outputs|is not valid ONNX", {}),
    "two outputs": (
        convolutional(outputs=[value("scores", ("n", CLASSES)), value("flat", ("n", 8))]),
        "--output is needed, for the graph has 2: scores, flat",
        {},
    ),
    "another size": (
        convolutional(),
        "--preprocess gives 8x8 pixels, and the input 'x' takes 16x16",
        {"preprocess": "crop=8"},
    ),
    "another size, flat": (
        flat(),
        "--preprocess gives 8x8 pixels, and the input 'x' takes 256 numbers",
        {"preprocess": "crop=8", "color": "gray"},
    ),
    "five channels": (convolutional(shape=("n", 5, SIDE, SIDE), channels=5), "neither 1 nor 3 channels", {}),
    "five channels, said": (
        convolutional(shape=("n", 5, SIDE, SIDE), channels=5),
        "takes 5 channels as nchw: 1 or 3 are due",
        {"layout": "nchw"},
    ),
    "a batch of two": (fixed_two(), "takes batches of 2 only", {}),
    "an opset that is too new": (changed(of_opset(99)), "opset 99|is not valid ONNX", {}),
    "no opset": (changed(lambda p: p.ClearField("opset_import")), "opset|is not valid ONNX", {}),
    "an IR that is too new": (changed(lambda p: setattr(p, "ir_version", 99)), "of IR version 99", {}),
    "a circle": (changed(cyclic), "is not valid ONNX", {}),
    "nodes in no order": (changed(unsorted), "is not valid ONNX", {}),
    "a name twice": (changed(twice_named), "is not valid ONNX", {}),
    "a function of itself": (changed(recursive), "functions of its own|is not valid ONNX", {}),
    "a graph for training": (changed(lambda p: p.training_info.add()), "is a graph for training", {}),
    "in training mode": (changed(trained), "in training mode", {}),
    "chance": (
        convolutional(
            last=[node("RandomNormalLike", "scores", out="r"), node("Add", "scores", "r")],
            output="y",
        ),
        "draws random numbers",
        {},
    ),
    "an output beside the input": (
        convolutional(
            last=[node("Identity", "fc.b2")],
            output="y",
            held={"fc.b2": np.ones((1, 4), np.float32)},
            output_shape=(1, 4),
        ),
        "does not depend on any input",
        {},
    ),
    "the same for all": (
        behind("Mul", "scores", "zero", held=ZERO),
        "the same logits for every picture",
        {},
    ),
    "bfloat16": (in_bfloat16(), "bfloat16", {}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made, says, options = BAD[name]
    home = tmp_path / "home"
    home.mkdir()
    path = made(home) if callable(made) else saved(made, home / "bad.onnx")
    status = (
        run(path, photos, **options)
        if path != home
        else main(["import", str(home), "--out", str(home / "net.edgeadv")])
    )
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("reading and running")]
    assert status == 2, told
    assert len(told) == 1 and told[0].startswith("edgeadv: ") and len(told[0]) < 600, told
    assert re.search(says, told[0]), told[0]
    assert not list(home.glob("*.edgeadv"))
    if path.is_file() and not options:
        assert main(["import", "--check", str(path)]) in (0, 2)


def test_there_are_many() -> None:
    assert len(BAD) >= 60
