"""``edgeadv camera`` and ``edgeadv perturbation``: what they say, and how they end."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.files import read_json
from edgeadv_runtime.records.eps import Eps

FRAMES = 30


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A second of noise, 64 by 48."""
    path, rng = tmp_path_factory.mktemp("video") / "noise.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(FRAMES):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (48, 40), (80 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def counted(text):
    captured, classified, dropped = map(
        int, re.search(r"(\d+) frames captured = (\d+) classified \+ (\d+) dropped", text).groups()
    )
    assert captured == classified + dropped
    return captured, classified, dropped


def test_a_video_is_played_to_its_end(cli, tiny_bundle, video):
    outcome = cli("camera", tiny_bundle.path, "--source", video, "--policy", "every")
    assert outcome.status == 0, outcome.err
    assert counted(outcome.out) == (FRAMES, FRAMES, 0)
    assert outcome.out.endswith("0 losses, 0 stalls\n")
    # a line of the last answer, with its label, on standard error
    assert re.match(r"class \d \d+\.\d%  ", outcome.err)


def test_a_variant_and_a_folder_again_and_again_for_a_while(cli, tiny_bundle, pictures):
    began = time.monotonic()
    options = ("--precision", "fp16", "--fps", "50", "--loop", "--duration", "1s", "--threads", "1")
    outcome = cli("camera", tiny_bundle.path, "--source", pictures, *options)
    assert outcome.status == 0, outcome.err
    assert 1 <= time.monotonic() - began < 30
    assert 3 < counted(outcome.out)[0] <= 51


def test_every_picture_of_a_folder_is_classified_and_the_last_label_told(cli, tiny_bundle, pictures):
    outcome = cli("camera", tiny_bundle.path, "--source", pictures, "--threads", "1")
    assert outcome.status == 0, outcome.err
    captured, classified, dropped = counted(outcome.out)
    assert captured == classified == len(list(pictures.iterdir())) and dropped == 0
    assert re.match(r"last: class \d+ \d+\.\d%\n", outcome.out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_systemd_stop_it_without_an_error(tiny_bundle, pictures, number):
    path = os.pathsep.join(path for path in sys.path if path)
    arguments = ["camera", str(tiny_bundle.path), "--source", str(pictures), "--fps", "20", "--loop"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeadv", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "class" in first
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    counted(out)


def watched(bundle: Path, pictures: Path, connect: bool) -> int:
    """How many frames of 8 s at 15 per second were classified, in a process that may open 160 files; with a page that
    50 idle connections hold, 8 viewers that never read, and a request of a byte now and then."""
    options = ["--source", pictures, "--loop", "--fps", "15", "--policy", "latest", "--duration", "8s"]
    with subprocess.Popen(
        [sys.executable, "-m", "edgeadv", "camera", bundle, *options, "--serve", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)),
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        port = int(process.stderr.readline().rpartition(":")[2].rstrip("/\n"))
        held = []
        for i in range(59 if connect else 0):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=10))
            if i < 8:
                held[-1].sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while process.poll() is None:
            if connect:
                with suppress(OSError):
                    held[-1].sendall(b"G")
            time.sleep(0.1)
        out, err = process.communicate(timeout=60)
        for connection in held:
            connection.close()
    assert process.returncode == 0, err
    found = re.search(r"(\d+) frames captured = (\d+) classified", out)
    assert found is not None
    return int(found[2])


def test_whoever_connects_costs_no_frame(tiny_bundle, pictures):
    alone = watched(tiny_bundle.path, pictures, connect=False)
    # the start is in the 8 s, and machines that run tests are busy
    assert alone > 60
    assert any(watched(tiny_bundle.path, pictures, connect=True) >= alone - 3 for _ in range(3))


def test_it_runs_without_torch(tiny_bundle, video):
    """The device has none: with torch, timm and onnx out of reach."""
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "from edgeadv.cli import main\n"
        f"sys.exit(main(['camera', {str(tiny_bundle.path)!r}, '--source', {str(video)!r}]))"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counted(done.stdout)


def bad(cli, *arguments):
    outcome = cli("camera", *arguments)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1 and outcome.out == "", outcome
    return outcome.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--source", "/dev/video77"), "there is no /dev/video77"),
        (("--source", "nothing"), "is no device"),
        (("--source", "videotestsrc ! appsink"), "built without GStreamer"),
        (("--source", "0", "--loop"), "--fps and --loop are for a video file or a folder"),
        (("--source", "0", "--policy", "newest"), "policy is latest or every"),
        (("--source", "0", "--duration", "soon"), "--duration 'soon' is not a time such as 90s"),
        (
            ("--source", "0", "--token", "abcdefgh12345678"),
            "--token, --perturbation, --patch and --corruptions belong to the page",
        ),
        (("--source", "0", "--serve", "0.0.0.0:0"), "can be reached from other machines"),
        (("--source", "0", "--serve", "here"), "is not an address and a port"),
        (("--source", "0", "--serve", "127.0.0.1:0", "--perturbation", "none.npz"), "none.npz does not exist"),
        (("--source", "0", "--precision", "int4"), "int4"),
        (("--source", "0", "--provider", "npu"), "npu"),
    ],
)
def test_bad_input_is_one_line(cli, tiny_bundle, options, says):
    assert says in bad(cli, tiny_bundle.path, *options)


def test_a_video_that_is_cut_short_is_one_line(cli, tiny_bundle, video, tmp_path):
    content = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    outcome = cli("camera", tiny_bundle.path, "--source", tmp_path / "cut.avi")
    assert (outcome.status, outcome.out) == (2, "")
    # after the line of what it gave before
    *_, last = outcome.err.splitlines()
    assert last.startswith("edgeadv: ") and "it is cut short, at least" in last


def test_a_bundle_that_is_replaced_while_it_is_open_goes_on(tiny_bundle, tmp_path, photographs):
    from edgeadv_runtime.inference.classifier import Classifier

    copy = tmp_path / "copy.edgeadv"
    shutil.copytree(tiny_bundle.path, copy)
    with Classifier.open(copy) as classifier:
        before = [classifier.classify(frame, color_order="rgb") for frame in photographs]
        for file in copy.iterdir():
            file.write_bytes(b"replaced")
        shutil.rmtree(copy)
        assert [classifier.classify(frame, color_order="rgb") for frame in photographs] == before


# The perturbation of the slider


def test_a_perturbation_turns_labels(cli, tiny_bundle, many_photos):
    outcome = cli(
        "perturbation", tiny_bundle.path, "--data", many_photos, "--eps", "76/255", "--limit", "300", "--out", "p.npz"
    )
    assert outcome.status == 0, outcome.err
    n, without, with_it = re.match(
        r"of (\d+) images that did not make it (.*)% are right without and (.*)% with it", outcome.out
    ).groups()
    assert n == "150" and float(without) > 80 and float(with_it) < float(without) - 30
    stored = StoredPerturbation.load(Path("p.npz"), tiny_bundle)
    pixels = np.full((32, 32, 3), 128, np.uint8)
    moved = stored.applied(pixels, 1.0).astype(int) - 128
    assert stored.levels(1.0) == 76 and set(np.unique(moved)) <= {-76, 0, 76}
    # never beyond the budget, which is 25.5 and 2.55 levels here
    for text, levels in (("0.1", 25), ("0.01", 2), ("8/255", 8)):
        assert StoredPerturbation(stored.sign, Eps.parse(text), "").levels(1.0) == levels
    assert stored.applied(pixels, 0.0) is pixels
    # 8 bits do not wrap around
    assert stored.applied(np.full((32, 32, 3), 250, np.uint8), 1.0).max() == 255
    assert stored.applied(np.zeros((32, 32, 3), np.uint8), 1.0).min() == 0


def test_a_perturbation_of_another_network_is_refused(cli, digits_bundle, tiny_bundle, video):
    sign = np.zeros((32, 32, 3), np.int8)
    StoredPerturbation(sign, Eps.parse("0.1"), digits_bundle.manifest.weights.sha256).save(Path("p.npz"))
    options = ("--source", video, "--serve", "127.0.0.1:0", "--perturbation", "p.npz")
    assert "was made for the weights of another bundle" in bad(cli, tiny_bundle.path, *options)
    StoredPerturbation(sign[:8], Eps.parse("0.1"), tiny_bundle.manifest.weights.sha256).save(Path("p.npz"))
    assert "p.npz is damaged" in bad(cli, tiny_bundle.path, *options)
    Path("p.npz").write_bytes(b"no file of numpy")
    assert "p.npz is not a stored perturbation" in bad(cli, tiny_bundle.path, *options)
    assert read_json(tiny_bundle.path / "manifest.json", what="manifest")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--eps", "0"), "eps"),
        (("--eps", "2"), "eps"),
        (("--eps", "0.4/255"), "less than one grey level"),
        (("--eps", "0.1"), "25.5 grey levels"),
        (("--eps", "26/255", "--data", "nothing"), "nothing"),
        (("--eps", "26/255", "--out", "."), "is a folder"),
    ],
)
def test_bad_input_of_perturbation(cli, tiny_bundle, photos, options, says):
    given = {"--data": str(photos), "--out": "p.npz"} | dict(zip(options[::2], options[1::2], strict=True))
    outcome = cli("perturbation", tiny_bundle.path, *(part for pair in given.items() for part in pair))
    assert outcome.status == 2 and says in outcome.err and len(outcome.err.splitlines()) == 1
    assert not Path("p.npz").exists()
