"""The state of an unfinished training: whole or the one before, in one file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from edgeadv.training import checkpoint
from edgeadv.training.checkpoint import STATE_FILE
from edgeadv_runtime.errors import BundleError, SchemaError, StorageError

# a state may hold line breaks anywhere
OLD, NEW = b"\n" + bytes(range(256)) * 10, bytes(reversed(range(256))) * 13


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_state_comes_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not checkpoint.exists(run)
    for state in (OLD, NEW, NEW, b""):
        checkpoint.save(run, state)
        assert checkpoint.exists(run) and checkpoint.load(run) == state
        assert names(run) == [STATE_FILE]
    checkpoint.remove(run)
    assert names(run) == [] and not checkpoint.exists(run)
    checkpoint.remove(run)
    checkpoint.remove(tmp_path / "nowhere")


class Killed(BaseException):
    """As by kill -9: nothing is tidied up."""


@pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename"])
def test_cut_off_at_any_moment_it_is_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoint.save(tmp_path, OLD)
    rename = Path.replace

    def killed(temporary: Path, target: Path) -> None:
        if moment == "half written":
            os.truncate(temporary, 200)
        if moment == "after the rename":
            rename(temporary, target)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        checkpoint.save(tmp_path, NEW)
    assert checkpoint.load(tmp_path) == (NEW if moment == "after the rename" else OLD)
    assert len(names(tmp_path)) == (1 if moment == "after the rename" else 2)
    # the next one leaves nothing of it
    checkpoint.save(tmp_path, OLD)
    assert checkpoint.load(tmp_path) == OLD and names(tmp_path) == [STATE_FILE]


def save_for_ever(folder: Path, one: bytes, other: bytes) -> None:
    while True:
        checkpoint.save(folder, one)
        checkpoint.save(folder, other)


def test_killed_while_it_saves_one_state_after_another(tmp_path: Path) -> None:
    one, other = (bytes([value]) * (4 << 20) for value in (1, 2))
    checkpoint.save(tmp_path, one)
    rng, inodes = np.random.default_rng(), set()
    for _ in range(10):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path, one, other))
        process.start()
        time.sleep(rng.uniform(0.01, 0.15))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended by itself"
        assert checkpoint.load(tmp_path) in (one, other)
        inodes.add((tmp_path / STATE_FILE).stat().st_ino)
    assert len(inodes) > 1, "none was killed before it had saved"


def test_it_reaches_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        sync(handle)
        assert done or os.fstat(handle).st_size > len(NEW)
        done.append("fsync")

    def renamed(self: Path, target: Path) -> None:
        rename(self, target)
        done.append("rename")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    checkpoint.save(tmp_path, NEW)
    assert done == ["fsync", "rename", "fsync"]


def test_a_write_that_fails_leaves_the_state_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, OLD)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save(tmp_path, NEW)
    assert names(tmp_path) == [STATE_FILE] and checkpoint.load(tmp_path) == OLD


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "longer", "changed", "no header", "no kind", "no object"]
)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, OLD)
    file = tmp_path / STATE_FILE
    content = file.read_bytes()
    changed = {
        "empty": b"",
        "cut": content[:-1],
        "longer": content + b"x",
        "changed": content[:-1] + b"x",
        "no header": OLD,
        "no kind": b"{}\n" + OLD,
        "no object": b"[1]\n" + OLD,
    }
    if damage == "missing":
        file.unlink()
    else:
        assert changed[damage] != content
        file.write_bytes(changed[damage])
    with pytest.raises(
        BundleError, match=r"state\.bin is damaged and cannot be resumed \(.*\); copy it again"
    ) as error:
        checkpoint.load(tmp_path)
    assert "\n" not in str(error.value)


def test_another_version_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, OLD)
    file = tmp_path / STATE_FILE
    file.write_bytes(file.read_bytes().replace(b'"schema_version":3', b'"schema_version":4'))
    with pytest.raises(SchemaError, match=r"state\.bin was written by another version of edgeadv.*start again"):
        checkpoint.load(tmp_path)


def test_a_state_in_parts_is_refused(tmp_path: Path) -> None:
    """Not taken for none, which would begin the training anew beside it."""
    (tmp_path / "state.json").write_text('{"schema_version": 2, "kind": "training state", "parts": []}')
    with pytest.raises(SchemaError, match=r"state\.json was written by another version of edgeadv.*start again"):
        checkpoint.exists(tmp_path)
