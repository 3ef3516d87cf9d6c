"""CUDA without PyTorch: the driver's own interface, ``libcuda.so.1``, through ctypes.

The driver brings this library, on a desktop as on a Jetson, and it is the same one for CUDA 12 and 13: nothing has to
be installed, and nothing has to fit to the version of TensorRT. All work happens in the primary context of a GPU, which
is also the one that TensorRT and PyTorch use.

Signatures were compared with ``cuda.h`` of CUDA 13. No GPU has been seen running under this code: the tests call it on
a stand-in for the library, through the same C calling convention.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, ProviderError
from .facts import VERSION_FILE, driver_version
from .versions import older

LIBRARY = "libcuda.so.1"
MIB = 1 << 20
# the oldest driver whose library has every function below: CUDA 11.4, JetPack 5
_OLDEST = "11.4"
_TOO_OLD = "update the NVIDIA driver to 470 or newer, or JetPack to 5 or newer"

_INT, _UINT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
_ADDRESS = ctypes.c_uint64  # CUdeviceptr: without it ctypes would cut an address to 32 bits
_INT_OUT, _SIZE_OUT, _ADDRESS_OUT, _POINTER_OUT, _TEXT_OUT = (
    ctypes.POINTER(kind) for kind in (_INT, _SIZE, _ADDRESS, _POINTER, ctypes.c_char_p)
)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDriverGetVersion": (_INT_OUT,),
    "cuGetErrorName": (_INT, _TEXT_OUT),
    "cuGetErrorString": (_INT, _TEXT_OUT),
    "cuDeviceGetCount": (_INT_OUT,),
    "cuDeviceGet": (_INT_OUT, _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (_INT_OUT, _INT, _INT),
    "cuDeviceTotalMem_v2": (_SIZE_OUT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER_OUT, _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxPushCurrent_v2": (_POINTER,),
    "cuCtxPopCurrent_v2": (_POINTER_OUT,),
    "cuMemGetInfo_v2": (_SIZE_OUT, _SIZE_OUT),
    "cuMemAlloc_v2": (_ADDRESS_OUT, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_POINTER_OUT, _SIZE, _UINT),
    "cuMemFreeHost": (_POINTER,),
    "cuMemHostGetDevicePointer_v2": (_ADDRESS_OUT, _POINTER, _UINT),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuStreamCreate": (_POINTER_OUT, _UINT),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, _POINTER_OUT),
    "cuEventCreate": (_POINTER_OUT, _UINT),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventSynchronize": (_POINTER,),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "cuEventDestroy_v2": (_POINTER,),
    "cuGraphInstantiateWithFlags": (_POINTER_OUT, _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGraphDestroy": (_POINTER,),
}
_INTEGRATED, _CAN_MAP_HOST_MEMORY, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 18, 19, 75, 76
_HOST_MAPPED = 0x02
_STREAM_NON_BLOCKING = 0x01
_CAPTURE_THREAD_LOCAL = 1
_NAME_BYTES = 256
# what cuInit may answer, and what then is to be done
_WHY_NOT = {
    34: "the library found is the toolkit's stub, not the driver's: install the driver, or take the stubs folder "
    "out of LD_LIBRARY_PATH",
    35: f"it is too old: {_TOO_OLD}",
    36: f"it is too old: {_TOO_OLD}",
    100: "it sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES, and in a container at how it was started "
    "(--gpus all, on a Jetson --runtime nvidia)",
    101: "it refuses the GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    803: "its kernel module is of another version than its library: restart the machine after a driver update, or "
    "update the container's driver library",
    804: "the CUDA compatibility library does not serve this GPU: take it out of LD_LIBRARY_PATH or update the driver",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be used.

    Attributes:
        index: as CUDA counts the GPUs it may see.
        name: e.g. "NVIDIA GeForce RTX 3060", "Orin".
        compute_capability: major and minor number.
        driver: version of the NVIDIA driver; where the system does not tell, the newest CUDA that it serves, as "CUDA
            13.0".
        memory_mib: all of its memory; on an integrated GPU the system's.
        free_mib: what of it was free when it was found.
        integrated: whether it shares the memory of the processor, as on a Jetson.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    driver: str
    memory_mib: int
    free_mib: int
    integrated: bool

    @property
    def sm(self) -> str:
        """The compute capability as targets are written, e.g. ``"sm_86"``."""
        return f"sm_{self.compute_capability[0]}{self.compute_capability[1]}"


class Driver:
    """The driver's library, started. Every call is checked."""

    def __init__(self, *, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Load and start the driver.

        Args:
            load: loads a shared library by its name.

        Raises:
            ProviderError: there is no driver, it is too old, or it does not start; the sentence says which.
        """
        try:
            self._library = load(LIBRARY)
        except OSError as error:
            raise ProviderError(
                f"no NVIDIA driver here ({LIBRARY} does not load): this needs an NVIDIA GPU; on a machine that has "
                "one, install its driver, or start the container with --gpus all (on a Jetson with --runtime nvidia)"
            ) from error
        for name, signature in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise ProviderError(f"the NVIDIA driver here is too old: it has no {name}; {_TOO_OLD}") from error
            function.argtypes, function.restype = signature, _INT
        if status := self._library.cuInit(0):
            reason = _WHY_NOT.get(status, "look at nvidia-smi and at the kernel's log")
            raise ProviderError(f"the NVIDIA driver is here and does not start ({self._explain(status)}): {reason}")
        if older(self.version, _OLDEST):
            raise ProviderError(f"the NVIDIA driver here serves CUDA {self.version}, {_OLDEST} is needed: {_TOO_OLD}")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library.

        Raises:
            BackendError: it did not succeed; with CUDA's own words.
        """
        if status := getattr(self._library, name)(*arguments):
            hint = "; make room there, or use a smaller batch" if status == 2 else ""
            raise BackendError(f"CUDA's {name} failed: {self._explain(status)}{hint}")

    def get(self, kind: Any, name: str, *arguments: Any) -> Any:
        """What a function writes to its first argument, a ``kind``, as Python has it.

        Raises:
            BackendError: it did not succeed.
        """
        value = kind()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    @property
    def version(self) -> str:
        """The newest CUDA that this driver serves, e.g. ``"13.0"``."""
        number = self.get(_INT, "cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    def _explain(self, status: int) -> str:
        words = []
        for name in ("cuGetErrorString", "cuGetErrorName"):
            text = ctypes.c_char_p()
            if getattr(self._library, name)(status, ctypes.byref(text)) == 0 and text.value:
                words.append(text.value.decode(errors="replace"))
        return f"{words[0]} ({words[1]})" if len(words) == 2 else f"CUDA error {status}"


def find_gpu(index: int = 0, *, load: Callable[[str], Any] = ctypes.CDLL, version_file: Path = VERSION_FILE) -> Gpu:
    """The GPU of this number. Touches nothing of TensorRT, so it may be asked first.

    Args:
        index: as CUDA counts the GPUs it may see.
        load: loads a shared library by its name.
        version_file: where the driver's kernel module tells its version.

    Raises:
        ProviderError: there is no usable GPU; one sentence says why.
    """
    driver = Driver(load=load)
    try:
        count = driver.get(_INT, "cuDeviceGetCount")
        if not 0 <= index < count:
            raise ProviderError(f"there is no GPU {index}: CUDA sees {count} here, counted from 0")
        device = driver.get(_INT, "cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        driver.call("cuDeviceGetName", name, _NAME_BYTES, device)
        major, minor, integrated, mapped = (
            driver.get(_INT, "cuDeviceGetAttribute", attribute, device)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED, _CAN_MAP_HOST_MEMORY)
        )
        total = driver.get(_SIZE, "cuDeviceTotalMem_v2", device)
        with closing(Context(driver, index)) as context:
            free = context.free_bytes()
    except ProviderError:
        raise
    except BackendError as error:
        raise ProviderError(f"GPU {index} is here and cannot be used: {error}") from error
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=(major, minor),
        driver=driver_version(version_file) or f"CUDA {driver.version}",
        memory_mib=total // MIB,
        free_mib=free // MIB,
        integrated=bool(integrated and mapped),
    )


class Context:
    """The primary context of a GPU; as a context manager, current in this thread for the block."""

    def __init__(self, driver: Driver, index: int) -> None:
        """Retain the context of GPU ``index``. Close first what was made in it.

        Raises:
            BackendError: CUDA refuses, most likely for want of memory.
        """
        self.call: Callable[..., None] = driver.call
        self.get: Callable[..., Any] = driver.get
        self._device = driver.get(_INT, "cuDeviceGet", index)
        self._handle = driver.get(_POINTER, "cuDevicePrimaryCtxRetain", self._device)
        self._open = True

    def free_bytes(self) -> int:
        """Memory of the GPU that is free now."""
        with self:
            free: int = self.get(_SIZE, "cuMemGetInfo_v2", ctypes.byref(_SIZE()))
        return free

    def close(self) -> None:
        """Release the context. A second call does nothing."""
        if self._open:
            self._open = False
            self.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def __enter__(self) -> Context:
        self.call("cuCtxPushCurrent_v2", self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self.call("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))


class _Held:
    """What the driver lends, given back once. Its own calls need the context to be current, closing does not.

    Attributes:
        handle: the number that CUDA and TensorRT know it by: for memory, the address at which it begins.
    """

    kind: Any = _POINTER
    take: str
    give_back: str
    flags: tuple[int, ...] = ()

    def __init__(self, context: Context, *arguments: Any) -> None:
        """Have :attr:`take` fill in a :attr:`kind`; :attr:`give_back` is the function that takes it back."""
        self._context, self._call, self._get = context, context.call, context.get
        with context:
            self.handle: int = self._get(self.kind, self.take, *arguments, *self.flags)
        self._open = True

    def close(self) -> None:
        """Give it back. A second call does nothing."""
        if self._open:
            self._open = False
            with self._context:
                self._call(self.give_back, self.handle)


class DeviceBuffer(_Held):
    """Memory of the GPU: so many bytes, at least 1."""

    kind = _ADDRESS
    take: str = "cuMemAlloc_v2"
    give_back: str = "cuMemFree_v2"


class PinnedBuffer(_Held):
    """Memory of the processor that stays where it is, so that the GPU copies it without a stop.

    Attributes:
        array: of the shape and type asked for, over that memory; empty once the buffer is closed.
        device_address: where the GPU sees it, if it is mapped, which spares the copies; else None.
    """

    take: str = "cuMemHostAlloc"
    give_back: str = "cuMemFreeHost"

    def __init__(
        self, context: Context, shape: tuple[int, ...], *, dtype: type[np.generic] = np.float32, mapped: bool = False
    ) -> None:
        """Take as much as ``shape`` of ``dtype`` needs; ``mapped`` also into the address space of the GPU."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        super().__init__(context, nbytes, _HOST_MAPPED if mapped else 0)
        self.device_address: int | None = None
        if mapped:
            try:
                with context:
                    self.device_address = self._get(_ADDRESS, "cuMemHostGetDevicePointer_v2", self.handle, 0)
            except BackendError:
                super().close()
                raise
        memory = (ctypes.c_byte * nbytes).from_address(self.handle)
        self.array: NDArray[Any] = np.frombuffer(memoryview(memory), dtype=dtype).reshape(shape)

    def close(self) -> None:
        """Give it back. A second call does nothing."""
        self.array = np.empty(0, dtype=self.array.dtype)  # whoever reads on fails at once, and reads no freed memory
        super().close()


class Stream(_Held):
    """Work for the GPU, done in the order given; it does not wait for the default stream."""

    take: str = "cuStreamCreate"
    give_back: str = "cuStreamDestroy_v2"
    flags: tuple[int, ...] = (_STREAM_NON_BLOCKING,)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, nbytes: int) -> None:
        """Have the first ``nbytes`` copied to the GPU."""
        self._call("cuMemcpyHtoDAsync_v2", target.handle, source.handle, nbytes, self.handle)

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, nbytes: int) -> None:
        """Have the first ``nbytes`` copied from the GPU."""
        self._call("cuMemcpyDtoHAsync_v2", target.handle, source.handle, nbytes, self.handle)

    def synchronize(self) -> None:
        """Wait until all that was given is done."""
        self._call("cuStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` gives to this stream, without doing it.

        Raises:
            BackendError: something that cannot be recorded was among it; the stream can be used as before.
        """
        captured = _POINTER()
        self._call("cuStreamBeginCapture_v2", self.handle, _CAPTURE_THREAD_LOCAL)
        try:
            try:
                enqueue()
            except BaseException:
                # ended all the same, or the stream would stay unusable; that it was broken is being raised already
                with suppress(BackendError):
                    self._call("cuStreamEndCapture", self.handle, ctypes.byref(captured))
                raise
            self._call("cuStreamEndCapture", self.handle, ctypes.byref(captured))
            return Graph(self._context, captured)
        finally:
            if captured.value:
                self._call("cuGraphDestroy", captured)


class Graph(_Held):
    """What a stream has captured, given again in a single call. It is a copy."""

    take: str = "cuGraphInstantiateWithFlags"
    give_back: str = "cuGraphExecDestroy"
    flags: tuple[int, ...] = (0,)

    def launch(self, stream: Stream) -> None:
        """Give the recorded work to ``stream``."""
        self._call("cuGraphLaunch", self.handle, stream.handle)


class Event(_Held):
    """A point in a stream whose time is taken on the GPU."""

    take: str = "cuEventCreate"
    give_back: str = "cuEventDestroy_v2"
    flags: tuple[int, ...] = (0,)

    def record(self, stream: Stream) -> None:
        """Take the time when ``stream`` gets here."""
        self._call("cuEventRecord", self.handle, stream.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """Time between two events that were recorded; waits for this one."""
        self._call("cuEventSynchronize", self.handle)
        elapsed: float = self._get(ctypes.c_float, "cuEventElapsedTime", earlier.handle, self.handle)
        return elapsed
