"""``edgeadv engine``, with real plans of TensorRT-RTX for GPUs that are not here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeadv_runtime.backends import build_engine as command
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.device.cuda import Gpu, find_gpu
from edgeadv_runtime.engine import EngineCache, EngineOptions, Library, find_library
from edgeadv_runtime.errors import EdgeAdvError, ProviderError

# tests/edgeadv/conftest.py: what a command left on the terminal
Cli = Callable[..., Any]
SM_86 = ("--target", "sm_86")
GPU = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 3060",
    compute_capability=(8, 6),
    driver="570.10",
    memory_mib=12288,
    free_mib=11000,
    integrated=False,
)


@pytest.fixture(scope="module", autouse=True)
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    return find_library("tensorrt-rtx")


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.path, tmp_path / "tiny.edgeadv")


@pytest.fixture
def build(cli: Cli, bundle: Path, tmp_path: Path) -> Cli:
    """``edgeadv engine`` on the tiny bundle with a cache of its own."""
    return lambda *options: cli("engine", bundle, "--engine-cache", tmp_path / "cache", *options)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int = 0) -> Gpu:
        raise ProviderError("no NVIDIA driver here")

    monkeypatch.setattr(command, "find_gpu", refuse)


def add_variant(bundle: Path, variant: str, like: str) -> None:
    """Put a copy of an artefact into a bundle under the name of another variant."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    file = f"model.{variant}.onnx"
    shutil.copyfile(bundle / f"model.{like}.onnx", bundle / file)
    manifest["variants"][variant] = {**manifest["variants"][like], "file": file}
    manifest["bundle_id"] = bundle_id(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def plans(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.plan"))


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_for_a_gpu_that_is_not_here(build: Cli, tmp_path: Path, rtx: Library) -> None:
    first = build("--precision", "fp16", "--batch", "1,8,32", "--target", "sm_89,sm_86")
    assert first.status == 0
    (plan,) = (tmp_path / "cache").glob("*.plan")
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    lines = first.out.splitlines()
    assert lines[0] == f"fp16: miss: {tmp_path / 'cache'} has no engine of tiny fp16 yet"
    assert re.fullmatch(
        rf"  built          in \d+\.\d s by {rtx}, \d+\.\d\d MiB for sm_86, sm_89, batch 1,8,32", lines[1]
    )
    assert lines[2:] == [
        "  precision      declared as fp16",
        f"  plan sha256    {digest}",
        f"  plan           {plan}",
        "  not verified   needs an sm_86 or sm_89 GPU; take the plan along with --out, or run edgeadv engine on "
        "that machine",
    ]
    assert first.err == f"building the engine of tiny fp16 with {rtx}\n"
    second = build("--precision", "fp16", "--batch", "1,8,32", "--target", "sm_86,sm_89")
    assert second.out.splitlines()[0].startswith(f"fp16: hit: {plan.name} was built ")
    assert second.out.splitlines()[1:] == lines[1:]
    assert second.err == ""


@pytest.mark.usefixtures("no_gpu")
def test_explain_only_explains(build: Cli, tmp_path: Path) -> None:
    asked = build(*SM_86, "--explain")
    assert (asked.status, asked.out) == (0, f"fp16: miss: {tmp_path / 'cache'} has no engine of tiny fp16 yet\n")
    assert not (tmp_path / "cache").exists()
    assert build(*SM_86).status == 0
    assert build(*SM_86, "--explain").out.startswith("fp16: hit: tiny-fp16-")
    other = build(*SM_86, "--explain", "--batch", "8", "--tf32", "--workspace", "64")
    assert other.out == (
        "fp16: miss: no engine of tiny fp16 with these options; the nearest has batch 1, TF32 off, workspace as "
        "TensorRT "
        "likes instead of 8, on, 64 MiB\n"
    )
    (record,) = (tmp_path / "cache").glob("*.json")
    value = json.loads(record.read_text())
    value["key"]["library_version"] = "1.0.0"
    record.write_text(json.dumps(value))
    # as if an older library had built it: its key is another one
    shutil.move(record, record.with_name("tiny-fp16-0000000000000000.json"))
    shutil.move(record.with_suffix(".plan"), record.with_name("tiny-fp16-0000000000000000.plan"))
    stale = build(*SM_86, "--explain").out
    assert re.fullmatch(r"fp16: stale: library version was 1\.0\.0 and is 1\.\S+: it has to be built again\n", stale)
    assert len(plans(tmp_path / "cache")) == 1


@pytest.mark.usefixtures("no_gpu")
def test_all_leaves_out_what_tensorrt_refuses(build: Cli, bundle: Path, tmp_path: Path) -> None:
    add_variant(bundle, "int8-u8s8", "fp32")
    add_variant(bundle, "int8-s8s8", "fp16")
    done = build(*SM_86, "--precision", "all", "--explain")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["fp32", "fp16", "int8-s8s8"]
    assert (
        done.err
        == "int8-u8s8 is left out: TensorRT takes symmetric int8 only, that is int8-s8s8; int8-u8s8 is for x86 "
        "processors\n"
    )
    done = build(*SM_86, "--precision", "int8,fp32", "--explain")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["int8-s8s8", "fp32"]
    refused = build(*SM_86, "--precision", "int8-u8s8")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == (
        "edgeadv: TensorRT takes symmetric int8 only, that is int8-s8s8; int8-u8s8 is for x86 processors: use "
        "--precision "
        "int8-s8s8\n"
    )


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_that_is_taken_along(build: Cli, bundle: Path, tmp_path: Path, cli: Cli) -> None:
    done = build("--target", "sm_86,sm_89", "--out", bundle)
    assert done.status == 0
    copy = bundle / "model.fp16.tensorrt-rtx.sm_86+sm_89.b1.plan"
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    assert done.out.splitlines()[-2:] == [
        "  not verified   needs an sm_86 or sm_89 GPU; run edgeadv verify there --backend tensorrt --precision fp16 "
        f"--trust-plan {digest}",
        f"  copy           {copy}",
    ]
    assert json.loads(copy.with_suffix(".json").read_text())["sha256"] == digest
    Bundle.open(bundle)  # what is beside the files of the manifest disturbs nobody
    assert EngineCache(tmp_path / "other").trusted(Bundle.open(bundle), "fp16", digest).path == copy


BAD: dict[str, tuple[list[str], str]] = {
    "target": (["--target", "rtx3060"], "target 'rtx3060' is not a compute capability: write sm_86"),
    "no target": (["--target", ""], "target '' is not a compute capability"),
    "a Jetson": (["--target", "sm_86,sm_87"], "cannot build for sm_87: it knows sm_75"),
    "batch": ([*SM_86, "--batch", "8,1,32"], "batch 8,1,32 is not a profile: give one size"),
    "no batch": ([*SM_86, "--batch", "0"], "batch 0 is not a profile"),
    "two batches": ([*SM_86, "--batch", "1,8"], "batch '1,8' is not a profile"),
    "library": ([*SM_86, "--library", "onnx"], "library 'onnx' is not one of tensorrt, tensorrt-rtx"),
    "precision": ([*SM_86, "--precision", "fp8"], "carries no variant 'fp8' (it has: fp32, fp16)"),
    "one of two": ([*SM_86, "--precision", "fp32,int8"], "carries no variant 'int8-s8s8' (it has: fp32, fp16)"),
    "workspace": ([*SM_86, "--workspace", "0"], "a workspace of 0 MiB is not possible"),
    "huge workspace": ([*SM_86, "--workspace", "99999999999999999999"], "MiB is not possible"),
    "tiny workspace": (
        [*SM_86, "--workspace", "1", "--batch", "1,8,32"],
        "give a larger --workspace or a smaller batch",
    ),
    "no gpu": ([], "no NVIDIA driver here; or name the GPU to build for, such as --target sm_86"),
    "explain what to copy": ([*SM_86, "--explain", "--out", "x"], "leave out --out"),
}


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD.keys())
def test_bad_options_are_one_line_and_no_file(build: Cli, tmp_path: Path, options: list[str], says: str) -> None:
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    done = build(*options)
    last = done.err.splitlines()[-1]
    assert (done.status, says in last, last.startswith("edgeadv: ")) == (2, True, True), done.err
    assert [line for line in done.err.splitlines()[:-1] if not line.startswith("building the engine of")] == []
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("option", ["--out", "--engine-cache"])
def test_a_folder_that_cannot_be_written(cli: Cli, bundle: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("in the way")
    done = cli("engine", bundle, *SM_86, "--engine-cache", tmp_path / "cache", option, tmp_path / "file")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1 and "cannot" in done.err and "choose another" in done.err
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("model", "says"),
    [(b"", "not readable as ONNX"), (b"garbage" * 99, "cut off or not ONNX"), (None, "cut off")],
)
def test_a_bundle_that_vouches_for_no_model(
    build: Cli, bundle: Path, tmp_path: Path, model: bytes | None, says: str
) -> None:
    file = bundle / "model.fp16.onnx"
    file.write_bytes(file.read_bytes()[:100_000] if model is None else model)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["variants"]["fp16"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["bundle_id"] = bundle_id(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = build(*SM_86)
    assert done.status == 2
    assert says in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert list((tmp_path / "cache").iterdir()) == []


def test_classic_tensorrt_builds_for_the_gpu_present(
    build: Cli, monkeypatch: pytest.MonkeyPatch, no_gpu: None, rtx: Library
) -> None:
    classic = Library("tensorrt", "10.13.3", SimpleNamespace(IBuilderConfig=object))
    monkeypatch.setattr(command, "find_library", lambda name=None: classic)
    says = (
        r"edgeadv: TensorRT 10\.13\.3 builds only on and for the GPU present: leave out the target sm_89 .* or "
        r"use tensorrt-rtx\n"
    )
    done = build("--target", "sm_89", "--explain")
    assert done.status == 2 and re.fullmatch(says, done.err)
    monkeypatch.setattr(command, "find_gpu", lambda: GPU)
    assert re.fullmatch(says, build("--target", "sm_89", "--explain").err)
    # the one that is here may be named
    done = build("--target", "sm_86", "--explain")
    assert (done.status, done.out.startswith("fp16: miss")) == (0, True)


def test_a_named_gpu_takes_the_library_that_can(monkeypatch: pytest.MonkeyPatch, rtx: Library) -> None:
    classic = Library("tensorrt", "10.13.3", SimpleNamespace(IBuilderConfig=object))
    monkeypatch.setattr(command, "find_library", lambda name=None: rtx if name == "tensorrt-rtx" else classic)
    assert command._library(None, EngineOptions()) == classic
    assert command._library(None, EngineOptions(targets=("sm_86",))) == rtx
    assert command._library("tensorrt", EngineOptions(targets=("sm_86",))) == classic


@pytest.mark.parametrize(
    ("options", "opened", "printed"),
    [
        ((), True, "  verified       on the golden frames of the bundle, on NVIDIA GeForce RTX 3060"),
        (("--target", "sm_86,sm_89"), True, "  verified       on the golden frames"),
        (("--target", "sm_89"), False, "  not verified   needs an sm_89 GPU; take the plan along with --out"),
    ],
)
def test_what_can_run_here_is_proved_here(
    build: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...], opened: bool, printed: str
) -> None:
    """The GPU and the backend are stand-ins; that the real backend proves a plan is its own test."""
    calls: list[dict[str, Any]] = []
    origins: list[str] = []

    class Proves:
        def __init__(self, bundle: Bundle, **arguments: Any) -> None:
            calls.append(arguments)
            cache, library = arguments["cache"], find_library(arguments["library"])
            found = cache.provide(bundle, arguments["variant"], arguments["options"], library=library, gpu=GPU)
            origins.append(found.origin)
            self.engine = cache.note(found, precision={"label": "verified"})

        def __enter__(self) -> Proves:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(command, "find_gpu", lambda: GPU)
    monkeypatch.setattr(command, "TensorRTBackend", Proves)
    done = build(*options, "--library", "tensorrt-rtx")
    assert done.status == 0
    assert printed in done.out
    assert len(calls) == opened
    assert origins == ["built"] * opened, "what the backend builds it knows to be new, and does not build again"
    if opened:
        assert build(*options, "--library", "tensorrt-rtx").status == 0
        (record,) = (tmp_path / "cache").glob("*.json")
        value = json.loads(record.read_text())
        noted = {"plan_sha256": value["sha256"], "gpu": GPU.name, "driver": GPU.driver}
        record.write_text(json.dumps({**value, "not_loaded": noted}))
        assert build(*options, "--library", "tensorrt-rtx").status == 0
        assert origins == ["built", "hit", "built"], "who runs this again wants it tried again"
    assert f"  precision      {'verified' if opened else 'declared'} as fp16\n" in done.out


def test_on_a_gpu_it_builds_and_proves(build: Cli, rtx: Library) -> None:
    """Nothing to change where there is one; here it is skipped."""
    try:
        gpu = find_gpu()
    except EdgeAdvError as error:
        pytest.skip(f"no GPU: {error}")
    library = find_library()
    if library.can_target and gpu.sm not in library.known_targets:
        refused = build()
        assert refused.status == 2 and f"does not serve {gpu.name} ({gpu.sm})" in refused.err
        pytest.skip(f"{library} does not serve {gpu.name}, and says so")
    done = build("--precision", "fp32,fp16", "--batch", "1,8,32")
    assert done.status == 0, done.err
    assert done.out.count(f"  verified       on the golden frames of the bundle, on {gpu.name}") == 2
    assert build("--explain", "--batch", "1,8,32").out.startswith("fp16: hit")


def test_a_builder_that_is_killed_is_one_line(bundle: Path, tmp_path: Path) -> None:
    """A real process from which another one takes the builder away."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys\nif sys.argv[:1] == ['-c'] and '\"onnx_sha256\"' in sys.orig_argv[-2]:\n    "
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "edgeadv", "engine", str(bundle), *SM_86, "--engine-cache", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 2
    assert re.search(
        r"^edgeadv: model\.fp16\.onnx: TensorRT-RTX \S+ was killed \(signal 9\) during the build: ", done.stderr, re.M
    )
    assert list((tmp_path / "cache").iterdir()) == []
