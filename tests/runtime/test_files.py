"""Files that are written whole or not at all, and never over what is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeadv_runtime.errors import StorageError
from edgeadv_runtime.files import atomic_folder, ensure_file_writable, write_json


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    """Root could rename a file over /dev/null in the same way."""
    os.mkfifo(tmp_path / "pipe")
    for refuse in (lambda: write_json(tmp_path / "pipe", {}), lambda: ensure_file_writable(tmp_path / "pipe")):
        with pytest.raises(StorageError, match="is no file but a device or a pipe"):
            refuse()
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder: name the file to write"):
        write_json(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_to_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "real.json")
    write_json(tmp_path / "link.json", {"new": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert '"new": 1' in (tmp_path / "there" / "real.json").read_text()


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    """Where a link leads counts, and not where it lies."""
    (tmp_path / "file").write_text("")
    (tmp_path / "astray.json").symlink_to(tmp_path / "file" / "x.json")
    (tmp_path / "circle.json").symlink_to(tmp_path / "circle.json")
    (tmp_path / "fifo").symlink_to(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe")
    for name in ("astray.json", "circle.json", "fifo", "n" * 300):
        with pytest.raises(StorageError):
            ensure_file_writable(tmp_path / name)
        with pytest.raises(StorageError):
            write_json(tmp_path / name, {})
    assert not list(tmp_path.glob("*.tmp")) and (tmp_path / "pipe").is_fifo()


def test_a_folder_that_was_to_be_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between the two renames."""
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").write_text("kept")
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(path, overwrite=True) as temporary:
        (temporary / "new").write_text("")
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    assert (path / "old").read_text() == "kept"
