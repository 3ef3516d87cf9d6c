"""The examples run as they stand, with PyTorch out of reach."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime import Classifier
from edgeadv_runtime.bundle.bundle import Bundle

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# what a device does not have
BLOCK = "import sys\nfor name in ('torch', 'torchvision', 'timm', 'onnx', 'safetensors'): sys.modules[name] = None\n"


def command(name: str, *arguments: object) -> list[str]:
    run = (
        f"{BLOCK}import runpy\nsys.argv = "
        f"{[name, *map(str, arguments)]!r}\nrunpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", run]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def test_they_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        code = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(code) < 60, path.name


def test_the_camera_prints_each_change(
    tiny_bundle: Bundle, photographs: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    size = (64, 48)
    frames = [cv2.resize(photographs[i % 2], size)[..., ::-1] for i in range(12)]
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, size)
    for frame in frames:
        writer.write(np.ascontiguousarray(frame))
    writer.release()
    done = subprocess.run(
        command("04_camera.py", tiny_bundle.path, tmp_path / "v.avi"),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("frame 0: class ") and "Counts(captured=12, " in done.stderr
    bad = subprocess.run(
        command("04_camera.py", tiny_bundle.path, "nothing"),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert bad.returncode == 2 and "is no device" in bad.stderr and "Traceback" not in bad.stderr


@pytest.fixture
def address(tiny_bundle: Bundle) -> Iterator[str]:
    process = subprocess.Popen(
        command("server.py", tiny_bundle.path, 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)


def test_the_server_answers_many_at_once(
    address: str, tiny_bundle: Bundle, photographs: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    for i, pixels in enumerate(photographs):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")

    def ask(i: int) -> list[dict[str, object]]:
        with urllib.request.urlopen(address, data=(tmp_path / f"{i % 12}.png").read_bytes(), timeout=30) as answer:
            found: list[dict[str, object]] = json.loads(answer.read())
            return found

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(96)))
    with Classifier.open(tiny_bundle.path) as classifier:
        for i, found in enumerate(answers):
            expected = classifier.classify(photographs[i % 12], color_order="rgb")
            assert [label["class_id"] for label in found] == [label.class_id for label in expected]
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    Image.new("1", (9_000, 9_000)).save(large := io.BytesIO(), "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    cut = (tmp_path / "0.png").read_bytes()[:-2000]
    for data, status in (
        (b"no picture", 400),
        (b"", 411),
        (bomb.getvalue(), 400),
        (large.getvalue(), 400),
        (postscript, 400),
        (cut, 400),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, data=data, method="POST"), timeout=30)
        assert refused.value.code == status


@pytest.mark.slow
def test_the_whole_sdk_in_one_script(tmp_path: Path) -> None:
    """At one epoch, on 100 images, under ``fast``: the gate refuses, as it must, and the script shows it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "01_sdk.py"), "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "fp16: worst case at eps 26/255" in done.stdout and "masking check UNCHECKED" in done.stdout
    assert "gate: " in done.stdout and "less than the suite standard" in done.stdout
    made = {"teacher", "student", "digits.edgeadv", "results.json", "bench.json", "report.html", "digits.pack"}
    assert {path.name for path in tmp_path.iterdir()} >= made
