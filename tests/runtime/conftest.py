"""Stand-ins for the NVIDIA driver and for TensorRT, for what no machine without a GPU can run.

The driver's is called through the C calling convention, with the prototypes of ``cuda.h``: an argument that would be
cut on its way to the real library is cut here too. Its memory is memory, its copies copy, and its work waits in streams
until somebody waits for it. TensorRT's computes the very logits of the bundle, with ONNX Runtime, from the addresses it
is given. What they cannot tell is whether the real libraries behave as documented.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pynvml
import pytest

from edgeadv_runtime.backends import tensorrt as backend_module
from edgeadv_runtime.device import cuda as cuda_module
from edgeadv_runtime.engine import execution as execution_module
from edgeadv_runtime.engine.library import Library

MIB = 1 << 20
PROTOTYPES = """
cuInit(unsigned int Flags)
cuDriverGetVersion(int *driverVersion)
cuGetErrorName(CUresult error, const char **pStr)
cuGetErrorString(CUresult error, const char **pStr)
cuDeviceGetCount(int *count)
cuDeviceGet(CUdevice *device, int ordinal)
cuDeviceGetName(char *name, int len, CUdevice dev)
cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev)
cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)
cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
cuDevicePrimaryCtxRelease_v2(CUdevice dev)
cuCtxPushCurrent_v2(CUcontext ctx)
cuCtxPopCurrent_v2(CUcontext *pctx)
cuMemGetInfo_v2(size_t *free, size_t *total)
cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)
cuMemFree_v2(CUdeviceptr dptr)
cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags)
cuMemFreeHost(void *p)
cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags)
cuMemcpyHtoDAsync_v2(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream)
cuMemcpyDtoHAsync_v2(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream)
cuStreamCreate(CUstream *phStream, unsigned int Flags)
cuStreamSynchronize(CUstream hStream)
cuStreamDestroy_v2(CUstream hStream)
cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode)
cuStreamEndCapture(CUstream hStream, CUgraph *phGraph)
cuEventCreate(CUevent *phEvent, unsigned int Flags)
cuEventRecord(CUevent hEvent, CUstream hStream)
cuEventSynchronize(CUevent hEvent)
cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd)
cuEventDestroy_v2(CUevent hEvent)
cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags)
cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream)
cuGraphExecDestroy(CUgraphExec hGraphExec)
cuGraphDestroy(CUgraph hGraph)
"""
_ERRORS = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    34: ("CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"),
    35: ("CUDA_ERROR_INSUFFICIENT_DRIVER", "CUDA driver version is insufficient for CUDA runtime version"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    803: ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"),
    900: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
    901: ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"),
}


def _c_type(declaration: str) -> Any:
    kind = declaration.rpartition(" ")[0] + "*" * declaration.count("*")
    if "*" in kind or re.search(r"CU(context|stream|event|graph|graphExec)\b", kind):
        return ctypes.c_void_p
    if "long long" in kind or "CUdeviceptr" in kind:
        return ctypes.c_uint64
    return ctypes.c_size_t if "size_t" in kind else ctypes.c_uint if "unsigned" in kind else ctypes.c_int


def prototypes() -> dict[str, list[Any]]:
    """The C types of the arguments of each function."""
    found = re.findall(r"^(\w+)\((.*)\)$", PROTOTYPES, re.MULTILINE)
    return {name: [_c_type(argument) for argument in arguments.split(", ")] for name, arguments in found}


class Card(NamedTuple):
    """A GPU that the driver's stand-in has."""

    name: str = "Stand-in GPU"
    capability: tuple[int, int] = (8, 6)
    memory_mib: int = 8192
    integrated: bool = False


class StandInDriver:
    """``libcuda.so.1`` without a GPU.

    Attributes:
        fail: status to answer with instead of doing anything, by function.
        calls: every call, by name, in order.
        alive: what was taken and not given back, by kind.
        wrong: what no caller may do, such as giving back what is not there.
    """

    copy_ms, compute_ms = 0.25, 2.0

    def __init__(self, *cards: Card, version: int = 13000, missing: tuple[str, ...] = ()) -> None:
        self.cards, self.version = cards or (Card(),), version
        self.fail: dict[str, int] = {}
        self.calls: list[str] = []
        self.wrong: list[str] = []
        self.alive: dict[str, dict[int, Any]] = {
            kind: {} for kind in ("context", "device", "host", "stream", "event", "graph", "exec")
        }
        self.clock = 0.0
        self._numbers = itertools.count(0x7FFF_0000_1000, 0x10)  # longer than 32 bits, as real handles are
        self._current = threading.local()
        self._texts: list[Any] = []
        self._mapped: set[int] = set()
        for name, types in prototypes().items():
            if name not in missing:
                setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *types)(self._checked(name)))

    def load(self, name: str) -> StandInDriver:
        """What ``ctypes.CDLL`` would give."""
        assert name == "libcuda.so.1"
        return self

    def enqueue(self, stream: int, work: Callable[[], None], milliseconds: float) -> None:
        """Have work done when its turn comes, or recorded if the stream is being captured."""

        def timed() -> None:
            work()
            self.clock += milliseconds

        queue = self.alive["stream"][stream]
        (queue["work"] if queue["captured"] is None else queue["captured"]).append(timed)

    @property
    def leaks(self) -> dict[str, int]:
        """How much of each kind was not given back."""
        return {kind: len(held) for kind, held in self.alive.items() if held}

    def _checked(self, name: str) -> Callable[..., int]:
        # _cu_mem_alloc_v2 is cuMemAlloc_v2
        body = getattr(self, "_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(), lambda *arguments: 0)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fail:
                return self.fail[name]
            try:
                return body(*arguments) or 0
            except Exception as error:  # one that leaves a callback is lost
                self.wrong.append(f"{name}: {error!r}")
                return 1

        return call

    def _stack(self) -> list[int]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: list[int] = self._current.stack
        return stack

    def _need_context(self) -> None:
        assert self._stack(), "no context is current"
        assert self._stack()[-1] in self.alive["context"], "the current context was released"

    def _take(self, kind: str, out: int, what: Any, *, number: int | None = None) -> None:
        if kind != "context":
            self._need_context()
        number = next(self._numbers) if number is None else number
        self.alive[kind][number] = what
        ctypes.c_uint64.from_address(out).value = number

    def _give_back(self, kind: str, number: int) -> None:
        self._need_context()
        assert number in self.alive[kind], f"{kind} {number:#x} is not there to be given back"
        del self.alive[kind][number]

    def _memory(self, address: int, nbytes: int) -> None:
        for held in (self.alive["device"], self.alive["host"]):
            for begin, buffer in held.items():
                if begin <= address and address + nbytes <= begin + len(buffer):
                    return
        raise AssertionError(f"{nbytes} bytes at {address:#x} are nobody's")

    def _cu_driver_get_version(self, out: int) -> None:
        ctypes.c_int.from_address(out).value = self.version

    def _text(self, status: int, out: int, which: int) -> int:
        if status not in _ERRORS:
            return 1
        self._texts.append(ctypes.create_string_buffer(_ERRORS[status][which].encode()))
        ctypes.c_uint64.from_address(out).value = ctypes.addressof(self._texts[-1])
        return 0

    def _cu_get_error_name(self, status: int, out: int) -> int:
        return self._text(status, out, 0)

    def _cu_get_error_string(self, status: int, out: int) -> int:
        return self._text(status, out, 1)

    def _cu_device_get_count(self, out: int) -> None:
        ctypes.c_int.from_address(out).value = len(self.cards)

    def _cu_device_get(self, out: int, index: int) -> int:
        if not 0 <= index < len(self.cards):
            return 101
        ctypes.c_int.from_address(out).value = index
        return 0

    def _cu_device_get_name(self, out: int, size: int, device: int) -> None:
        name = self.cards[device].name.encode()[: size - 1] + b"\0"
        ctypes.memmove(out, name, len(name))

    def _cu_device_get_attribute(self, out: int, which: int, device: int) -> None:
        card = self.cards[device]
        values = {18: int(card.integrated), 19: 1, 75: card.capability[0], 76: card.capability[1]}
        ctypes.c_int.from_address(out).value = values[which]

    def _cu_device_total_mem_v2(self, out: int, device: int) -> None:
        ctypes.c_size_t.from_address(out).value = self.cards[device].memory_mib * MIB

    def _cu_device_primary_ctx_retain(self, out: int, device: int) -> None:
        number = 0x7FFF_C0DE_0000 + device
        count = self.alive["context"].get(number, 0) + 1
        self._take("context", out, count, number=number)

    def _cu_device_primary_ctx_release_v2(self, device: int) -> None:
        number = 0x7FFF_C0DE_0000 + device
        self.alive["context"][number] -= 1
        if not self.alive["context"][number]:
            rest = {kind: n for kind, n in self.leaks.items() if kind != "context"}
            assert not rest, f"the context was released before {rest}"
            del self.alive["context"][number]

    def _cu_ctx_push_current_v2(self, context: int) -> None:
        assert context in self.alive["context"]
        self._stack().append(context)

    def _cu_ctx_pop_current_v2(self, out: int) -> None:
        ctypes.c_uint64.from_address(out).value = self._stack().pop()

    def _cu_mem_get_info_v2(self, free: int, total: int) -> None:
        self._need_context()
        size = self.cards[self._stack()[-1] & 0xFFFF].memory_mib * MIB
        ctypes.c_size_t.from_address(free).value = size // 2
        ctypes.c_size_t.from_address(total).value = size

    def _allocate(self, kind: str, out: int, nbytes: int) -> None:
        assert nbytes > 0
        buffer = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)  # float32 NaN: nobody gets zeros for nothing
        self._take(kind, out, buffer, number=ctypes.addressof(buffer))

    def _cu_mem_alloc_v2(self, out: int, nbytes: int) -> None:
        self._allocate("device", out, nbytes)

    def _cu_mem_free_v2(self, address: int) -> None:
        self._give_back("device", address)

    def _cu_mem_host_alloc(self, out: int, nbytes: int, flags: int) -> None:
        assert flags in (0, 2)
        self._allocate("host", out, nbytes)
        if flags == 2:
            self._mapped.add(ctypes.c_uint64.from_address(out).value)

    def _cu_mem_free_host(self, address: int) -> None:
        self._give_back("host", address)

    def _cu_mem_host_get_device_pointer_v2(self, out: int, address: int, flags: int) -> None:
        assert address in self.alive["host"] and address in self._mapped
        ctypes.c_uint64.from_address(out).value = address

    def _copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._need_context()
        self._memory(target, nbytes)
        self._memory(source, nbytes)
        self.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes), self.copy_ms)  # type: ignore[arg-type,return-value]

    def _cu_memcpy_hto_dasync_v2(self, target: int, source: int, nbytes: int, stream: int) -> None:
        assert target in self.alive["device"] and source in self.alive["host"]
        self._copy(target, source, nbytes, stream)

    def _cu_memcpy_dto_hasync_v2(self, target: int, source: int, nbytes: int, stream: int) -> None:
        assert target in self.alive["host"] and source in self.alive["device"]
        self._copy(target, source, nbytes, stream)

    def _cu_stream_create(self, out: int, flags: int) -> None:
        assert flags == 1
        self._take("stream", out, {"work": [], "captured": None, "broken": False})

    def _run(self, queue: dict[str, Any]) -> None:
        work, queue["work"] = queue["work"], []
        for step in work:
            step()

    def _cu_stream_synchronize(self, stream: int) -> int:
        self._need_context()
        queue = self.alive["stream"][stream]
        if queue["captured"] is not None:
            queue["broken"] = True
            return 900
        self._run(queue)
        return 0

    def _cu_stream_destroy_v2(self, stream: int) -> None:
        self._give_back("stream", stream)

    def _cu_stream_begin_capture_v2(self, stream: int, mode: int) -> None:
        self._need_context()
        assert mode == 1 and self.alive["stream"][stream]["captured"] is None
        self.alive["stream"][stream] |= {"captured": [], "broken": False}

    def _cu_stream_end_capture(self, stream: int, out: int) -> int:
        self._need_context()
        queue = self.alive["stream"][stream]
        captured, queue["captured"] = queue["captured"], None
        assert captured is not None, "nothing was being captured"
        if queue["broken"]:
            return 901
        self._take("graph", out, captured)
        return 0

    def _cu_graph_instantiate_with_flags(self, out: int, graph: int, flags: int) -> None:
        self._take("exec", out, list(self.alive["graph"][graph]))

    def _cu_graph_launch(self, exec_: int, stream: int) -> None:
        self._need_context()
        self.alive["stream"][stream]["work"].extend(self.alive["exec"][exec_])

    def _cu_graph_exec_destroy(self, exec_: int) -> None:
        self._give_back("exec", exec_)

    def _cu_graph_destroy(self, graph: int) -> None:
        self._give_back("graph", graph)

    def _cu_event_create(self, out: int, flags: int) -> None:
        self._take("event", out, {"time": None})

    def _cu_event_record(self, event: int, stream: int) -> None:
        self._need_context()
        held = self.alive["event"][event]
        self.enqueue(stream, lambda: held.update(time=self.clock), 0.0)

    def _cu_event_synchronize(self, event: int) -> None:
        self._need_context()
        for queue in self.alive["stream"].values():
            self._run(queue)

    def _cu_event_elapsed_time(self, out: int, begin: int, end: int) -> int:
        times = [self.alive["event"][event]["time"] for event in (begin, end)]
        if None in times:
            return 400
        ctypes.c_float.from_address(out).value = times[1] - times[0]
        return 0

    def _cu_event_destroy_v2(self, event: int) -> None:
        self._give_back("event", event)


class _Plan(NamedTuple):
    """What a plan of the stand-in computes, and how."""

    onnx: Path
    profile: tuple[int, int, int]


class StandInTensorRT:
    """The module ``tensorrt``, or ``tensorrt_rtx``, as far as running needs it.

    A plan is the JSON of a :class:`_Plan`; whatever is no such thing is refused.

    Attributes:
        inspector: what the engine inspector answers.
        refuse: what goes wrong: ``"load"``, ``"memory"`` (while loading), ``"context"``, ``"address"``, ``"shape"``,
            ``"execute"`` or ``"capture"``.
        skew: added to the logits, as a wrong kernel would.
        skew_of: likewise, by batch size.
        loaded: how often a plan was loaded.
        compiled: what TensorRT-RTX's runtime cache was filled with, one entry for each context.
    """

    def __init__(self, driver: StandInDriver, *, rtx: bool = False) -> None:
        self.driver, self.rtx = driver, rtx
        self.inspector: Any = {"Layers": ["names alone"]}
        self.refuse: set[str] = set()
        self.skew = 0.0
        self.skew_of: dict[int, float] = {}
        self.loaded = 0
        self.alive = 0
        self.compiled: list[bytes | None] = []
        self.tensors = {"image": ("FLOAT", (-1, 3, 32, 32)), "logits": ("FLOAT", (-1, 10))}
        self.static_shape = False

    def library(self) -> Library:
        """As ``find_library`` would give it."""
        name, version = ("tensorrt-rtx", "1.7.1.116") if self.rtx else ("tensorrt", "10.13.0")
        return Library(name, version, self._module(version))

    def _module(self, version: str) -> SimpleNamespace:
        trt = self

        class ILogger:
            pass

        class ICudaEngine(_Engine):
            pass

        module = SimpleNamespace(
            __version__=version,
            ILogger=ILogger,
            Builder=object,
            ICudaEngine=ICudaEngine,
            IBuilderConfig=SimpleNamespace(),
            LayerInformationFormat=SimpleNamespace(JSON=1, ONELINE=0),
            Runtime=lambda logger: SimpleNamespace(
                deserialize_cuda_engine=lambda plan: trt._load(ICudaEngine, plan, logger),
                **({"get_engine_validity": lambda plan: (2, 32)} if trt.rtx else {}),
            ),
        )
        if self.rtx:
            module.ComputeCapability = SimpleNamespace(__members__=dict.fromkeys(("SM80", "SM86", "SM87")))
            module.IBuilderConfig = SimpleNamespace(set_compute_capability=None)
            module.CudaGraphStrategy = SimpleNamespace(DISABLED=0, WHOLE_GRAPH_CAPTURE=1)
            module.IRuntimeCache = object
            module.EngineInvalidityDiagnostics = SimpleNamespace(VERSION_MISMATCH=1, MALFORMED_ENGINE=32)
            ICudaEngine.create_runtime_config = lambda engine: _RuntimeConfig(trt)  # type: ignore[attr-defined]
        return module

    def _load(self, kind: type[_Engine], plan: bytes, logger: Any) -> _Engine | None:
        self.driver._need_context()
        try:
            onnx, profile = json.loads(plan)
        except ValueError:
            self.say(logger, "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed")
            return None
        if "memory" in self.refuse:
            self.say(logger, "Requested amount of GPU memory (1048576 bytes) could not be allocated")
            return None
        if "load" in self.refuse:
            self.say(logger, "the version tag does not match")
            return None
        self.loaded += 1
        return kind(self, _Plan(Path(onnx), tuple(profile)), logger)

    def say(self, logger: Any, text: str) -> None:
        """As TensorRT explains itself."""
        logger.log(SimpleNamespace(name="ERROR"), text)


class _RuntimeConfig:
    cuda_graph_strategy = 0

    def __init__(self, trt: StandInTensorRT) -> None:
        self.trt = trt

    def create_runtime_cache(self) -> SimpleNamespace:
        self.trt.compiled.append(None)

        def deserialize(data: bytes) -> bool:
            self.trt.compiled[-1] = data
            return True

        return SimpleNamespace(deserialize=deserialize, serialize=lambda: memoryview(b"kernels of this device"))

    def set_runtime_cache(self, cache: Any) -> bool:
        return True


class _Engine:
    def __init__(self, trt: StandInTensorRT, plan: _Plan, logger: Any) -> None:
        import onnxruntime

        self.trt, self.plan, self.logger = trt, plan, logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(plan.onnx), options, providers=["CPUExecutionProvider"])
        self._alive(1)

    def _alive(self, more: int) -> None:
        self.trt.alive += more

    def __del__(self) -> None:
        if not self.trt.driver._stack():
            self.trt.driver.wrong.append("an engine or a context was let go of without the GPU's context")
        self._alive(-1)

    @property
    def num_io_tensors(self) -> int:
        return len(self.trt.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.trt.tensors)[index]

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.trt.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.trt.tensors[name][1]
        return (self.plan.profile[0], *shape[1:]) if self.trt.static_shape else shape

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert index == 0
        return [(size, *self.trt.tensors[name][1][1:]) for size in self.plan.profile]

    def create_execution_context(self, config: Any = None) -> _Context | None:
        if "context" in self.trt.refuse:
            self.trt.say(self.logger, "Requested amount of GPU memory could not be allocated")
            return None
        return _Context(self)

    def create_engine_inspector(self) -> SimpleNamespace:
        text = self.trt.inspector if isinstance(self.trt.inspector, str) else json.dumps(self.trt.inspector)
        return SimpleNamespace(execution_context=None, get_engine_information=lambda layout: {1: text}[layout])


class _Context:
    """An execution context. A graph captured from it is wrong once it is given another shape, as with the real one."""

    def __init__(self, engine: _Engine) -> None:
        self.engine, self.trt = engine, engine.trt
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.ready: tuple[int, ...] = ()
        self.captured_shape: tuple[int, ...] | None = None

    def set_tensor_address(self, name: str, address: int) -> bool:
        if "address" in self.trt.refuse:
            self.trt.say(self.engine.logger, f"the address of {name} is not aligned")
            return False
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self.engine.plan.profile
        if "shape" in self.trt.refuse or not profile[0] <= shape[0] <= profile[2]:
            self.shape = ()
            self.trt.say(
                self.engine.logger,
                f"Set dimension {list(shape)} for tensor {name} does not satisfy any optimization profiles",
            )
            return False
        assert name == "image" and shape[1:] == self.trt.tensors["image"][1][1:]
        if self.captured_shape is not None:
            self.trt.driver.wrong.append("a context was changed after a graph was captured from it")
        self.shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        driver, shape = self.trt.driver, self.shape
        driver._need_context()
        if not shape:
            driver.wrong.append("run without a shape")
            return False
        capturing = driver.alive["stream"][stream]["captured"] is not None
        if "execute" in self.trt.refuse or (capturing and "capture" in self.trt.refuse):
            self.trt.say(self.engine.logger, "Cask convolution execution")
            return False
        if capturing:
            if self.ready != shape:
                driver.wrong.append("captured before a first run with this shape")
            self.captured_shape = shape
        self.ready = shape

        this = weakref.ref(self)  # a graph does not keep the context that it was captured from

        def work() -> None:
            if (context := this()) is None:
                driver.wrong.append("a graph ran whose context was let go of")
            else:
                context.compute(shape)

        driver.enqueue(stream, work, driver.compute_ms)
        return True

    def compute(self, shape: tuple[int, ...]) -> None:
        driver, classes = self.trt.driver, self.trt.tensors["logits"][1][1]
        count, image, logits = int(np.prod(shape)), self.addresses["image"], self.addresses["logits"]
        kind = {"FLOAT": ctypes.c_float, "UINT8": ctypes.c_uint8}[self.trt.tensors["image"][0]]
        driver._memory(image, ctypes.sizeof(kind) * count)
        driver._memory(logits, 4 * shape[0] * classes)
        images = np.ctypeslib.as_array((kind * count).from_address(image)).reshape(shape)
        if not np.isfinite(images).all():
            driver.wrong.append("an image that nobody wrote was computed with")
        (values,) = self.engine.session.run(["logits"], {"image": images})
        values = np.ascontiguousarray(values + np.float32(self.trt.skew + self.trt.skew_of.get(shape[0], 0.0)))
        ctypes.memmove(logits, values.ctypes.data, values.nbytes)


@pytest.fixture
def driver_of() -> Callable[..., StandInDriver]:
    """Makes a stand-in for the NVIDIA driver."""
    return StandInDriver


@pytest.fixture
def card() -> type[Card]:
    """A GPU for it."""
    return Card


@pytest.fixture
def c_prototypes() -> dict[str, list[Any]]:
    """The C types of the driver's functions, from its header."""
    return prototypes()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandInTensorRT]]:
    """Puts stand-ins for the driver and for TensorRT in the place of the real ones; checks afterwards what was done to
    them."""
    installed: list[StandInTensorRT] = []

    def put(*cards: Card, rtx: bool = False) -> StandInTensorRT:
        driver = StandInDriver(*cards)
        trt = StandInTensorRT(driver, rtx=rtx)
        monkeypatch.setattr(
            backend_module,
            "find_gpu",
            lambda index: cuda_module.find_gpu(index, load=driver.load, version_file=Path("/none")),
        )
        monkeypatch.setattr(execution_module, "Driver", lambda: cuda_module.Driver(load=driver.load))
        monkeypatch.setattr(backend_module, "find_library", lambda name: trt.library())
        installed.append(trt)
        return trt

    yield put
    for trt in installed:
        assert trt.driver.wrong == []


class NvmlDriver:
    """What NVML's library would answer, called by the real ``pynvml`` through the C calling convention: two GPUs.

    Attributes:
        gpus: of each its answers by function; change them, or take one away, and it answers NVML_ERROR_NOT_SUPPORTED.
        lacking: names of functions that this driver is too old for.
        started: how often it was started and not yet shut down.
    """

    PLACES = (b"0000:01:00.0", b"0000:65:00.0")

    def __init__(self) -> None:
        self.gpus: list[dict[Any, Any]] = [
            {
                "Name": name,
                ("ClockInfo", 1): sm,
                ("ClockInfo", 2): 3996,
                "Temperature": celsius,
                "PowerUsage": milliwatts,
                "PowerManagementLimit": 1_000_000,
                "CurrentClocksEventReasons": reasons,
                "TotalEnergyConsumption": energy,
                ("FieldValues", 74): nanoseconds,
                ("FieldValues", 75): 0,
            }
            for name, sm, celsius, milliwatts, reasons, energy, nanoseconds in (
                (b"NVIDIA B200", 120, 33, 187_800, 0x1, 7_000_000, 0),
                (b"NVIDIA B200", 1965, 62, 905_300, 0x24, 1_000, 9_000),
            )
        ]
        self.lacking: set[str] = set()
        self.started = 0

    def __getattr__(self, name: str) -> Any:
        """A function of the library, as ctypes would give it."""
        if name.startswith("__") or name in self.__dict__.get("lacking", ()):
            raise AttributeError(name)
        function = self._functions().get(name)
        if function is None:
            raise AttributeError(name)
        return function

    def _functions(self) -> dict[str, Any]:
        integer, pointer = ctypes.c_uint, ctypes.c_void_p

        def put(target: int, kind: Any, value: Any) -> int:
            if value is None:
                return 3  # NVML_ERROR_NOT_SUPPORTED
            ctypes.cast(target, ctypes.POINTER(kind))[0] = value
            return 0

        def started(by: int) -> int:
            self.started += by
            return 0

        def number(key: str, kind: Any = integer) -> Any:
            return [pointer, pointer], lambda gpu, out: put(out, kind, self.gpus[gpu - 1].get(key))

        def name(gpu: int, out: int, size: int) -> int:
            text = self.gpus[gpu - 1].get("Name")
            return put(out, ctypes.c_char * (len(text) + 1), (ctypes.c_char * (len(text) + 1))(*text)) if text else 3

        def temperature(gpu: int, out: int) -> int:
            return put(out + 8, ctypes.c_int, self.gpus[gpu - 1].get("Temperature"))

        def fields(gpu: int, count: int, out: int) -> int:
            for value in ctypes.cast(out, ctypes.POINTER(pynvml.c_nvmlFieldValue_t * count))[0]:
                found = self.gpus[gpu - 1].get(("FieldValues", value.fieldId))
                value.nvmlReturn, value.value.ullVal = (3, 0) if found is None else (0, found)
            return 0

        def at(place: bytes, out: int) -> int:
            return put(out, pointer, 1 + self.PLACES.index(place) if place in self.PLACES else None)

        prototypes: dict[str, tuple[list[Any], Any]] = {
            "nvmlInitWithFlags": ([integer], lambda flags: started(1)),
            "nvmlShutdown": ([], lambda: started(-1)),
            "nvmlDeviceGetCount_v2": ([pointer], lambda out: put(out, integer, len(self.gpus))),
            "nvmlDeviceGetHandleByIndex_v2": ([integer, pointer], lambda i, out: put(out, pointer, i + 1)),
            "nvmlDeviceGetHandleByPciBusId_v2": ([ctypes.c_char_p, pointer], at),
            "nvmlDeviceGetName": ([pointer, pointer, integer], name),
            "nvmlDeviceGetClockInfo": (
                [pointer, integer, pointer],
                lambda gpu, kind, out: put(out, integer, self.gpus[gpu - 1].get(("ClockInfo", kind))),
            ),
            "nvmlDeviceGetTemperatureV": ([pointer, pointer], temperature),
            "nvmlDeviceGetTemperature": (
                [pointer, integer, pointer],
                lambda gpu, sensor, out: put(out, integer, self.gpus[gpu - 1].get("Temperature")),
            ),
            "nvmlDeviceGetFieldValues": ([pointer, ctypes.c_int, pointer], fields),
            "nvmlDeviceGetPowerUsage": number("PowerUsage"),
            "nvmlDeviceGetPowerManagementLimit": number("PowerManagementLimit"),
            "nvmlDeviceGetCurrentClocksEventReasons": number("CurrentClocksEventReasons", ctypes.c_ulonglong),
            "nvmlDeviceGetCurrentClocksThrottleReasons": number("CurrentClocksEventReasons", ctypes.c_ulonglong),
            "nvmlDeviceGetTotalEnergyConsumption": number("TotalEnergyConsumption", ctypes.c_ulonglong),
        }
        return {key: ctypes.CFUNCTYPE(ctypes.c_int, *types)(call) for key, (types, call) in prototypes.items()}


@pytest.fixture
def nvml_driver(monkeypatch: pytest.MonkeyPatch) -> NvmlDriver:
    """A driver of two GPUs, in the place of the library that ``pynvml`` loads."""
    driver = NvmlDriver()
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "nvmlLib", driver)
    return driver


@pytest.fixture
def no_nvml_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without NVIDIA's driver, whatever this one has."""

    def none(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", none)
