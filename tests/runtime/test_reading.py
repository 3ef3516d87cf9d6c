"""One place opens files, whatever they are, and takes what a decoder raises for what it is: a damaged file."""

from __future__ import annotations

import ast
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadv_runtime import Bench, Results
from edgeadv_runtime.arrays import Due, load_array, load_arrays
from edgeadv_runtime.attacks.base import AttackInfo
from edgeadv_runtime.attacks.pack import AttackPack, load_shard
from edgeadv_runtime.attacks.square_search import Search
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.golden import Golden
from edgeadv_runtime.bundle.training_images import TrainingImages
from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.engine.records import read_record
from edgeadv_runtime.errors import BundleError, EdgeAdvError, InputError, IntegrityError
from edgeadv_runtime.evaluation.outcomes import BatchOutcome
from edgeadv_runtime.files import read_json, sha256_file
from edgeadv_runtime.reading import decoded, file_hash, opened, read_bytes, read_checked
from edgeadv_runtime.records.study import Study

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "edgeadv", ROOT / "runtime/edgeadv_runtime", ROOT / "export/edgeadv_export"]

# --- nobody else opens a file

METHODS = {"read_bytes", "read_text", "fromfile", "memmap", "load_file", "safe_open", "genfromtxt", "loadtxt", "fdopen"}
LIBRARIES = {
    "np.load",
    "numpy.load",
    "torch.load",
    "onnx.load",
    "Image.open",
    "zipfile.ZipFile",
    "mmap.mmap",
    "os.open",
}
# ours, which read through the door; what they are called on tells them from a path
OURS = {
    "Bundle",
    "bundle",
    "Run",
    "AttackPack",
    "Classifier",
    "NvmlMeter",
    "TegrastatsMeter",
    "RaplMeter",
    "Fitter",
    "cls",
}
ELSEWHERE = {
    "runtime/edgeadv_runtime/reading.py": "the door itself",
    "runtime/edgeadv_runtime/arrays.py": "a zip archive of bytes that were read",
    "edgeadv/models/torch_files.py": "a zip archive, and PyTorch's reader, of bytes that were read",
    "runtime/edgeadv_runtime/backends/onnxruntime.py": "a session of bytes that were checked",
    "runtime/edgeadv_runtime/backends/first_run.py": "a session of bytes that were just made",
    "runtime/edgeadv_runtime/device/facts.py": "files of the kernel, in /proc and /sys",
    "runtime/edgeadv_runtime/doctor/extras.py": "what pip wrote of what it installed",
    "runtime/edgeadv_runtime/camera/serve.py": "the page, a part of the package",
    "edgeadv/reporting/page.py": "the style, a part of the package",
    "runtime/edgeadv_runtime/bundle/pictures.py": "pictures in a stream of the door",
    "runtime/edgeadv_runtime/corruptions/digital.py": "the JPEG that it has just written",
    "edgeadv/__main__.py": "nothing, in the place of a stream that is not there",
    "edgeadv/cli/_streams.py": "nothing, in the place of a stream that takes no more",
    "runtime/edgeadv_runtime/locks.py": "its own lock",
    "runtime/edgeadv_runtime/storage.py": "its own folders, to write them to the disk",
    "runtime/edgeadv_runtime/files.py": "its own file, that nobody has yet",
    "runtime/edgeadv_runtime/engine/build.py": "the stream of a worker",
    "runtime/edgeadv_runtime/engine/worker.py": "its own output, and the plan that it writes",
    "runtime/edgeadv_runtime/device/isolated.py": "its own output",
}
"""Files in which :func:`opens` finds something, and why that is no file of others."""


def opens(call: ast.Call) -> bool:
    """Whether a call may open a file to read it."""
    function, name = call.func, ast.unparse(call.func)
    if name in LIBRARIES or name.endswith("InferenceSession") or name == "open":
        return "O_WRONLY" not in ast.unparse(call)
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr == "open":
        modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
        return ast.unparse(function.value) not in OURS and not {"wb", "rb+", "r+b", "w"}.intersection(modes)
    return function.attr in METHODS


def calls(file: Path) -> Iterator[str]:
    """Calls in ``file`` that may open one, as they are written."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and opens(node):
            yield ast.unparse(node)[:100]


def test_no_other_module_opens_a_file() -> None:
    found = {
        str(file.relative_to(ROOT)): listed
        for package in PACKAGES
        for file in sorted(package.rglob("*.py"))
        if (listed := list(calls(file)))
    }
    assert {name: listed for name, listed in found.items() if name not in ELSEWHERE} == {}
    assert len(found) > 5  # the scan sees those that it knows


@pytest.mark.parametrize(
    "source",
    [
        "path.read_bytes()",
        "Path(x).read_text()",
        "open(name)",
        "p.open()",
        'p.open("rb")',
        "np.load(p)",
        "torch.load(p)",
    ],
)
def test_the_scan_itself(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.py").write_text(f"def f(path, x, name, p):\n    return {source}\n")
    assert list(calls(tmp_path / "a.py"))


# --- what is no plain file


def every_reader(bundle: Bundle) -> dict[str, Callable[[Path], Any]]:
    """What reads a file of others, by what it reads."""
    x = np.zeros((1, 3, 4, 4), np.float32)

    def weights(path: Path) -> Any:
        from edgeadv.models.checkpoints import read_weights

        return read_weights(path)

    def checkpoint(path: Path) -> Any:
        from edgeadv.training import checkpoint

        return checkpoint.load(placed(path, "state.bin"))

    def run(path: Path) -> Any:
        from edgeadv.training.runs import Run

        return Run.open(placed(path, "run.json"))

    def onnx(path: Path) -> Any:
        from edgeadv_export.foreign_file import load_foreign

        return load_foreign(path)

    def classes(path: Path) -> Any:
        from edgeadv_export.frames import read_classes

        return read_classes(path)

    def state(path: Path) -> Any:
        return Search(lambda x: x, x, np.zeros(1, np.int64), eps=0.1, queries=3, seed=0).load(path)

    return {
        "golden": Golden.load,
        "training images": TrainingImages.load,
        "shard": lambda path: load_shard(path, [AttackInfo.__new__(AttackInfo)]),
        "pack": lambda path: AttackPack.open(placed(path, "pack.json"), bundle=bundle),
        "outcome": lambda path: BatchOutcome.load(path, n_classes=3),
        "Square": state,
        "perturbation": lambda path: StoredPerturbation.load(path, bundle),
        "engine record": read_record,
        "results": Results.load,
        "bench": Bench.load,
        "study": Study.load,
        "manifest": lambda path: Bundle.open(placed(path, "manifest.json")),
        "signature": lambda path: Bundle.open(bundle.path, public_key=path),
        "key": lambda path: bundle.sign(path),
        "JSON": lambda path: read_json(path, what="file"),
        "weights": weights,
        "weights.safetensors": lambda path: weights(placed(path, "w.safetensors") / "w.safetensors"),
        "checkpoint": checkpoint,
        "run": run,
        "ONNX": onnx,
        "classes": classes,
    }


def placed(path: Path, name: str) -> Path:
    """``path`` under the name that its reader expects; the folder."""
    folder = path.with_name(f"{path.name}-in-{name.replace('.', '-')}")
    folder.mkdir(exist_ok=True)
    if not os.path.lexists(folder / name):
        path.rename(folder / name)
    return folder


READERS = sorted(every_reader(None))  # type: ignore[arg-type]
JSON = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "deeper than people read": json.dumps({"kind": "bench", "a": json.loads("[" * 99 + "]" * 99)}).encode(),
    "large number": b'{"a": ' + b"9" * 400 + b"}",
    "float": b'{"a": 1e999}',
    "NaN": b'{"a": NaN}',
    "surrogate": b'{"a": "\\ud800"}',
    "not UTF-8": b'{"a": "\xff"}',
    "empty lists": b"[" + b"[]," * (1 << 22) + b"[]]",
}


KINDS = ["pipe", "folder", "device", "circle", "missing", "nothing", "noise", *JSON]
# of these it is the folder that may be missing
OF_FOLDERS = ("pack", "run", "manifest", "checkpoint", "weights.safetensors")
PLACES = [(reader, kind) for reader in READERS for kind in KINDS if kind != "missing" or reader not in OF_FOLDERS]


@pytest.mark.parametrize(("reader", "kind"), PLACES)
def test_every_reader_refuses_what_is_no_such_file(tiny_bundle: Bundle, tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind != "missing":
        noise = np.random.default_rng(0).bytes(3000)
        path.write_bytes(JSON.get(kind, b"" if kind == "nothing" else noise))
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            every_reader(tiny_bundle)[reader](path)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    if (reader, kind) == ("JSON", "large number"):
        return  # it is JSON, and its record refuses the number
    assert raised and isinstance(raised[0], EdgeAdvError), raised
    assert "\n" not in str(raised[0])


def test_a_link_is_read_only_where_a_user_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_bytes(tmp_path / "link", what="file", links=True) == b"text"
    assert sha256_file(tmp_path / "link") == sha256_file(tmp_path / "a")
    for read in (read_bytes, file_hash):
        with pytest.raises(BundleError, match="link is not a readable file: it is a link"):
            read(tmp_path / "link", what="file")


@pytest.mark.parametrize("name", ["manifest.json", "golden.npz", "model.fp16.onnx", "weights.safetensors"])
def test_nothing_of_a_bundle_is_a_link(tiny_bundle: Bundle, rewritten: Any, tmp_path: Path, name: str) -> None:
    path = rewritten()
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match=r"a link|not a plain file"):
        Bundle.open(path)


def test_what_is_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InputError, match=r"it has 1099511627776 bytes, and at most 10 are read"):
        read_bytes(tmp_path / "large", what="file", limit=10, error=InputError)
    with pytest.raises(BundleError, match="at most 67108864 are read"):
        Results.load(tmp_path / "large")


def test_bytes_are_those_of_the_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    digest = sha256_file(tmp_path / "a")
    assert read_checked(tmp_path / "a", digest, what="file") == b"text"
    (tmp_path / "a").write_bytes(b"taxt")
    with pytest.raises(IntegrityError, match="its SHA-256 is not the one that was recorded"):
        read_checked(tmp_path / "a", digest, what="file")


def test_errors_of_ours_pass_and_others_are_one_line() -> None:
    with pytest.raises(InputError, match=r"^ours$"), decoded("x", what="not a file"):
        raise InputError("ours")
    with (
        pytest.raises(BundleError, match=r"^x is not a file \(two lines\); make it again$"),
        decoded("x", what="not a file"),
    ):
        raise RuntimeError("two\nlines")
    with pytest.raises(BundleError, match=r"\(MemoryError\)"), decoded("x", what="not a file"):
        raise MemoryError


# --- arrays

DUE = {"a": Due.of("float32", None, 3), "t": Due.of("str", None), "n_*": (Due.of("uint8", 2), Due.of("bool", 2))}


def stored(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def archive(compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return stream.getvalue()


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_arrays_come_back() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    texts = np.array(["ü", "longer"])
    found = load_arrays(stored(a=a, t=texts, n_1=np.ones(2, np.uint8), n_2=np.ones(2, np.bool_), b=a), DUE)
    assert sorted(found) == ["a", "n_1", "n_2", "t"]
    np.testing.assert_array_equal(found["a"], a)
    assert found["t"].tolist() == ["ü", "longer"] and found["n_2"].dtype == np.bool_
    found["a"][0, 0] = 7  # a search goes on in them
    turned = np.asfortranarray(a)
    np.testing.assert_array_equal(load_arrays(stored(a=turned), DUE)["a"], a)
    assert load_arrays(stored(a=np.empty((0, 3), np.float32), t=np.array([], dtype=np.str_)), DUE)["t"].tolist() == []
    stream = io.BytesIO()
    np.save(stream, a)
    np.testing.assert_array_equal(load_array(stream.getvalue(), DUE["a"]), a)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zip"),
        (stored(a=np.zeros(3, np.float32)), r"float32 \(any, 3\) is due"),
        (stored(a=np.zeros((1, 3))), "float64"),
        (stored(a=np.zeros((1, 3), ">f4")), "is due"),
        (stored(a=np.array([[{}] * 3])), "object"),
        (stored(n_1=np.zeros(2, np.int8)), r"uint8 \(2\) or bool \(2\) is due"),
        (archive(a=header("(1000000000000, 3)")), "larger than"),
        (archive(a=header("(18446744073709551616, 3)")), "larger than"),
        (archive(a=header("(-1, 3)")), "larger than"),
        (archive(a=header("(2, 3)") + bytes(23)), "does not have the 24 bytes"),
        (archive(a=header("(2, 3)") + bytes(25)), "does not have the 24 bytes"),
        (archive(a=header("(2, 3)", "|O")), "due"),
        (archive(a=header("(2, 3)", "nonsense")), "."),
        (archive(a=header("(2, 3")), "."),
        (archive(t=header("(1000000000000000,)", "<U0")), "texts"),
        (archive(t=header("(3,)", "<U0")), "texts of no length"),
        (archive(t=header("(70000,)", "<U1") + bytes(280_000)), "more than 65536 texts"),
        (archive(a=b"\x93NUMPY\x03\x00" + bytes(99)), "version"),
        (archive(a=b"raw"), "."),
        (archive(zipfile.ZIP_BZIP2, a=header("(1, 3)") + bytes(12)), "packed in a way"),
        (archive(zipfile.ZIP_LZMA, a=header("(1, 3)") + bytes(12)), "packed in a way"),
    ],
    ids=range(21),
)
def test_an_array_is_refused_by_its_header(data: bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=reason), decoded("x", what="not arrays"):
        load_arrays(data, DUE)


def test_too_many_arrays_are_refused() -> None:
    data = archive(**{f"m{i}": b"" for i in range(70_000)})
    with pytest.raises(BundleError, match="more than 65536 arrays"), decoded("x", what="not arrays"):
        load_arrays(data, DUE)


def test_what_unpacks_to_gigabytes_is_not_unpacked() -> None:
    import tracemalloc

    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made,
        made.open("a.npy", "w", force_zip64=True) as member,
    ):
        member.write(header("(200000000, 3)"))
        for _ in range(2400):
            member.write(bytes(10**6))
    data = stream.getvalue()
    assert len(data) < 3_000_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="larger than the 1073741824 bytes"):
        load_arrays(data, DUE)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_every_flipped_bit_of_an_archive_is_seen_or_harmless() -> None:
    whole = stored(a=np.ones((40, 3), np.float32), t=np.array(["a", "b"]))
    rng = np.random.default_rng(1)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            with decoded("x", what="not arrays"):
                found = load_arrays(bytes(damaged), DUE)
        except BundleError:
            continue
        assert "a" not in found or (found["a"] == 1).all()


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"text")
    with opened(tmp_path / "a", what="file") as stream:
        assert stream.read() == b"text"
    (tmp_path / "b").write_bytes(b"text")
    real = os.fdopen

    def grown(handle: int, *how: Any) -> Any:
        stream = real(handle, *how)
        size = os.fstat(handle)
        monkeypatch.setattr(os, "fstat", lambda _: size)
        with (tmp_path / "b").open("ab") as more:
            more.write(b" and more")
        return stream

    monkeypatch.setattr(os, "fdopen", grown)
    with pytest.raises(BundleError, match="it changed while it was read"):
        read_bytes(tmp_path / "b", what="file")
