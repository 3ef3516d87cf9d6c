"""Sources that OpenCV opens: cameras, GStreamer pipelines, network streams and video files.

OpenCV's headless wheel has V4L2 and FFmpeg, on ARM too, but not GStreamer: CSI cameras need the OpenCV of the system,
as JetPack has it. A V4L2 device, a GStreamer pipeline and an RTSP stream have not been run here: there was none.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SourceError, require
from .containers import missing_bytes
from .frames import Frame, Pool

# a read ends after so long: a longer wait would keep close() from ending within a second. FFmpeg's streams have ended
# by that, devices and pipelines are read again
_OPEN_MS, _READ_MS = 5000, 800
# a failed read that took no longer is no time limit but the end; a stream of slow frames is silent for longer than one
# read, and a camera before its first frame for seconds
_END_S, _SILENCE_S = 0.4, 10.0
# read when cv2 is first imported: the driver's own wait for a V4L2 frame, in whole seconds; and what OpenCV and FFmpeg
# write on standard error, which says less than the errors raised here
_ENVIRONMENT = {
    "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": "1",
    "OPENCV_LOG_LEVEL": "ERROR",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}
# as much as containers are wrong about their number of frames
_MISCOUNTED = 0.01
_log = logging.getLogger(__name__)


class _Capture(ABC):
    """What OpenCV's sources share: opening, reading into memory that is used again, and closing from another thread."""

    live = True
    backend: str
    # whether the backend takes limits of the time to open and to read
    has_limits = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._target: str | int = name
        self._closed = threading.Event()
        self._pool = Pool()
        self._count = 0
        for name_of, value in _ENVIRONMENT.items():
            os.environ.setdefault(name_of, value)
        self._cv2: Any = require("cv2", extra="camera")

    def frames(self) -> Iterator[Frame]:
        """Open, and give the frames, BGR.

        Raises:
            SourceError: it does not open, or ends though it is live.
        """
        self._closed.clear()
        capture = self._open()
        try:
            yield from self._read(capture)
        finally:
            capture.release()

    def close(self) -> None:
        """Let :meth:`frames` end as soon as the driver returns, which it does within 0.8 s, or one of V4L2."""
        self._closed.set()

    def _open(self) -> Any:
        cv2 = self._cv2
        wanted = getattr(cv2, self.backend)
        if wanted not in cv2.videoio_registry.getBackends():
            raise SourceError(f"OpenCV {cv2.__version__} here knows no {self.backend}; {self._why_not()}")
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]
        capture = cv2.VideoCapture(self._target, wanted, limits if self.has_limits else [])
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{self.name} does not open: {self._why_not()}")
        return capture

    @abstractmethod
    def _why_not(self) -> str:
        """What keeps it from opening, in words."""

    def _read(self, capture: Any) -> Iterator[Frame]:
        heard = time.monotonic()
        while not self._closed.is_set():
            asked = time.monotonic()
            if capture.grab():
                yield self._retrieved(capture)
                heard = time.monotonic()
            elif self._closed.is_set():
                return
            elif (now := time.monotonic()) - asked < _END_S or now - heard > _SILENCE_S:
                raise SourceError(f"{self.name} gives no more frames")

    def _retrieved(self, capture: Any) -> Frame:
        """The frame that was grabbed, stamped before it is decoded."""
        cv2, now = self._cv2, time.monotonic()
        height, width = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        # OpenCV writes into an array of the right size, and makes one of its own if it is not
        good, image = capture.retrieve(self._pool.take((height, width, 3)))
        if not good:
            raise SourceError(f"{self.name}: frame {self._count} cannot be decoded")
        frame = Frame(image, "bgr", now, self._count)
        self._count += 1
        return frame


class Camera(_Capture):
    """A V4L2 device, such as a USB camera."""

    backend = "CAP_V4L2"

    def __init__(self, name: str) -> None:
        """Use the device at ``name``, or of this number."""
        super().__init__(name)
        self._target = int(name) if name.isdecimal() else name

    def _why_not(self) -> str:
        path = Path(f"/dev/video{self.name}" if self.name.isdecimal() else self.name)
        if not path.exists():
            there = sorted(str(device) for device in Path("/dev").glob("video*"))
            return f"there is no {path}; {'here are ' + ', '.join(there) if there else 'no camera is connected'}"
        if not os.access(path, os.R_OK | os.W_OK):
            return f"no permission for {path}: add this user to the group video, and log in again"
        return "it is no camera that captures, or another program has it"


class Pipeline(_Capture):
    """A GStreamer pipeline that ends in ``appsink``, e.g. of a CSI camera by ``nvarguscamerasrc``."""

    backend = "CAP_GSTREAMER"
    has_limits = True

    def _why_not(self) -> str:
        information = self._cv2.getBuildInformation()
        lines = [line for line in information.splitlines() if line.strip().startswith("GStreamer:")]
        if not lines or "YES" not in lines[0]:
            return (
                "the OpenCV here is built without GStreamer, as the one of PyPI is: use the system's, on a Jetson "
                "JetPack's, "
                "in a venv with --system-site-packages and without opencv-python-headless"
            )
        return (
            "GStreamer refuses the pipeline: try it with gst-launch-1.0; its last element must be appsink and "
            "its format BGR"
        )


class Url(_Capture):
    """A network stream, e.g. RTSP, by FFmpeg. User and password of the address are in no message."""

    backend = "CAP_FFMPEG"
    has_limits = True

    def __init__(self, address: str) -> None:
        """Use the stream at ``address``."""
        scheme, _, rest = address.partition("://")
        host, slash, path = rest.partition("/")
        super().__init__(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}")
        self._target = address

    def _why_not(self) -> str:
        return f"nothing answers there within {_OPEN_MS / 1000:g} s, or it is no video: check address, user and network"


class VideoFile(_Capture):
    """A video file, played at its own pace or another one."""

    backend = "CAP_FFMPEG"
    live = False

    def __init__(self, path: Path, *, fps: float | None = None, loop: bool = False) -> None:
        """Use the video at ``path``.

        Args:
            path: the file.
            fps: pace in frames per second; None takes the file's own.
            loop: begin again at the end.
        """
        super().__init__(str(path))
        self._fps, self._loop = fps, loop

    def _why_not(self) -> str:
        return "it is no video that FFmpeg can read, or it is cut short"

    def _read(self, capture: Any) -> Iterator[Frame]:
        cv2 = self._cv2
        own_fps, promised = capture.get(cv2.CAP_PROP_FPS) or 30.0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps, enough = self._fps or own_fps, promised * (1 - _MISCOUNTED) - 1
        start, shown, here, place_s = time.monotonic(), 0, 0, 0.0
        while not self._closed.wait(max(0.0, start + shown / fps - time.monotonic())):
            if capture.grab():
                place_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield self._retrieved(capture)
                shown, here = shown + 1, here + 1
                continue
            if here < enough and place_s < enough / own_fps:
                self._ended_early(here, promised)
            if not self._loop or not here:
                return
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            here = 0

    def _ended_early(self, here: int, promised: int) -> None:
        """OpenCV tells no end from an error, and takes the number of frames from the length and the rate of what may
        be the sound, or of a film before it was trimmed: only bytes that are missing say that there was more."""
        if missing := missing_bytes(Path(self.name)):
            raise SourceError(
                f"{self.name} ended after {here} frames: it is cut short, at least {missing} bytes of it are missing; "
                "copy it again"
            )
        if not here:
            raise SourceError(f"{self.name} holds no frame that can be decoded: it is damaged")
        _log.info("%s ended after %d frames, where its container estimates %d", self.name, here, promised)
