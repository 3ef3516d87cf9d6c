"""The page in a real browser: the picture moves, the label changes, the slider works, and nothing complains."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgeadv.attacks.universal import universal_sign
from edgeadv.attacks.universal_patch import universal_patch
from edgeadv.data.datasets import ImageSet
from edgeadv.models.builder import PixelModel
from edgeadv_runtime.attacks.patches import patch_shape
from edgeadv_runtime.attacks.stored_patch import StoredPatch
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.camera.demonstration import StoredPerturbation
from edgeadv_runtime.records.eps import Eps
from tests.browser import Browser

EPS = Eps.parse("0.3")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium: CI must see the page in a browser (apt-get install chromium)")
    if found is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    browser = Browser(found, tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture
def scene(tmp_path: Path, digits_bundle: Bundle, digits_model: PixelModel, digits_test: ImageSet) -> Path:
    """Two digits that take turns, and a perturbation under which the network takes both for others."""
    x = to_tensor(np.stack([digits_test.preprocess(digits_test.image(i)) for i in range(0, 1000, 10)]))
    labels = torch.from_numpy(digits_test.labels[::10])
    sign = universal_sign(digits_model, torch.from_numpy(x), labels, eps=EPS.value)
    stored = StoredPerturbation(
        np.ascontiguousarray(sign.permute(1, 2, 0).numpy()), EPS, digits_bundle.manifest.weights.sha256
    )
    stored.save(tmp_path / "p.npz")
    pixels = (x.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)

    def predicted(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return digits_model(torch.from_numpy(to_tensor(images))).argmax(dim=1).numpy()

    before, after = predicted(pixels), predicted(np.stack([stored.applied(image, 1.0) for image in pixels]))
    turned = np.flatnonzero((before == labels.numpy()) & (after != before))
    first = turned[0]
    other = next(
        i for i in turned if before[i] != before[first] and not {after[first], after[i]} & {before[first], before[i]}
    )
    (tmp_path / "pictures").mkdir()
    for name, i in (("a", first), ("b", other)):
        Image.fromarray(pixels[i]).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "truth.json").write_text(json.dumps([str(before[first]), str(before[other])]))
    return tmp_path


PIXELS = """(() => { const c = document.createElement('canvas'); const p = document.getElementById('picture');
c.width = c.height = 32; c.getContext('2d').drawImage(p, 0, 0, 32, 32);
return c.getContext('2d').getImageData(0, 0, 32, 32).data.reduce((a, b, i) => (a * 31 + b) % 1000003, 7); })()"""
LABEL = "document.getElementById('label')?.textContent"


def slide(browser: Browser, value: float) -> None:
    browser.value(
        f"(() => {{ const s = document.getElementById('strength'); s.value = {value}; s.dispatchEvent(new "
        "Event('input')); })()"
    )


def test_people_see_the_attack(scene: Path, browser: Browser, digits_bundle: Bundle) -> None:
    command = [
        sys.executable,
        "-m",
        "edgeadv",
        "camera",
        str(digits_bundle.path),
        "--source",
        str(scene / "pictures"),
        "--fps",
        "4",
        "--loop",
        "--serve",
        "127.0.0.1:0",
        "--perturbation",
        str(scene / "p.npz"),
        "--precision",
        "fp32",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    program = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stderr is not None
        url = program.stderr.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        truth = set(json.loads((scene / "truth.json").read_text()))
        browser.call("Page.navigate", url=url)
        # the labels of both pictures, in turn
        seen = {browser.wait(LABEL, lambda label: label in truth)}
        seen.add(browser.wait(LABEL, lambda label: label in truth - seen))
        assert seen == truth
        moving = {browser.value(PIXELS) for _ in range(20) if not time.sleep(0.1)}
        assert len(moving) > 1
        slide(browser, 1)
        browser.wait("document.getElementById('levels').textContent", lambda text: text == "76 grey levels")
        browser.wait(LABEL, lambda label: label not in truth)
        time.sleep(0.5)
        assert not {browser.value(LABEL) for _ in range(10) if not time.sleep(0.1)} & truth
        slide(browser, 0)
        browser.wait(LABEL, lambda label: label in truth)
        figures = browser.value(
            "[...document.querySelectorAll('#figures tr')].map(r => [...r.cells].map(c => c.textContent))"
        )
        counts = dict(figures)
        assert int(counts["captured"]) >= int(counts["classified"]) > 5 and counts["connections lost"] == "0"
        assert browser.value("document.querySelector('#age polyline').getAttribute('points').split(' ').length") > 5
        assert browser.value("document.getElementById('attack').hidden") is False
        # nothing sticks out, on a desk and on a telephone
        for width in (1200, 360):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
            )
            assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.complaints == []
        picture = os.environ.get("EDGEADV_KEEP_PICTURE")
        if picture:
            import base64

            browser.call(
                "Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False
            )
            Path(picture).write_bytes(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))
        program.terminate()
        out, err = program.communicate(timeout=20)
        assert program.returncode == 0, err
        assert "frames captured = " in out and "Traceback" not in err
        # the page says so when the program is gone
        browser.wait(
            "document.getElementById('status').textContent", lambda text: "no connection to the camera program" in text
        )
    finally:
        program.kill()
        program.communicate()


AREA = Eps.parse("25%", norm="area")


@pytest.fixture
def patched(tmp_path: Path, digits_model: PixelModel, digits_test: ImageSet, digits_bundle: Bundle) -> Path:
    """A video of a digit, and a printable patch under which, in the middle, the network takes it for another one."""
    x = to_tensor(np.stack([digits_test.preprocess(digits_test.image(i)) for i in range(0, 1000, 5)]))
    labels = torch.from_numpy(digits_test.labels[::5])
    shape = patch_shape(AREA, *x.shape[2:])
    content = universal_patch(digits_model, torch.from_numpy(x), labels, shape, passes=10)
    values = (content.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    stored = StoredPatch(values, AREA, "square", digits_bundle.manifest.weights.sha256)
    stored.save(tmp_path / "p.png", print_mm=50)
    pixels = (x.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)

    def logits(images: np.ndarray) -> Tensor:
        with torch.no_grad():
            return digits_model(torch.from_numpy(to_tensor(images)))

    before, middle = logits(pixels), logits(np.stack([stored.applied(image, 0.5, 0.5) for image in pixels]))
    flips = (before.argmax(1) == labels) & (middle.argmax(1) != labels)
    assert flips.any()
    # of those that flip the clearest: the video's compression changes each frame a little
    clear = torch.minimum(*(each.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] for each in (before, middle)))
    chosen = int(torch.where(flips, clear, -1).argmax())
    writer = cv2.VideoWriter(str(tmp_path / "recorded.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 8, (256, 256))
    for light in np.linspace(0.9, 1.0, 24):
        frame = cv2.resize((pixels[chosen] * light).astype(np.uint8), (256, 256), interpolation=cv2.INTER_NEAREST)
        writer.write(frame)
    writer.release()
    truth = [str(int(each[chosen].argmax())) for each in (before, middle)]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path


def test_people_move_a_patch_and_choose_the_weather(patched: Path, browser: Browser, digits_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "edgeadv", "camera", str(digits_bundle.path), "--precision", "fp32"]
    command += ["--source", str(patched / "recorded.avi"), "--loop", "--serve", "127.0.0.1:0"]
    command += ["--patch", str(patched / "p.png"), "--corruptions", "contrast,fog"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stderr is not None
        url = program.stderr.readline().strip()
        right, wrong = json.loads((patched / "truth.json").read_text())
        browser.call("Page.navigate", url=url)
        browser.wait(LABEL, lambda label: label == right)
        assert "25%" in browser.value("document.getElementById('patch').textContent")
        browser.value("document.getElementById('patch-on').click()")
        browser.wait(LABEL, lambda label: label == wrong)
        # to the upper left, with the mouse
        box = browser.value(
            "(() => { const r = document.getElementById('picture').getBoundingClientRect(); "
            "return [r.left, r.top, r.width, r.height]; })()"
        )
        mouse = {"button": "left", "clickCount": 1, "y": box[1] + box[3] / 2}
        browser.call("Input.dispatchMouseEvent", type="mousePressed", x=box[0] + box[2] / 2, **mouse)
        mouse["y"] = box[1] + box[3] * 0.1
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] * 0.2, **mouse)
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=box[0] + box[2] * 0.2, **mouse)
        browser.value("void (window.seen = null)")
        browser.value("setInterval(async () => { window.seen = await (await fetch('state')).json(); }, 50) && null")
        place = browser.wait("window.seen && window.seen.chosen.patch", lambda found: bool(found) and found[0] < 0.3)
        assert place == pytest.approx([0.1, 0.2], abs=0.02)
        browser.value("document.getElementById('patch-on').click()")
        browser.wait(LABEL, lambda label: label == right)
        plain = browser.value(PIXELS)
        browser.value(
            "(() => { const s = document.getElementById('corruption'); s.value = 'contrast'; "
            "s.dispatchEvent(new Event('change')); const v = document.getElementById('severity'); v.value = 5; "
            "v.dispatchEvent(new Event('input')); })()"
        )
        browser.wait("window.seen.chosen.severity", lambda severity: severity == 5)
        browser.wait(PIXELS, lambda pixels: pixels != plain)
        assert browser.value("window.seen.chosen.corruption") == "contrast"
        assert browser.complaints == []
        program.terminate()
        out, err = program.communicate(timeout=20)
        assert program.returncode == 0, err
        counted = re.search(r"(\d+) frames captured = (\d+) classified \+ (\d+) dropped;", out)
        assert counted is not None, out
        captured, classified, dropped = map(int, counted.groups())
        assert captured == classified + dropped and classified > 5
    finally:
        program.kill()
        program.communicate()
