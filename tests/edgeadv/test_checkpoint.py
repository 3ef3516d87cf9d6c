"""The state of an unfinished training: whole or the one before, in parts that can be carried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeadv import checkpoint
from edgeadv_runtime.errors import BundleError

OLD, NEW = bytes(range(256)) * 10, bytes(reversed(range(256))) * 13


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PART_BYTES", 1000)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_state_comes_back_from_its_parts(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", OLD)
    assert checkpoint.load(tmp_path / "run") == OLD
    sizes = [file.stat().st_size for file in sorted((tmp_path / "run").glob("*.bin"))]
    assert sizes == [1000, 1000, 560]
    checkpoint.save(tmp_path / "run", NEW)
    assert checkpoint.load(tmp_path / "run") == NEW
    assert len(names(tmp_path / "run")) == 5
    checkpoint.save(tmp_path / "run", NEW)
    assert checkpoint.load(tmp_path / "run") == NEW
    checkpoint.remove(tmp_path / "run")
    assert names(tmp_path / "run") == []
    checkpoint.remove(tmp_path / "run")
    checkpoint.remove(tmp_path / "nowhere")


def test_parts_fit_where_16_mebibytes_do() -> None:
    from importlib import reload

    assert reload(checkpoint).PART_BYTES == 16 * 1024 * 1024


@pytest.mark.parametrize("writes", range(6))
def test_cut_off_after_any_write_it_is_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Four parts and the index. Cut off as by kill -9: nothing is tidied up."""
    checkpoint.save(tmp_path, OLD)
    done = 0

    class Killed(BaseException):
        pass

    def counted(path: Path, data: bytes) -> None:
        nonlocal done
        if done == writes:
            (path.parent / f".{path.name}.x.tmp").write_bytes(data[:10])
            raise Killed
        done += 1
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", counted)
        patch.setattr(checkpoint, "write_json", lambda path, value: counted(path, json.dumps(value).encode()))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        if writes < 5:
            with pytest.raises(Killed):
                checkpoint.save(tmp_path, NEW)
        else:
            checkpoint.save(tmp_path, NEW)
    assert checkpoint.load(tmp_path) == (OLD if writes < 5 else NEW)
    # the next one leaves nothing of it
    checkpoint.save(tmp_path, OLD)
    assert checkpoint.load(tmp_path) == OLD and len(names(tmp_path)) == 4


def test_a_write_that_fails_leaves_the_state_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, OLD)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    real, left = checkpoint.write_bytes, [2]

    def full(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, NEW)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["missing", "cut", "swapped", "index", "version"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, OLD)
    first, second, _ = sorted(tmp_path.glob("*.bin"))
    index = tmp_path / "state.json"
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:999])
    elif damage == "swapped":
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(b"x" + one[1:])
        second.write_bytes(other)
    elif damage == "index":
        index.write_text("{}")
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "schema_version": 1}))
    says = r"another version of edgeadv.*start again" if damage == "version" else "is damaged and cannot be resumed"
    with pytest.raises(BundleError, match=rf"state\.json (was written by )?{says}"):
        checkpoint.load(tmp_path)


def test_an_index_that_names_a_file_elsewhere_reads_none(tmp_path: Path) -> None:
    """A state may come from elsewhere."""
    checkpoint.save(tmp_path / "run", OLD)
    (tmp_path / "secret").write_bytes(b"?")
    index = tmp_path / "run" / "state.json"
    content = json.loads(index.read_text())
    content["parts"][0]["file"] = "../secret"
    index.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="No such file"):
        checkpoint.load(tmp_path / "run")
