"""A lock that is held by one, is let go of by the dead, and leaves no file."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeadv_runtime.errors import StorageError
from edgeadv_runtime.locks import locked

HOLD = """
import sys
from pathlib import Path
from edgeadv_runtime.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_nobody_else_leaves_no_file(tmp_path: Path) -> None:
    with locked(tmp_path / "a.lock") as waited:
        assert not waited
        assert (tmp_path / "a.lock").exists()
        with locked(tmp_path / "b.lock") as other:
            assert not other
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.lock").touch()
    with locked(tmp_path / "a.lock") as waited:
        assert not waited
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_another_process_is_waited_for(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.lock"
    calls = []
    with hold(path) as holder:

        def waiting() -> None:
            calls.append(path.exists())
            if end == "leaves":
                assert holder.stdin is not None
                holder.stdin.close()
            else:
                holder.kill()

        with locked(path, waiting=waiting) as waited:
            assert waited
            assert path.exists()
    assert calls == [True]
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_never_two(tmp_path: Path) -> None:
    inside, most, entries = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, entries
        for _ in range(40):
            with locked(tmp_path / "a.lock"):
                inside += 1
                most = max(most, inside)
                entries += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entries) == (1, 240)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_user_left_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everything: the system answers as it does to others."""
    path, open_file = tmp_path / "x.lock", os.open
    path.touch()

    def denied(name: Any, flags: int, *more: Any) -> int:
        if Path(name) == path and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(name))
        return open_file(name, flags, *more)

    monkeypatch.setattr("os.open", denied)
    with locked(path):
        other = open_file(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_a_failure_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a.lock"):
        _ = 1 / 0
    with locked(tmp_path / "a.lock") as waited:
        assert not waited


def test_where_there_can_be_no_file(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    with pytest.raises(StorageError, match="cannot lock"), locked(tmp_path / "real" / "a.lock"):
        pass
    (tmp_path / "link.lock").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="cannot lock"), locked(tmp_path / "link.lock"):
        pass

    # a folder in which the kernel lets nobody make a file, not even root
    with pytest.raises(StorageError, match="cannot lock"), locked(Path("/sys/a.lock")):
        pass
