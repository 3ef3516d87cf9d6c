"""A camera stream for ten minutes: do the counts add up, how old are the answers, does memory grow, is a thread left?

Three scenarios, each on a 30 fps video of 640 by 480 pixels that is played in real time by OpenCV:

- ``plain``: nothing goes wrong;
- ``trouble``: the source freezes and dies and comes back, five times each;
- ``slow``: classifying takes longer than a frame lasts.

    python benchmarks/camera_endurance.py model.edgeadv --minutes 10 --out benchmarks/results/camera_endurance-cpu.json
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from edgeadv_runtime import Classifier
from edgeadv_runtime.camera import Frame, Stream
from edgeadv_runtime.camera.video import VideoFile
from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.errors import SourceError
from edgeadv_runtime.files import write_json

FPS, SIZE, TROUBLES = 30, (640, 480), 5
LIMIT_MIB = 5.0


class Troubled:
    """A live source around a video that freezes and dies at set times, and refuses to open for a while after it
    died."""

    name, live = "troubled", True

    def __init__(self, video: Path, length_s: float) -> None:
        self._video = VideoFile(video, loop=True)
        self._start = time.monotonic()
        # in turn, the first third left in peace
        self._due = [
            (length_s * (0.2 + 0.7 * i / (2 * TROUBLES)), "freeze" if i % 2 == 0 else "die")
            for i in range(2 * TROUBLES)
        ]
        self._dead_until = 0.0
        self._closed = threading.Event()
        self.happened = {"freeze": 0, "die": 0}

    def frames(self) -> Iterator[Frame]:
        """The video's frames, until the next trouble."""
        self._closed.clear()
        if time.monotonic() < self._dead_until:
            raise SourceError("troubled does not open")
        for frame in self._video.frames():
            if self._due and time.monotonic() - self._start > self._due[0][0]:
                _, kind = self._due.pop(0)
                self.happened[kind] += 1
                if kind == "freeze":
                    self._closed.wait()
                    return
                self._dead_until = time.monotonic() + 1.5
                raise SourceError("troubled is gone")
            yield frame

    def close(self) -> None:
        """Let them end, also where they are frozen."""
        self._closed.set()
        self._video.close()


class Live(VideoFile):
    """A video as if it were a camera."""

    live = True


def record(path: Path) -> None:
    """Twenty seconds of something that moves."""
    rng = np.random.default_rng(0)
    background = cv2.GaussianBlur(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8), (31, 31), 0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, SIZE)
    for i in range(20 * FPS):
        frame = np.roll(background, 4 * i, axis=1)
        cv2.circle(frame, (int(320 + 250 * np.sin(i / 20)), 240), 80, (40, 200, 250), -1)
        writer.write(frame)
    writer.release()


def rss_mib() -> float:
    """Resident memory of this process."""
    return float(psutil.Process().memory_info().rss) / (1 << 20)


def run(scenario: str, classifier: Classifier, video: Path, length_s: float) -> dict[str, Any]:
    """One scenario; a row of the result."""
    source = Troubled(video, length_s) if scenario == "trouble" else Live(video, loop=True)

    def classify(frame: Frame) -> str:
        if scenario == "slow":
            time.sleep(0.1)
        return classifier.classify(frame.image, color_order=frame.color_order, top=1)[0].name

    before = threading.active_count()
    memory: list[tuple[float, float]] = []
    start = time.monotonic()
    stream = Stream(source, classify)
    with stream:
        while (passed := time.monotonic() - start) < length_s:
            assert not stream.join(min(1.0, length_s - passed)), "the stream ended by itself"
            memory.append((time.monotonic() - start, rss_mib()))
        began = time.monotonic()
    stopped_s = time.monotonic() - began
    counts = stream.counts()
    settled = min(60.0, length_s / 4)
    after = [mib for passed, mib in memory if passed >= settled]
    row = {
        "scenario": scenario,
        "length_s": length_s,
        **vars(counts),
        "adds_up": counts.captured == counts.classified + counts.dropped,
        "stop_s": round(stopped_s, 3),
        "threads_left": threading.active_count() - before,
        "rss_mib": {
            "settled_after_s": settled,
            "then": round(after[0], 2),
            "largest": round(max(after), 2),
            "end": round(after[-1], 2),
        },
        "rss_growth_mib": round(max(after) - after[0], 2),
        **({"troubles": source.happened} if isinstance(source, Troubled) else {}),
    }
    print({k: v for k, v in row.items() if k != "environment"}, flush=True)
    return row


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--scenarios", default="plain,trouble,slow")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Classifier.open(options.bundle, threads=options.threads) as classifier,
    ):
        video = Path(folder) / "v.avi"
        record(video)
        for scenario in options.scenarios.split(","):
            rows.append(run(scenario, classifier, video, 60 * options.minutes))
        about = {
            "benchmark": "camera_endurance",
            "title": classifier.bundle.manifest.title,
            "variant": classifier.backend.variant,
            "fps": FPS,
            "size": list(SIZE),
            "threads": options.threads,
            "environment": environment(),
            "rows": rows,
        }
        write_json(options.out, about)
    for row in rows:
        ok = row["adds_up"] and row["threads_left"] == 0 and row["rss_growth_mib"] < LIMIT_MIB and row["stop_s"] < 1
        print(f"{row['scenario']}: {'as it should be' if ok else 'NOT as it should be'}")


if __name__ == "__main__":
    main()
