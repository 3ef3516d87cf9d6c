"""An ONNX file of somebody else, read with care: in bounded memory, nothing outside its folder, nothing but ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.external_data_helper
import onnx.inliner
import onnx.version_converter

from edgeadv.gradients import NEWEST, OLDEST
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.reading import opened, read_bytes

MOST_BYTES = (1 << 31) - 1
"""Of a model with all its weights: a protocol buffer holds no more."""
IR_OLDEST, IR_NEWEST = 8, 10
"""Versions of the format that are written; others are rewritten, nothing that a classifier holds differs."""
DEFAULT_DOMAINS = ("", "ai.onnx")
# what ONNX Runtime computes itself, its form of quantised operators among it
_DOMAINS = (*DEFAULT_DOMAINS, "com.microsoft")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_OTHERS = {
    b"PK\x03\x04": "a zip archive, as PyTorch's checkpoints are",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
}


def load_foreign(path: Path) -> Any:
    """The model at ``path`` with all its weights and local functions inlined, in an opset that the gradient side reads.

    Returns:
        An ``onnx.ModelProto`` of plain nodes.

    Raises:
        InputError: it is no ONNX file, larger than 2 GiB, keeps weights outside its folder, or is of a kind that no
            bundle holds: control flow, operators of other libraries, training, sparse weights.
    """
    proto = _parsed(path)
    if proto.training_info:
        raise InputError(f"{path} is a graph for training: export the network for inference")
    if not proto.graph.node:
        raise InputError(f"{path} holds no graph, or one without nodes: it is not a whole ONNX model")
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise InputError(f"{path} is of IR version {proto.ir_version}; 1 to {onnx.IR_VERSION} are known here")
    proto.ir_version = min(max(proto.ir_version, IR_OLDEST), IR_NEWEST)
    _take_in_external_data(proto, path)
    if proto.functions:
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except Exception as error:  # of C++, without a type of its own
            raise InputError(f"{path} has functions of its own that cannot be inlined ({one_line(error)})") from error
    _refuse_kinds(proto, path)
    _refuse_damaged(proto, path)
    return _inferred(_converted(_inferred(proto, path), path), path)


def _parsed(path: Path) -> Any:
    data = read_bytes(path, what="ONNX model", limit=MOST_BYTES, links=True, error=InputError)
    if not data:
        raise InputError(f"{path} is empty: copy it again")
    for begin, what in _OTHERS.items():
        if data.startswith(begin):
            raise InputError(f"{path} is {what}, and not ONNX: export the network to ONNX first")
    if data[4:8] == b"TFL3":
        raise InputError(f"{path} is a TensorFlow Lite model: convert it to ONNX first, with tf2onnx")
    if _is_text(data[:512]):
        raise InputError(f"{path} is text: save the model in ONNX's binary form (onnx.save)")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's own
        raise InputError(f"{path} is cut off or not ONNX at all: copy or export it again") from error
    return proto


def _is_text(data: bytes) -> bool:
    text = data.decode("utf-8", errors="replace")
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text) and "\ufffd" not in text[:-1]


def tensors_of(message: Any) -> Iterator[Any]:
    """Every tensor in a message of ONNX, at any depth."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from tensors_of(part)


def _take_in_external_data(proto: Any, path: Path) -> None:
    total = proto.ByteSize()
    folder = path.resolve().parent
    for tensor in tensors_of(proto):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        about = {entry.key: entry.value for entry in tensor.external_data}
        location = about.get("location", "")
        file = (folder / location).resolve()
        # resolved: neither an absolute path, nor "..", nor a link leads out
        if not location or not file.is_relative_to(folder):
            raise InputError(f"{path} keeps the weight {tensor.name!r} in {location!r}, outside its folder: not read")
        if not file.is_file():
            raise InputError(f"{path} keeps weights in {location!r}, which is not beside it: copy that file too")
        try:
            offset, size = int(about.get("offset", 0)), file.stat().st_size
            length = int(about["length"]) if "length" in about else size - offset
        except ValueError as error:
            raise InputError(f"{path}: where the weight {tensor.name!r} lies is not given in numbers") from error
        if offset < 0 or length < 0 or offset + length > size:
            raise InputError(f"{path}: {location!r} is cut off, the weight {tensor.name!r} lies beyond its end")
        total += length
        if total > MOST_BYTES:
            raise InputError(f"{path} and the weights beside it are larger than 2 GiB, more than a bundle can hold")
        with opened(file, what="file of weights", error=InputError) as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        if len(tensor.raw_data) != length:
            raise InputError(f"{path}: {location!r} changed while it was read: try again")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _refuse_kinds(proto: Any, path: Path) -> None:
    graph = proto.graph
    if graph.sparse_initializer:
        raise InputError(f"{path} holds sparse weights ({graph.sparse_initializer[0].values.name!r}): make them dense")
    for node in graph.node:
        where = f"{path}: node {node.name or next(iter(node.output), '')!r} is {node.op_type}"
        if node.domain not in _DOMAINS:
            raise InputError(f"{where} of {node.domain!r}: operators of that library are not known here")
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise InputError(f"{where}, control flow: export without branches and loops, or fold them (onnxsim)")
        if any(a.name == "training_mode" and a.i for a in node.attribute):
            raise InputError(f"{where} in training mode: export the network for inference (model.eval())")


def _refuse_damaged(proto: Any, path: Path) -> None:
    """Refuse tensors that have too few or too many bytes for their shape, and weights with NaN."""
    for tensor in tensors_of(proto.graph):
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except Exception as error:  # onnx's, by kind of tensor: it has no common base
            raise InputError(f"{path}: the weight {tensor.name!r} is damaged ({one_line(error)})") from error
        if tensor.data_type in _FLOATS and (values != values).any():
            raise InputError(f"{path}: the weight {tensor.name!r} holds NaN; the weights are broken")


def opset_of(proto: Any) -> int:
    """The version of ONNX's own operators; 0 where the model does not say."""
    return max((each.version for each in proto.opset_import if each.domain in DEFAULT_DOMAINS), default=0)


def _converted(proto: Any, path: Path) -> Any:
    opset = opset_of(proto)
    if OLDEST <= opset <= NEWEST:
        return proto
    if opset < OLDEST:
        # the converter needs sizes; whether the graph takes other batches is tried later all the same
        for each in proto.graph.input:
            for dim in each.type.tensor_type.shape.dim[:1]:
                dim.dim_value = dim.dim_value or 1
    try:
        while not OLDEST <= (at := opset_of(proto)) <= NEWEST:
            step = onnx.version_converter.convert_version(proto, at + (1 if at < OLDEST else -1))
            proto = onnx.shape_inference.infer_shapes(step)
        return proto
    except Exception as error:  # of C++, without a type of its own
        raise InputError(
            f"{path} is of opset {opset}, and cannot be converted to {OLDEST} to {NEWEST} ({one_line(error)}): export "
            "it in one of these"
        ) from error


def _inferred(proto: Any, path: Path) -> Any:
    """``proto`` with the shapes of its tensors, if it is valid."""
    for each in proto.graph.input:
        if each.type.HasField("tensor_type") and not each.type.tensor_type.HasField("shape"):
            raise InputError(f"{path}: the input {each.name!r} does not say how many dimensions it has: fix its shape")
    try:
        found = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        onnx.checker.check_model(found)
        return found
    except Exception as error:  # the checker's, and those of C++
        raise InputError(f"{path} is not valid ONNX: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an exception of a library says, in one line without backticks, which mark fields."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines)[:240].replace("`", "'")
