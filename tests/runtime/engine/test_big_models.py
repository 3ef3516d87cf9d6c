"""RegNetY-400MF, AlexNet and ResNet-101, with seeded random weights, as plans in every precision."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeadv_runtime.engine import BatchProfile, EngineOptions, Library, build_plan, find_library
from edgeadv_runtime.errors import EngineError

pytestmark = pytest.mark.slow

NETWORKS = ("torchvision/regnet_y_400mf", "torchvision/alexnet", "torchvision/resnet101")
VARIANTS = ("fp32", "fp16", "int8-s8s8")
SHAPE = (3, 224, 224)
TARGETS = {"sm_86": ("sm_86",), "sm_89": ("sm_89",), "both": ("sm_86", "sm_89")}
BATCHES = {"static": BatchProfile(1, 1, 1), "dynamic": BatchProfile(1, 8, 32)}


def export(name: str, folder: Path) -> Path:
    """The ONNX files of ``name`` in every variant; int8 is calibrated on noise, which is enough to build a plan."""
    import torch

    from edgeadv.models.builder import Architecture, build
    from edgeadv_export.fp16 import to_fp16
    from edgeadv_export.int8 import calibrate
    from edgeadv_export.to_onnx import to_onnx

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Architecture.find(name, num_classes=10)).eval()
    fp32 = to_onnx(model, SHAPE)
    noise = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    graphs = {
        "fp32": lambda: fp32,
        "fp16": lambda: to_fp16(fp32, name),
        "int8-s8s8": lambda: calibrate(fp32, noise, name).quantise("int8-s8s8"),
    }
    for variant in VARIANTS:
        (folder / f"{variant}.onnx").write_bytes(graphs[variant]().SerializeToString())
    return folder


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda name: name.partition("/")[2])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rtx: Library) -> Iterator[Path]:
    folder = export(request.param, tmp_path_factory.mktemp("models"))
    yield folder
    shutil.rmtree(folder)
    gc.collect()


@pytest.mark.parametrize(("where", "batch"), [("sm_86", "static"), ("sm_89", "dynamic"), ("both", "dynamic")])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_is_built(models: Path, tmp_path: Path, variant: str, where: str, batch: str) -> None:
    options = EngineOptions(profile=BATCHES[batch], targets=TARGETS[where])
    report = build_plan(
        models / f"{variant}.onnx", tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx")
    )
    assert (tuple(report.targets), report.profile, report.flags) == (
        TARGETS[where],
        tuple(BATCHES[batch].to_json()),
        (),
    )
    assert report.bytes == (tmp_path / "a.plan").stat().st_size > 1 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.plan"]


def test_a_workspace_that_is_too_small(models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = EngineOptions(profile=BATCHES["dynamic"], targets=("sm_86",), workspace_mib=1)
    if "alexnet" in request.node.name:  # whose layers need none
        report = build_plan(
            models / "fp32.onnx", tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx")
        )
        assert report.workspace_mib == 1
        return
    with pytest.raises(
        EngineError, match=r"fp32\.onnx: TensorRT-RTX \S+ cannot build this model: .*(workspace|OutOfMemory)"
    ):
        build_plan(models / "fp32.onnx", tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx"))
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_lacks_what_the_model_needs(models: Path, tmp_path: Path) -> None:
    """Turing has no float32 matrix product in TensorRT-RTX; which operation that is, is in the sentence."""
    options = EngineOptions(targets=("sm_75",))
    with pytest.raises(EngineError, match=r"cannot build this model: .*Turing"):
        build_plan(models / "fp32.onnx", tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx"))
    build_plan(models / "fp16.onnx", tmp_path / "a.plan", options=options, library=find_library("tensorrt-rtx"))
