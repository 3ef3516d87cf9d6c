"""TensorRT: everything around the calls of CUDA and TensorRT, on stand-ins for the two (see ``conftest.py``).

What can run without a GPU runs for real at the end: no GPU, and plans that TensorRT-RTX does not load.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from edgeadv_runtime.backends import OnnxRuntimeBackend, TensorRTBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.engine import BatchProfile, EngineCache, EngineOptions, build_plan, find_library
from edgeadv_runtime.engine import cache as cache_module
from edgeadv_runtime.engine.execution import Session
from edgeadv_runtime.engine.plan import LoadedPlan
from edgeadv_runtime.engine.records import BuildReport
from edgeadv_runtime.errors import BackendError, EngineError, InputError, IntegrityError, ProviderError
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.records.rows import EngineInfo

DYNAMIC = EngineOptions(profile=BatchProfile(2, 4, 8))
NO_GPU = r"^(no NVIDIA driver here|the NVIDIA driver is here and does not start)"


@pytest.fixture
def x(tiny_bundle: Bundle) -> NDArray[np.float32]:
    """Twenty images."""
    return np.concatenate([to_tensor(tiny_bundle.golden().pixels)] * 3)[:20]


@pytest.fixture
def expected(tiny_bundle: Bundle, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with OnnxRuntimeBackend(tiny_bundle, variant="fp16", threads=1) as reference:
        return reference.infer(x)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plans of the stand-in instead of TensorRT's; the log of what was built."""
    built: list[str] = []

    def build(onnx: Path, out: Path, *, options: EngineOptions, **rest: Any) -> BuildReport:
        built.append(onnx.name)
        # as with TensorRT no two plans are the same, byte by byte
        plan = json.dumps([str(onnx), options.profile.to_json()]).encode() + b" " * len(built)
        out.write_bytes(plan)
        sizes = options.profile.min, options.profile.opt, options.profile.max
        return BuildReport(
            bytes=len(plan), seconds=0, targets=(), flags=(), profile=sizes, sha256=sha256_bytes(plan), warnings=()
        )

    monkeypatch.setattr(cache_module, "build_plan", build)
    return built


@pytest.fixture
def opened(tiny_bundle: Bundle, tmp_path: Path, builds: list[str]) -> Callable[..., TensorRTBackend]:
    """Opens the tiny bundle's fp16 with a cache of this test's own."""

    def open_it(bundle: Bundle = tiny_bundle, **options: Any) -> TensorRTBackend:
        return TensorRTBackend(bundle, cache=EngineCache(tmp_path / "engines"), **options)

    return open_it


def inspected(bundle: Bundle, kind: str = "Half") -> dict[str, Any]:
    """An inspector's answer in which every convolution and matrix product of fp16 is of this type."""
    names = bundle.manifest.variants["fp16"].compute
    return {
        "Layers": [
            {"Name": f"{name}_myl0_1", "LayerType": "conv", "Inputs": [{"Name": "x", "Format/Datatype": kind}]}
            for name in names
        ]
    }


def sidecar(folder: Path) -> dict[str, Any]:
    (file,) = (folder / "engines").glob("*.json")
    record: dict[str, Any] = json.loads(file.read_text())
    return record


# ---- what it computes


@pytest.mark.parametrize("rtx", [False, True], ids=["classic", "RTX"])
@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("profile", [(1, 1, 1), (8, 8, 8), (2, 4, 8)], ids=str)
def test_it_gives_the_logits_of_onnx_runtime(
    opened: Any,
    install: Any,
    card: Any,
    x: Any,
    expected: Any,
    rtx: bool,
    integrated: bool,
    profile: tuple[int, int, int],
) -> None:
    trt = install(card(integrated=integrated), rtx=rtx)
    with opened(options=EngineOptions(profile=BatchProfile(*profile))) as backend:
        for n in (1, 2, 3, 8, 9, 20, 20, 20, 1, 3):
            np.testing.assert_allclose(backend.infer(x[:n]), expected[:n], atol=2e-3 * np.abs(expected).max())
    copies = {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"} & set(trt.driver.calls)
    assert bool(copies) is not integrated, "what the GPU sees where it is needs no copy"
    assert ("cuGraphLaunch" in trt.driver.calls) is not rtx, "TensorRT-RTX makes its graphs itself"
    assert trt.driver.leaks == {} and trt.alive == 0


@pytest.mark.parametrize("integrated", [False, True], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("profile", [(1, 1, 1), (8, 8, 8), (2, 4, 8)], ids=str)
@pytest.mark.parametrize("variant", ["fp32-u8in", "fp16-u8in", "int8-s8s8-u8in"])
def test_pixels_reach_the_gpu_as_they_are(
    opened: Any,
    install: Any,
    card: Any,
    digits_bundle: Bundle,
    variant: str,
    profile: tuple[int, int, int],
    integrated: bool,
) -> None:
    trt = install(card(integrated=integrated))
    trt.tensors["image"] = ("UINT8", (-1, 32, 32, 3))
    pixels = np.concatenate([digits_bundle.golden().pixels] * 3)[:20]
    with OnnxRuntimeBackend(digits_bundle, variant=variant, threads=1) as reference:
        expected = reference.infer_pixels(pixels)
    with opened(digits_bundle, variant=variant, options=EngineOptions(profile=BatchProfile(*profile))) as backend:
        assert backend.takes_uint8 and backend.float_sha256 == digits_bundle.artifact_sha256(variant[:-5])
        tolerance = digits_bundle.tolerance(variant) * np.abs(expected).max()
        for n in (1, 2, 3, 8, 9, 20, 20, 20, 1, 3):
            np.testing.assert_allclose(backend.infer_pixels(pixels[:n]), expected[:n], atol=tolerance)
        assert np.array_equal(backend.infer(to_tensor(pixels)), backend.infer_pixels(pixels))
        logits, times = backend.infer_split(pixels)
        assert np.array_equal(logits, backend.infer_pixels(pixels)) and times["compute"] > 0
        backend.warm_up()
        assert isinstance(backend._session, Session)
        assert backend._session._in.array.dtype == np.uint8
        assert backend._session._in.array.shape == (profile[2], 32, 32, 3)
    assert trt.driver.leaks == {} and trt.alive == 0


@pytest.mark.parametrize(
    ("variant", "tensor", "says"),
    [
        ("fp16-u8in", ("FLOAT", (-1, 3, 32, 32)), r"not a uint8 image of \(32, 32, 3\) and 10 logits"),
        ("fp16-u8in", ("UINT8", (-1, 3, 32, 32)), r"not a uint8 image of \(32, 32, 3\) and 10 logits"),
        ("fp16", ("UINT8", (-1, 32, 32, 3)), r"not a float32 image of \(3, 32, 32\) and 10 logits"),
    ],
)
def test_a_plan_with_the_other_input(
    opened: Any, install: Any, digits_bundle: Bundle, variant: str, tensor: Any, says: str
) -> None:
    trt = install()
    trt.tensors["image"] = tensor
    with pytest.raises(EngineError, match=f"the plan was built from another model.*{says}"):
        opened(digits_bundle, variant=variant)
    assert trt.driver.leaks == {}


def test_unsigned_activations_are_refused_with_pixels_too(opened: Any, install: Any, digits_bundle: Bundle) -> None:
    install()
    with pytest.raises(InputError, match="symmetric int8 only"):
        opened(digits_bundle, variant="int8-u8s8-u8in")


def test_it_says_what_it_is(opened: Any, install: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    install()
    with opened(options=DYNAMIC) as backend:
        assert (backend.name, backend.variant, backend.provider) == ("tensorrt", "fp16", "TensorRT 10.13.0")
        assert (backend.device, backend.gpu.sm, backend.threads) == ("Stand-in GPU", "sm_86", None)
        assert backend.artifact_sha256 == tiny_bundle.artifact_sha256("fp16")
        assert backend.plan_sha256 == sidecar(tmp_path)["sha256"] != backend.artifact_sha256
        assert backend.profile == BatchProfile(2, 4, 8) and backend.precision_label == "declared"


def test_the_result_belongs_to_the_caller(opened: Any, install: Any, x: Any) -> None:
    install()
    with opened() as backend:
        first = backend.infer(x[:2])
        kept = first.copy()
        second = backend.infer(x[2:4])
        assert np.array_equal(first, kept) and not np.array_equal(first, second)
        first[:] = 7
        assert np.array_equal(backend.infer(x[2:4]), second)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_does_not_reach_the_gpu(opened: Any, install: Any, x: Any, value: float) -> None:
    trt = install()
    with opened() as backend:
        before = len(trt.driver.calls)
        broken = x[:3].copy()
        broken[1, 0, 5] = value
        with pytest.raises(BackendError, match="NaN or infinite"):
            backend.infer(broken)
        assert len(trt.driver.calls) == before


def test_threads_wait_for_one_another(opened: Any, install: Any, x: Any, expected: Any) -> None:
    install()
    with opened(options=DYNAMIC) as backend, ThreadPoolExecutor(4) as pool:
        jobs = [(start, 1 + start % 5) for start in range(15)] * 4
        for (start, n), logits in zip(
            jobs, pool.map(lambda job: backend.infer(x[job[0] :][: job[1]]), jobs), strict=True
        ):
            np.testing.assert_allclose(logits, expected[start : start + n], atol=2e-3 * np.abs(expected).max())


def test_times_of_the_steps(opened: Any, install: Any, x: Any) -> None:
    trt = install()
    with opened(options=DYNAMIC) as backend:
        for _ in range(3):
            logits, times = backend.infer_split(x)  # 8, 8 and 4 images: three pieces
        assert times == {
            "copy-in": pytest.approx(3 * trt.driver.copy_ms),
            "compute": pytest.approx(3 * trt.driver.compute_ms),
            "copy-out": pytest.approx(3 * trt.driver.copy_ms),
        }
        assert np.array_equal(logits, backend.infer(x))
        with pytest.raises(InputError):
            backend.infer_split(x[0])
        calls = len(trt.driver.calls)
        backend.infer(x[:2])
        assert "cuEventRecord" not in trt.driver.calls[calls:], "times are taken only where they were asked for"


def test_shared_memory_takes_no_time_to_copy(opened: Any, install: Any, card: Any, x: Any) -> None:
    trt = install(card(integrated=True))
    with opened() as backend:
        _, times = backend.infer_split(x[:2])
    assert times == {"copy-in": 0.0, "compute": pytest.approx(2 * trt.driver.compute_ms), "copy-out": 0.0}


# ---- CUDA graphs


def test_what_results_say_of_the_plan(opened: Any, install: Any, x: Any) -> None:
    trt = install()
    with opened(options=DYNAMIC) as backend:
        info = backend.engine_info
        assert info == EngineInfo(
            plan_sha256=backend.plan_sha256,
            profile=(2, 4, 8),
            precision="declared",
            library="TensorRT 10.13.0",
            compute_capability="sm_86",
            driver="CUDA 13.0",
            tf32=False,
            cuda_graphs=True,
            cuda_graph_note=None,
        )
        trt.refuse.add("capture")
        backend.infer(x[:7])
        assert backend.engine_info.cuda_graphs is True
        backend.infer(x[:7])
        info = backend.engine_info
        assert info.cuda_graphs is False and "no CUDA graphs" in info.cuda_graph_note
    assert backend.engine_info == info, "closing changes nothing about what was run"


def test_graphs_are_not_claimed_before_there_are_any(opened: Any, install: Any, x: Any) -> None:
    install()
    opened().close()
    with opened() as backend:  # not proved again: nothing ran yet
        assert backend.engine_info.cuda_graphs is None
        backend.infer(x[:1])
        assert backend.engine_info.cuda_graphs is None
        backend.infer(x[:1])
        assert backend.engine_info.cuda_graphs is True


def test_tensorrt_rtx_is_asked_for_its_own_graphs(opened: Any, install: Any) -> None:
    install(rtx=True)
    with opened() as backend:
        info = backend.engine_info
    assert (info.cuda_graphs, info.cuda_graph_note, info.library) == (True, None, "TensorRT-RTX 1.7.1.116")


def test_a_graph_for_each_batch_size_that_recurs(opened: Any, install: Any, x: Any, expected: Any) -> None:
    trt = install()
    with opened(options=EngineOptions(profile=BatchProfile(1, 4, 8))) as backend:
        assert backend.engine_info.cuda_graph_note is None
        assert len(trt.driver.alive["exec"]) == 1, "the golden frames came one at a time"
        backend.infer(x[:3])
        assert len(trt.driver.alive["exec"]) == 1, "what came once may not come again"
        for n in (3, 2, 5, 2, 5, 7, 7, 6, 6, 8, 8, 1, 2, 3, 5, 7):
            np.testing.assert_allclose(backend.infer(x[:n]), expected[:n], atol=2e-3 * np.abs(expected).max())
        assert len(trt.driver.alive["exec"]) == 4, "each holds memory"
        executed = trt.driver.calls.count("cuGraphLaunch")
        backend.infer(x[:1])
        assert trt.driver.calls.count("cuGraphLaunch") == executed + 1


def test_warm_up_leaves_nothing_to_be_done_once(opened: Any, install: Any, x: Any) -> None:
    trt = install()
    with opened(options=DYNAMIC) as backend:
        backend.warm_up()
        for n in (2, 4, 8):
            calls = len(trt.driver.calls)
            backend.infer(x[:n])
            assert set(trt.driver.calls[calls:]) == {
                "cuCtxPushCurrent_v2",
                "cuMemcpyHtoDAsync_v2",
                "cuGraphLaunch",
                "cuMemcpyDtoHAsync_v2",
                "cuStreamSynchronize",
                "cuCtxPopCurrent_v2",
            }


@pytest.mark.parametrize("options", [EngineOptions(), DYNAMIC], ids=["static", "dynamic"])
def test_a_capture_that_fails_is_said_and_costs_nothing_else(
    opened: Any, install: Any, x: Any, expected: Any, options: EngineOptions
) -> None:
    trt = install()
    trt.refuse.add("capture")
    with opened(options=options) as backend:
        for _ in range(3):
            np.testing.assert_allclose(backend.infer(x[:4]), expected[:4], atol=2e-3 * np.abs(expected).max())
        assert (
            "no CUDA graphs" in backend.engine_info.cuda_graph_note
            and "Cask convolution execution" in backend.engine_info.cuda_graph_note
        )
        assert trt.driver.calls.count("cuStreamBeginCapture_v2") == 1, "once is enough"
    assert "cuGraphLaunch" not in trt.driver.calls


# ---- proof


def test_a_new_plan_is_proved_and_an_old_one_is_believed(
    opened: Any, install: Any, builds: list[str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    trt = install()
    trt.inspector = inspected(tiny_bundle)
    said: list[str] = []
    with opened(progress=said.append) as backend:
        assert backend.precision_label == "verified" and backend.engine.origin == "built"
        digest = backend.plan_sha256
    assert said[-1] == "proving the engine of fp16 on Stand-in GPU"
    record = sidecar(tmp_path)
    of_this = {"plan_sha256": digest, "gpu": "Stand-in GPU", "driver": "CUDA 13.0"}
    assert record["verification"].items() >= {**of_this, "ok": True, "frames": 8, "equal_labels": 8}.items()
    assert (
        record["precision"].items() >= {**of_this, "label": "verified", "counts": {"Half": 16}, "problems": []}.items()
    )
    ran = trt.driver.calls.count("cuMemcpyHtoDAsync_v2")
    trt.inspector = inspected(tiny_bundle, "Float")  # nobody looks
    with opened(progress=said.append) as backend:
        assert backend.precision_label == "verified" and backend.engine.origin == "hit"
    assert trt.driver.calls.count("cuMemcpyHtoDAsync_v2") == ran and builds == ["model.fp16.onnx"]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("verification"),
        lambda record: record.pop("precision"),
        lambda record: record["verification"].update(ok=False),
        lambda record: record["verification"].update(driver="another"),
        lambda record: record["precision"].update(plan_sha256="0" * 64),
        lambda record: record["precision"].update(gpu="another"),
        lambda record: record.update(verification=True),
        lambda record: record["precision"].pop("problems"),
        lambda record: record["verification"].pop("batches"),
        lambda record: record["precision"].pop("label"),
    ],
)
def test_a_proof_of_something_else_is_not_believed(opened: Any, install: Any, tmp_path: Path, change: Any) -> None:
    trt = install()
    opened().close()
    (file,) = (tmp_path / "engines").glob("*.json")
    record = sidecar(tmp_path)
    change(record)
    file.write_text(json.dumps(record))
    ran = trt.driver.calls.count("cuMemcpyHtoDAsync_v2")
    with opened() as backend:
        assert backend.engine.origin == "hit"
    assert trt.driver.calls.count("cuMemcpyHtoDAsync_v2") == ran + 8
    assert sidecar(tmp_path)["verification"]["ok"] is True


def test_a_plan_that_computes_something_else_is_refused(
    opened: Any, install: Any, tmp_path: Path, builds: list[str]
) -> None:
    trt = install()
    trt.skew = 5.0
    for _ in range(2):
        with pytest.raises(
            EngineError, match=r"does not pass the self-test on this GPU, do not use it: tensorrt fp16 .*FAILED"
        ):
            opened()
        assert sidecar(tmp_path)["verification"]["ok"] is False
    assert len(builds) == 1, "the same plan again would be no better"
    assert trt.driver.leaks == {} and trt.alive == 0
    trt.skew = 0.0
    opened().close()


@pytest.mark.parametrize("size", [4, 8])
def test_a_plan_that_is_wrong_in_a_batch_only_is_refused(opened: Any, install: Any, tmp_path: Path, size: int) -> None:
    trt = install()
    trt.skew_of[size] = 5.0
    with pytest.raises(
        EngineError,
        match=rf"gives other logits in a batch of {size} than one image at a time on this GPU, do not use it: "
        r"relative error \d",
    ):
        opened(options=DYNAMIC)
    noted = sidecar(tmp_path)["verification"]
    assert noted["ok"] is False and noted["equal_labels"] == 8
    assert [batch["max_relative_error"] > noted["tolerance"] for batch in noted["batches"]] == [size == 4, size == 8]
    assert trt.driver.leaks == {} and trt.alive == 0
    trt.skew_of.clear()
    with opened(options=DYNAMIC) as backend:  # what failed is not believed the next time either
        noted = backend.engine.record.verification
    assert noted["ok"] is True and [batch["size"] for batch in noted["batches"]] == [4, 8]
    assert all(batch["max_relative_error"] <= noted["tolerance"] for batch in noted["batches"])


def test_more_images_in_a_batch_than_there_are_golden_frames(opened: Any, install: Any) -> None:
    install()
    with opened(options=EngineOptions(profile=BatchProfile(20, 20, 20))) as backend:
        assert [batch["size"] for batch in backend.engine.record.verification["batches"]] == [20]


def test_a_plan_of_another_precision_is_refused(opened: Any, install: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    trt = install()
    trt.inspector = inspected(tiny_bundle)
    trt.inspector["Layers"][3]["Inputs"][0] = {"Name": "x", "Format/Datatype": "Float"}
    with pytest.raises(
        EngineError, match=r"\.plan: the plan is not fp16 as its ONNX is: .* computes in Float, not in Half"
    ):
        opened()
    assert len(sidecar(tmp_path)["precision"]["problems"]) == 1
    assert trt.driver.leaks == {} and trt.alive == 0


def test_tensorfloat32_is_allowed_as_much_as_float16_and_is_said(
    opened: Any, install: Any, tiny_bundle: Bundle
) -> None:
    trt = install()
    scale = float(np.abs(tiny_bundle.golden().logits["fp32"]).max())
    trt.skew = 5e-3 * scale
    with pytest.raises(EngineError, match="does not pass the self-test"):
        opened(variant="fp32")
    with opened(variant="fp32", options=EngineOptions(tf32=True)) as backend:
        assert backend.provider == "TensorRT 10.13.0 with TF32"
        assert backend.engine.record.verification["tolerance"] == 1e-2
    trt.skew = 2e-2 * scale
    with pytest.raises(EngineError, match="does not pass the self-test"):
        opened(variant="fp32", options=EngineOptions(tf32=True, workspace_mib=64))


@pytest.mark.parametrize("text", ["", "{", "not JSON", "null"])
def test_an_inspector_that_cannot_be_read_verifies_nothing(opened: Any, install: Any, text: str) -> None:
    install().inspector = text
    with opened() as backend:
        assert backend.precision_label == "declared"


# ---- plans that do not load


def test_a_plan_that_does_not_load_is_built_again_once(
    opened: Any, install: Any, builds: list[str], tmp_path: Path
) -> None:
    trt = install()
    opened().close()
    (plan,) = (tmp_path / "engines").glob("*.plan")
    (file,) = (tmp_path / "engines").glob("*.json")
    plan.write_bytes(b"a plan of another version")
    file.write_text(json.dumps({**sidecar(tmp_path), "sha256": sha256_bytes(plan.read_bytes())}))
    said: list[str] = []
    with opened(progress=said.append) as backend:
        assert backend.engine.origin == "built"
    assert len(builds) == 2 and sidecar(tmp_path)["verification"]["ok"] is True
    assert any(
        "building the engine of fp16 again, because TensorRT 10.13.0 does not load the plan: Serialization" in text
        for text in said
    )
    trt.refuse.add("load")
    with pytest.raises(
        EngineError, match=r"^TensorRT 10\.13\.0 does not load the plan: the version tag does not match$"
    ):
        opened()
    assert len(builds) == 3
    assert trt.driver.leaks == {} and trt.alive == 0


@pytest.mark.parametrize("first_loads", [False, True])
def test_a_new_plan_that_does_not_load_is_never_built_again(
    opened: Any, install: Any, card: Any, builds: list[str], tmp_path: Path, first_loads: bool
) -> None:
    """A service that starts again and again would build for ever."""
    trt = install()
    if first_loads:
        opened().close()
    trt.refuse.add("load")
    with pytest.raises(EngineError, match=r"does not load the plan: the version tag does not match$"):
        opened()
    built = len(builds)
    assert built == 1 + first_loads
    of_this = {"plan_sha256": sidecar(tmp_path)["sha256"], "gpu": "Stand-in GPU", "driver": "CUDA 13.0"}
    assert sidecar(tmp_path)["not_loaded"].items() >= of_this.items()
    for _ in range(3):
        with pytest.raises(
            EngineError, match=r"the version tag does not match; .*: delete .*\.plan or run edgeadv engine again"
        ):
            opened()
    assert len(builds) == built
    trt.refuse.clear()  # the cause is gone: the plan was good all the time
    opened().close()
    assert len(builds) == built and not sidecar(tmp_path).get("not_loaded")
    trt.refuse.add("load")
    with pytest.raises(EngineError):
        opened()
    assert len(builds) == built + 1, "what did load may be built once more"


def test_a_failure_of_another_driver_is_no_reason_not_to_build(
    opened: Any, install: Any, builds: list[str], tmp_path: Path
) -> None:
    trt = install()
    trt.refuse.add("load")
    with pytest.raises(EngineError):
        opened()
    (file,) = (tmp_path / "engines").glob("*.json")
    record = sidecar(tmp_path)
    file.write_text(json.dumps({**record, "not_loaded": {**record["not_loaded"], "driver": "an older one"}}))
    with pytest.raises(EngineError, match=r"the version tag does not match$"):
        opened()
    assert len(builds) == 2


@pytest.mark.parametrize("rtx", [False, True], ids=["classic", "RTX"])
@pytest.mark.parametrize("what", ["context", "memory"])
def test_a_shortage_of_memory_builds_nothing(
    opened: Any, install: Any, builds: list[str], tmp_path: Path, what: str, rtx: bool
) -> None:
    trt = install(rtx=rtx)
    opened().close()
    before = sidecar(tmp_path)
    trt.refuse.add(what)
    for _ in range(2):
        with pytest.raises(
            BackendError, match="could not be allocated; close what uses the memory of the GPU"
        ) as error:
            opened()
        assert not isinstance(error.value, EngineError)
    assert len(builds) == 1 and sidecar(tmp_path) == before
    assert trt.driver.leaks == {} and trt.alive == 0
    trt.refuse.clear()
    opened().close()
    assert len(builds) == 1


def test_a_plan_that_changes_before_it_is_read_is_built_again(
    opened: Any, install: Any, builds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    opened().close()
    provide = EngineCache.provide

    def tampering(self: EngineCache, *arguments: Any, **options: Any) -> Any:
        engine = provide(self, *arguments, **options)
        if engine.origin == "hit":
            engine.path.write_bytes(b"[]")
        return engine

    monkeypatch.setattr(EngineCache, "provide", tampering)
    with opened() as backend:
        assert backend.engine.origin == "built"


@pytest.mark.parametrize(
    ("what", "kind", "sentence"),
    [
        (
            "context",
            BackendError,
            "gives no execution context: Requested amount of GPU memory could not be allocated; close what uses "
            "the memory of "
            "the GPU, or use a smaller batch",
        ),
        ("address", BackendError, "does not take the memory for 'image': the address of image is not aligned"),
        (
            "shape",
            BackendError,
            "does not take a batch of 1: Set dimension .* does not satisfy any optimization profiles",
        ),
        ("execute", BackendError, "does not run the plan: Cask convolution execution"),
    ],
)
def test_tensorrts_own_words(opened: Any, install: Any, what: str, kind: type[Exception], sentence: str) -> None:
    trt = install()
    trt.refuse.add(what)
    with pytest.raises(kind, match=f"^TensorRT 10.13.0 {sentence}$"):
        opened()
    assert trt.driver.leaks == {} and trt.alive == 0
    trt.refuse.clear()
    opened().close()


@pytest.mark.parametrize("rtx", [False, True], ids=["classic", "RTX"])
def test_after_a_failed_call_the_next_one_is_right(opened: Any, install: Any, x: Any, expected: Any, rtx: bool) -> None:
    trt = install(rtx=rtx)
    with opened(options=EngineOptions(profile=BatchProfile(1, 2, 4))) as backend:
        for what, n in (("execute", 3), ("shape", 2)):
            trt.refuse.add(what)
            with pytest.raises(BackendError):
                backend.infer(x[:n])
            trt.refuse.clear()
            for size in (3, n, 1, 3):  # the last one first: what is known of the context must still be true
                np.testing.assert_allclose(backend.infer(x[:size]), expected[:size], atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "function",
    [
        "cuMemAlloc_v2",
        "cuMemHostAlloc",
        "cuStreamCreate",
        "cuEventCreate",
        "cuMemcpyHtoDAsync_v2",
        "cuStreamSynchronize",
    ],
)
def test_cudas_own_words(opened: Any, install: Any, function: str) -> None:
    trt = install()
    trt.driver.fail[function] = 2
    with pytest.raises(BackendError, match=f"CUDA's {function} failed: out of memory"):
        opened()
    trt.driver.fail.clear()
    assert trt.driver.leaks == {} and trt.alive == 0


@pytest.mark.parametrize(
    ("tensors", "there"),
    [
        ({"image": ("FLOAT", (-1, 3, 32, 32)), "logits": ("FLOAT", (-1, 11))}, r"logits FLOAT \(-1, 11\)"),
        ({"image": ("FLOAT", (-1, 3, 64, 64)), "logits": ("FLOAT", (-1, 10))}, r"image FLOAT \(-1, 3, 64, 64\)"),
        ({"image": ("HALF", (-1, 3, 32, 32)), "logits": ("FLOAT", (-1, 10))}, "image HALF"),
        ({"input": ("FLOAT", (-1, 3, 32, 32)), "logits": ("FLOAT", (-1, 10))}, "input FLOAT"),
        ({"image": ("FLOAT", (-1, 3, 32, 32)), "logits": ("FLOAT", (-1, 10)), "more": ("FLOAT", (-1,))}, "more FLOAT"),
    ],
)
def test_a_plan_of_another_model(opened: Any, install: Any, tensors: dict[str, Any], there: str) -> None:
    trt = install()
    trt.tensors = tensors
    with pytest.raises(EngineError, match=f"the plan was built from another model: it has .*{there}"):
        opened()
    assert trt.driver.leaks == {} and trt.alive == 0


def test_a_plan_for_another_batch_than_it_was_built_for(opened: Any, install: Any) -> None:
    trt = install()
    trt.static_shape = True  # of a dynamic one it says its least
    with pytest.raises(EngineError, match="the plan serves batch 2, not 2,4,8 as it was built for"):
        opened(options=DYNAMIC)
    with opened(options=EngineOptions(profile=BatchProfile(4, 4, 4))) as backend:
        assert backend.profile == BatchProfile(4, 4, 4)


# ---- plans that came with the bundle


@pytest.fixture
def with_plan(tiny_bundle: Bundle, tmp_path: Path) -> tuple[Bundle, str]:
    """A copy of the bundle with a plan in its folder, and the hash of that."""
    bundle = tiny_bundle.slim(tmp_path / "with plan.edgeadv", variants=["fp16"], weights=False)
    plan = json.dumps([str(bundle.onnx_path("fp16")), [1, 2, 4]]).encode()
    (bundle.path / "model.plan").write_bytes(plan)
    write_record(bundle, sha256_bytes(plan))
    return bundle, sha256_bytes(plan)


def write_record(bundle: Bundle, digest: str, *, variant: str = "fp16", tf32: bool = False, **more: Any) -> None:
    """The record that came with the plan."""
    key = {
        "onnx_sha256": bundle.artifact_sha256(variant),
        "profile": [1, 2, 4],
        "targets": ["sm_86"],
        "tf32": tf32,
        "workspace_mib": None,
        "library": "tensorrt-rtx",
        "library_version": "1.7.1.116",
    }
    build = {"bytes": 1, "seconds": 1.0, "flags": [], "targets": ["sm_86"], "profile": [1, 2, 4]}
    record = {
        "schema_version": 1,
        "kind": "engine",
        "created": "",
        "bundle": "b",
        "variant": variant,
        "file": "model.plan",
        "sha256": digest,
        "key": key,
        "build": build,
    }
    (bundle.path / "model.json").write_text(json.dumps({**record, **more}))


def test_a_plan_that_is_trusted(
    opened: Any, install: Any, builds: list[str], with_plan: Any, x: Any, expected: Any
) -> None:
    bundle, digest = with_plan
    trt = install(rtx=True)
    for times in (1, 2):
        with opened(bundle, trust_plan=digest) as backend:
            assert (backend.plan_sha256, backend.profile, backend.engine.origin) == (
                digest,
                BatchProfile(1, 2, 4),
                "trusted",
            )
            # eight frames alone; for the batches of 2 and 4 they come once more alone
            assert trt.driver.calls.count("cuMemcpyHtoDAsync_v2") == 18 * times, (
                "what nobody wrote down is proved each time"
            )
            np.testing.assert_allclose(
                backend.infer(x[:0:-1][:4]), expected[:0:-1][:4], atol=2e-3 * np.abs(expected).max()
            )
            trt.driver.calls.clear()
            trt.driver.calls.extend(["cuMemcpyHtoDAsync_v2"] * 18 * times)
    assert builds == []
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted(
        ["golden.npz", "manifest.json", "model.fp16.onnx", "model.json", "model.plan"]
    )


def test_what_a_plan_from_a_bundle_says_about_itself_is_not_believed(opened: Any, install: Any, with_plan: Any) -> None:
    bundle, digest = with_plan
    trt = install()
    of_this = {"plan_sha256": digest, "gpu": "Stand-in GPU", "driver": "CUDA 13.0"}
    precision = {**of_this, "label": "verified", "problems": []}
    write_record(bundle, digest, verification={**of_this, "ok": True}, precision=precision)
    with opened(bundle, trust_plan=digest) as backend:
        assert backend.engine.record.created == "" and backend.precision_label == "declared"
    trt.skew = 5.0
    with pytest.raises(EngineError, match="does not pass the self-test"):
        opened(bundle, trust_plan=digest)


def test_a_plan_that_is_not_trusted(opened: Any, install: Any, builds: list[str], with_plan: Any) -> None:
    bundle, digest = with_plan
    trt = install()
    with opened(bundle) as backend:
        assert backend.plan_sha256 != digest and len(builds) == 1
    with pytest.raises(IntegrityError, match=r"no plan in .* has the SHA-256 that you trust"):
        opened(bundle, trust_plan="0" * 64)
    (bundle.path / "model.plan").write_bytes(b"a plan of another version")
    other = sha256_bytes(b"a plan of another version")
    with pytest.raises(EngineError, match=r"is the record of another plan: copy the \.json that came with this one"):
        opened(bundle, trust_plan=other)
    write_record(bundle, other)
    with pytest.raises(EngineError, match="does not load the plan: Serialization"):
        opened(bundle, trust_plan=other)
    (bundle.path / "model.json").unlink()
    with pytest.raises(EngineError, match=r"is not used without its record.*: copy the \.json beside it too"):
        opened(bundle, trust_plan=other)
    assert len(builds) == 1, "nothing is built for somebody who named a plan"
    assert trt.driver.leaks == {} and trt.alive == 0


def test_a_plan_under_the_name_of_another_variant(
    opened: Any, install: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Its logits may be within the tolerance of the other: only the record tells that it is not what it is called."""
    install()
    bundle = tiny_bundle.slim(tmp_path / "both.edgeadv", variants=["fp32", "fp16"], weights=False)
    plan = json.dumps([str(bundle.onnx_path("fp32")), [1, 2, 4]]).encode()
    (bundle.path / "model.plan").write_bytes(plan)
    with pytest.raises(EngineError, match="without its record"):
        opened(bundle, trust_plan=sha256_bytes(plan))
    write_record(bundle, sha256_bytes(plan), variant="fp32")
    with pytest.raises(EngineError, match="was built from another model than fp16 of this bundle, as fp32"):
        opened(bundle, trust_plan=sha256_bytes(plan))
    with opened(bundle, variant="fp32", trust_plan=sha256_bytes(plan)) as backend:
        assert backend.variant == "fp32"


def test_whether_a_trusted_plan_may_use_tensorfloat32_is_in_its_record(
    opened: Any, install: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    trt = install(rtx=True)
    bundle = tiny_bundle.slim(tmp_path / "fp32.edgeadv", variants=["fp32"], weights=False)
    plan = json.dumps([str(bundle.onnx_path("fp32")), [1, 2, 4]]).encode()
    (bundle.path / "model.plan").write_bytes(plan)
    trt.skew = 5e-3 * float(np.abs(bundle.golden().logits["fp32"]).max())
    trt.inspector = inspected(tiny_bundle, "Float")
    trt.inspector["Layers"][3]["TacticName"] = "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc"
    write_record(bundle, sha256_bytes(plan), variant="fp32", tf32=True)
    with opened(bundle, variant="fp32", trust_plan=sha256_bytes(plan)) as backend:
        assert backend.provider == "TensorRT-RTX 1.7.1.116 with TF32" and backend.engine_info.tf32 is True
        assert backend.engine.record.verification["tolerance"] == 1e-2 and backend.precision_label == "verified"
    write_record(bundle, sha256_bytes(plan), variant="fp32", tf32=False)
    with pytest.raises(EngineError, match="computes in TF32, not in Float"):
        # what is asked of the cache does not change what a plan is
        opened(bundle, variant="fp32", options=EngineOptions(tf32=True), trust_plan=sha256_bytes(plan))


# ---- TensorRT-RTX


def test_the_runtime_cache_is_kept_beside_the_plan(opened: Any, install: Any, tmp_path: Path) -> None:
    trt = install(rtx=True)
    opened().close()
    opened().close()
    (file,) = (tmp_path / "engines").glob("*.runtime")
    assert trt.compiled == [None, b"kernels of this device"] and file.read_bytes() == b"kernels of this device"
    file.write_bytes(b"somebody else's kernels")
    opened().close()
    assert trt.compiled[2] is None, "it is code, and not what was written"
    file.unlink()
    opened().close()
    assert trt.compiled[3] is None


def test_classic_tensorrt_has_no_runtime_cache(opened: Any, install: Any, tmp_path: Path) -> None:
    install()
    opened().close()
    assert list((tmp_path / "engines").glob("*.runtime")) == []


def test_a_gpu_that_tensorrt_rtx_does_not_serve(opened: Any, install: Any, card: Any, builds: list[str]) -> None:
    trt = install(card(name="NVIDIA H100", capability=(9, 0)), rtx=True)
    with pytest.raises(
        ProviderError,
        match=r"^TensorRT-RTX 1\.7\.1\.116 does not serve NVIDIA H100 \(sm_90\), only sm_80, sm_86, sm_87: use "
        r"classic TensorRT",
    ):
        opened()
    assert builds == [] and trt.loaded == 0


def test_why_tensorrt_rtx_does_not_load_a_plan(opened: Any, install: Any) -> None:
    install(rtx=True).refuse.add("load")
    with pytest.raises(EngineError, match="does not load the plan, it is damaged or no plan at all: the version tag"):
        opened()


# ---- what is asked for


def test_targets_without_the_gpu_that_is_here(opened: Any, install: Any, builds: list[str]) -> None:
    install(rtx=True)
    with pytest.raises(InputError, match=r"an engine for sm_80 does not run on Stand-in GPU, which is sm_86: add that"):
        opened(options=EngineOptions(targets=("sm_80",)))
    with opened(options=EngineOptions(targets=("sm_80", "sm_86"))) as backend:
        assert backend.engine.record.key.targets == ("sm_80", "sm_86")


def test_variants_that_cannot_be(opened: Any, install: Any, tiny_bundle: Bundle) -> None:
    trt = install()
    entry = tiny_bundle.manifest.variants["fp32"]
    variants = {**tiny_bundle.manifest.variants, "int8-u8s8": entry}
    unsigned = replace(tiny_bundle, manifest=structs.replace(tiny_bundle.manifest, variants=variants))
    with pytest.raises(InputError, match="symmetric int8 only, that is int8-s8s8; int8-u8s8 is for x86 processors"):
        opened(unsigned, variant="int8-u8s8")
    with pytest.raises(InputError, match="carries no variant 'int8-s8s8'"):
        opened(variant="int8-s8s8")
    assert trt.driver.calls == []


def test_another_gpu(opened: Any, install: Any, card: Any, x: Any, expected: Any) -> None:
    trt = install(card(), card(name="The second", capability=(8, 9)))
    with opened(gpu_index=1) as backend:
        assert (backend.device, backend.gpu.sm, backend.gpu_index) == ("The second", "sm_89", 1)
        np.testing.assert_allclose(backend.infer(x[:2]), expected[:2], atol=2e-3 * np.abs(expected).max())
        assert list(trt.driver.alive["context"]) == [0x7FFF_C0DE_0001]
    with pytest.raises(ProviderError, match="there is no GPU 2"):
        opened(gpu_index=2)


# ---- closing


def test_closed_is_closed(opened: Any, install: Any, x: Any) -> None:
    trt = install()
    backend = opened()
    backend.close()
    backend.close()
    for call in (lambda: backend.infer(x), lambda: backend.infer_split(x), backend.warm_up):
        with pytest.raises(BackendError, match="this tensorrt backend is closed; open it again"):
            call()
    assert trt.driver.leaks == {} and trt.alive == 0


def test_what_was_taken_last_is_given_back_first(opened: Any, install: Any) -> None:
    trt = install()
    backend = opened(options=DYNAMIC)
    backend.warm_up()
    begin = len(trt.driver.calls)
    backend.close()
    released = [name for name in trt.driver.calls[begin:] if "Ctx" not in name]
    order = [
        "cuGraphExecDestroy",
        "cuMemFree_v2",
        "cuMemFreeHost",
        "cuMemFree_v2",
        "cuMemFreeHost",
        "cuEventDestroy_v2",
        "cuStreamDestroy_v2",
    ]
    assert list(dict.fromkeys(released)) == list(dict.fromkeys(order))
    assert released.count("cuGraphExecDestroy") == 3 and released.count("cuEventDestroy_v2") == 4
    assert trt.driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


@pytest.mark.parametrize("function", ["serialize", "write"])
def test_a_cache_that_cannot_be_saved_does_not_keep_the_gpu(
    opened: Any, install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    trt = install(rtx=True)
    backend = opened()

    def fail() -> bytes:
        raise BackendError("CUDA's cuCtxPushCurrent_v2 failed: an illegal memory access was encountered")

    if function == "serialize":
        monkeypatch.setattr(backend._session, "runtime_cache", fail)
        backend.close()
    else:
        monkeypatch.setattr(backend._session, "runtime_cache", lambda: 1 / 0)  # not ours: seen, and all is released
        with pytest.raises(ZeroDivisionError):
            backend.close()
    assert trt.driver.leaks == {} and trt.alive == 0
    assert list((tmp_path / "engines").glob("*.runtime")) == []


def test_closing_while_another_thread_runs(opened: Any, install: Any, x: Any) -> None:
    trt = install()
    backend = opened()
    outcomes: list[str] = []

    def work() -> None:
        try:
            while True:
                backend.infer(x[:2])
        except BackendError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    backend.infer(x)
    backend.close()
    for thread in threads:
        thread.join(30)
    assert outcomes == ["this tensorrt backend is closed; open it again"] * 3
    assert trt.driver.leaks == {} and trt.alive == 0


# ---- for real

# no test of a device machine may need these to open a backend
WITHOUT_A_GPU = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "edgeadv", "edgeadv_export", "onnxruntime"):
            raise ImportError(f"blocked import of {name}")
        return None

sys.path.insert(0, sys.argv[1])
sys.meta_path.insert(0, Blocker())
from pathlib import Path
from edgeadv_runtime.backends import TensorRTBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.engine import EngineCache, find_library
from edgeadv_runtime.errors import ProviderError

bundle = Bundle.open(sys.argv[2])
find_library("tensorrt-rtx")
try:
    TensorRTBackend(bundle, library="tensorrt-rtx", cache=EngineCache(Path(sys.argv[3])))
except ProviderError as error:
    print(error)
"""


def test_without_a_gpu_it_says_so_in_one_sentence(tiny_bundle: Bundle, tmp_path: Path) -> None:
    runtime = Path(__file__).resolve().parents[3] / "runtime"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_GPU, str(runtime), str(tiny_bundle.path), str(tmp_path / "engines")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert re.match(NO_GPU, line), line
    assert not (tmp_path / "engines").exists(), "nothing is built for a GPU that is not there"


@pytest.fixture(scope="module")
def rtx_plan(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A plan that TensorRT-RTX has really built."""
    path = tmp_path_factory.mktemp("plans") / "tiny.plan"
    build_plan(
        tiny_bundle.onnx_path("fp16"),
        path,
        options=EngineOptions(targets=("sm_86",)),
        library=find_library("tensorrt-rtx"),
    )
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda plan: b"", "empty memory buffer"),
        (lambda plan: plan[:3], "bufferSize >= minBufferSize"),
        (lambda plan: b"garbage!" * 500, "magicTag"),
        (lambda plan: plan[: len(plan) // 2], "plan.header.size == blobSize"),
        (lambda plan: plan[:-1], "plan.header.size == blobSize"),
    ],
    ids=["empty", "three bytes", "garbage", "half", "one byte short"],
)
def test_tensorrt_rtx_refuses_a_damaged_plan_in_its_own_words(rtx_plan: bytes, damage: Any, words: str) -> None:
    library = find_library("tensorrt-rtx")
    with pytest.raises(EngineError, match=rf"^TensorRT-RTX [\d.]+ does not load the plan.*: .*{words}") as error:
        LoadedPlan(library, damage(rtx_plan))
    assert "\n" not in str(error.value)
