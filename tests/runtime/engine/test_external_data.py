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
from edgeadv_runtime.errors import BundleError

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
def test_values_in_another_file_are_refused(tmp_path: Path, build: Any) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(build(VALUES).SerializeToString())
    check_self_contained(file)
    file.write_bytes(build(outside()).SerializeToString())
    with pytest.raises(BundleError, match=r"m\.onnx keeps weights in another file, which no hash covers"):
        check_self_contained(file)


def test_what_is_exported_holds_its_weights(tiny_bundle: Bundle) -> None:
    for variant in tiny_bundle.variants:
        check_self_contained(tiny_bundle.onnx_path(variant))


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


def test_a_file_that_is_no_model(tiny_bundle: Bundle, tmp_path: Path) -> None:
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
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BundleError, match=f"{name} cannot be read as ONNX .*copy the bundle again"):
            check_self_contained(tmp_path / name)
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        check_self_contained(tmp_path / "nowhere")
