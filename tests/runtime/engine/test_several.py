"""Several that ask for the same plan at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.engine import EngineCache, EngineOptions, Library

Contents = Callable[[Path], list[str]]
NATIVE = EngineOptions()


ASK = """
import json, sys, time
from pathlib import Path
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.engine import EngineCache, EngineOptions, find_library
bundle, folder, go = Bundle.open(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
library, texts = find_library("tensorrt-rtx"), []
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
options = EngineOptions(targets=("sm_86",))
engine = EngineCache(folder).provide(bundle, "fp32", options, library=library, gpu=None, progress=texts.append)
print(json.dumps([engine.origin, engine.sha256, texts]))
"""


def test_processes_that_ask_at_once_build_once(
    tiny_bundle: Bundle, cache: EngineCache, tmp_path: Path, contents: Contents
) -> None:
    command = [sys.executable, "-c", ASK, str(tiny_bundle.path), str(cache.folder), str(tmp_path / "go")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    origins = sorted(origin for origin, _, _ in answers)
    assert origins.count("built") == 1 and set(origins) <= {"built", "waited", "hit"}
    assert len({sha256 for _, sha256, _ in answers}) == 1
    for origin, _, texts in answers:
        assert any("another process builds" in text for text in texts) is (origin == "waited")
        assert any(text.startswith("building") for text in texts) is (origin == "built")
    assert len(contents(cache.folder)) == 2


def test_who_comes_during_a_build_waits_for_it(
    tiny_bundle: Bundle, cache: EngineCache, rtx: Library, sm_86: EngineOptions
) -> None:
    """Without chance: the second asks while the first is inside."""
    answers, texts = [], []

    def second() -> None:
        answers.append(cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, progress=texts.append))

    thread = threading.Thread(target=second)
    first = cache.provide(
        tiny_bundle,
        "fp16",
        sm_86,
        library=rtx,
        gpu=None,
        progress=lambda text: (thread.start(), _until(lambda: bool(texts))) if text.startswith("building") else None,
    )
    thread.join()
    assert first.origin == "built"
    assert answers == [replace(first, origin="waited")]
    assert texts == ["another process builds the engine of tiny fp16: waiting for it"]


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        pass


def test_whoever_waited_for_a_failure_tries_himself(
    tiny_bundle: Bundle, cache: EngineCache, rtx: Library, sm_86: EngineOptions
) -> None:
    answers, texts = [], []

    def second() -> None:
        answers.append(cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, progress=texts.append))

    thread = threading.Thread(target=second)

    def interrupt(text: str) -> None:
        thread.start()
        _until(lambda: bool(texts))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None, progress=interrupt)
    thread.join()
    assert [answer.origin for answer in answers] == ["built"]
