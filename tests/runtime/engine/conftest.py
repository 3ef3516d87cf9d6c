"""What the tests of engines share. TensorRT-RTX builds for GPUs that are not here; none of its plans is run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.engine import EngineCache, EngineOptions, Library, find_library


@pytest.fixture(scope="session")
def rtx() -> Library:
    """The TensorRT-RTX of this environment."""
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    return find_library("tensorrt-rtx")


@pytest.fixture
def sm_86() -> EngineOptions:
    """For one GPU, batch 1."""
    return EngineOptions(targets=("sm_86",))


@pytest.fixture
def gpu() -> Gpu:
    """A description only: TensorRT-RTX builds for such a GPU whether it is here or not."""
    return Gpu(
        index=0,
        name="NVIDIA GeForce RTX 3060",
        compute_capability=(8, 6),
        driver="570.10",
        memory_mib=12288,
        free_mib=11000,
        integrated=False,
    )


@pytest.fixture(scope="session")
def onnx_file(tiny_bundle: Bundle) -> Path:
    """A real model of 0.7 MiB."""
    return tiny_bundle.onnx_path("fp16")


@pytest.fixture
def contents() -> Callable[[Path], list[str]]:
    """Names of all files below a folder."""
    return lambda folder: sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path: Path, rtx: Library) -> EngineCache:
    """An empty one."""
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that may be changed."""
    return Bundle.open(shutil.copytree(tiny_bundle.path, tmp_path / "tiny.edgeadv"))


@pytest.fixture
def changed_model() -> Callable[..., Bundle]:
    """Exports a bundle again, so to speak: its ONNX then has other bytes and means the same."""

    def change(bundle: Bundle, variant: str = "fp16") -> Bundle:
        model = bundle.onnx_path(variant)
        # an unknown field of no consequence at the end of the protobuf
        model.write_bytes(model.read_bytes() + b"\x98\x3f\x01")
        manifest = json.loads((bundle.path / "manifest.json").read_text())
        manifest["variants"][variant]["sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
        manifest["bundle_id"] = bundle_id(manifest)
        (bundle.path / "manifest.json").write_text(json.dumps(manifest))
        return Bundle.open(bundle.path)

    return change
