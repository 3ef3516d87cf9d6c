"""Every block of code on every page runs, in the order of the page, in a folder of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forking import run
from tests.pages.blocks import Block, blocks
from tests.pages.world import build

ROOT = Path(__file__).resolve().parents[2]
# not rewritten yet: their code takes files that the world does not have
OLD = (
    "explanation/masking.md",
    "explanation/int8.md",
    "explanation/confidence.md",
    "how-to/other-attack-libraries.md",
    "how-to/gate-in-ci.md",
    "how-to/card.md",
    "how-to/patches-and-corruptions.md",
    "how-to/camera.md",
    "how-to/tensorrt.md",
    "how-to/jetson.md",
    "how-to/arm64.md",
    "reference/file-formats.md",
    "reference/bench.md",
    "tutorials/signs.md",
)
NEW = sorted({*(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / name for name in OLD})
PAGES = [ROOT / "README.md", *NEW]
WITH_CODE = [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]
SHELL = set("|<>;&$*`'\"(")
"""What only a shell understands."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("world")
    build(home)
    return home


def begin(world: Path, home: Path) -> None:
    """A copy: a page may change what is there."""
    home.mkdir()
    subprocess.run(["cp", "-r", f"{world}/.", str(home)], check=True)


def run_command(line: str, home: Path, path: str) -> tuple[int, str]:
    if line.startswith("edgeadv ") and not SHELL & set(line):
        done = run(*shlex.split(line)[1:], cwd=home)
    else:
        environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(["bash", "-c", line], cwd=home, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def run_shell(block: Block, home: Path, path: str) -> None:
    *before, last = block.commands
    for line, wanted in [*((line, 0) for line in before), (last, block.exits)]:
        status, said = run_command(line, home, path)
        assert status == wanted, f"line {block.line}: {line}\nexit status {status}\n{said[-3000:]}"


DRIVER = """
import json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "<page>", "exec"), names)
        said = ""
    except BaseException:
        said = traceback.format_exc()
    print(json.dumps(said), file=sys.__stderr__, flush=True)
"""


class Python:
    """One interpreter for all Python of a page, which keeps its names from block to block."""

    def __init__(self, home: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, block: Block) -> None:
        assert self._process.stdin is not None and self._process.stderr is not None
        self._process.stdin.write(json.dumps(block.code) + "\n")
        self._process.stdin.flush()
        for line in self._process.stderr:
            # what libraries warn of is no answer
            if line.startswith('"'):
                said = json.loads(line)
                assert not said, f"line {block.line}:\n{block.code}\n{said[-3000:]}"
                return
        pytest.fail(f"line {block.line}: Python ended")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_it_runs(page: Path, world: Path, tmp_path: Path) -> None:
    home = tmp_path / "page"
    begin(world, home)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "edgeadv").write_text(f'#!/bin/sh\nexec {sys.executable} -m edgeadv "$@"\n')
    (commands / "edgeadv").chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    python = Python(home)
    for block in blocks(page):
        if block.not_run is not None:
            assert len(block.not_run) > 8, f"line {block.line}: say why it is not run"
        elif block.language == "sh":
            run_shell(block, home, path)
        elif block.language == "python":
            python.run(block)
    python.close()


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        (
            "03_own_onnx.py net.onnx photos --size 48 --scale 0..1 --classes labels.txt",
            0,
            ["clean at eps 0: ", "worst-case at eps 4/255: ", "masking check: UNCHECKED", "own-output/report.html"],
        ),
        (
            "05_gate.py robust.edgeadv photos --suite fast --min-clean 0.9 --min-robust 0.9",
            1,
            ["passed min-clean 0.9", "FAILED min-robust 0.9"],
        ),
        ("05_gate.py robust.edgeadv nowhere --min-clean 0.9 --min-robust 0.9", 2, ["nowhere"]),
    ],
)
def test_an_example_runs(line: str, status: int, says: list[str], world: Path, tmp_path: Path) -> None:
    home = tmp_path / "example"
    begin(world, home)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    name, *arguments = line.split()
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == status, said[-3000:]
    assert all(text in said for text in says) and "Traceback" not in said
