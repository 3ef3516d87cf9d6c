"""Running a plan: batches cut to what its profile takes, and the calls of TensorRT and CUDA that compute one of them.

The first half is arithmetic. The second half, from :class:`PlanExecutor` on, was written from the documentation of
TensorRT 10 and 11 and TensorRT-RTX 1.7: it has not been seen running on a GPU, and the tests run it on stand-ins for
both libraries.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..device.cuda import Context, DeviceBuffer, Driver, Event, Gpu, Graph, PinnedBuffer, Stream
from ..errors import BackendError
from .library import Library
from .messages import Heard
from .options import INPUT, OUTPUT, BatchProfile, ImageSpec
from .plan import MAKE_ROOM, LoadedPlan

STEPS = ("copy-in", "compute", "copy-out")
# a graph is worth its capture for a batch size that comes again, and each holds scratch memory of its own
_CAPTURE_AT_CALL = 2
_MOST_GRAPHS = 4


class Executor(Protocol):
    """What computes one batch of a size that its profile allows."""

    profile: BatchProfile

    def execute(self, images: NDArray[Any], size: int) -> NDArray[np.float32]:
        """Logits of ``images``, computed as a batch of ``size``; what is missing is filled up with black images.

        Args:
            images: as the plan takes them, float32 NCHW or uint8 NHWC, 1 <= n <= size.
            size: a batch size of the profile.

        Returns:
            float32 of shape (n, classes), valid until the next call.
        """


class Piece(NamedTuple):
    """Images ``start`` to ``stop`` of a batch, computed as a batch of ``size``."""

    start: int
    stop: int
    size: int


def pieces(n: int, profile: BatchProfile) -> Iterator[Piece]:
    """Cut a batch of ``n`` images to sizes of ``profile``: as many of the largest as fit, and the rest, padded if need
    be."""
    for start in range(0, n, profile.max):
        stop = min(start + profile.max, n)
        yield Piece(start, stop, max(stop - start, profile.min))


def execute_batch(executor: Executor, x: NDArray[Any], n_classes: int) -> NDArray[np.float32]:
    """Logits of a batch of any size, in an array of its own.

    Args:
        executor: computes each piece.
        x: as the plan takes them, float32 NCHW or uint8 NHWC, n >= 1.
        n_classes: number of logits.

    Returns:
        float32 of shape (n, n_classes).
    """
    logits = np.empty((len(x), n_classes), dtype=np.float32)
    for start, stop, size in pieces(len(x), executor.profile):
        logits[start:stop] = executor.execute(x[start:stop], size)
    return logits


class PlanExecutor:
    """A plan on a GPU: one stream, staging memory for its largest batch, and a CUDA graph for each batch size that
    recurs.

    On a GPU that shares the processor's memory the staging memory is mapped, and nothing is copied. Not safe to be used
    from two threads at once. The GPU's context must be current for every call.

    Attributes:
        profile: the batch sizes that the plan serves.
        runtime_cache: TensorRT-RTX's cache of compiled kernels; None elsewhere.
        graph_note: why there are no CUDA graphs; None if there are.
        times: milliseconds of each of :data:`STEPS` since the caller set it to a dict; None takes no times.
    """

    def __init__(
        self,
        loaded: LoadedPlan,
        cuda: Context,
        *,
        image: ImageSpec,
        n_classes: int,
        mapped: bool = False,
        runtime_cache: bytes | None = None,
    ) -> None:
        """Take the memory.

        Args:
            loaded: the plan; it stays the caller's.
            cuda: the GPU's context.
            image: what one image is.
            n_classes: number of logits.
            mapped: the GPU shares the processor's memory.
            runtime_cache: what :attr:`runtime_cache` was serialised to before.

        Raises:
            EngineError: the plan is of another model.
            BackendError: the memory is not enough, or there is no execution context to be had, for the same reason.
        """
        self._loaded, self._cuda = loaded, cuda
        self.profile: BatchProfile = loaded.profile(image, n_classes)
        self.times: dict[str, float] | None = None
        self.graph_note: str | None = None
        self._graphs: dict[int, Graph] = {}
        self._graph_contexts: list[Any] = []
        self._calls: Counter[int] = Counter()
        self._shape: tuple[int, ...] = ()
        self._context: Any = None
        self.runtime_cache: Any = None
        self._heard = Heard()
        self._held = ExitStack()
        try:
            self._stream = self._hold(Stream(cuda))
            self._events = [self._hold(Event(cuda)) for _ in range(len(STEPS) + 1)]
            self._in, self._device_in = self._buffers((self.profile.max, *image.shape), image.dtype, mapped)
            self._out, self._device_out = self._buffers((self.profile.max, n_classes), np.float32, mapped)
            library = loaded.library
            with library.listening() as self._heard:
                self._context, self.runtime_cache = library.create_context(
                    loaded.engine, runtime_cache=runtime_cache, cuda_graphs=library.captures_cuda_graphs
                )
                self._bind(self._context)
        except BaseException:
            self.close()
            raise

    @property
    def cuda_graphs(self) -> bool | None:
        """Whether calls are given to the GPU as CUDA graphs: None while no batch size has come again, and so none was
        captured.

        Of a library that captures them itself it is known only that it was asked to.
        """
        if self._loaded.library.captures_cuda_graphs:
            return True
        return False if self.graph_note is not None else bool(self._graphs) or None

    @property
    def context(self) -> Any:
        """The execution context, for the engine inspector."""
        return self._context

    def execute(self, images: NDArray[Any], size: int) -> NDArray[np.float32]:
        """See :meth:`Executor.execute`."""
        n = len(images)
        self._in.array[:n] = images
        self._in.array[n:size] = 0
        self._mark(0)
        if self._device_in is not None:
            self._stream.copy_in(self._device_in, self._in, self._in.array[:size].nbytes)
        self._mark(1)
        with self._loaded.library.listening() as self._heard:
            self._compute(size)
        self._mark(2)
        if self._device_out is not None:
            self._stream.copy_out(self._out, self._device_out, self._out.array[:n].nbytes)
        self._mark(3)
        self._stream.synchronize()
        if self.times is not None:
            for step, begin, end in zip(STEPS, self._events, self._events[1:], strict=False):
                self.times[step] = self.times.get(step, 0.0) + end.milliseconds_since(begin)
        return self._out.array[:n]

    def close(self) -> None:
        """Release everything in the reverse order in which it was taken. A second call does nothing."""
        with ExitStack() as last_first:
            last_first.callback(self._held.close)
            last_first.callback(self._let_go)
            for graph in self._graphs.values():
                last_first.callback(graph.close)
            self._graphs = {}

    def _let_go(self) -> None:
        self._graph_contexts = []
        self._context = self.runtime_cache = None

    def _hold(self, thing: Any) -> Any:
        self._held.callback(thing.close)
        return thing

    def _buffers(
        self, shape: tuple[int, ...], dtype: type[np.generic], mapped: bool
    ) -> tuple[PinnedBuffer, DeviceBuffer | None]:
        pinned = self._hold(PinnedBuffer(self._cuda, shape, dtype=dtype, mapped=mapped))
        return pinned, None if mapped else self._hold(DeviceBuffer(self._cuda, pinned.array.nbytes))

    def _bind(self, context: Any) -> None:
        if context is None:
            raise self._refusal("gives no execution context", MAKE_ROOM)
        for name, pinned, device in ((INPUT, self._in, self._device_in), (OUTPUT, self._out, self._device_out)):
            address = pinned.device_address if device is None else device.handle
            if not context.set_tensor_address(name, address):
                raise self._refusal(f"does not take the memory for {name!r}")

    def _mark(self, which: int) -> None:
        if self.times is not None:
            self._events[which].record(self._stream)

    def _compute(self, size: int) -> None:
        graph = self._graphs.get(size)
        if graph is not None:
            graph.launch(self._stream)
            return
        self._calls[size] += 1
        mine = not self._loaded.library.captures_cuda_graphs and self.graph_note is None
        if mine and self._calls[size] >= _CAPTURE_AT_CALL and len(self._graphs) < _MOST_GRAPHS and self._capture(size):
            self._graphs[size].launch(self._stream)
            return
        self._resize(self._context, size)
        self._enqueue(self._context)

    def _capture(self, size: int) -> bool:
        """Make the graph of ``size``, or note why there will be none."""
        context = self._context
        try:
            if not self.profile.is_static:
                # a graph is of one state of its context: this one will not be used for anything else
                context, _ = self._loaded.library.create_context(self._loaded.engine)
                self._bind(context)
                self._resize(context, size)
                self._enqueue(context)  # what depends on the shape is set up in the first call, which is not recorded
            self._stream.synchronize()
            graph = self._stream.capture(lambda: self._enqueue(context))
        except BackendError as error:
            self.graph_note = f"no CUDA graphs, every call is given to the GPU step by step: {error}"
            return False
        self._graphs[size] = graph
        self._graph_contexts.append(context)
        return True

    def _resize(self, context: Any, size: int) -> None:
        shape = (size, *self._in.array.shape[1:])
        if context is self._context:
            if shape == self._shape:
                return
            self._shape = ()
        if not context.set_input_shape(INPUT, shape):
            raise self._refusal(f"does not take a batch of {size}")
        if context is self._context:
            self._shape = shape

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise self._refusal("does not run the plan")

    def _refusal(self, what: str, advice: str = "") -> BackendError:
        said = self._heard.first_error() or "it gives no reason"
        self._heard.errors.clear()
        return BackendError(f"{self._loaded.library} {what}: {said}{f'; {advice}' if advice else ''}")


class Session:
    """A plan loaded on a GPU: everything that has to be in the GPU's context, and released in order.

    Attributes:
        profile: the batch sizes that the plan serves.
    """

    def __init__(
        self,
        library: Library,
        gpu: Gpu,
        plan: bytes,
        *,
        image: ImageSpec,
        n_classes: int,
        runtime_cache: bytes | None = None,
    ) -> None:
        """Load ``plan``, whose hash was checked before, and take the memory that it needs.

        Raises:
            PlanRefusedError: TensorRT refuses the plan.
            EngineError: it is of another model.
            BackendError: CUDA or TensorRT fails, most likely for want of memory.
        """
        self._n_classes = n_classes
        self._held = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._held.close)
            self._cuda = Context(Driver(), gpu.index)
            self._held.callback(self._cuda.close)
            with self._cuda, _quietly_closed():
                self._loaded = LoadedPlan(library, plan)
                self._release_in_context(self._loaded)
                self._executor = PlanExecutor(
                    self._loaded,
                    self._cuda,
                    image=image,
                    n_classes=n_classes,
                    mapped=gpu.integrated,
                    runtime_cache=runtime_cache,
                )
                self._release_in_context(self._executor)
            undo.pop_all()
        self.profile: BatchProfile = self._executor.profile

    @property
    def times(self) -> dict[str, float] | None:
        """Milliseconds of each of :data:`STEPS` since this was set to a dict; None takes no times."""
        return self._executor.times

    @times.setter
    def times(self, times: dict[str, float] | None) -> None:
        """Begin to take times, or leave off."""
        self._executor.times = times

    @property
    def cuda_graphs(self) -> bool | None:
        """See :attr:`PlanExecutor.cuda_graphs`."""
        return self._executor.cuda_graphs

    @property
    def graph_note(self) -> str | None:
        """Why there are no CUDA graphs; None if nothing is against them."""
        return self._executor.graph_note

    def run(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of a batch of any size, as the plan takes it, in an array of its own."""
        with self._cuda, _quietly_closed():
            return execute_batch(self._executor, x, self._n_classes)

    def inspect(self) -> Any:
        """What the engine inspector tells of the plan, parsed, after a batch was run; None where it tells nothing."""
        with self._cuda, _quietly_closed():
            return self._loaded.inspect(self._executor.context)

    def runtime_cache(self) -> bytes | None:
        """What TensorRT-RTX has compiled on this device so far; None elsewhere."""
        cache = self._executor.runtime_cache
        if cache is None:
            return None
        with self._cuda:
            memory = cache.serialize()
            return None if memory is None else bytes(memory)

    def close(self) -> None:
        """Release everything. A second call does nothing."""
        self._held.close()

    def _release_in_context(self, thing: LoadedPlan | PlanExecutor) -> None:
        def release() -> None:
            with self._cuda:
                thing.close()

        self._held.callback(release)


@contextmanager
def _quietly_closed() -> Iterator[None]:
    """Empty the frames of an error: TensorRT's objects in them would live as long as somebody keeps the error, and be
    destroyed when the GPU's context is gone."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
