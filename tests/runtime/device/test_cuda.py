"""The driver's interface, on a stand-in for its library that is called through the C calling convention."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadv_runtime.device import cuda
from edgeadv_runtime.device.cuda import (
    Context,
    DeviceBuffer,
    Driver,
    Event,
    PinnedBuffer,
    Stream,
    find_gpu,
)
from edgeadv_runtime.device.facts import driver_version
from edgeadv_runtime.errors import BackendError, ProviderError

NOWHERE = Path("/nonexistent")
DRIVER = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""
OPEN_DRIVER = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs-builder@U16-I1-N07-12-3)
GCC version:  gcc version 13.2.0
"""
JETSON_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build  (buildbrain@mobile-u64-6336)\n"
)


@pytest.fixture
def library(driver_of: Callable[..., Any]) -> Any:
    return driver_of()


@pytest.fixture
def context(library: Any) -> Any:
    opened = Context(Driver(load=library.load), 0)
    yield opened
    opened.close()
    assert library.wrong == []
    assert library.leaks == {}


def test_every_signature_is_that_of_the_header(c_prototypes: dict[str, list[Any]]) -> None:
    def size(kind: Any) -> int:
        return ctypes.sizeof(kind)

    assert c_prototypes.keys() == cuda._SIGNATURES.keys()
    for name, theirs in c_prototypes.items():
        ours = cuda._SIGNATURES[name]
        assert [size(kind) for kind in ours] == [size(kind) for kind in theirs], name
        pointers = [kind for kind, other in zip(ours, theirs, strict=True) if other is ctypes.c_void_p]
        assert all(issubclass(kind, (ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p)) for kind in pointers), name


def test_every_function_has_its_types_set(library: Any) -> None:
    Driver(load=library.load)
    for name, signature in cuda._SIGNATURES.items():
        function = getattr(library, name)
        assert tuple(function.argtypes) == signature and function.restype is ctypes.c_int


def test_a_gpu_is_described(driver_of: Callable[..., Any], card: Any, tmp_path: Path) -> None:
    library = driver_of(card(), card(name="Orin", capability=(8, 7), memory_mib=7620, integrated=True))
    gpu = find_gpu(load=library.load, version_file=NOWHERE)
    assert gpu == cuda.Gpu(0, "Stand-in GPU", (8, 6), "CUDA 13.0", 8192, 4096, False)
    assert gpu.sm == "sm_86"
    (tmp_path / "version").write_text(JETSON_DRIVER)
    orin = find_gpu(1, load=library.load, version_file=tmp_path / "version")
    assert (orin.index, orin.name, orin.sm, orin.driver, orin.integrated) == (1, "Orin", "sm_87", "540.3.0", True)
    assert (orin.memory_mib, orin.free_mib) == (7620, 3810)
    assert library.leaks == {} and library.wrong == []
    # nothing of the GPU's state is left changed
    assert library.calls.count("cuCtxPushCurrent_v2") == library.calls.count("cuCtxPopCurrent_v2") == 2


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (DRIVER, "535.104.05"),
        (OPEN_DRIVER, "550.54.14"),
        (JETSON_DRIVER, "540.3.0"),
        ("nothing of the kind", None),
        ("", None),
    ],
)
def test_the_version_of_the_driver(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == version
    assert driver_version(NOWHERE) is None


def test_no_driver() -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    with pytest.raises(
        ProviderError, match=r"^no NVIDIA driver here \(libcuda\.so\.1 does not load\).*--gpus all.*"
    ) as error:
        find_gpu(load=load)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (34, r"driver is a stub library.*LD_LIBRARY_PATH"),
        (35, r"driver version is insufficient.*too old: update the NVIDIA driver to 470 or newer"),
        (
            100,
            r"no CUDA-capable device is detected \(CUDA_ERROR_NO_DEVICE\)\): it sees no GPU: "
            r".*CUDA_VISIBLE_DEVICES.*--gpus all",
        ),
        (803, r"unsupported display driver.*restart the machine"),
        (999, r"\(CUDA error 999\): look at nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_start(library: Any, status: int, sentence: str) -> None:
    library.fail["cuInit"] = status
    with pytest.raises(ProviderError, match=f"the NVIDIA driver is here and does not start .*{sentence}") as error:
        find_gpu(load=library.load)
    assert "\n" not in str(error.value)
    assert library.calls[:1] == ["cuInit"] and "cuDeviceGetCount" not in library.calls


def test_a_driver_that_is_too_old(driver_of: Callable[..., Any]) -> None:
    with pytest.raises(ProviderError, match=r"serves CUDA 11\.2, 11\.4 is needed: update the NVIDIA driver to 470"):
        find_gpu(load=driver_of(version=11020).load)
    with pytest.raises(ProviderError, match="too old: it has no cuGraphInstantiateWithFlags; update"):
        find_gpu(load=driver_of(missing=("cuGraphInstantiateWithFlags",)).load)
    assert find_gpu(load=driver_of(version=11040).load, version_file=NOWHERE).driver == "CUDA 11.4"


@pytest.mark.parametrize("index", [-1, 1, 7])
def test_a_gpu_that_is_not_there(library: Any, index: int) -> None:
    with pytest.raises(ProviderError, match=f"there is no GPU {index}: CUDA sees 1 here"):
        find_gpu(index, load=library.load)


@pytest.mark.parametrize(
    "function",
    ["cuDeviceGetCount", "cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuMemGetInfo_v2", "cuDeviceTotalMem_v2"],
)
def test_a_gpu_that_cannot_be_used(library: Any, function: str) -> None:
    library.fail[function] = 2
    with pytest.raises(
        ProviderError, match=f"GPU 0 is here and cannot be used: CUDA's {function} failed: out of memory"
    ):
        find_gpu(load=library.load)
    assert library.leaks == {} and library.wrong == []


def test_an_error_has_the_name_of_the_call_and_cudas_words(library: Any) -> None:
    driver = Driver(load=library.load)
    library.fail["cuDeviceGetCount"] = 700
    wanted = (
        r"^CUDA's cuDeviceGetCount failed: an illegal memory access was encountered \(CUDA_ERROR_ILLEGAL_ADDRESS\)$"
    )
    with pytest.raises(BackendError, match=wanted):
        driver.get(ctypes.c_int, "cuDeviceGetCount")
    library.fail["cuDeviceGetCount"] = 2
    with pytest.raises(BackendError, match="make room there, or use a smaller batch"):
        driver.get(ctypes.c_int, "cuDeviceGetCount")


@pytest.mark.parametrize("shape", [(1,), (3, 5), (32, 3, 8, 8)])
def test_what_goes_to_the_gpu_comes_back(context: Any, library: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    there, back = PinnedBuffer(context, shape), PinnedBuffer(context, shape)
    device, stream = DeviceBuffer(context, there.array.nbytes), Stream(context)
    assert there.handle > 1 << 32 and device.handle > 1 << 32, "the addresses here are too short to be cut"
    assert there.array.shape == shape and there.array.dtype == np.float32 and there.device_address is None
    there.array[:] = rng.normal(size=shape)
    with context:
        stream.copy_in(device, there, there.array.nbytes)
        stream.copy_out(back, device, back.array.nbytes)
        assert np.isnan(back.array).all(), "nothing is done before it is waited for"
        stream.synchronize()
    assert np.array_equal(back.array, there.array)
    for thing in (stream, device, back, there):
        thing.close()
        thing.close()
    assert library.calls.count("cuMemFreeHost") == 2 and library.calls.count("cuMemFree_v2") == 1
    assert there.array.size == 0  # and no longer the memory that was given back


@pytest.mark.parametrize("mapped", [False, True])
def test_memory_for_pixels_is_a_quarter(context: Any, library: Any, mapped: bool) -> None:
    buffer = PinnedBuffer(context, (2, 4, 4, 3), dtype=np.uint8, mapped=mapped)
    assert buffer.array.dtype == np.uint8 and buffer.array.shape == (2, 4, 4, 3)
    assert len(library.alive["host"][buffer.handle]) == buffer.array.nbytes == 96
    buffer.close()
    assert buffer.array.size == 0 and library.leaks == {"context": 1}


def test_mapped_memory_is_the_gpus_too(context: Any, library: Any) -> None:
    buffer = PinnedBuffer(context, (4,), mapped=True)
    assert buffer.device_address == buffer.handle > 1 << 32
    buffer.close()
    library.fail["cuMemHostGetDevicePointer_v2"] = 1
    with pytest.raises(BackendError, match="cuMemHostGetDevicePointer_v2"):
        PinnedBuffer(context, (4,), mapped=True)


def test_a_graph_does_again_what_was_recorded(context: Any, library: Any) -> None:
    source, target = PinnedBuffer(context, (2,)), PinnedBuffer(context, (2,))
    device, stream = DeviceBuffer(context, 8), Stream(context)

    def both() -> None:
        stream.copy_in(device, source, 8)
        stream.copy_out(target, device, 8)

    with context:
        graph = stream.capture(both)
        assert len(library.alive["graph"]) == 0, "what was captured is not needed once it is a graph"
        stream.synchronize()
        assert np.isnan(target.array).all(), "recorded, not done"
        for value in (1.0, 2.0):
            source.array[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (target.array == value).all()
    for thing in (graph, stream, device, target, source):
        thing.close()
        thing.close()


def test_a_capture_that_breaks_leaves_the_stream_usable(context: Any, library: Any) -> None:
    stream, pinned, device = Stream(context), PinnedBuffer(context, (1,)), DeviceBuffer(context, 4)
    with context:
        with pytest.raises(
            BackendError, match="cuStreamSynchronize failed: operation not permitted when stream is capturing"
        ):
            stream.capture(stream.synchronize)
        with pytest.raises(ZeroDivisionError):
            stream.capture(lambda: print(1 / 0))
        library.fail["cuGraphInstantiateWithFlags"] = 2
        with pytest.raises(BackendError, match="cuGraphInstantiateWithFlags failed: out of memory"):
            stream.capture(lambda: None)
        del library.fail["cuGraphInstantiateWithFlags"]
        stream.copy_in(device, pinned, 4)
        stream.synchronize()
    assert library.alive["graph"] == library.alive["exec"] == {}
    for thing in (device, pinned, stream):
        thing.close()


def test_events_take_the_time_on_the_gpu(context: Any, library: Any) -> None:
    stream, pinned, device = Stream(context), PinnedBuffer(context, (1,)), DeviceBuffer(context, 4)
    before, after, never = Event(context), Event(context), Event(context)
    with context:
        before.record(stream)
        stream.copy_in(device, pinned, 4)
        stream.copy_in(device, pinned, 4)
        after.record(stream)
        assert after.milliseconds_since(before) == pytest.approx(2 * library.copy_ms)
        with pytest.raises(BackendError, match="cuEventElapsedTime"):
            never.milliseconds_since(before)
    for thing in (before, after, never, device, pinned, stream):
        thing.close()


def test_closing_needs_no_current_context_and_leaves_none(context: Any, library: Any) -> None:
    stream = Stream(context)
    assert library._stack() == []
    stream.close()
    assert library._stack() == [] and library.wrong == []


def test_two_users_of_a_gpu_do_not_take_it_from_each_other(library: Any) -> None:
    driver = Driver(load=library.load)
    one, two = Context(driver, 0), Context(driver, 0)
    stream = Stream(two)
    one.close()
    one.close()
    with two:
        stream.synchronize()
    stream.close()
    two.close()
    assert library.leaks == {} and library.wrong == []
    assert library.calls.count("cuDevicePrimaryCtxRelease_v2") == 2
