"""From a source to answers: capture in one thread, inference in another, and every frame accounted for.

::

    source ─► capture thread ─► waiting frame(s) ─► inference thread ─► on_answer
                                 latest: one, the newest wins
                                 every: up to ``depth``, capture waits

At every moment ``captured == classified + dropped + waiting + working``, and once the threads are gone
``captured == classified + dropped``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError, SourceError
from .frames import Frame, Source

T = TypeVar("T")
Policy = Literal["latest", "every"]
_KEPT = 9000  # ages: five minutes at 30 frames per second
_LEAST_FOR_P99 = 1000
_STOP_S = 1.0
# a network camera may take seconds to open; how long until its first frame
_OPEN_S = 10.0
_MOST_DOUBLINGS = 20
_TICK_S = 0.1


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came of one frame.

    Attributes:
        frame: the frame.
        result: what the classifying function returned.
        age_s: from the frame's capture to the answer.
        busy_s: of that, the time in the classifying function.
    """

    frame: Frame
    result: T
    age_s: float
    busy_s: float


@dataclass(frozen=True)
class Event:
    """Something that happened to the source.

    Attributes:
        kind: ``"connected"`` when the first frame of a connection is there, ``"stalled"`` when none came for too long,
            ``"lost"`` when the connection ended.
        text: in words.
    """

    kind: Literal["connected", "stalled", "lost"]
    text: str


@dataclass(frozen=True)
class Counts:
    """Where all frames went, at one moment.

    Attributes:
        captured: frames that the source gave.
        classified: answers.
        dropped: frames that a newer one replaced, or that were left when the stream stopped.
        waiting: frames that wait for inference.
        working: 1 while a frame is with the classifying function.
        connections: how often the source was opened and gave a frame.
        losses: how often a live source was lost.
        stalls: how often no frame came for too long.
        age_p50_ms: median age of a frame at its answer, over the last 9,000 answers; None before the first.
        age_p99_ms: the same at 99%; None before 1,000 answers.
        age_max_ms: the largest of all; None before the first.
        busy_p50_ms: median time in the classifying function, over the last 9,000 answers.
        fps: answers per second over the last 9,000 answers; None before the second.
    """

    captured: int
    classified: int
    dropped: int
    waiting: int
    working: int
    connections: int
    losses: int
    stalls: int
    age_p50_ms: float | None
    age_p99_ms: float | None
    age_max_ms: float | None
    busy_p50_ms: float | None
    fps: float | None


class Stream(Generic[T]):
    """Frames of a source through a function, in two threads; a context manager.

    Example::

        with Classifier.open("model.edgeadv") as classifier:
            stream = Stream(
                open_source("/dev/video0"),
                lambda frame: classifier.classify(frame.image, color_order=frame.color_order)[0],
                on_answer=lambda answer: print(answer.result.name, answer.age_s),
            )
            with stream:
                stream.join()
    """

    def __init__(
        self,
        source: Source,
        classify: Callable[[Frame], T],
        *,
        on_answer: Callable[[Answer[T]], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        policy: Policy = "latest",
        depth: int = 2,
        stall_s: float = 2.0,
        back_off_s: tuple[float, float] = (0.25, 8.0),
        retries: int | None = None,
    ) -> None:
        """Put a stream together; nothing runs before :meth:`start`.

        Args:
            source: where frames come from.
            classify: called with each frame that is not dropped, in the inference thread.
            on_answer: called with each answer, in the inference thread.
            on_event: called when a source connects, stalls or is lost, from either thread.
            policy: ``"latest"``: a newer frame takes the place of one that waits, which is dropped. ``"every"``:
                capture waits, so that no frame is dropped here; a camera's driver then drops them unseen.
            depth: of ``"every"``, how many frames may wait.
            stall_s: seconds without a frame after which a live source counts as stalled and is opened again.
            back_off_s: seconds between attempts to open a lost source again: the first, doubled up to the second.
            retries: attempts after which to give up a lost source; None never does.

        Raises:
            InputError: an argument is out of range.
        """
        if policy not in get_args(Policy):
            raise InputError(f"policy is latest or every, not {policy!r}")
        if depth < 1 or stall_s <= 0 or not 0 < back_off_s[0] <= back_off_s[1] or (retries is not None and retries < 0):
            raise InputError(
                "depth is at least 1, stall_s above 0, back_off_s two rising numbers above 0, retries not negative"
            )
        self._source, self._classify, self._on_answer, self._on_event = source, classify, on_answer, on_event
        self._depth, self._replace = depth, policy == "latest"
        self._stall_s, self._back_off_s, self._retries = stall_s, back_off_s, retries
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._captured = self._classified = self._dropped = self._working = 0
        self._connections = self._losses = self._stalls = 0
        # of the last answers age, busy time and moment, in memory that does not grow; and the largest age of all
        self._recent, self._oldest_s = np.empty((3, _KEPT)), 0.0
        self._seen: float | None = None  # the last sign of life of a source
        self._patience_s = stall_s
        self._ended = False
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"edgeadv-{name}", daemon=True)
            for name, loop in (("capture", self._capture), ("inference", self._infer))
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the source has ended and all is answered, or until :meth:`stop`.

        Returns:
            Whether that was so before ``timeout_s`` passed.

        Raises:
            SourceError: the source did not open, was lost for good, or is damaged.
            Exception: what the classifying function or a callback raised.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        self._raise()
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Stop, within a second: the frame that is being classified is finished, those that wait are dropped.

        May be called from a callback, and more than once.

        Raises:
            SourceError: the source does not let go of its thread.
            BackendError: a frame takes longer than that to classify.
            Exception: what a thread raised before.
        """
        self._stopping.set()
        self._source.close()
        with self._changed:
            self._changed.notify_all()
        end = time.monotonic() + _STOP_S
        for thread in self._threads:
            if thread.ident is None or thread is threading.current_thread():
                continue
            while thread.is_alive() and (left := end - time.monotonic()) > 0:
                # again and again: a source that was just being opened has not heard the first
                self._source.close()
                thread.join(min(_TICK_S, left))
        if threading.current_thread() in self._threads:
            return
        self._raise()
        capture, inference = self._threads
        if capture.is_alive():
            raise SourceError(
                f"{self._source.name} does not let go: {capture.name} still waits for it after {_STOP_S:g} s"
            )
        if inference.is_alive():
            raise BackendError(
                f"a frame is still being classified after {_STOP_S:g} s: keep the classifier open until it is"
            )

    def counts(self) -> Counts:
        """Where all frames went, now; of one moment."""
        with self._changed:
            # of answers so far, as many as are kept; a copy, for both threads wait while the lock is held
            ages, busy, moments = self._recent[:, : self._classified].copy()
            oldest_s = self._oldest_s
            counted = {
                "captured": self._captured,
                "classified": self._classified,
                "dropped": self._dropped,
                "waiting": len(self._waiting),
                "working": self._working,
                "connections": self._connections,
                "losses": self._losses,
                "stalls": self._stalls,
            }
        spread = float(np.ptp(moments)) if len(moments) > 1 else 0.0
        return Counts(
            **counted,
            age_p50_ms=_ms(ages, 0.5),
            age_p99_ms=_ms(ages, 0.99, least=_LEAST_FOR_P99),
            age_max_ms=_ms(np.array([oldest_s]), 1.0) if len(ages) else None,
            busy_p50_ms=_ms(busy, 0.5),
            fps=(len(moments) - 1) / spread if spread > 0 else None,
        )

    def __enter__(self) -> Stream[T]:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.stop()
        except Exception:
            # what went wrong inside the block is the news
            if error is None:
                raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _guarded(self, loop: Callable[[], None]) -> None:
        """One thread: its exception ends the other one too, and reaches the caller."""
        try:
            loop()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
            self._stopping.set()
            self._source.close()
        finally:
            with self._changed:
                if loop == self._capture:
                    self._ended = True
                else:
                    self._dropped += len(self._waiting)
                    self._waiting.clear()
                self._changed.notify_all()

    # the capture thread

    def _capture(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            before = self._captured
            try:
                self._take_all()
                if not self._source.live:
                    return
                if not self._captured and not self._stopping.is_set():
                    raise SourceError(f"{self._source.name} gives no frames")
                why = f"{self._source.name} ended"
            except SourceError as error:
                # what never worked is a mistake, and not a loss
                if not self._source.live or not self._captured:
                    raise
                why = str(error)
            if self._stopping.is_set():
                return
            failures = 0 if self._captured > before else failures + 1
            if not failures:
                with self._changed:
                    self._losses += 1
                self._tell("lost", why)
            if self._retries is not None and failures >= self._retries:
                raise SourceError(f"{why}; it did not come back in {self._retries} attempts")
            first, most = self._back_off_s
            self._stopping.wait(min(most, first * 2.0 ** min(failures, _MOST_DOUBLINGS)))

    def _take_all(self) -> None:
        """All frames of one connection."""
        connected = False
        with self._changed:
            self._seen, self._patience_s = time.monotonic(), max(_OPEN_S, self._stall_s)
        try:
            for frame in self._source.frames():
                if not connected:
                    connected = True
                    with self._changed:
                        self._connections += 1
                        self._seen, self._patience_s = time.monotonic(), self._stall_s
                    self._tell("connected", f"{self._source.name} gives frames")
                self._put(frame)
                if self._stopping.is_set():
                    return
        finally:
            with self._changed:
                self._seen = None

    def _put(self, frame: Frame) -> None:
        with self._changed:
            while len(self._waiting) >= self._depth and not self._replace and not self._stopping.is_set():
                self._changed.wait(_TICK_S)
            self._captured += 1
            if self._replace and self._waiting:
                self._waiting.popleft()
                self._dropped += 1
            if self._stopping.is_set():
                self._dropped += 1
            else:
                self._waiting.append(frame)
            self._seen = time.monotonic()
            self._changed.notify_all()

    # the inference thread

    def _infer(self) -> None:
        while (frame := self._next()) is not None:
            began = time.monotonic()
            try:
                result = self._classify(frame)
            except BaseException:
                with self._changed:
                    self._working, self._dropped = 0, self._dropped + 1
                raise
            now = time.monotonic()
            answer = Answer(frame, result, now - frame.timestamp, now - began)
            with self._changed:
                self._recent[:, self._classified % _KEPT] = answer.age_s, answer.busy_s, now
                self._oldest_s = max(self._oldest_s, answer.age_s)
                self._working, self._classified = 0, self._classified + 1
            if self._on_answer is not None:
                self._on_answer(answer)
            del frame, answer  # or its pixels would be held while the next frame is awaited

    def _next(self) -> Frame | None:
        """The next frame, or None when there will be none."""
        while True:
            with self._changed:
                if self._stopping.is_set() or (self._ended and not self._waiting):
                    return None
                if self._waiting:
                    self._working = 1
                    frame = self._waiting.popleft()
                    self._changed.notify_all()
                    return frame
                self._changed.wait(_TICK_S)
                silent_s = 0.0 if self._seen is None else time.monotonic() - self._seen
                if self._waiting or not self._source.live or silent_s <= self._patience_s:
                    continue
                self._stalls += 1
                self._seen = None
            self._source.close()
            self._tell("stalled", f"{self._source.name} gave no frame for {self._patience_s:g} s: it is opened again")

    def _tell(self, kind: Literal["connected", "stalled", "lost"], text: str) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, text))


def _ms(seconds: NDArray[np.float64], share: float, *, least: int = 1) -> float | None:
    """A quantile in milliseconds; None of fewer than ``least``."""
    return round(1000 * float(np.quantile(seconds, share)), 3) if len(seconds) >= least else None
