"""A model that keeps values in other files is refused, wherever in the graph they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.engine.external_data import check_self_contained
from edgeadv_runtime.errors import BundleError, IntegrityError
from edgeadv_runtime.files import sha256_bytes

VALUES = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")


def outside() -> TensorProto:
    """A tensor whose values are said to lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def model(nodes: list[Any], **parts: Any) -> onnx.ModelProto:
    """A graph with these nodes, as far as reading it needs one."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4])
    return helper.make_model(helper.make_graph(nodes, "graph", [image], [], **parts))


def branch(tensor: TensorProto) -> Any:
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [])
    return helper.make_node("If", ["image"], ["y"], then_branch=graph, else_branch=graph)


def with_function(tensor: TensorProto) -> onnx.ModelProto:
    proto = model([])
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    proto.functions.append(helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 20)]))
    return proto


def sparse(tensor: TensorProto) -> onnx.ModelProto:
    proto = model([])
    proto.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return proto


@pytest.mark.parametrize(
    "build",
    [
        lambda tensor: model([], initializer=[tensor]),
        lambda tensor: model([helper.make_node("Constant", [], ["c"], value=tensor)]),
        lambda tensor: model([branch(tensor)]),
        with_function,
        sparse,
    ],
    ids=["initializer", "constant", "branch", "function", "sparse"],
)
def test_values_in_another_file_are_refused(build: Any) -> None:
    check_self_contained(build(VALUES).SerializeToString(), "m.onnx")
    with pytest.raises(BundleError, match=r"m\.onnx keeps weights in another file, which no hash covers"):
        check_self_contained(build(outside()).SerializeToString(), "m.onnx")


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def disguised(number: int, content: bytes | int) -> bytes:
    """A field whose number is written 2^29 too large, which a reader of 32 bits takes for ``number``."""
    key = (number + (1 << 29)) << 3
    return (
        varint(key) + varint(content) if isinstance(content, int) else varint(key | 2) + varint(len(content)) + content
    )


def test_numbers_of_fields_that_readers_cut_off_are_refused() -> None:
    entry = onnx.StringStringEntryProto(key="location", value="extra.bin").SerializeToString()
    tensor = disguised(13, entry) + disguised(14, 1)
    graph = b"\x2a" + varint(len(tensor)) + tensor  # initializer
    data = b"\x3a" + varint(len(graph)) + graph
    with pytest.raises(BundleError, match="a field has a number that is none"):
        check_self_contained(data, "m.onnx")


def test_a_location_is_an_enum_of_32_bits() -> None:
    tensor = varint(14 << 3) + varint(1 | 1 << 32)
    graph = b"\x2a" + varint(len(tensor)) + tensor
    with pytest.raises(BundleError, match="keeps weights in another file"):
        check_self_contained(b"\x3a" + varint(len(graph)) + graph, "m.onnx")


def test_code_compiled_elsewhere_is_refused() -> None:
    node = helper.make_node("EPContext", ["image"], ["y"], domain="com.microsoft", ep_cache_context="engine.bin")
    with pytest.raises(BundleError, match="keeps compiled code in another file"):
        check_self_contained(model([node]).SerializeToString(), "m.onnx")


def test_the_look_at_a_graph_is_bounded() -> None:
    graph = b"\x0a\x00" * 3_000_000  # empty nodes
    with pytest.raises(BundleError, match="more than 2000000 parts"):
        check_self_contained(b"\x3a" + varint(len(graph)) + graph, "m.onnx")


def test_what_is_exported_holds_its_weights(tiny_bundle: Bundle) -> None:
    for variant in tiny_bundle.variants:
        check_self_contained(tiny_bundle.onnx(variant), variant)


def test_a_backend_does_not_open_such_a_model(rewritten: Any, tiny_bundle: Bundle) -> None:
    from edgeadv_runtime.files import sha256_file

    path = rewritten()
    file = path / "model.fp32.onnx"
    proto = onnx.load(file)
    proto.graph.initializer[0].CopyFrom(outside())
    file.write_bytes(proto.SerializeToString())
    variants = tiny_bundle.manifest.to_json()["variants"]
    rewritten(variants={**variants, "fp32": {**variants["fp32"], "sha256": sha256_file(file)}})
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(BundleError, match="keeps weights in another file"):
        OnnxRuntimeBackend(Bundle.open(path), variant="fp32")


def test_a_file_that_is_no_model(tiny_bundle: Bundle) -> None:
    whole = tiny_bundle.onnx_path("fp16").read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"this is not ONNX",
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "zeros": bytes(64),
        "endless number": b"\xff" * 64,
        "nothing": onnx.ModelProto(producer_name="x").SerializeToString(),
    }.items():
        with pytest.raises(BundleError, match=f"{name} is not readable as ONNX .*copy the bundle again"):
            check_self_contained(data, name)


# --- the bytes that were checked are the bytes that run


def planted(folder: Path, place: str) -> bytes:
    """A model that takes its one weight from ``w.bin``, which lies in ``folder``, in the graph or in a branch."""
    np.full((4, 4), 7, np.float32).tofile(folder / "w.bin")
    tensor = outside()
    del tensor.external_data[:]
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
    nodes, values = [helper.make_node("MatMul", ["image", "w"], ["logits"])], [tensor]
    if place == "branch":
        weight = helper.make_tensor_value_info("held", TensorProto.FLOAT, [4, 4])
        tensor.name = "held"
        inside = helper.make_graph([], "inside", [], [weight], initializer=[tensor])
        nodes.insert(0, helper.make_node("If", ["yes"], ["w"], then_branch=inside, else_branch=inside))
        values = [numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(nodes, "graph", [image], [logits], initializer=values)
    opsets = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.mark.parametrize("place", ["graph", "branch"])
def test_a_file_in_the_working_directory_is_not_taken_for_weights(
    tiny_bundle: Bundle, rewritten: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """ONNX Runtime, given bytes, looks there: whoever can write there would choose the answers."""
    import onnxruntime

    from edgeadv.gradients.read_onnx import read_graph

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = planted(Path(), place)
    if place == "graph":  # it does look there, else this test would show nothing
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"image": np.ones((1, 4), np.float32)})
        assert logits.tolist() == [[28.0] * 4]
    path = rewritten()
    (path / "model.fp32.onnx").write_bytes(data)
    variants = tiny_bundle.manifest.to_json()["variants"]
    entry = {**variants["fp32"], "sha256": sha256_bytes(data), "bytes": len(data)}
    path = rewritten(variants={**variants, "fp32": entry})
    (path / "model.fp32.onnx").write_bytes(data)
    for opened in (
        lambda: OnnxRuntimeBackend(Bundle.open(path), variant="fp32"),
        lambda: read_graph(Bundle.open(path).onnx("fp32"), "fp32"),
    ):
        with pytest.raises(BundleError, match="keeps weights in another file, which no hash covers"):
            opened()


def test_a_file_that_is_changed_after_the_bundle_was_opened_does_not_run(rewritten: Any) -> None:
    path = rewritten()
    bundle = Bundle.open(path)
    (path / "model.fp32.onnx").write_bytes((path / "model.fp16.onnx").read_bytes())
    with pytest.raises(IntegrityError, match=r"model\.fp32\.onnx is damaged: its SHA-256"):
        OnnxRuntimeBackend(bundle, variant="fp32")
    (path / "golden.npz").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"golden\.npz is damaged"):
        bundle.golden()
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace("tiny", "tony"))
    for later in (lambda: bundle.sign("key.pem"), lambda: bundle.slim(path / "s", variants=["fp16"], weights=False)):
        with pytest.raises(IntegrityError, match="changed"):
            later()
