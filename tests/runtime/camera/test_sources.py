"""Where frames come from: real videos and pictures, and what is no source."""

from __future__ import annotations

import itertools
import re
import struct
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.bundle.pictures import as_image
from edgeadv_runtime.camera import Folder, Memory, Stream, open_source
from edgeadv_runtime.camera.containers import missing_bytes
from edgeadv_runtime.camera.frames import Frame, Pool
from edgeadv_runtime.camera.video import Camera, Pipeline, Url, VideoFile
from edgeadv_runtime.errors import DataError, InputError, SourceError

FRAMES, SIZE = 45, (160, 120)


def bar(i: int) -> NDArray[np.uint8]:
    """A blue picture with a red bar that moves, BGR."""
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    image[:, :, 0] = 200
    image[:, 3 * i : 3 * i + 20] = (0, 0, 255)
    return image


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "bar.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, SIZE)
    for i in range(FRAMES):
        writer.write(bar(i))
    writer.release()
    return path


def test_a_video_gives_its_frames_with_their_colours(video: Path) -> None:
    found = list(VideoFile(video, fps=1000).frames())
    assert [frame.index for frame in found] == list(range(FRAMES))
    for i, frame in enumerate(found):
        assert frame.image.shape == (120, 160, 3) and frame.color_order == "bgr"
        rgb = np.asarray(as_image(frame.image, color_order=frame.color_order)).astype(int)
        assert np.abs(rgb - bar(i)[..., ::-1].astype(int)).mean() < 12  # JPEG
    assert all(b.timestamp > a.timestamp for a, b in itertools.pairwise(found))


def test_a_video_plays_at_its_own_pace(video: Path) -> None:
    began = time.monotonic()
    stamps = [frame.timestamp - began for frame in VideoFile(video).frames()]
    assert stamps[-1] == pytest.approx((FRAMES - 1) / 30, abs=2) and stamps[-1] >= (FRAMES - 1) / 30 - 0.01


def test_a_video_that_is_played_again_goes_on_counting(video: Path) -> None:
    source, found = VideoFile(video, fps=1000, loop=True), []
    for frame in source.frames():
        found.append((frame.index, int(frame.image[:, :30, 2].sum())))
        if len(found) == 2 * FRAMES + 3:
            source.close()
    assert [index for index, _ in found] == list(range(2 * FRAMES + 3))
    assert found[FRAMES][1] == found[0][1] != found[FRAMES // 2][1]


def test_frames_are_read_into_memory_that_is_used_again(video: Path) -> None:
    source = VideoFile(video, fps=1000)
    places = {frame.image.ctypes.data for frame in source.frames()}
    assert len(places) <= 2 and len(source._pool) <= 2
    # who keeps a frame keeps its pixels
    held, copies = [], []
    for frame in VideoFile(video, fps=1000).frames():
        if frame.index in (3, 4, 5):
            held.append(frame.image[10:20])
            copies.append(frame.image[10:20].copy())
    for kept, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(kept, copy)


def test_a_pool_gives_nothing_that_somebody_has() -> None:
    pool = Pool()
    first = pool.take((4, 4, 3))
    view = first[1:2]
    second = pool.take((4, 4, 3))
    assert second is not first and len(pool) == 2
    place = first.ctypes.data
    del first
    assert pool.take((4, 4, 3)).ctypes.data != place  # the view has it still
    del view
    assert {pool.take((4, 4, 3)).ctypes.data for _ in range(5)} == {place}
    assert pool.take((2, 2, 3)).shape == (2, 2, 3) and len(pool) == 1


def test_a_video_cut_short_is_named(video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    found = []
    with pytest.raises(SourceError, match=r"ended after \d+ frames: it is cut short, at least \d+ bytes"):
        found += [1 for _ in VideoFile(tmp_path / "cut.avi", fps=1000).frames()]


def longer_by_its_container(path: Path) -> None:
    """A film of which the sound goes on after the picture: OpenCV multiplies length and rate, and says 90."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 30, SIZE)
    for i in range(FRAMES):
        writer.write(bar(i))
    writer.release()
    content = bytearray(path.read_bytes())
    # the segment's length, a float in ms
    place = content.index(b"\x44\x89\x88") + 3
    assert struct.unpack(">d", content[place : place + 8])[0] == pytest.approx(1500, abs=40)
    content[place : place + 8] = struct.pack(">d", 3000.0)
    path.write_bytes(content)


def trimmed(path: Path) -> None:
    """A film whose first second was cut away without encoding it again: its frames are all there, and an edit list
    says from where they are shown."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, SIZE)
    for i in range(FRAMES):
        writer.write(bar(i))
    writer.release()
    content = bytearray(path.read_bytes())
    scale = struct.unpack(">I", content[(place := content.index(b"mdhd") + 16) : place + 4])[0]
    first = content.index(b"elst") + 12
    length, begin = struct.unpack(">Ii", content[first : first + 8])
    content[first : first + 8] = struct.pack(">Ii", length // 3, begin + scale)
    path.write_bytes(content)


@pytest.mark.parametrize(("make", "name", "n"), [(longer_by_its_container, "a.mkv", 45), (trimmed, "a.mp4", 15)])
def test_what_a_container_estimates_is_no_truth(
    make: Callable[[Path], None], name: str, n: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / name)
    with caplog.at_level("INFO"):
        assert len(list(VideoFile(tmp_path / name, fps=1000).frames())) == n
    assert re.search(rf"{name} ended after {n} frames, where its container estimates \d+", caplog.text)


@pytest.mark.parametrize("kind", ["a.mkv", "a.avi", "a.mp4", "a.mov"])
def test_bytes_that_are_missing_are_counted(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    code = "mp4v" if kind in ("a.mp4", "a.mov") else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 30, SIZE)
    for i in range(FRAMES):
        writer.write(bar(i))
    writer.release()
    content = path.read_bytes()
    assert missing_bytes(path) == 0 and len(list(VideoFile(path, fps=1000).frames())) == FRAMES
    for cut in (1, 100, len(content) // 2):
        path.write_bytes(content[:-cut])
        assert 0 < missing_bytes(path) <= cut
    with pytest.raises(SourceError, match="cut short"):
        list(VideoFile(path, fps=1000).frames())


@pytest.mark.parametrize("seed", range(200))
def test_damaged_containers_state_something_or_nothing(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    heads = [b"RIFF\x40\0\0\0AVI ", b"\x1a\x45\xdf\xa3\x82\0\0\x18\x53\x80\x67\x01", b"\0\0\0\x10ftypmp42"]
    (tmp_path / "film").write_bytes(heads[seed % 3][: random.integers(2, 13)] + random.bytes(random.integers(0, 64)))
    assert missing_bytes(tmp_path / "film") >= 0


class Slow:
    """A capture of OpenCV whose reads end by their time limit before the first frame comes."""

    def __init__(self, silent: int, *, takes_s: float) -> None:
        self.silent, self.takes_s = silent, takes_s

    def grab(self) -> bool:
        self.silent -= 1
        if self.silent >= 0:
            time.sleep(self.takes_s)
        return -3 <= self.silent < 0

    def get(self, what: int) -> float:
        return 48 if what == cv2.CAP_PROP_FRAME_HEIGHT else 64

    def retrieve(self, into: NDArray[np.uint8]) -> tuple[bool, NDArray[np.uint8]]:
        return True, into

    def release(self) -> None:
        pass


def test_a_camera_may_take_longer_than_one_read_for_its_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Camera("/dev/video7")
    monkeypatch.setattr(source, "_open", lambda: Slow(2, takes_s=0.5))
    found = []
    with pytest.raises(SourceError, match="gives no more frames"):
        for frame in source.frames():
            found.append(frame)
    assert len(found) == 3


def test_a_read_that_fails_at_once_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Url("http://camera/mjpg")
    monkeypatch.setattr(source, "_open", lambda: Slow(2, takes_s=0.0))
    with pytest.raises(SourceError, match="gives no more frames"):
        next(source.frames())


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(SourceError, match=r"text\.avi does not open: it is no video"):
        list(VideoFile(tmp_path / "text.avi").frames())


def test_a_folder_gives_its_pictures_in_order(tmp_path: Path) -> None:
    for i, name in enumerate(("b.png", "a.png", "c.jpg")):
        Image.new("RGB", (20 + i, 10), (i * 40, 0, 255)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "a-format-that-Pillow-writes-only.pdf").write_bytes(b"%PDF")
    found = list(Folder(tmp_path).frames())
    assert [(f.index, f.image.shape[1], f.color_order) for f in found] == [
        (0, 21, "rgb"),
        (1, 20, "rgb"),
        (2, 22, "rgb"),
    ]
    np.testing.assert_array_equal(found[0].image[0, 0], (40, 0, 255))
    (tmp_path / "d.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"d\.png is not a readable image"):
        list(Folder(tmp_path).frames())


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        Folder(tmp_path)


def test_memory_gives_what_was_put() -> None:
    source = Memory(live=False)
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    source.put(image, color_order="bgr", timestamp=5.0)
    source.put(image, color_order="rgb")
    source.end()
    first, second = source.frames()
    assert first.image is image and (first.color_order, first.timestamp, first.index) == ("bgr", 5.0, 0)
    assert second.index == 1 and second.timestamp == pytest.approx(time.monotonic(), abs=1)


@pytest.mark.parametrize("stop", [True, False])
def test_nobody_waits_for_room_in_a_stream_that_is_over(stop: bool) -> None:
    """Stopped, or its classifier has failed: the thread that puts frames goes on, and can ask what happened."""

    def classify(frame: Frame) -> int:
        if stop:
            return 0
        raise RuntimeError("broken")

    source, image = Memory(depth=2), np.zeros((4, 4, 3), np.uint8)
    stream = Stream(source, classify)
    stream.start()
    room: list[bool] = []

    def put() -> None:
        room.extend(source.put(image, color_order="rgb") for _ in range(8))
        source.end()

    assert source.put(image, color_order="rgb")
    if stop:
        stream.stop()
    with nullcontext() if stop else pytest.raises(RuntimeError, match="broken"):
        assert stream.join(5)
    putting = threading.Thread(target=put, daemon=True)
    putting.start()
    putting.join(10)
    assert not putting.is_alive() and not room[-1]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0", Camera),
        ("/dev/video7", Camera),
        ("rtsp://10.0.0.1/stream", Url),
        ("http://camera/mjpg", Url),
        ("nvarguscamerasrc ! video/x-raw ! appsink", Pipeline),
        (f"videotestsrc{' ! identity' * 60} ! appsink", Pipeline),
        ("videotestsrc!appsink", Pipeline),
    ],
)
def test_what_a_text_names(text: str, kind: type) -> None:
    source = open_source(text)
    assert type(source) is kind and source.live and source.name == text


def test_a_password_is_in_no_message() -> None:
    source = open_source("rtsp://user:p@ss@127.0.0.1:9/live@home")
    assert source.name == "rtsp://127.0.0.1:9/live@home"
    with pytest.raises(SourceError, match=r"^rtsp://127\.0\.0\.1:9/live@home does not open") as refused:
        next(source.frames())
    assert "p@ss" not in str(refused.value)


def test_what_names_nothing(tmp_path: Path, video: Path) -> None:
    with pytest.raises(InputError, match="is no device"):
        open_source("camera")
    with pytest.raises(InputError, match="`fps` and `loop` are for a video file or a folder"):
        open_source("0", fps=30)
    with pytest.raises(InputError, match="fps must be above 0"):
        open_source(str(video), fps=0)
    assert isinstance(open_source(str(video), loop=True), VideoFile)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/dev/video77", "there is no /dev/video77"),
        ("77", "there is no /dev/video77"),
        ("rtsp://127.0.0.1:9/none", "nothing answers there"),
        ("videotestsrc ! appsink", "built without GStreamer"),
    ],
)
def test_a_source_that_does_not_open_says_why(text: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        next(open_source(text).frames())


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    """As a camera does that hangs: opening ends by its own time limit, not by the one of the operating system."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(SourceError, match="does not open"):
            next(open_source(f"rtsp://127.0.0.1:{port}/live").frames())
        assert time.monotonic() - began < 20


def test_stopping_does_not_wait_for_the_next_frame(video: Path) -> None:
    with Stream(VideoFile(video, fps=0.1), lambda frame: 0) as stream:
        while not stream.counts().classified:
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert not any(thread.name.startswith("edgeadv-") for thread in threading.enumerate())
