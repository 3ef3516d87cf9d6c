"""Running a plan: batches cut to what its profile takes, and the calls of TensorRT and CUDA that compute one of them.

The first half is arithmetic. The second half, from :class:`Session` on, was written from the documentation of
TensorRT 10 and 11 and TensorRT-RTX 1.7: it has not been seen running on a GPU, and the tests run it on stand-ins for
both libraries.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..device.cuda import Context, DeviceBuffer, Driver, Event, Gpu, Graph, PinnedBuffer, Stream
from ..errors import BackendError
from .library import Library
from .messages import listening
from .options import INPUT, OUTPUT, BatchProfile, ImageSpec
from .plan import MAKE_ROOM, LoadedPlan

STEPS = ("copy-in", "compute", "copy-out")
# a graph is worth its capture for a batch size that comes again, and each holds scratch memory of its own
_CAPTURE_AT_CALL = 2
_MOST_GRAPHS = 4


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


def execute_batch(
    execute: Callable[[NDArray[Any], int], NDArray[np.float32]],
    profile: BatchProfile,
    x: NDArray[Any],
    n_classes: int,
) -> NDArray[np.float32]:
    """Logits of a batch of any size, in an array of its own.

    Args:
        execute: computes each piece, as a batch of the size given.
        profile: the sizes that it takes.
        x: as the plan takes them, float32 NCHW or uint8 NHWC, n >= 1.
        n_classes: number of logits.

    Returns:
        float32 of shape (n, n_classes).
    """
    logits = np.empty((len(x), n_classes), dtype=np.float32)
    for start, stop, size in pieces(len(x), profile):
        logits[start:stop] = execute(x[start:stop], size)
    return logits


class Session:
    """A plan loaded on a GPU, with everything that has to be in the GPU's context, released in order: one stream,
    staging memory for its largest batch, and a CUDA graph for each batch size that recurs.

    On a GPU that shares the processor's memory the staging memory is mapped, and nothing is copied. Not safe to be used
    from two threads at once.

    Attributes:
        profile: the batch sizes that the plan serves.
        graph_note: why there are no CUDA graphs; None if nothing is against them.
        times: milliseconds of each of :data:`STEPS` since the caller set it to a dict; None takes no times.
    """

    graph_note: str | None = None
    times: dict[str, float] | None = None
    _size = 0
    _context: Any = None
    _runtime_cache: Any = None

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

        Args:
            library: loads the plan.
            gpu: to load it on.
            plan: the bytes.
            image: what one image is.
            n_classes: number of logits.
            runtime_cache: what :meth:`runtime_cache` gave before.

        Raises:
            PlanRefusedError: TensorRT refuses the plan.
            EngineError: it is of another model.
            BackendError: CUDA or TensorRT fails, most likely for want of memory.
        """
        self._library, self._n_classes, self._mapped = library, n_classes, gpu.integrated
        self._graphs: dict[int, Graph] = {}
        self._graph_contexts: list[Any] = []
        self._calls: Counter[int] = Counter()
        self._held = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._cuda = Context(Driver(), gpu.index)
            self._held.callback(self._cuda.close)
            with self._cuda, _quietly_closed():
                self._loaded = self._hold(LoadedPlan(library, plan))
                self.profile: BatchProfile = self._loaded.profile(image, n_classes)
                self._stream = self._hold(Stream(self._cuda))
                self._events = [self._hold(Event(self._cuda)) for _ in range(len(STEPS) + 1)]
                self._in, self._device_in = self._buffers((self.profile.max, *image.shape), image.dtype)
                self._out, self._device_out = self._buffers((self.profile.max, n_classes), np.float32)
                self._held.callback(self._in_context, self._let_go)
                with listening() as self._heard:
                    self._context, self._runtime_cache = library.create_context(
                        self._loaded.engine, runtime_cache=runtime_cache
                    )
                    self._bind(self._context)
            undo.pop_all()

    @property
    def cuda_graphs(self) -> bool | None:
        """Whether calls are given to the GPU as CUDA graphs: None while no batch size has come again, and so none was
        captured.

        Of a library that captures them itself it is known only that it was asked to.
        """
        if self._library.captures_cuda_graphs:
            return True
        return False if self.graph_note is not None else bool(self._graphs) or None

    def run(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of a batch of any size, as the plan takes it, in an array of its own."""
        with self._cuda, _quietly_closed():
            return execute_batch(self._execute, self.profile, x, self._n_classes)

    def inspect(self) -> Any:
        """What the engine inspector tells of the plan, parsed, after a batch was run; None where it tells nothing."""
        with self._cuda, _quietly_closed():
            return self._loaded.inspect(self._context)

    def runtime_cache(self) -> bytes | None:
        """What TensorRT-RTX has compiled on this device so far; None elsewhere."""
        if self._runtime_cache is None:
            return None
        with self._cuda:
            memory = self._runtime_cache.serialize()
            return None if memory is None else bytes(memory)

    def close(self) -> None:
        """Release everything in the reverse order in which it was taken. A second call does nothing."""
        self._held.close()

    def _hold(self, thing: Any) -> Any:
        self._held.callback(self._in_context, thing.close)
        return thing

    def _in_context(self, release: Callable[[], None]) -> None:
        with self._cuda:
            release()

    def _let_go(self) -> None:
        self._graph_contexts = []
        self._context = self._runtime_cache = None

    def _buffers(self, shape: tuple[int, ...], dtype: type[np.generic]) -> tuple[PinnedBuffer, DeviceBuffer | None]:
        pinned = self._hold(PinnedBuffer(self._cuda, shape, dtype=dtype, mapped=self._mapped))
        return pinned, None if self._mapped else self._hold(DeviceBuffer(self._cuda, pinned.array.nbytes))

    def _bind(self, context: Any) -> None:
        if context is None:
            raise self._refusal("gives no execution context", MAKE_ROOM)
        for name, pinned, device in ((INPUT, self._in, self._device_in), (OUTPUT, self._out, self._device_out)):
            address = pinned.device_address if device is None else device.handle
            if not context.set_tensor_address(name, address):
                raise self._refusal(f"does not take the memory for {name!r}")

    def _execute(self, images: NDArray[Any], size: int) -> NDArray[np.float32]:
        """Logits of ``images``, computed as a batch of ``size``; what is missing is filled up with black images.

        Args:
            images: as the plan takes them, 1 <= n <= size.
            size: a batch size of the profile.

        Returns:
            float32 of shape (n, classes), valid until the next call.
        """
        n = len(images)
        self._in.array[:n] = images
        self._in.array[n:size] = 0
        self._mark(0)
        if self._device_in is not None:
            self._stream.copy_in(self._device_in, self._in, self._in.array[:size].nbytes)
        self._mark(1)
        with listening() as self._heard:
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

    def _mark(self, which: int) -> None:
        if self.times is not None:
            self._events[which].record(self._stream)

    def _compute(self, size: int) -> None:
        self._calls[size] += 1
        if size not in self._graphs and not self._capture(size):
            if size != self._size:
                self._size = 0  # what TensorRT refuses leaves the context without a shape
                self._resize(self._context, size)
                self._size = size
            self._enqueue(self._context)
        else:
            self._graphs[size].launch(self._stream)

    def _capture(self, size: int) -> bool:
        """Make the graph of ``size`` where that is worth it, or note why there will be none."""
        mine = not self._library.captures_cuda_graphs and self.graph_note is None
        if not mine or self._calls[size] < _CAPTURE_AT_CALL or len(self._graphs) >= _MOST_GRAPHS:
            return False
        context = self._context
        try:
            if not self.profile.is_static:
                # a graph is of one state of its context: this one will not be used for anything else
                context, _ = self._library.create_context(self._loaded.engine)
                self._bind(context)
                self._resize(context, size)
                self._enqueue(context)  # what depends on the shape is set up in the first call, which is not recorded
            self._stream.synchronize()
            graph = self._stream.capture(lambda: self._enqueue(context))
        except BackendError as error:
            self.graph_note = f"no CUDA graphs, every call is given to the GPU step by step: {error}"
            return False
        self._graphs[size] = self._hold(graph)
        self._graph_contexts.append(context)
        return True

    def _resize(self, context: Any, size: int) -> None:
        if not context.set_input_shape(INPUT, (size, *self._in.array.shape[1:])):
            raise self._refusal(f"does not take a batch of {size}")

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise self._refusal("does not run the plan")

    def _refusal(self, what: str, advice: str = "") -> BackendError:
        said = self._heard.first_error()
        self._heard.errors.clear()
        return BackendError(f"{self._library} {what}: {said}{f'; {advice}' if advice else ''}")


@contextmanager
def _quietly_closed() -> Iterator[None]:
    """Empty the frames of an error: TensorRT's objects in them would live as long as somebody keeps the error, and be
    destroyed when the GPU's context is gone."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
