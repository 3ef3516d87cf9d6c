"""The -u8in variants: pixels in, and after that the graph that there is without them, node by node and number by
number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeadv.data.datasets import ImageSet
from edgeadv.gradients.artefact import open_graph
from edgeadv.models.builder import PixelModel
from edgeadv_export import TOLERANCES, Int8Plan, Origin, choose_calibration, data_frames, export_bundle, package
from edgeadv_export.u8in import to_u8in
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import FLOAT_VARIANTS
from edgeadv_runtime.errors import BackendError, ExportError, InputError
from edgeadv_runtime.files import sha256_bytes

Export = Callable[..., Bundle]


@pytest.fixture
def export(tmp_path: Path, digits_model: PixelModel, digits_train: ImageSet, digits_test: ImageSet) -> Export:
    """Exports the digits network with few images to calibrate and measure on."""

    def run(*variants: str, **changes: Any) -> Bundle:
        plan = None
        if any(variant.startswith("int8") for variant in variants):
            calibration = choose_calibration(digits_train, digits_train.preprocess, count=32)
            plan = Int8Plan(calibration=calibration, images=digits_test, order=np.arange(100), max_drop=10.0)
        return export_bundle(
            digits_model,
            tmp_path / "x.edgeadv",
            classes=digits_test.classes,
            preprocess=digits_test.preprocess,
            frames=data_frames(digits_test, limit=16),
            variants=variants,
            origin=Origin(title="digits", provenance={}),
            int8=plan,
            **changes,
        )

    return run


def logits(proto: Any, image: NDArray[Any]) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"image": image})[0]
    return found


# ---- the function


@pytest.mark.parametrize("variant", FLOAT_VARIANTS)
def test_three_nodes_come_before_the_graph(digits_bundle: Bundle, variant: str) -> None:
    floats = onnx.load(digits_bundle.onnx_path(variant))
    before = floats.SerializeToString(deterministic=True)
    made = to_u8in(floats, "digits")
    assert floats.SerializeToString(deterministic=True) == before
    (image,) = made.graph.input
    dims = image.type.tensor_type.shape.dim
    assert image.name == "image" and image.type.tensor_type.elem_type == TensorProto.UINT8
    assert dims[0].dim_param and [dim.dim_value for dim in dims][1:] == [32, 32, 3]
    assert made.graph.output == floats.graph.output
    assert [node.op_type for node in made.graph.node[:3]] == ["Cast", "Transpose", "Div"]
    assert made.graph.node[0].input[0] == "image"
    tensor = made.graph.node[2].output[0]
    for ours, theirs in zip(made.graph.node[3:], floats.graph.node, strict=True):
        assert "image" not in ours.input
        ours.input[:] = ["image" if source == tensor else source for source in ours.input]
        assert ours == theirs
    assert list(made.graph.initializer)[:-1] == list(floats.graph.initializer)
    # what the bundle ships is what this function makes
    assert digits_bundle.onnx_path(f"{variant}-u8in").read_bytes() == to_u8in(floats, "").SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("variant", FLOAT_VARIANTS)
def test_every_grey_level_is_the_same_number(digits_bundle: Bundle, variant: str) -> None:
    floats = onnx.load(digits_bundle.onnx_path(variant))
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    pixels[0].flat[:256] = range(256)
    assert np.array_equal(logits(to_u8in(floats, "digits"), pixels), logits(floats, to_tensor(pixels)))


def test_fp16_normalises_in_float32(digits_bundle: Bundle) -> None:
    """Pixels are rounded to float16 once, behind the normalisation, with this input as with the other."""
    graph = onnx.load(digits_bundle.onnx_path("fp16-u8in")).graph
    halves = {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT16}
    kinds = []
    for node in graph.node:
        kinds.append(node.op_type)
        assert not halves & set(node.input)
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            break
    assert kinds == ["Cast", "Transpose", "Div", "Sub", "Div", "Cast"]
    assert graph.node[0].attribute[0].i == TensorProto.FLOAT


def model(*nodes: Any, constants: tuple[Any, ...] = ()) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, 4, 4])],
        initializer=list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_graph_within_the_graph_gets_the_tensor_too() -> None:
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 4]) for name in ("a", "b")]
    branches = {
        "then_branch": helper.make_graph([helper.make_node("Relu", ["image"], ["a"])], "then", [], outs[:1]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["image"], ["b"])], "else", [], outs[1:]),
    }
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    floats = model(helper.make_node("If", ["yes"], ["logits"], **branches), constants=(yes,))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(logits(to_u8in(floats, "net"), pixels), to_tensor(pixels))


def test_a_graph_that_uses_the_image_twice() -> None:
    floats = model(helper.make_node("Mul", ["image", "image"], ["logits"]))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(logits(to_u8in(floats, "net"), pixels), to_tensor(pixels) ** 2)


def test_it_is_done_once() -> None:
    once = to_u8in(model(helper.make_node("Relu", ["image"], ["logits"])), "net")
    with pytest.raises(ExportError, match="image of net is not float32 in the export"):
        to_u8in(once, "net")


def test_a_name_that_is_taken() -> None:
    taken = model(
        helper.make_node("Relu", ["image"], ["u8in_tensor"]), helper.make_node("Relu", ["u8in_tensor"], ["logits"])
    )
    with pytest.raises(ExportError, match="net has a tensor called u8in_tensor"):
        to_u8in(taken, "net")


# ---- the bundle


def test_the_manifest_says_what_goes_in(digits_bundle: Bundle) -> None:
    entries = digits_bundle.manifest.to_json()["variants"]
    assert digits_bundle.manifest.schema_version == 1
    for base in FLOAT_VARIANTS:
        floats, pixels = entries[base], entries[f"{base}-u8in"]
        assert floats["input"] == {"name": "image", "dtype": "float32", "layout": "NCHW", "range": [0.0, 1.0]}
        assert pixels["input"] == {"name": "image", "dtype": "uint8", "layout": "NHWC", "range": [0, 255]}
        assert "made_from" not in floats
        assert pixels["made_from"] == {"variant": base, "sha256": floats["sha256"]}
        assert pixels["tolerance"] == TOLERANCES[f"{base}-u8in"] == floats["tolerance"]
        assert pixels["precision"] == floats["precision"]
        assert pixels["parity"] == floats["parity"]
    golden = digits_bundle.golden()
    for base in FLOAT_VARIANTS:
        assert np.array_equal(golden.logits[base], golden.logits[f"{base}-u8in"])


@pytest.mark.parametrize("base", ["int8-s8s8", "int8-u8s8"])
def test_int8_shares_the_gate_and_the_gradients(digits_bundle: Bundle, base: str) -> None:
    floats, pixels = (digits_bundle.manifest.variants[name].to_json() for name in (base, f"{base}-u8in"))
    assert "of" not in floats["gate"]
    assert pixels["gate"] == {"of": base, **floats["gate"]}
    assert pixels["float_layers"] == floats["float_layers"]
    assert pixels["gradients"] == floats["gradients"]
    assert open_graph(digits_bundle, f"{base}-u8in").sha256 == digits_bundle.artifact_sha256(base)


def test_without_the_artefact_it_was_made_from(export: Export) -> None:
    """In the order asked for, and neither the graphs with float input nor anything else beside what the manifest
    names."""
    told: list[str] = []
    bundle = export("int8-u8s8-u8in", "fp16-u8in", progress=told.append)
    assert bundle.variants == ("int8-u8s8-u8in", "fp16-u8in")
    assert sorted(p.name for p in bundle.path.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.fp16-u8in.onnx",
        "model.int8-u8s8-u8in.onnx",
        "weights.safetensors",
    ]
    entry = bundle.manifest.variants["int8-u8s8-u8in"].to_json()
    assert entry["gate"]["of"] == entry["made_from"]["variant"] == "int8-u8s8"
    assert sum("calibrating int8" in text for text in told) == sum("measuring int8" in text for text in told) == 1
    assert (
        open_graph(bundle, "int8-u8s8-u8in").sha256
        == entry["made_from"]["sha256"]
        == bundle.float_sha256("int8-u8s8-u8in")
    )
    assert set(bundle.golden().logits) == set(bundle.variants)


def test_one_calibration_for_both_inputs(export: Export) -> None:
    told: list[str] = []
    bundle = export("int8-s8s8-u8in", "int8-s8s8", progress=told.append)
    assert bundle.variants == ("int8-s8s8-u8in", "int8-s8s8")
    for what in ("calibrating int8", "measuring int8-s8s8 against fp32"):
        assert sum(what in text for text in told) == 1, told


def test_exporting_again_gives_the_same_bytes(export: Export) -> None:
    first = export("fp32", "fp32-u8in").artifact_sha256("fp32-u8in")
    assert export("fp32-u8in", overwrite=True).artifact_sha256("fp32-u8in") == first


def test_another_label_than_without_pixels_leaves_nothing(
    export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """int8 is not judged by its logits, so only this can show that its graph is another one."""

    def upside_down(proto: Any, name: str) -> Any:
        made = to_u8in(proto, name)
        made.graph.node[1].attribute[0].ints[:] = [0, 3, 2, 1]
        return made

    monkeypatch.setattr(package, "to_u8in", upside_down)
    with pytest.raises(
        ExportError, match="another label than int8-s8s8, which it was made from, the first of them frame"
    ):
        export("int8-s8s8-u8in")
    with pytest.raises(ExportError, match="fp32-u8in is not the model it was made from"):
        export("fp32-u8in")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fp32-u8in-u8in", "fp32-u8", "u8in", "int8-u8in"])
def test_a_name_that_is_none(export: Export, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="variants are one or more of fp32, "):
        export(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "other"), [("fp32", "fp32-u8in"), ("fp32-u8in", "fp32")])
def test_a_file_under_the_wrong_name_is_not_opened(export: Export, name: str, other: str) -> None:
    bundle = export("fp32", "fp32-u8in")
    content = bundle.onnx_path(other).read_bytes()
    bundle.onnx_path(name).write_bytes(content)
    bundle.manifest.variants[name] = replace(bundle.manifest.variants[name], sha256=sha256_bytes(content))
    with pytest.raises(BackendError, match=rf"takes tensor\(\w+\) where {name} takes tensor\(\w+\); export it again"):
        OnnxRuntimeBackend(Bundle(bundle.path, bundle.manifest), variant=name)
