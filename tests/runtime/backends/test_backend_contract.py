"""What every backend promises, asked of every backend.

TensorRT is among them wherever there is a GPU that an installed TensorRT serves. On no other machine can it be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.backends import Backend, OnnxRuntimeBackend, TensorRTBackend
from edgeadv_runtime.backends.tensorrt import check_gpu
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import VARIANTS, base_of, takes_uint8
from edgeadv_runtime.device.cuda import find_gpu
from edgeadv_runtime.engine import LIBRARIES, BatchProfile, EngineCache, EngineOptions, find_library
from edgeadv_runtime.errors import BackendError, EdgeAdvError, InputError, ProviderError


class Case(NamedTuple):
    name: str
    variant: str
    open: Callable[[Bundle], Backend]
    title: str = ""


def _torch(bundle: Bundle, *, variant: str) -> Backend:
    import torch

    from edgeadv.backends.pytorch import TorchBackend

    return TorchBackend(bundle, variant=variant, device=torch.device("cpu"))


def _tensorrt(bundle: Bundle, *, variant: str, library: str, options: EngineOptions) -> Backend:
    cache = EngineCache(bundle.path.parent / "engines")  # for the whole session: the first test of a case builds
    return TensorRTBackend(bundle, variant=variant, library=library, options=options, cache=cache)


def _tensorrt_cases() -> tuple[list[Case], str]:
    """A case for each TensorRT that can run here, or why none can."""
    cases, why = [], []
    for library in LIBRARIES:
        try:
            gpu = find_gpu()
            check_gpu(find_library(library), gpu, EngineOptions())
        except EdgeAdvError as error:
            why.append(str(error))
            continue
        for variant, profile in (
            ("fp32", (1, 1, 1)),
            ("fp16", (1, 1, 1)),
            ("fp16", (2, 4, 8)),
            ("int8-s8s8", (1, 1, 1)),
            ("int8-s8s8", (1, 4, 8)),
            ("fp32-u8in", (1, 1, 1)),
            ("fp16-u8in", (1, 1, 1)),
            ("fp16-u8in", (2, 4, 8)),
            ("int8-s8s8-u8in", (1, 4, 8)),
        ):
            options = EngineOptions(profile=BatchProfile(*profile))
            opener = partial(_tensorrt, variant=variant, library=library, options=options)
            cases.append(Case("tensorrt", variant, opener, f"{library}-{variant}-batch-{options.profile}"))
    return cases, "; ".join(dict.fromkeys(why))


TENSORRT_CASES, NO_TENSORRT = _tensorrt_cases()
CASES = [
    *(Case("onnxruntime", variant, partial(OnnxRuntimeBackend, variant=variant, threads=1)) for variant in VARIANTS),
    *(Case("torch", variant, partial(_torch, variant=variant)) for variant in VARIANTS),
    *TENSORRT_CASES,
]


@pytest.fixture(params=CASES, ids=[case.title or f"{case.name}-{case.variant}" for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def bundle(digits_bundle: Bundle) -> Bundle:
    """A network that is sure of its answers, in every variant."""
    return digits_bundle


@pytest.fixture
def backend(case: Case, bundle: Bundle) -> Iterator[Backend]:
    with case.open(bundle) as opened:
        yield opened


@pytest.fixture
def x(bundle: Bundle) -> NDArray[np.float32]:
    return to_tensor(bundle.golden().pixels)


def test_it_says_what_it_is(backend: Backend, case: Case, bundle: Bundle) -> None:
    assert (backend.name, backend.variant) == (case.name, case.variant)
    assert backend.input_shape == (3, 32, 32)
    assert backend.n_classes == 10
    assert backend.provider and backend.device
    assert backend.artifact_sha256 == bundle.artifact_sha256(case.variant)


def test_it_gives_the_golden_logits(backend: Backend, bundle: Bundle, x: NDArray[np.float32]) -> None:
    expected = bundle.golden().logits[backend.variant]
    logits = backend.infer(x)
    assert logits.dtype == np.float32
    assert logits.shape == (8, 10)
    assert np.abs(logits - expected).max() <= bundle.tolerance(backend.variant) * np.abs(expected).max()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 19])
def test_the_size_of_the_batch_does_not_matter(
    backend: Backend, bundle: Bundle, x: NDArray[np.float32], size: int
) -> None:
    batch = np.concatenate([x] * 3)[:size]
    single = np.concatenate([backend.infer(image[None]) for image in batch])
    # a plan may have other kernels for another batch size, which round in another order
    share = bundle.tolerance(backend.variant) if backend.name == "tensorrt" else 1e-4
    np.testing.assert_allclose(backend.infer(batch), single, atol=share * np.abs(single).max())


def test_the_result_belongs_to_the_caller(backend: Backend, x: NDArray[np.float32]) -> None:
    first = backend.infer(x[:2])
    kept = first.copy()
    second = backend.infer(x[2:4])
    assert not np.array_equal(first, second)
    assert np.array_equal(first, kept)
    first[:] = 7  # may be written to, and that is nobody else's loss
    assert np.array_equal(backend.infer(x[2:4]), second)


def test_the_input_stays_as_it_is(backend: Backend, x: NDArray[np.float32]) -> None:
    before = x.copy()
    backend.infer(x)
    assert np.array_equal(x, before)


def _read_only(x: NDArray[np.float32]) -> NDArray[np.float32]:
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    "same",
    [np.asfortranarray, lambda x: x[..., ::-1].copy()[..., ::-1], _read_only],
    ids=["Fortran", "mirror", "read-only"],
)
def test_memory_layout_does_not_matter(
    backend: Backend, x: NDArray[np.float32], same: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    np.testing.assert_allclose(backend.infer(same(x)), backend.infer(x), atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [[1.0]],
        np.float32(1),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
        np.zeros((1, 3, 32, 31), np.float32),
        np.zeros((1, 1, 32, 32), np.float32),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((1, 3, 32, 32), np.float16),
        np.zeros((1, 3, 32, 32), np.uint8),
    ],
    ids=["None", "list", "scalar", "one image", "empty", "size", "channels", "NHWC", "float64", "float16", "uint8"],
)
def test_wrong_inputs_are_refused(backend: Backend, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"float32 of shape \(n, 3, 32, 32\)"):
        backend.infer(wrong)


# ---- pixels


def test_pixels_give_the_logits_of_their_tensor(backend: Backend, bundle: Bundle, x: NDArray[np.float32]) -> None:
    logits = backend.infer_pixels(bundle.golden().pixels)
    assert logits.dtype == np.float32
    assert np.array_equal(logits, backend.infer(x))
    logits[:] = 7  # the caller's
    assert np.array_equal(backend.infer_pixels(bundle.golden().pixels), backend.infer(x))


def test_the_artefact_with_pixels_is_the_one_with_floats(backend: Backend, case: Case, bundle: Bundle) -> None:
    """The same numbers, bit for bit, where it is the same library that computes them; with TensorRT each has a plan of
    its own."""
    if not takes_uint8(case.variant):
        assert backend.takes_uint8 is False and backend.float_sha256 is None
        return
    base = base_of(case.variant)
    assert backend.takes_uint8 and backend.float_sha256 == bundle.artifact_sha256(base) != backend.artifact_sha256
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    if case.name == "onnxruntime":
        with OnnxRuntimeBackend(bundle, variant=base, threads=1) as floats:
            assert np.array_equal(backend.infer_pixels(pixels), floats.infer_pixels(pixels))
            assert np.array_equal(backend.infer_pixels(pixels[3:4]), floats.infer(to_tensor(pixels[3:4])))


def test_floats_are_rounded_where_pixels_are_taken(backend: Backend, bundle: Bundle, x: NDArray[np.float32]) -> None:
    nearly = np.clip(x + np.float32(0.4 / 255), 0, 1)  # less than half a level: the same pixels again
    same = np.array_equal(backend.infer(nearly), backend.infer(x))
    assert same is backend.takes_uint8
    if backend.takes_uint8:  # and what lies outside is cut
        assert np.array_equal(backend.infer(x * 3 - 1), backend.infer(np.clip(x * 3 - 1, 0, 1)))


@pytest.mark.parametrize(
    "same",
    [np.asfortranarray, lambda x: x[..., ::-1].copy()[..., ::-1], _read_only],
    ids=["Fortran", "mirror", "read-only"],
)
def test_memory_layout_of_pixels_does_not_matter(backend: Backend, bundle: Bundle, same: Callable[[Any], Any]) -> None:
    pixels = bundle.golden().pixels
    before = pixels.copy()
    np.testing.assert_allclose(backend.infer_pixels(same(pixels)), backend.infer_pixels(pixels), atol=1e-6)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [[1]],
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((1, 32, 31, 3), np.uint8),
        np.zeros((1, 32, 32, 1), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.int8),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 3, 32, 32), np.float32),
    ],
    ids=["None", "list", "one image", "empty", "size", "channels", "NCHW", "int8", "float32", "tensor"],
)
def test_wrong_pixels_are_refused(backend: Backend, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"uint8 of shape \(n, 32, 32, 3\) in 0\.\.255, not "):
        backend.infer_pixels(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_not_answered(backend: Backend, x: NDArray[np.float32], value: float) -> None:
    broken = x.copy()
    broken[1] = value
    with pytest.raises(BackendError, match="NaN or infinite"):
        backend.infer(broken)
    backend.infer(x)  # and the backend lives on


def test_closed_is_closed(case: Case, bundle: Bundle, x: NDArray[np.float32]) -> None:
    backend = case.open(bundle)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer(x)
    with pytest.raises(BackendError, match="closed"):
        backend.infer_pixels(bundle.golden().pixels)


def test_a_context_closes(case: Case, bundle: Bundle, x: NDArray[np.float32]) -> None:
    with case.open(bundle) as backend:
        backend.infer(x)
    with pytest.raises(BackendError, match="closed"):
        backend.infer(x)


def test_onnx_runtime_refuses_what_it_cannot_do(digits_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="'int8'"):
        OnnxRuntimeBackend(digits_bundle, variant="int8")
    with pytest.raises(InputError, match="not one of cpu, cuda"):
        OnnxRuntimeBackend(digits_bundle, provider="tpu")
    with pytest.raises(InputError, match="at least 1"):
        OnnxRuntimeBackend(digits_bundle, threads=0)


def test_onnx_runtime_without_cuda_says_so(digits_bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ProviderError, match="without CUDAExecutionProvider"):
        OnnxRuntimeBackend(digits_bundle, provider="cuda")


def test_tensorrt_keeps_the_contract(digits_bundle: Bundle) -> None:
    """Its cases are among those above; here is what only it has."""
    if not TENSORRT_CASES:
        pytest.skip(f"no TensorRT can run here: {NO_TENSORRT}")
    x = to_tensor(digits_bundle.golden().pixels)
    for case in TENSORRT_CASES:
        with case.open(digits_bundle) as backend:
            assert isinstance(backend, TensorRTBackend)
            backend.warm_up()
            assert backend.engine_info.cuda_graph_note is None
            logits, times = backend.infer_split(x)
            assert np.array_equal(logits, backend.infer(x))
            assert set(times) == {"copy-in", "compute", "copy-out"} and times["compute"] > 0
            verification = backend.engine.record.verification
            assert verification["ok"] and verification["plan_sha256"] == backend.plan_sha256
            assert backend.precision_label in ("verified", "declared")
