"""The stream: every frame accounted for, whatever the source, the classifier or the caller do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgeadv_runtime.camera import Answer, Counts, Event, Frame, Memory, Stream
from edgeadv_runtime.errors import BackendError, InputError, SourceError

IMAGE = np.zeros((4, 4, 3), np.uint8)


class Scripted:
    """A live source whose connections are lists of what happens: a frame for each number, a wait, a loss, or
    silence."""

    name, live = "scripted", True

    def __init__(self, *connections: list[object], live: bool = True) -> None:
        self.live = live
        self.connections = list(connections)
        self.opened = 0
        self.closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        self.closed.clear()
        self.opened += 1
        if not self.connections:
            raise SourceError("scripted does not open")
        for i, happens in enumerate(self.connections.pop(0)):
            if self.closed.is_set():
                return
            if isinstance(happens, BaseException):
                raise happens
            if happens == "silence":
                self.closed.wait()
                return
            if isinstance(happens, float):
                self.closed.wait(happens)
            else:
                yield Frame(IMAGE, "rgb", time.monotonic(), i)

    def close(self) -> None:
        self.closed.set()


def adds_up(counts: Counts, *, over: bool = True) -> None:
    assert counts.captured == counts.classified + counts.dropped + counts.waiting + counts.working
    if over:
        assert counts.waiting == counts.working == 0


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("edgeadv-")}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not names()


def test_every_frame_of_a_file_is_answered_in_order() -> None:
    answers: list[Answer[int]] = []
    source = Scripted([0] * 500, live=False)
    with Stream(source, lambda frame: frame.index * 2, on_answer=answers.append, policy="every") as stream:
        assert stream.join(30)
    assert [answer.result for answer in answers] == [2 * i for i in range(500)]
    counts = stream.counts()
    adds_up(counts)
    assert (counts.captured, counts.classified, counts.dropped, counts.connections, counts.losses) == (
        500,
        500,
        0,
        1,
        0,
    )
    assert all(0 <= answer.busy_s <= answer.age_s for answer in answers)
    assert counts.age_p99_ms is None and counts.age_p50_ms is not None
    assert source.opened == 1


def test_the_newest_frame_wins() -> None:
    """While the first is classified ten more come: of those only the last one is answered."""
    source, begun, go_on = Memory(), threading.Event(), threading.Event()

    def slow(frame: Frame) -> int:
        begun.set()
        assert go_on.wait(10)
        return frame.index

    answers: list[int] = []
    with Stream(source, slow, on_answer=lambda answer: answers.append(answer.result)) as stream:
        source.put(IMAGE, color_order="rgb")
        assert begun.wait(10)
        for _ in range(10):
            source.put(IMAGE, color_order="rgb")
        wait_for(lambda: stream.counts().captured == 11)
        counts = stream.counts()
        assert (counts.captured, counts.classified, counts.dropped, counts.waiting, counts.working) == (11, 0, 9, 1, 1)
        go_on.set()
        wait_for(lambda: stream.counts().classified == 2)
    assert answers == [0, 10]
    adds_up(stream.counts())


def test_every_frame_waits_its_turn_and_capture_with_it() -> None:
    source, go_on = Memory(depth=1), threading.Semaphore(0)

    def slow(frame: Frame) -> int:
        assert go_on.acquire(timeout=10)
        return frame.index

    answers: list[int] = []
    stream = Stream(source, slow, on_answer=lambda answer: answers.append(answer.result), policy="every", depth=3)
    putting = threading.Thread(target=lambda: [source.put(IMAGE, color_order="rgb") for _ in range(9)] and source.end())
    with stream:
        putting.start()
        # one with the classifier, three waiting; the next is in the capture thread's hands
        wait_for(lambda: stream.counts().captured == 4)
        time.sleep(0.3)
        counts = stream.counts()
        assert (counts.captured, counts.waiting, counts.working, counts.dropped) == (4, 3, 1, 0)
        for _ in range(9):
            go_on.release()
        wait_for(lambda: stream.counts().classified == 9)
        putting.join(10)
    assert answers == list(range(9))
    assert stream.counts().dropped == 0


def wait_for(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_source_that_dies_comes_back_and_is_counted() -> None:
    events: list[Event] = []
    source = Scripted([0] * 3, [0, 0, SourceError("cable")], [SourceError("not yet")], [0] * 4 + ["silence"])
    with Stream(source, lambda frame: 0, on_event=events.append, policy="every", back_off_s=(0.02, 0.05)) as stream:
        wait_for(lambda: stream.counts().classified == 9)
    counts = stream.counts()
    adds_up(counts)
    assert (counts.captured, counts.connections, counts.losses) == (9, 3, 2)
    kinds = [event.kind for event in events]
    assert kinds == ["connected", "lost", "connected", "lost", "connected"]
    assert [event.text for event in events if event.kind == "lost"] == ["scripted ended", "cable"]


def test_a_source_that_falls_silent_is_opened_again() -> None:
    events: list[Event] = []
    source = Scripted([0, "silence"], [0, 0, "silence"])
    with Stream(source, lambda frame: 0, on_event=events.append, stall_s=1.0, back_off_s=(0.02, 0.05)) as stream:
        wait_for(lambda: stream.counts().connections == 2)
        wait_for(lambda: stream.counts().captured == 3)
        counts = stream.counts()
        assert (counts.stalls, counts.losses) == (1, 1)
    assert [event.kind for event in events][:4] == ["connected", "stalled", "lost", "connected"]
    assert "gave no frame for 1 s" in events[1].text


def test_a_slow_classifier_is_no_stall() -> None:
    source = Scripted([0, 0, 0.3, 0, 0.3, 0, "silence"])
    with Stream(source, lambda frame: time.sleep(0.5), stall_s=0.4) as stream:
        wait_for(lambda: stream.counts().classified >= 2)
        assert stream.counts().stalls == 0


def test_the_back_off_grows_and_ends() -> None:
    """Attempts after 0.05, 0.1, 0.2, 0.2, ... seconds, and no more of them than allowed."""
    source = Scripted([0])
    began = time.monotonic()
    with (
        pytest.raises(SourceError, match="scripted does not open; it did not come back in 4 attempts"),
        Stream(source, lambda frame: 0, back_off_s=(0.05, 0.2), retries=4) as stream,
    ):
        stream.join(20)
    assert source.opened == 5
    assert time.monotonic() - began > 0.05 + 0.1 + 0.2 + 0.2


def test_a_night_without_a_camera_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many attempts that two to their power is no float any more."""
    source = Scripted([0], *[[SourceError("not yet")] for _ in range(1100)], [0, "silence"])
    with Stream(source, lambda frame: 0, back_off_s=(1e-6, 1e-5)) as stream:
        wait_for(lambda: stream.counts().connections == 2, 60)


def test_a_source_that_opens_slowly_is_no_stall() -> None:
    source = Scripted([0.6, 0, 0, "silence"])
    with Stream(source, lambda frame: 0, stall_s=0.3) as stream:
        wait_for(lambda: stream.counts().classified >= 1)
        assert stream.counts().connections == 1
    assert source.opened == 1


def test_a_live_source_that_gives_nothing_at_all_is_an_error() -> None:
    with pytest.raises(SourceError, match="scripted gives no frames"), Stream(Scripted([]), lambda frame: 0) as stream:
        stream.join(20)


def test_a_frame_that_takes_too_long_is_named_as_that() -> None:
    release = threading.Event()
    stream = Stream(Scripted([0, "silence"]), lambda frame: release.wait(20))
    stream.start()
    wait_for(lambda: stream.counts().working == 1)
    with pytest.raises(BackendError, match="a frame is still being classified after 1 s"):
        stream.stop()
    release.set()
    wait_for(lambda: not names())
    adds_up(stream.counts())


def test_what_never_opened_is_an_error_at_once() -> None:
    source = Scripted()
    with pytest.raises(SourceError, match="does not open"), Stream(source, lambda frame: 0) as stream:
        stream.join(20)
    assert source.opened == 1


def test_a_damaged_file_is_an_error_after_what_it_gave() -> None:
    source = Scripted([0] * 5 + [SourceError("ended after 5 of 9 frames")], live=False)
    stream = Stream(source, lambda frame: 0, policy="every")
    with pytest.raises(SourceError, match="ended after 5 of 9"), stream:
        stream.join(20)
    adds_up(stream.counts())
    assert stream.counts().captured == 5


@pytest.mark.parametrize("where", ["classify", "answer", "event"])
def test_an_exception_reaches_the_caller(where: str) -> None:
    def fail(kind: str) -> Callable[[object], None]:
        def perhaps(_: object) -> None:
            if kind == where:
                raise ZeroDivisionError(kind)

        return perhaps

    source = Scripted([0] * 5 + ["silence"])
    stream = Stream(source, fail("classify"), on_answer=fail("answer"), on_event=fail("event"))
    with pytest.raises(ZeroDivisionError, match=where), stream:
        stream.join(20)
    adds_up(stream.counts())


def test_an_exception_in_the_block_is_not_hidden_by_one_of_a_thread() -> None:
    source = Scripted([0, "silence"])

    def fail(frame: Frame) -> None:
        raise ZeroDivisionError

    with pytest.raises(KeyError), Stream(source, fail) as stream:
        wait_for(lambda: stream.counts().dropped == 1)
        raise KeyError


def test_stop_takes_less_than_a_second_and_drops_what_waits() -> None:
    source = Scripted([0] * 3 + ["silence"])
    stream = Stream(source, lambda frame: time.sleep(0.4), policy="every", depth=5)
    stream.start()
    wait_for(lambda: stream.counts().waiting == 2)
    began = time.monotonic()
    stream.stop()
    assert time.monotonic() - began < 1
    counts = stream.counts()
    adds_up(counts)
    assert (counts.captured, counts.classified, counts.dropped) == (3, 1, 2)
    stream.stop()
    assert stream.join(0)


def test_a_callback_may_stop_the_stream() -> None:
    source = Scripted([0] * 100 + ["silence"])
    stream = Stream(source, lambda frame: frame.index, policy="every")
    stream._on_answer = lambda answer: stream.stop() if answer.result == 7 else None
    with stream:
        assert stream.join(10)
    adds_up(stream.counts())
    assert stream.counts().classified == 8


def test_a_source_that_does_not_let_go_is_named() -> None:
    release = threading.Event()

    class Stuck(Scripted):
        def close(self) -> None:
            """A driver that does not return."""

        def frames(self) -> Iterator[Frame]:
            yield Frame(IMAGE, "rgb", time.monotonic(), 0)
            release.wait()

    stream = Stream(Stuck(), lambda frame: 0)
    stream.start()
    wait_for(lambda: stream.counts().classified == 1)
    began = time.monotonic()
    with pytest.raises(SourceError, match="scripted does not let go: edgeadv-capture still waits"):
        stream.stop()
    assert time.monotonic() - began < 1.5
    release.set()
    wait_for(lambda: not names())


def test_ages_are_of_capture_to_answer_in_memory_that_does_not_grow() -> None:
    source = Memory(live=False)
    answers: list[float] = []
    with Stream(source, lambda frame: 0, on_answer=lambda a: answers.append(a.age_s), policy="every") as stream:
        for _ in range(1200):
            source.put(IMAGE, color_order="rgb", timestamp=time.monotonic() - 1.0)
        source.end()
        assert stream.join(20)
    counts = stream.counts()
    assert counts.age_p50_ms == pytest.approx(1000 * float(np.quantile(answers, 0.5)), abs=1e-3)
    assert counts.age_p99_ms == pytest.approx(1000 * float(np.quantile(answers, 0.99)), abs=1e-3)
    assert counts.age_max_ms == pytest.approx(1000 * max(answers), abs=1e-3)
    assert 1000 < counts.age_p50_ms < 1500 and counts.fps is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "newest"},
        {"depth": 0},
        {"stall_s": 0},
        {"back_off_s": (0.5, 0.1)},
        {"back_off_s": (0, 1)},
        {"retries": -1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Stream(Memory(), lambda frame: 0, **wrong)  # type: ignore[arg-type]


def test_counts_add_up_at_every_moment() -> None:
    """Read from a third thread while both others run."""
    source = Scripted([0, 0.001] * 400 + ["silence"])
    with Stream(source, lambda frame: time.sleep(0.002)) as stream:
        read = 0
        while stream.counts().captured < 400:
            adds_up(stream.counts(), over=False)
            read += 1
    assert read > 20
    adds_up(stream.counts())
    assert stream.counts().dropped > 0
