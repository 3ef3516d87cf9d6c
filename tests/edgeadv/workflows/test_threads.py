"""How PyTorch's threads wait is settled in the environment before it is loaded, and what others settled stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

import edgeadv as ea
from edgeadv.workflows.threads import share_processor
from edgeadv_runtime.device.facts import running_threads
from edgeadv_runtime.errors import InputError

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
SAY = f"""
import json, os, sys
print(json.dumps({{name: os.environ[name] for name in {NAMES} if name in os.environ}}))
"""
# the command, up to what it would run: what is in the environment there is what PyTorch finds
COMMAND = f"""
import edgeadv.cli, edgeadv.__main__, sys
assert "torch" not in sys.modules
def main():
    {SAY.strip().replace(chr(10), chr(10) + "    ")}
    return 0
edgeadv.cli.main = main
edgeadv.__main__.entry()
"""


def python(code: str, *, status: int = 0, **said: str) -> str:
    """What ``code`` prints in a process of its own whose environment says ``said`` of threads and nothing else."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": path, **said},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ({}, {"GOMP_SPINCOUNT": ANY}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"KMP_BLOCKTIME": "0"}, {"KMP_BLOCKTIME": "0"}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": ANY}),
    ],
)
def test_the_command_settles_how_threads_wait_unless_the_environment_has(
    said: dict[str, str], then: dict[str, str]
) -> None:
    for code in (COMMAND, f"import edgeadv as ea; ea.configure(wait='auto'){SAY}"):
        settled = json.loads(python(code, **said))
        assert settled == then
        # which of the two depends on what else runs here
        assert settled.get("GOMP_SPINCOUNT", "7") in ("3000", "300", "7")


@pytest.mark.parametrize(
    ("running", "threads", "turns"),
    [
        ([1, 1, 1, 1, 1], 2, "3000"),  # nobody but this process
        ([2, 2, 2, 2, 2], 2, "300"),
        ([1, 3, 1, 1, 3], 2, "3000"),  # who runs for a moment only
        ([3, 2, 1, 2, 3], 2, "300"),
        ([2, 2, 2, 2, 2], 1, "3000"),  # a core for each
        ([None], 2, "3000"),
    ],
)
def test_beside_others_threads_sleep_sooner(
    running: list[int | None], threads: int, turns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    seen = iter(running)
    monkeypatch.setattr("edgeadv.workflows.threads.running_threads", lambda: next(seen))
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    share_processor()
    assert os.environ["GOMP_SPINCOUNT"] == turns


def test_the_threads_that_run_are_counted() -> None:
    assert (running_threads() or 0) >= 1 and running_threads(Path("/nowhere")) is None


def test_what_the_command_settled_is_what_libgomp_takes() -> None:
    code = "import edgeadv as ea; ea.configure(threads=1, wait=WAIT); import torch; print(torch.get_num_threads())"
    for wait, *told in (
        ("'auto'", "GOMP_SPINCOUNT = '3000'", "GOMP_SPINCOUNT = '300'"),
        ("'passive'", "OMP_WAIT_POLICY = 'PASSIVE'"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("WAIT", wait)],
            env={
                **{name: value for name, value in os.environ.items() if name not in NAMES},
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_DISPLAY_ENV": "VERBOSE",
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert done.stdout.strip() == "1"
        if "GOMP_SPINCOUNT" not in done.stderr:
            pytest.skip("this PyTorch has another OpenMP than libgomp")
        assert any(each in done.stderr for each in told)


@pytest.mark.parametrize(
    ("call", "then"),
    [
        ("wait='passive'", {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("wait='active'", {"OMP_WAIT_POLICY": "ACTIVE"}),
        ("wait=250", {"GOMP_SPINCOUNT": "250"}),
        ("threads=3", {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "7"}),
        ("threads=3, wait='passive'", {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}),
        ("", {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_who_asks_in_words_is_obeyed(call: str, then: dict[str, str]) -> None:
    code = f"import edgeadv as ea, sys; ea.configure({call}); assert 'torch' not in sys.modules{SAY}"
    assert json.loads(python(code, GOMP_SPINCOUNT="7")) == then


def test_a_quota_leaves_fewer_threads_unless_the_environment_says_how_many() -> None:
    code = (
        "from edgeadv.workflows import threads\n"
        "threads.quota_cores = lambda: 1\n"
        f"threads.share_processor()\nimport torch; threads_then = torch.get_num_threads(){SAY}print(threads_then)"
    )
    settled, threads = python(code).splitlines()
    assert json.loads(settled) == {"GOMP_SPINCOUNT": "3000", "OMP_NUM_THREADS": "1"} and threads == "1"
    settled, threads = python(code, OMP_NUM_THREADS="2").splitlines()
    assert json.loads(settled)["OMP_NUM_THREADS"] == threads == "2"


def test_after_pytorch_was_loaded_only_the_number_of_threads_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    try:
        with pytest.raises(InputError, match=r"^`wait` must be chosen before PyTorch is loaded"):
            ea.configure(threads=3, wait="passive")
        assert torch.get_num_threads() == before
        ea.configure(threads=3)
        assert torch.get_num_threads() == 3
        assert [os.environ[name] for name in NAMES] == ["1", "1", "1", "3"]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"threads": 0}, "`threads` must be at least 1, not 0"),
        ({"threads": "2"}, "`threads` is a whole number, not "),
        ({"wait": "sleepy"}, "`wait` is auto, active, passive or a number of turns from 0, not 'sleepy'"),
        ({"wait": -1}, "`wait` is auto, active, passive or a number of turns from 0, not -1"),
        ({"wait": True}, "`wait` is "),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ea.configure(**asked)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
