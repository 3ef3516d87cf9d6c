"""What is changed in a file of each structure, so that most of it is still as it should be."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from tests.mutations import VALUES, places

Mutator = Callable[[bytes, random.Random], bytes]
NUMBERS = (-1, 0, 1, 2, 3, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**12)
SHA = hashlib.sha256


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, a part cut out, doubled, or put in the place of another."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        if not changed:
            return b"\x00"
        at, length = rng.randrange(len(changed)), rng.choice([1, 1, 2, 4, 8, 64, 4096])
        how = rng.choice(["bit", "bit", "byte", "cut", "end", "double", "number"])
        if how == "bit":
            changed[at] ^= 1 << rng.randrange(8)
        elif how == "byte":
            changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif how == "cut":
            del changed[at : at + length]
        elif how == "end":
            del changed[at:]
        elif how == "double":
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
    return bytes(changed)


def change_json(document: Any, rng: random.Random) -> bytes:
    """One to three values of a JSON document replaced by ones that are near, of another kind, or of another place."""
    document = json.loads(json.dumps(document))
    texts: dict[str, str] = {}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(document))
        if not found:
            break
        *above, last = rng.choice(found)
        holder = document
        for key in above:
            holder = holder[key]
        value = holder[last]
        how = rng.choice(["near", "near", "other", "other", "place", "drop", "add", "rename", "twice"])
        if how == "near" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = rng.choice(
                [value + 1, value - 1, -value, value * 10, value + 0.5, value * 1e300, rng.choice(NUMBERS)]
            )
            holder[last] = value if abs(value) < 1e308 else 1e308
        elif how == "near" and isinstance(value, str):
            holder[last] = rng.choice([value + "x", value[:-1], value.upper(), f"../{value}", f"{value}\x1b[31m", ""])
        elif how == "place":
            *path, other = rng.choice(found)
            source = document
            with suppress(KeyError, IndexError, TypeError):
                for key in path:
                    source = source[key]
                holder[last] = json.loads(json.dumps(source[other]))
        elif how == "drop":
            holder.pop(last)
        elif how == "add" and isinstance(holder, list):
            holder.append(value)
        elif how == "rename" and isinstance(holder, dict):
            holder[rng.choice(["x", str(last) + "x", "", "a\nb"])] = holder.pop(last)
        else:
            mark = f"\x00{len(texts)}"
            holder[last] = mark
            wrong = rng.choice(VALUES)
            twice = how == "twice" and isinstance(holder, dict)
            texts[json.dumps(mark)] = f"1, {json.dumps(last)}: {wrong}" if twice else wrong
    text = json.dumps(document)
    for mark, wrong in texts.items():
        text = text.replace(mark, wrong)
    return text.encode()


def as_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file, mostly still one."""
    return raw(data, rng) if rng.random() < 0.1 else change_json(json.loads(data), rng)


def npy(data: bytes, rng: random.Random) -> bytes:
    """An array whose header says other things than its bytes hold, or another array."""
    if rng.random() < 0.3:
        return raw(data, rng)
    if rng.random() < 0.4:
        return array_bytes(other_array(np.load(io.BytesIO(data), allow_pickle=False), rng))
    length = struct.unpack("<H", data[8:10])[0]
    header, rest = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    kinds = ["|O", "<f8", "<U9", "<M8[s]", "|V5", "[('a','<i4')]", "<c16", ">i2", "|b1", "|S0", "<f2"]
    descr = eval(header)["descr"]  # what NumPy wrote of a seed
    shape = eval(header)["shape"]
    sizes = [*shape] or [1]
    sizes[rng.randrange(len(sizes))] = rng.choice(NUMBERS)
    header = rng.choice(
        [
            header.replace(repr(descr), repr(rng.choice(kinds))),
            header.replace(repr(shape), repr(tuple(sizes))),
            header.replace(repr(shape), repr((*shape, rng.choice(NUMBERS)))),
            header.replace("False", "True"),
            header.replace(repr(shape), "(" * 300 + ")" * 300),
            "{}",
        ]
    )
    encoded = header.encode("latin-1")
    return data[:8] + struct.pack("<H", len(encoded) & 0xFFFF) + encoded + rest


def other_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """An array like ``array`` with another type, size, rank, or values that are none."""
    how = rng.choice(["type", "rows", "rank", "value", "empty", "scalar", "text"])
    with np.errstate(all="ignore"):
        if how == "type":
            if array.dtype.kind == "U":  # not every text is a number
                return array.astype(rng.choice(["U1", "U9", "S9"]), copy=True)
            return array.astype(rng.choice(["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?", "c8"]), copy=True)
        if how == "rows":
            return array[: rng.randrange(len(array) + 1)] if array.ndim and len(array) else array.reshape(-1)
        if how == "rank":
            return rng.choice([array.reshape(-1), array[None], array[..., None]])
        if how == "value" and array.size and array.dtype.kind in "fiu":
            changed = array.copy()
            wrong = [0, 1, 99] + ([np.nan, np.inf, -np.inf, -1, 1e30] if array.dtype.kind == "f" else [])
            changed.flat[rng.randrange(array.size)] = rng.choice(wrong)
            return changed
    return {"empty": np.zeros(0, array.dtype), "scalar": np.zeros((), array.dtype)}.get(how, np.array(["a", "b"]))


def array_bytes(array: np.ndarray) -> bytes:
    """``array`` as a file of NumPy's."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def npz(data: bytes, rng: random.Random) -> bytes:
    """An archive with a member changed, dropped, renamed, doubled or huge, or a flag of it."""
    if rng.random() < 0.2:
        return raw(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    how = rng.choice(["change", "change", "change", "drop", "rename", "huge", "json", "flag"])
    if how == "change":
        members[name] = npy(members[name], rng)
    elif how == "drop":
        del members[name]
    elif how == "rename":
        members[rng.choice(["x.npy", "../x.npy", name[:-4], "/", "\u00e9.npy"])] = members.pop(name)
    elif how == "huge":
        members[name] = array_bytes(np.zeros((rng.choice([1, 8]), 60_000_000), np.uint8))[: rng.choice([None, 128])]
    elif how == "json":
        # text as bytes is how these files hold what is no array
        with suppress(ValueError, UnicodeDecodeError):
            held = np.load(io.BytesIO(members[name]), allow_pickle=False).tobytes()
            members[name] = array_bytes(np.frombuffer(change_json(json.loads(held), rng), np.uint8))
    stream = io.BytesIO()
    method = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(stream, "w", method) as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    changed = bytearray(stream.getvalue())
    if how == "flag":
        # of a member in the archive's list: its flags, or how it is compressed
        at = changed.find(b"PK\x01\x02") + rng.choice([6, 8, 9, 10])
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def onnx(data: bytes, rng: random.Random) -> bytes:
    """A graph with a node, a tensor, an attribute or a name that is another."""
    if rng.random() < 0.25:
        return raw(data, rng)
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto.FromString(data)
    graph = model.graph
    for _ in range(rng.choice([1, 1, 2])):
        node = rng.choice(graph.node) if graph.node else graph.node.add()
        how = rng.choice(["input", "output", "kind", "attribute", "tensor", "external", "io", "opset", "drop", "loop"])
        if how == "input" and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                ["", "x", *(each for n in graph.node for each in n.output)]
            )
        elif how == "output" and node.output:
            node.output[0] = rng.choice(["", "x", graph.input[0].name, graph.output[0].name])
        elif how == "kind":
            node.op_type = rng.choice(
                ["Conv", "Add", "Loop", "If", "Reshape", "Expand", "Tile", "Nope", "", "Identity"]
            )
        elif how == "attribute" and node.attribute:
            attribute = rng.choice(node.attribute)
            number = rng.choice(NUMBERS[:13])
            value = rng.choice([number, [number] * 4, "text", 1e30, [], float("nan")])
            with suppress(ValueError, TypeError):
                attribute.CopyFrom(helper.make_attribute(attribute.name, value))
        elif how == "tensor" and graph.initializer:
            tensor = rng.choice(graph.initializer)
            what = rng.choice(["dims", "type", "data", "name", "drop"])
            if what == "dims":
                tensor.dims.append(rng.choice(NUMBERS[:13]))
            elif what == "type":
                tensor.data_type = rng.choice([0, 1, 2, 7, 8, 9, 10, 11, 99])
            elif what == "data":
                tensor.raw_data = raw(tensor.raw_data, rng)
            elif what == "name":
                tensor.name = rng.choice(["", graph.input[0].name])
            else:
                graph.initializer.remove(tensor)
        elif how == "external" and graph.initializer:
            tensor = rng.choice(graph.initializer)
            tensor.data_location = TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", rng.choice(["model.onnx", "../x", "/dev/zero", "weights.safetensors"])
        elif how == "io":
            kind = rng.choice([graph.input, graph.output])[0].type.tensor_type
            kind.elem_type = rng.choice([0, 1, 2, 7, 10])
            if kind.shape.dim:
                rng.choice(kind.shape.dim).dim_value = rng.choice(NUMBERS[:13])
        elif how == "opset":
            model.opset_import[0].version = rng.choice([0, 1, 6, 13, 24, 2**40, -1])
        elif how == "drop" and len(graph.node) > 1:
            graph.node.remove(node)
        elif node.input and node.output:
            node.input[0] = node.output[0]
    return model.SerializeToString()


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Tensors whose header says other things than the bytes hold."""
    if rng.random() < 0.2 or len(data) < 8:
        return raw(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header = change_json(json.loads(data[8 : 8 + length]), rng)
    said = rng.choice([len(header)] * 5 + [*NUMBERS[1:13]])
    return struct.pack("<Q", said) + header + data[8 + length :]


def training_state(data: bytes, rng: random.Random) -> bytes:
    """The state of a training with its archive changed, whose hash in the first line is made to fit, or anything of
    it."""
    if rng.random() < 0.2:
        return raw(data, rng)
    head, _, body = data.partition(b"\n")
    changed = torch_file(body, rng)
    return head.replace(SHA(body).hexdigest().encode(), SHA(changed).hexdigest().encode()) + b"\n" + changed


def torch_file(data: bytes, rng: random.Random) -> bytes:
    """An archive of PyTorch with a member changed, its pickle above all."""
    if rng.random() < 0.2:
        return raw(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in members if name.endswith("data.pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.6 else sorted(members))
    if rng.random() < 0.1:
        del members[name]
    else:
        members[name] = raw(members[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return stream.getvalue()


def text(data: bytes, rng: random.Random) -> bytes:
    """Lines doubled, dropped, changed."""
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    how = rng.choice(["drop", "double", "raw", "raw", "control", "long"])
    if how == "drop":
        del lines[i]
    elif how == "double":
        lines.insert(i, lines[i])
    elif how == "control":
        lines[i] += rng.choice([b"\x00", b"\x1b[31m", b"\xff", "\u202e".encode(), b"\r"])
    elif how == "long":
        lines[i] *= 10_000
    else:
        lines[i] = raw(lines[i], rng)
    return b"\n".join(lines)
