"""``kill -9`` at any moment of a build: no half plan counts, and the next call cleans up and builds."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.engine import EngineCache, EngineOptions, Library

pytestmark = pytest.mark.slow

KILLS = 10


def start(bundle: Bundle, folder: Path) -> subprocess.Popen[bytes]:
    """``edgeadv engine``, when it holds the lock of the plan that it builds, or has already let go of it."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edgeadv",
            "engine",
            str(bundle.path),
            "--precision",
            "fp32",
            "--target",
            "sm_86",
            "--engine-cache",
            str(folder),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(folder.glob("*")):
        time.sleep(0.002)
    return process


def builders(folder: Path) -> list[str]:
    """Processes whose command line names the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            continue
    return found


def test_kills(tiny_bundle: Bundle, rtx: Library, tmp_path: Path) -> None:
    folder, options = tmp_path / "engines", EngineOptions(targets=("sm_86",))
    cache, rng = EngineCache(folder), random.Random(0)
    process = start(tiny_bundle, folder)
    locked = time.monotonic()
    assert process.wait(timeout=120) == 0
    duration = time.monotonic() - locked
    whole = sorted(path.name for path in folder.iterdir())
    assert len(whole) == 2
    during = 0
    for _ in range(3 * KILLS):
        if during == KILLS:
            break
        for path in folder.iterdir():
            path.unlink()
        process = start(tiny_bundle, folder)
        time.sleep(rng.uniform(0, duration))
        process.kill()
        if process.wait() == -9:
            during += 1
        else:
            # the machine is less busy than it was
            duration *= 0.8
        # at once: the builder that was orphaned may still be dying
        engine = cache.provide(tiny_bundle, "fp32", options, library=rtx, gpu=None)
        assert engine.origin in ("built", "hit")
        assert len(engine.read()) == engine.record.bytes
        assert sorted(path.name for path in folder.iterdir()) == whole
    deadline = time.monotonic() + 30
    while builders(folder):
        assert time.monotonic() < deadline, "a builder outlived its parent"
        time.sleep(0.05)
    assert sorted(path.name for path in folder.iterdir()) == whole
    assert during == KILLS, "most were over before they were killed: too little was tested"
