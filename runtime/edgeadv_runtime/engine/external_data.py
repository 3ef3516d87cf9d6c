"""Whether an ONNX file holds its weights itself, read without the onnx package, which a device does not have.

A tensor may say that its values lie in another file. No hash of a manifest covers that file, and it may be any on the
device, so such a model is refused before ONNX Runtime or TensorRT follow it. This reads as much of the protocol buffer
as finds every tensor; field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import BundleError
from ..reading import decoded

# where a message holds others, by the number of the field
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT, _WORD = 10, (1 << 32) - 1
# of a node of ONNX Runtime's that names the file of what was compiled of others
_OP_TYPE, _COMPILED = 4, b"EPContext"
# a network of ten thousand nodes has some hundred thousand; each takes memory here
_MOST_FIELDS = 2_000_000


def check_self_contained(data: bytes, name: object) -> None:
    """Refuse a model that has values in other files.

    Args:
        data: the bytes that a library is to be given: it would look for those files in the working directory.
        name: what the bytes are of, for messages.

    Raises:
        BundleError: it has, or is no ONNX model.
    """
    with decoded(name, what="not readable as ONNX", mend="copy the bundle again"):
        found = _external(memoryview(data))
    if found:
        raise BundleError(f"{name} keeps {found} in another file, which no hash covers: do not use it, export it again")


def _external(data: memoryview) -> str | None:
    """What the model keeps in another file, in words."""
    graphs, fields, messages = 0, 0, [("model", data)]
    while messages:
        kind, message = messages.pop()
        for number, value in _fields(message):
            fields += 1
            if fields > _MOST_FIELDS:
                raise ValueError(f"it has more than {_MOST_FIELDS} parts")
            if inner := _WITHIN[kind].get(number):
                graphs += inner == "graph"
                if len(value):
                    messages.append((inner, value))
            elif kind == "tensor" and (number == _EXTERNAL_DATA or _is_external(number, value)):
                return "weights"
            elif (kind, number) == ("node", _OP_TYPE) and value == _COMPILED:
                return "compiled code"
    if not graphs:
        raise ValueError("there is no graph in it")
    return None


def _is_external(number: int, value: Any) -> bool:
    # an enum has 32 bits, whatever is written
    return number == _DATA_LOCATION and isinstance(value, int) and value & _WORD == _EXTERNAL


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of every field of a message: an int, or the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key > _WORD:
            # readers differ in what they make of it: some cut it off
            raise ValueError("a field has a number that is none")
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire, len(data))
        if at + size > len(data):
            raise ValueError("it is cut off or not ONNX at all")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(_LONGEST_VARINT):
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("it is not ONNX at all")
