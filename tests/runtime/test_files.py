"""Files that are written whole or not at all, and never over what is no file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeadv_runtime import files, storage
from edgeadv_runtime.errors import StorageError
from edgeadv_runtime.files import atomic_file, atomic_folder, ensure_file_writable, working_on, write_json
from edgeadv_runtime.unfinished import publish
from tests.modes import modes


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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_bundle(path: Path) -> None:
    """Stands for the question whether a bundle is there."""
    if not (path / "manifest.json").is_file():
        raise StorageError(f"{path} is not a bundle")


def bundle(path: Path, text: str = "old") -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(text)
    return path


def make(path: Path, *, replace: bool, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Make a folder, in which something happens before it gets its name."""
    with atomic_folder(path, replaceable=check_bundle if replace else None) as folder:
        (folder / "manifest.json").write_text("new")
        meanwhile()


@pytest.fixture(params=["renameat2", "without renameat2", "without it in the C library"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This file system, one that lacks both kinds of rename as exFAT and NFS do, and a C library that does not know
    them."""
    if request.param == "without renameat2":

        def lacking(*_: object) -> int:
            number = next(answers)
            ctypes.set_errno(number)
            return -1

        answers = itertools.cycle([errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renameat2=lacking))
    elif request.param != "renameat2":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    return str(request.param)


WHAT_CAME: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: (path.mkdir(), (path / "precious.txt").write_text("mine")),
    "a bundle": bundle,
    "a file": lambda path: path.write_text("mine"),
    "a link": lambda path: path.symlink_to("elsewhere"),
}


@pytest.mark.parametrize("what", WHAT_CAME)
@pytest.mark.parametrize("replace", [False, True])
def test_what_came_meanwhile_is_not_lost(tmp_path: Path, file_system: str, what: str, replace: bool) -> None:
    path = tmp_path / "bundle"

    def tree() -> dict[str, str]:
        return {str(file): file.read_text() for file in path.rglob("*")} if path.is_dir() else {}

    before: dict[str, str] = {}

    def meanwhile() -> None:
        WHAT_CAME[what](path)
        before.update(tree())

    if what == "a bundle" and replace:
        make(path, replace=True, meanwhile=meanwhile)
        assert (path / "manifest.json").read_text() == "new"
    else:
        with pytest.raises(StorageError, match="exists" if not replace or what == "a link" else "is not a bundle"):
            make(path, replace=replace, meanwhile=meanwhile)
        assert tree() == before
        assert os.path.lexists(path)
    assert names(tmp_path) == ["bundle"]


def test_what_a_bundle_became_meanwhile_is_not_lost(tmp_path: Path, file_system: str) -> None:
    """It was one at the beginning."""
    path = bundle(tmp_path / "bundle")

    def meanwhile() -> None:
        (path / "manifest.json").unlink()
        (path / "precious.txt").write_text("mine")

    with pytest.raises(StorageError, match="is not a bundle"):
        make(path, replace=True, meanwhile=meanwhile)
    assert names(path) == ["precious.txt"]


def test_what_takes_the_place_after_the_question_comes_back(
    tmp_path: Path, file_system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question and the exchange are two steps: it is asked again of what was really there."""
    path, asked = bundle(tmp_path / "bundle"), 0

    def check(there: Path) -> None:
        nonlocal asked
        check_bundle(there)
        asked += 1
        if asked == 2:  # that of the end
            there.rename(tmp_path / "moved")
            there.mkdir()
            (there / "precious.txt").write_text("mine")

    with pytest.raises(StorageError, match="is not a bundle"), atomic_folder(path, replaceable=check):
        pass
    assert names(tmp_path) == ["bundle", "moved"]
    assert names(path) == ["precious.txt"]


def test_there_is_a_bundle_at_every_moment(tmp_path: Path) -> None:
    """A reader that looks all the time never finds none."""
    path, stop, missed = bundle(tmp_path / "bundle"), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                (path / "manifest.json").read_text()
            except OSError as error:
                missed.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(50):
        make(path, replace=True)
    stop.set()
    reader.join()
    assert missed == []


def test_a_folder_that_was_to_be_replaced_comes_back(
    tmp_path: Path, file_system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the two renames of a file system that cannot exchange."""
    path = bundle(tmp_path / "bundle")

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "rename_new" if file_system != "renameat2" else "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(path, replace=True)
    assert names(tmp_path) == ["bundle"]
    assert (path / "manifest.json").read_text() == "old"


def test_a_folder_that_a_killed_process_put_aside_comes_back(tmp_path: Path) -> None:
    retired = tmp_path / ".bundle.0a1b2c3d.old"
    retired.mkdir()
    bundle(retired / "bundle")
    with working_on(tmp_path / "bundle"):
        assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]
    # with the new one in its place it is of no use
    retired.mkdir()
    bundle(retired / "bundle", "older")
    with pytest.raises(StorageError, match="exists"):
        make(tmp_path / "bundle", replace=False)
    make(tmp_path / "bundle", replace=True)
    assert names(tmp_path) == ["bundle"]


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    bundle(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002])
def test_rights_are_those_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "made" / "file.json", {})
        make(tmp_path / "folder", replace=False)
    finally:
        os.umask(before)
    assert modes(tmp_path, umask) == []


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file, and its folder, before the rename; the folder that holds the name after it."""
    done: list[str] = []

    def fsync(descriptor: int, call: Callable[[int], None] = os.fsync) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        call(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    real = storage._renamed
    monkeypatch.setattr(storage, "_renamed", lambda *a: (done.append("renamed"), real(*a))[1])
    path = tmp_path / "bundle"
    for replace in (False, True):
        done.clear()
        with atomic_folder(path, replaceable=check_bundle if replace else None) as folder:
            (folder / "deeper").mkdir()
            for name in ("manifest.json", "deeper/model.onnx"):
                (folder / name).write_text("x")
        assert done == ["model.onnx", "deeper", "manifest.json", folder.name, "renamed", tmp_path.name]
    done.clear()
    replace_file = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *a: (done.append("renamed"), replace_file(*a))[1])
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert done == [temporary.name, "renamed", tmp_path.name]
    partial = bundle(tmp_path / "p.partial")
    (partial / "plan.json").write_text("{}")
    done.clear()
    publish(partial, tmp_path / "p", "plan.json")
    assert done == ["manifest.json", "p.partial", "renamed", tmp_path.name]


def test_finished_work_does_not_replace_what_came_meanwhile(tmp_path: Path, file_system: str) -> None:
    partial, out = bundle(tmp_path / "p.partial"), tmp_path / "p"
    (partial / "plan.json").write_text("{}")
    (out).mkdir()
    with pytest.raises(StorageError, match="came meanwhile, and is left as it is"):
        publish(partial, out, "plan.json")
    assert names(out) == [] and (partial / "manifest.json").exists()


LEAVE = """
import os, signal, sys
from pathlib import Path
from edgeadv_runtime.files import atomic_file, atomic_folder
make = {"file": atomic_file, "folder": atomic_folder}[sys.argv[2]]
with make(Path(sys.argv[1])) as temporary:
    print(temporary, flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def begin(path: Path, kind: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that makes a file or a folder until it is told to die."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_the_dead_left_is_removed_and_what_the_living_write_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    process, temporary = begin(path, "file")
    with process:
        write_json(path, {})
        assert temporary.exists()
        process.communicate("x")
    assert temporary.exists()
    write_json(tmp_path / "other.json", {})
    assert temporary.exists()
    write_json(path, {})
    assert names(tmp_path) == ["file.json", "other.json"]


def test_a_folder_of_a_dead_process_is_removed_and_one_of_a_living_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    process, temporary = begin(path, "folder")
    with process:
        with pytest.raises(StorageError, match=f"process {process.pid} works on {path}: wait until it is done"):
            make(path, replace=False)
        assert temporary.is_dir()
        process.communicate("x")
    assert temporary.is_dir() and len(names(tmp_path)) == 2
    make(path, replace=False)
    assert names(tmp_path) == ["bundle"]


def test_one_thread_at_a_time(tmp_path: Path) -> None:
    refused: list[str] = []
    with working_on(tmp_path / "bundle"):
        make(tmp_path / "bundle", replace=False)  # a part of the same work
    with working_on(tmp_path / "new"):
        thread = threading.Thread(target=lambda: refused.append(raised(lambda: make(tmp_path / "new", replace=False))))
        thread.start()
        thread.join()
    assert refused == [
        f"process {os.getpid()}, this one, works on {tmp_path / 'new'}: wait until it is done, or choose another `out`"
    ]


def raised(call: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as error:
        call()
    return str(error.value)


def test_a_child_that_was_forked_keeps_no_lock(tmp_path: Path) -> None:
    """Such as a process that decodes images, and lives a little longer than the one that was killed."""
    with working_on(tmp_path / "out"):
        if not (child := os.fork()):
            signal.pause()
            os._exit(0)
    try:
        with working_on(tmp_path / "out"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_without_locks_the_work_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    def none(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".file.json.0a1b2c3d.tmp").touch()
    with working_on(tmp_path / "file.json", file=True):
        write_json(tmp_path / "file.json", {})
    assert "has no locks: see to it that nothing else writes" in caplog.text
    # whose it is cannot be told
    assert names(tmp_path) == [".file.json.0a1b2c3d.tmp", "file.json"]


def test_the_temporary_file_lies_beside_a_bundle_and_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundle(tmp_path / "bundle")
    with atomic_file(folder / "manifest.json.sig", inside=folder) as temporary:
        temporary.write_text("signed")
        assert (temporary.parent, names(folder)) == (tmp_path, ["manifest.json"])
    assert (folder / "manifest.json.sig").read_text() == "signed"
    # a folder that is mounted from elsewhere
    replace = Path.replace

    def across(self: Path, target: Path) -> Path:
        if self.parent != target.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)
    with atomic_file(folder / "manifest.json.sig", inside=folder) as temporary:
        temporary.write_text("again")
    assert (folder / "manifest.json.sig").read_text() == "again"
    assert names(folder) == ["manifest.json", "manifest.json.sig"]
    assert names(tmp_path) == ["bundle"]


def test_where_nobody_may_write_beside_a_folder_the_lock_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a volume of a container."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(files, "_may_write", lambda folder: folder != tmp_path)
    with working_on(tmp_path / "out"):
        assert names(tmp_path / "out") == [".lock"]
    assert names(tmp_path / "out") == []


def test_what_is_being_written_is_never_taken_for_left(tmp_path: Path) -> None:
    """Between making its file and locking it a writer waits for whoever looks at it."""
    failed: list[Exception] = []
    end = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if end.is_set():
                return
            try:
                files.write_bytes(tmp_path / "x", bytes([number % 256]))
            except StorageError as error:
                failed.append(error)

    def remove() -> None:
        while not end.is_set():
            files.remove_abandoned(tmp_path)

    threads = [threading.Thread(target=each) for each in (write, write, remove, remove)]
    for thread in threads:
        thread.start()
    end.wait(1.5)
    end.set()
    for thread in threads:
        thread.join()
    assert failed == [] and [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("out", ["/", "//"])
def test_nothing_replaces_the_root(out: str) -> None:
    with pytest.raises(StorageError, match="name a file or folder to make"), working_on(out):
        pass


def test_parts_lie_beside_what_they_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.partial_of(Path("x.pack")) == Path("x.pack.partial")
    assert files.partial_of(Path()) == tmp_path.with_name(tmp_path.name + ".partial")
