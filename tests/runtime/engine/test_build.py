"""Plans are built for real, by TensorRT-RTX, for GPUs that are not here. Whatever goes wrong is one sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.engine import BatchProfile, EngineOptions, Library, build, build_plan, find_library, worker
from edgeadv_runtime.errors import BundleError, EdgeAdvError, EngineError, InputError, IntegrityError, StorageError
from tests import forking

BOTH = ("sm_86", "sm_89")
Contents = Callable[[Path], list[str]]


def graph(*nodes: Any, image: Any = None, logits: Any = None, weights: Any = ()) -> bytes:
    """A small model with the names of a bundle."""
    image = image or helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 4, 4])
    logits = logits or helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    made = helper.make_graph(list(nodes), "g", [image], [logits], initializer=list(weights))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def memory_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *, available_kib: int) -> None:
    """Have the system say that this much memory is left."""
    kib = {"MemTotal": 8000000, "MemAvailable": available_kib}
    kib |= dict.fromkeys(("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive"), 0)
    (folder / "meminfo").write_text("".join(f"{name}: {value} kB\n" for name, value in kib.items()))
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))


def lives(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and that live."""
    return [process.pid for process in forking.children(pid) if lives(process)]


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("targets", [("sm_86",), ("sm_89",), BOTH], ids="+".join)
@pytest.mark.parametrize("batch", ["1", "1,8,32"])
def test_a_plan_is_built(
    tiny_bundle: Bundle, rtx: Library, tmp_path: Path, variant: str, targets: tuple[str, ...], batch: str
) -> None:
    options = EngineOptions(profile=BatchProfile.parse(batch), targets=targets)
    out = tmp_path / "made" / "a.plan"
    report = build_plan(tiny_bundle.onnx_path(variant), out, options=options, library=find_library("tensorrt-rtx"))
    plan = out.read_bytes()
    assert (report.bytes, report.sha256) == (len(plan), hashlib.sha256(plan).hexdigest())
    assert report.onnx_sha256 == tiny_bundle.artifact_sha256(variant)
    assert (report.library, report.version) == (rtx.name, rtx.version)
    assert (tuple(report.targets), report.profile) == (targets, tuple(options.profile.to_json()))
    assert report.flags == ()  # no TF32
    assert report.seconds > 0
    # the library knows its own: it names these bytes a plan, and others malformed
    runtime = rtx.module.Runtime(rtx.logger())
    malformed = int(rtx.need("EngineInvalidityDiagnostics", "MALFORMED_ENGINE"))
    assert runtime.get_engine_validity(plan)[1] & malformed == 0
    assert runtime.get_engine_validity(b"?" * len(plan))[1] & malformed


@pytest.mark.parametrize("variant", ["fp32-u8in", "fp16-u8in", "int8-s8s8-u8in"])
@pytest.mark.parametrize("batch", ["1", "1,4,8"])
def test_a_plan_takes_pixels(digits_bundle: Bundle, rtx: Library, tmp_path: Path, variant: str, batch: str) -> None:
    options = EngineOptions(profile=BatchProfile.parse(batch), targets=("sm_86", "sm_89"))
    report = build_plan(digits_bundle.onnx_path(variant), tmp_path / "a.plan", options=options, library=rtx)
    assert report.onnx_sha256 == digits_bundle.artifact_sha256(variant)
    assert (report.profile, report.flags) == (tuple(options.profile.to_json()), ())
    plan = (tmp_path / "a.plan").read_bytes()
    malformed = int(rtx.need("EngineInvalidityDiagnostics", "MALFORMED_ENGINE"))
    assert rtx.module.Runtime(rtx.logger()).get_engine_validity(plan)[1] & malformed == 0


def test_a_plan_of_unsigned_int8_is_refused_with_pixels_too(
    digits_bundle: Bundle, rtx: Library, tmp_path: Path
) -> None:
    model = digits_bundle.onnx_path("int8-u8s8-u8in")
    with pytest.raises(EngineError, match=r"does not take this ONNX file|cannot build this model"):
        build_plan(model, tmp_path / "a.plan", options=EngineOptions(targets=("sm_86",)), library=rtx)


def test_the_file_is_the_plan_and_nothing_else(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, contents: Contents
) -> None:
    build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))
    assert contents(tmp_path) == ["a.plan"]
    first = (tmp_path / "a.plan").read_bytes()
    build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))
    assert contents(tmp_path) == ["a.plan"]
    assert len((tmp_path / "a.plan").read_bytes()) == len(first)


def test_tf32_is_read_back(onnx_file: Path, tmp_path: Path) -> None:
    options = EngineOptions(targets=("sm_86",), tf32=True, workspace_mib=256)
    report = build_plan(onnx_file, tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx"))
    assert report.flags == ("TF32",)
    assert report.workspace_mib == 256


def test_a_gpu_that_is_here_is_named_to_the_library(onnx_file: Path, tmp_path: Path, gpu: Gpu) -> None:
    report = build_plan(
        onnx_file, tmp_path / "a.plan", options=EngineOptions(), library=find_library("tensorrt-rtx"), gpu=gpu
    )
    assert report.targets == ("sm_86",)


def test_neither_a_gpu_nor_a_target(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no GPU here to build for: name one as a target"):
        build_plan(onnx_file, tmp_path / "a.plan", options=EngineOptions(), library=find_library("tensorrt-rtx"))


def test_a_gpu_that_the_library_does_not_know(onnx_file: Path, tmp_path: Path, gpu: Gpu) -> None:
    h200 = Gpu(**{**vars(gpu), "name": "NVIDIA H200", "compute_capability": (9, 0)})
    with pytest.raises(InputError, match=r"cannot build for sm_90: it knows .*with tensorrt"):
        build_plan(
            onnx_file, tmp_path / "a.plan", options=EngineOptions(), library=find_library("tensorrt-rtx"), gpu=h200
        )
    assert list(tmp_path.iterdir()) == []


def relu(name: str = "r") -> Any:
    return helper.make_node("Relu", ["image"], ["logits"], name=name)


BAD_ONNX: dict[str, tuple[Any, str]] = {
    "empty": (b"", "there is no model in the ONNX file, it is empty"),
    "garbage": (b"not a model at all" * 64, "cut off or not ONNX at all; copy or export"),
    "zeros": (bytes(4096), "not ONNX at all"),
    "half": (lambda whole: whole[: len(whole) // 2], "cut off or not ONNX at all"),
    "a byte short": (lambda whole: whole[:-1], "cut off or not ONNX at all"),
    "no graph": (
        onnx.ModelProto(ir_version=10).SerializeToString(),
        "there is no model in the ONNX file|does not take this ONNX file",
    ),
    "unknown operator": (
        graph(
            helper.make_node("Relu", ["image"], ["a"]), helper.make_node("NoSuchOp", ["a"], ["logits"], name="bad_node")
        ),
        r"does not take this ONNX file: node bad_node \(NoSuchOp\): .*Plugin not found",
    ),
    "wrong weights": (
        graph(
            helper.make_node("Conv", ["image", "w"], ["logits"], name="stem"),
            weights=[helper.make_tensor("w", TensorProto.FLOAT, [3, 5, 1, 1], [0.0] * 15)],
        ),
        r"node stem \(Conv\): .*failed to broadcast",
    ),
    "other input": (
        graph(
            helper.make_node("Relu", ["x"], ["logits"]),
            image=helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4]),
        ),
        "the one float32 input 'image' and output 'logits'",
    ),
    "float16 input": (
        graph(
            relu(),
            image=helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["N", 3, 4, 4]),
            logits=helper.make_tensor_value_info("logits", TensorProto.FLOAT16, None),
        ),
        "the one float32 input 'image'",
    ),
    "uint8 that is transposed first": (
        graph(
            helper.make_node("Transpose", ["image"], ["a"], name="turn", perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["a"], ["logits"], to=TensorProto.FLOAT),
            image=helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 4, 3]),
        ),
        "does not take this ONNX file|cannot build this model",
    ),
    "uint8 of a fixed batch": (
        graph(
            helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT),
            image=helper.make_tensor_value_info("image", TensorProto.UINT8, [2, 4, 4, 3]),
        ),
        r"input of the ONNX file is \(2, 4, 4, 3\), not \(batch, height, width, channels\)",
    ),
    "fixed batch": (
        graph(relu(), image=helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 4, 4])),
        r"input of the ONNX file is \(2, 3, 4, 4\), not \(batch, channels, height, width\)",
    ),
}


@pytest.mark.parametrize(("model", "says"), BAD_ONNX.values(), ids=BAD_ONNX.keys())
def test_bad_models_are_one_sentence_and_no_file(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, model: Any, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = model if isinstance(model, bytes) else model(onnx_file.read_bytes())
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises((EngineError, BundleError), match=f"{says}|is not readable as ONNX") as caught:
        build_plan(
            tmp_path / "model.onnx", tmp_path / "plans" / "a.plan", options=sm_86, library=find_library("tensorrt-rtx")
        )
    message = str(caught.value)
    assert message.startswith("model.onnx: ") and "\n" not in message and len(message) < 800
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")  # none of TensorRT's own lines


def test_a_workspace_that_is_too_small_is_told_in_the_builder_s_words(onnx_file: Path, tmp_path: Path) -> None:
    options = EngineOptions(profile=BatchProfile(1, 8, 32), targets=("sm_86",), workspace_mib=1)
    with pytest.raises(
        EngineError,
        match=r"cannot build this model, give a larger `workspace` or a smaller batch: .*within workspace limit",
    ):
        build_plan(onnx_file, tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx"))
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_larger_than_what_is_free(onnx_file: Path, tmp_path: Path, gpu: Gpu) -> None:
    options = EngineOptions(workspace_mib=11001)
    with pytest.raises(
        EngineError, match="11001 MiB does not fit into the 11000 MiB that are free on NVIDIA GeForce RTX 3060"
    ):
        build_plan(onnx_file, tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx"), gpu=gpu)
    assert list(tmp_path.iterdir()) == []


def test_an_integrated_gpu_shares_the_memory_of_the_host(
    onnx_file: Path, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_of(tmp_path, monkeypatch, available_kib=2097152)
    orin = Gpu(**{**vars(gpu), "integrated": True})
    with pytest.raises(EngineError, match="3000 MiB does not fit into the 2048 MiB"):
        build_plan(
            onnx_file,
            tmp_path / "a.plan",
            options=EngineOptions(workspace_mib=3000),
            library=find_library("tensorrt-rtx"),
            gpu=orin,
        )
    report = build_plan(
        onnx_file, tmp_path / "a.plan", options=EngineOptions(), library=find_library("tensorrt-rtx"), gpu=orin
    )
    assert report.workspace_mib == 1024  # half of what is free, where TensorRT alone would take all


def test_a_model_that_is_not_the_manifest_s(onnx_file: Path, sm_86: EngineOptions, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"model\.fp16\.onnx: the ONNX file is not the one"):
        build_plan(
            onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), onnx_sha256="0" * 64
        )
    with pytest.raises(BundleError, match="does not exist: no ONNX file there"):
        build_plan(tmp_path / "none.onnx", tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(onnx_file: Path, sm_86: EngineOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        build_plan(onnx_file, tmp_path / "file" / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))


def test_a_disk_that_is_full(onnx_file: Path, sm_86: EngineOptions, tmp_path: Path) -> None:
    """Instead of a full disk a limit on the size of a file: the same error to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"the plan cannot be written \(File too large\): make room there"):
            build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_folder_is_not_the_plan_s(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build.tempfile, "TemporaryFile", full)
    with pytest.raises(
        EngineError, match=r"^model\.fp16\.onnx: the build broke off \(No space left on device\): make room in /"
    ):
        build_plan(onnx_file, tmp_path / "plans" / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))
    assert list(tmp_path.iterdir()) == []


def test_messages_that_nobody_reads_are_not_the_plan_s(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(build, "_PROGRESS_EVERY_S", 0.0)
    with pytest.raises(EngineError, match=r"the build broke off \(Broken pipe\): .* keep open what its messages go to"):
        build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), progress=gone)
    assert children(os.getpid()) == [] and list(tmp_path.iterdir()) == []


CRASH = "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            # TensorRT's own: the parser writes into a network that nobody holds
            "import tensorrt_rtx as t; l = t.Logger(); t.OnnxParser(t.Builder(l).create_network(0), "
            "l).parse(sys.stdin.buffer.read())",
            r"crashed during the build \(signal 11, SIGSEGV\)",
        ),
        ("import os; os.kill(os.getpid(), 9)", r"was killed \(signal 9\) during the build: probably out of memory"),
        (
            "import os; print('assertion!', file=sys.stderr); os.abort()",
            r"signal 6, SIGABRT\); its last words: assertion!",
        ),
        (
            "raise RuntimeError('surprise')",
            "ended with status 1 before the plan was built; its last words: RuntimeError: surprise",
        ),
        ("print('{\"phase\":', end='')", "ended with status 0 before the plan was built"),
    ],
    ids=["segmentation fault", "killed", "abort", "exception", "half a message"],
)
def test_a_builder_that_dies_is_one_sentence(
    rtx: Library,
    onnx_file: Path,
    sm_86: EngineOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "_START", CRASH + code)
    with pytest.raises(EngineError, match=says) as caught:
        build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=rtx)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_real_build_that_is_killed(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(build, "_PROGRESS_EVERY_S", 0.0)
    seen: list[str] = []

    def kill(text: str) -> None:
        if not seen:
            (pid,) = children(os.getpid())
            os.kill(pid, number)
        seen.append(text)

    with pytest.raises(EngineError, match=rf"during the build.*signal {int(number)}|signal {int(number)}\) during"):
        build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), progress=kill)
    assert "Building engine" in seen[0]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_builder_and_leaves_nothing(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_PROGRESS_EVERY_S", 0.0)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(
            onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), progress=interrupt
        )
    assert children(os.getpid()) == []
    assert list(tmp_path.iterdir()) == []


PARENT = """
import os, sys
from pathlib import Path
from edgeadv_runtime.engine import EngineOptions, build, build_plan, find_library
build._START = (
    "import sys, os; sys.path[:] = sys.argv.pop().split('\\\\n'); from edgeadv_runtime.engine import worker; "
    "import json; worker._die_with(json.loads(sys.argv[1])['parent']); "
    "import time; print('{}', flush=True); time.sleep(600)"
)
sys.stdout.write("ready\\n"); sys.stdout.flush()
options, library = EngineOptions(targets=("sm_86",)), find_library("tensorrt-rtx")
build_plan(Path(sys.argv[1]), Path(sys.argv[2]), options=options, library=library)
"""


def test_a_builder_does_not_outlive_its_parent(onnx_file: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(onnx_file), str(tmp_path / "a.plan")], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
            while not (found := children(parent.pid)):
                assert parent.poll() is None
                time.sleep(0.02)
            (pid,) = found
        finally:
            parent.kill()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and lives(psutil.Process(pid)):
        assert time.monotonic() < deadline, "the builder lives on"
        time.sleep(0.02)


def test_progress_is_told_from_inside_the_builder(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    build_plan(
        onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), progress=texts.append
    )
    assert texts == []  # over before there was anything to tell
    monkeypatch.setattr(build, "_PROGRESS_EVERY_S", 0.0)
    build_plan(
        onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), progress=texts.append
    )
    assert texts[0].endswith(" s: Building engine 0/6")
    assert len(texts) > 20


def test_short_memory_is_told_before_the_build(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_of(tmp_path, monkeypatch, available_kib=102400)
    texts: list[str] = []
    build_plan(
        onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"), progress=texts.append
    )
    assert len(texts) == 1 and "258 MiB of memory and 100 are available: it may be killed" in texts[0]
    assert build.memory_warning(100 << 20, 656) is None
    assert build.memory_warning(100 << 20, 655) is not None
    assert build.memory_warning(100 << 20, None) is None


def test_builds_in_threads_do_not_disturb_each_other(onnx_file: Path, sm_86: EngineOptions, tmp_path: Path) -> None:
    failed: list[str] = []
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 9)

    def one(number: int) -> None:
        model = onnx_file if number != 1 else garbage
        try:
            build_plan(model, tmp_path / f"{number}.plan", options=sm_86, library=find_library("tensorrt-rtx"))
        except EdgeAdvError as error:
            failed.append(f"{number} {error}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in tmp_path.glob("*.plan")) == ["0.plan", "2.plan"]
    assert len(failed) == 1 and failed[0].startswith("1 garbage.onnx: ")


def test_the_working_directory_is_not_a_place_for_modules(
    onnx_file: Path, sm_86: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "ctypes", "tensorrt_rtx", "edgeadv_runtime", "numpy", "site"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('loaded from the working directory')")
    monkeypatch.chdir(tmp_path)
    report = build_plan(onnx_file, tmp_path / "a.plan", options=sm_86, library=find_library("tensorrt-rtx"))
    assert report.bytes == (tmp_path / "a.plan").stat().st_size > 0


def test_the_builder_finds_the_package_where_its_parent_found_it(onnx_file: Path, tmp_path: Path) -> None:
    """Neither installed nor in PYTHONPATH: in a folder that the program itself put into sys.path."""
    source = Path(worker.__file__).parents[1]
    (tmp_path / "place").mkdir()
    copy = tmp_path / "place" / "edgeadv_runtime"
    subprocess.run(["cp", "-r", str(source), str(copy)], check=True)
    text = (copy / "engine" / "worker.py").read_text()
    (copy / "engine" / "worker.py").write_text(text + f"\nPath({str(tmp_path / 'mark')!r}).touch()\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'place')!r}); from pathlib import Path\n"
        "from edgeadv_runtime.engine import EngineOptions, build_plan, find_library\n"
        "options = EngineOptions(targets=('sm_86',))\n"
        f"build_plan(Path({str(onnx_file)!r}), Path({str(tmp_path / 'a.plan')!r}), options=options, "
        "library=find_library('tensorrt-rtx'))"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd="/")
    assert (tmp_path / "mark").exists()
    assert (tmp_path / "a.plan").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("before", "index", "after"),
    [(None, 0, "0"), (None, 2, "2"), ("", 1, "1"), ("3,5", 1, "5"), ("GPU-aa, GPU-bb", 0, "GPU-aa")],
)
def test_the_builder_sees_only_the_gpu_that_is_meant(gpu: Gpu, before: str | None, index: int, after: str) -> None:
    environment = {"PATH": "/bin"} | ({} if before is None else {"CUDA_VISIBLE_DEVICES": before})
    chosen = Gpu(**{**vars(gpu), "index": index})
    assert build.worker_environment(environment, chosen) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": after}
    assert build.worker_environment(environment, None) == environment


def test_classic_tensorrt_is_told_no_target(gpu: Gpu, rtx: Library) -> None:
    from types import SimpleNamespace

    classic = Library("tensorrt", "10.3.0", SimpleNamespace(IBuilderConfig=object))
    assert build.build_targets(classic, EngineOptions(), gpu) == ()
    assert build.build_targets(rtx, EngineOptions(), gpu) == ("sm_86",)
    with pytest.raises(InputError, match="builds only on and for the GPU present"):
        build.build_targets(classic, EngineOptions(targets=("sm_86",)), gpu)
