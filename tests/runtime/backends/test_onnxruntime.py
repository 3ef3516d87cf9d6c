"""ONNX Runtime on exactly what was asked for: what is refused, and why; what a GPU alone can show is not here."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.backends import onnxruntime as ort
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.errors import BackendError, BundleError, InputError, ProviderError

ORIN = Gpu(0, "Orin", (8, 7), "540.4.0", 7607, 5000, True)
BUILT_IN = onnxruntime.get_available_providers()  # before a test says otherwise
GPU_PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says of itself that it has the providers for GPUs, as onnxruntime-gpu does on any
    machine."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_PROVIDERS)
    monkeypatch.setenv(ort.TF32_VARIABLE, "0")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "find_gpu", lambda: ORIN)


def test_the_cpu_takes_every_node(tiny_bundle: Bundle) -> None:
    with OnnxRuntimeBackend(tiny_bundle, variant="fp16", threads=1) as backend:
        assert backend.node_share == {"CPUExecutionProvider": 1.0}
        assert backend.provider == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("threads", "asked", "spins", "other"),
    [(2, None, True, True), (2, True, True, False), (2, False, False, False), (1, None, None, False)],
)
def test_how_threads_wait_is_set_in_the_session_and_changes_no_bit(
    tiny_bundle: Bundle, threads: int, asked: bool | None, spins: bool | None, other: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *tiny_bundle.golden().pixels.shape[1:]), dtype=np.uint8)
    with OnnxRuntimeBackend(tiny_bundle, threads=threads, spin=asked) as backend:
        options = backend._session.get_session_options()
        said = options.get_session_config_entry("session.intra_op.allow_spinning")
        assert (said, backend.spin) == ("0" if asked is False else "1", spins)
        logits = backend.infer_pixels(pixels)
        assert (backend.unspun is not None) == other
    with OnnxRuntimeBackend(tiny_bundle, threads=threads, spin=False) as still:
        assert still.infer_pixels(pixels).tobytes() == logits.tobytes()
    if backend.unspun is not None:
        with backend.unspun() as again:
            assert (again.spin, again.threads, again.variant) == (False, threads, backend.variant)


def test_a_quota_decides_how_many_threads_there_are_where_nobody_else_does(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "limited_cores", lambda: 1)
    with OnnxRuntimeBackend(tiny_bundle) as backend, OnnxRuntimeBackend(tiny_bundle, threads=2) as asked:
        assert (backend.threads, asked.threads) == (1, 2)
        assert backend._session.get_session_options().intra_op_num_threads == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_a_process_that_may_run_on_one_core_has_one_thread(tiny_bundle: Bundle) -> None:
    """And none that is bound to a core of others."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        had = set(Path("/proc/self/task").iterdir())
        with OnnxRuntimeBackend(tiny_bundle) as backend:
            backend.infer_pixels(tiny_bundle.golden().pixels)
            assert set(Path("/proc/self/task").iterdir()) <= had
            assert backend.threads == (1 if (os.cpu_count() or 1) > 1 else None)
    finally:
        os.sched_setaffinity(0, before)


def test_shares_are_counted_in_nodes() -> None:
    class Part:
        def __init__(self, ep_name: str, nodes: int) -> None:
            self.ep_name, self._nodes = ep_name, nodes

        def get_nodes(self) -> list[None]:
            return [None] * self._nodes

    class Session:
        def get_provider_graph_assignment_info(self) -> list[Part]:
            return [
                Part("TensorrtExecutionProvider", 6),
                Part("CUDAExecutionProvider", 1),
                Part("CUDAExecutionProvider", 1),
            ]

    assert ort._node_share(Session()) == {"TensorrtExecutionProvider": 0.75, "CUDAExecutionProvider": 0.25}
    assert ort._node_share(object()) == {}


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in(tiny_bundle: Bundle, provider: str) -> None:
    if ort.PROVIDERS[provider] in BUILT_IN:
        pytest.skip("this ONNX Runtime has the providers for GPUs")
    with pytest.raises(ProviderError, match=f"without {ort.PROVIDERS[provider]}: replace it"):
        OnnxRuntimeBackend(tiny_bundle, variant="fp16", provider=provider)


def test_tensorrt_takes_no_unsigned_activations(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "onnx_path", lambda self, variant: Path("model.onnx"))
    with pytest.raises(InputError, match="symmetric int8 only, that is int8-s8s8"):
        OnnxRuntimeBackend(tiny_bundle, variant="int8-u8s8", provider="tensorrt")


@pytest.mark.parametrize("value", [None, "", "1"])
def test_tensorrt_does_not_pass_tf32_off_as_fp32(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, compiled_in: None, value: str | None
) -> None:
    monkeypatch.delenv(ort.TF32_VARIABLE)
    if value is not None:
        monkeypatch.setenv(ort.TF32_VARIABLE, value)
    with pytest.raises(ProviderError, match="start with NVIDIA_TF32_OVERRIDE=0"):
        OnnxRuntimeBackend(tiny_bundle, variant="fp32", provider="tensorrt")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_without_a_driver_the_driver_is_what_is_missing(tiny_bundle: Bundle, compiled_in: None, provider: str) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has an NVIDIA driver")
    except OSError:
        pass
    with pytest.raises(ProviderError, match=f"{ort.PROVIDERS[provider]}, which cannot be had here: no NVIDIA driver"):
        OnnxRuntimeBackend(tiny_bundle, provider=provider)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(
    ("provider", "loads", "says"),
    [
        ("cuda", (), "no CUDA 12 or 13 libraries"),
        ("cuda", ("libcublas.so.12",), "no cuDNN 9"),
        ("tensorrt", ("libcublas.so.13", "libcudnn.so.9"), "no TensorRT 10 or 11"),
        ("cuda", ("libcublas.so.13", "libcudnn.so.9"), "CUDAExecutionProvider did not load, or leaves nodes of"),
    ],
)
def test_the_first_missing_library_is_named(
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    compiled_in: None,
    gpu: None,
    provider: str,
    loads: tuple[str, ...],
    says: str,
) -> None:
    """The refusal to open is ONNX Runtime's own: it is told not to fall back, and does not."""
    if ort.PROVIDERS[provider] in BUILT_IN:
        pytest.skip("this ONNX Runtime has the providers for GPUs")
    monkeypatch.setattr(ort, "_loads", lambda library: library in loads)
    with pytest.raises(ProviderError, match=says):
        OnnxRuntimeBackend(tiny_bundle, provider=provider)


def test_what_is_asked_of_onnx_runtime_on_a_gpu(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, compiled_in: None, gpu: None
) -> None:
    asked: dict[str, Any] = {}

    class Session:
        def __init__(self, path: str, options: Any, **keywords: Any) -> None:
            entries = ("session.disable_cpu_ep_fallback", "session.x64quantprecision")
            asked.update(keywords)
            for entry in entries:
                try:
                    asked[entry] = options.get_session_config_entry(entry)
                except RuntimeError:
                    asked[entry] = None
            raise RuntimeError("Please install TensorRT libraries as mentioned")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(ort, "_loads", lambda library: True)
    with pytest.raises(ProviderError, match="TensorrtExecutionProvider did not load"):
        OnnxRuntimeBackend(tiny_bundle, variant="fp16", provider="tensorrt")
    (tensorrt, options), (cuda, cuda_options) = asked["providers"]
    assert (tensorrt, cuda) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert set(options.values()) == {"False"}
    assert {"trt_engine_cache_enable", "trt_fp16_enable", "trt_int8_enable"} <= set(options)
    assert cuda_options == {"use_tf32": "0"}
    assert asked["enable_fallback"] == 0
    assert asked["session.disable_cpu_ep_fallback"] == "1"
    assert asked["session.x64quantprecision"] is None


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_on_a_gpu_the_golden_logits_come_out(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, provider: str, variant: str
) -> None:
    """Runs as it is wherever onnxruntime-gpu and a GPU are; it has not been seen running yet."""
    if ort.PROVIDERS[provider] not in BUILT_IN:
        pytest.skip(f"this ONNX Runtime is built without {ort.PROVIDERS[provider]}")
    if (why := ort._missing(provider)) is not None:
        pytest.skip(why)
    monkeypatch.setenv(ort.TF32_VARIABLE, "0")
    golden = tiny_bundle.golden()
    with OnnxRuntimeBackend(tiny_bundle, variant=variant, provider=provider) as backend:
        assert backend.provider == ort.PROVIDERS[provider] and backend.device
        assert "CPUExecutionProvider" not in backend.node_share
        logits = backend.infer(to_tensor(golden.pixels))
    expected = golden.logits[variant]
    np.testing.assert_allclose(logits, expected, atol=tiny_bundle.tolerance(variant) * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


def test_a_file_that_is_no_model(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "onnx", lambda self, variant: b"not a model")
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx is not readable as ONNX"):
        OnnxRuntimeBackend(tiny_bundle, provider="cpu")
    # a graph with nothing in it
    monkeypatch.setattr(Bundle, "onnx", lambda self, variant: b"\x3a\x00")
    with pytest.raises(BackendError, match=r"cannot open .*model\.fp32\.onnx") as refused:
        OnnxRuntimeBackend(tiny_bundle, provider="cpu")
    assert not isinstance(refused.value, ProviderError)


def test_golden_logits_survive_the_recording_of_shares(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    with OnnxRuntimeBackend(tiny_bundle, threads=1) as backend:
        logits = backend.infer(to_tensor(golden.pixels))
    np.testing.assert_allclose(logits, golden.logits["fp32"], atol=1e-5 * np.abs(golden.logits["fp32"]).max())
