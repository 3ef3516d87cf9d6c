"""The exit status says who is to blame, of every subcommand: 1 is a rule that failed, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from edgeadv.cli import main
from edgeadv_runtime.bundle.bundle import Bundle
from tests.commands import leaves
from tests.edgeadv.cli import test_gate
from tests.edgeadv.cli.test_bad_input import attack, distill, edit, score, train
from tests.edgeadv.cli.test_diff import SAME
from tests.edgeadv.cli.test_import import GIVEN
from tests.edgeadv.desk import Desk
from tests.foreign import SIDE, convolutional, saved

NAMES = [" ".join(words) for words, _ in leaves()]
PYTHON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pipeline(desk: Desk) -> Path:
    return desk.file("same.py", SAME)


def a_few(desk: Desk) -> Path:
    """Unlabelled pictures."""
    folder = desk.home / "few"
    folder.mkdir(exist_ok=True)
    for i in range(3):
        Image.effect_noise((SIDE, SIDE), 80).convert("RGB").save(folder / f"{i}.png")
    return folder


def key(desk: Desk) -> Path:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    return desk.file("key.pem", private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def passing(desk: Desk) -> Path:
    path = desk.home / "results.json"
    test_gate.results().save(path)
    return path


def measured(desk: Desk) -> Path:
    """Results of the desk's bundle."""
    out = desk.home / "measured.json"
    options = ["--eps", "8/255", "--attack", "fgsm", "--limit", "10", "--precision", "fp32", "--out", out]
    assert main([str(each) for each in ("evaluate", desk.bundle(), "--data", desk.photos(), *options)]) == 0
    return out


def imported(desk: Desk) -> list[Any]:
    options = [part for name, text in GIVEN.items() if text for part in (f"--{name}", text)]
    onnx = saved(convolutional(), desk.home / "theirs.onnx")
    return ["import", onnx, *options, "--golden", a_few(desk), "--out", "net.edgeadv"]


# of each subcommand what it succeeds with
WORKING: dict[str, Callable[[Desk], list[Any]]] = {
    # what it does takes minutes, and it is given no file
    "demo": lambda desk: ["demo", "--help"],
    "train": train,
    "distill": distill,
    "runs": lambda desk: ["runs", desk.run().parent],
    "export": lambda desk: ["export", desk.run(), "--precision", "fp32", "--out", "out.edgeadv"],
    "import": imported,
    "bundle show": lambda desk: ["bundle", "show", desk.bundle()],
    "bundle slim": lambda desk: ["bundle", "slim", desk.bundle(), "--variant", "fp16", "--out", "slim.edgeadv"],
    "bundle sign": lambda desk: ["bundle", "sign", desk.bundle(), "--key", key(desk)],
    "engine": lambda desk: ["engine", desk.bundle(), "--explain", "--target", "sm_86", "--engine-cache", "cache"],
    "verify": lambda desk: ["verify", desk.bundle()],
    "diff": lambda desk: [
        *("diff", "--bundle", desk.bundle(), "--data", desk.photos()),
        *("--with", f"{pipeline(desk)}:prepare", "--limit", "3"),
    ],
    "attack": attack,
    "evaluate": score,
    "study": lambda desk: [
        *("study", "--arch", "timm/test_resnet", "--weights", f"timm/test_resnet={desk.weights}"),
        *("--data", desk.imagenet, "--n", "8", "--eps", "8/255", "--out", "study"),
    ],
    "bench": lambda desk: ["bench", desk.bundle(), "--runs", "1", "--warm-up", "0", "--precision", "fp32"],
    "camera": lambda desk: ["camera", desk.bundle(), "--source", a_few(desk)],
    "perturbation": lambda desk: ["perturbation", desk.bundle(), "--data", desk.photos(), "--eps", "0.2", "--out", "p"],
    "patch": lambda desk: ["patch", desk.bundle(), "--data", desk.photos(), "--area", "20%", "--out", "p.png"],
    "gate": lambda desk: ["gate", passing(desk), "--min-clean", "0.9"],
    "report": lambda desk: ["report", passing(desk), "--out", "report.html"],
    "card": lambda desk: ["card", measured(desk), "--bundle", desk.bundle(), "--out", "card.html"],
    "doctor": lambda desk: ["doctor", desk.bundle()],
}


def test_every_subcommand_is_tried() -> None:
    assert sorted(WORKING) == sorted(NAMES)


@pytest.fixture
def arguments(desk: Desk, imagenet_weights: dict[str, Path], imagenet_photos: Path) -> Callable[[str], list[str]]:
    """Of a subcommand what it succeeds with."""

    def make(name: str) -> list[str]:
        if name == "engine":
            pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
        # a frozen class of another file: what only study needs
        object.__setattr__(desk, "weights", imagenet_weights["timm/test_resnet"])
        object.__setattr__(desk, "imagenet", imagenet_photos)
        return [str(argument) for argument in WORKING[name](desk)]

    return make


def clear(desk: Desk) -> None:
    """Remove what a command has made."""
    for name in ("out", "out.json", "out.pack", "out.edgeadv", "net.edgeadv", "slim.edgeadv", "study"):
        path = desk.home / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


@contextmanager
def no_reader() -> Iterator[Any]:
    """A pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        yield stream


@pytest.mark.parametrize("name", NAMES)
def test_it_is_0_and_2_where_standard_output_is_full_left_or_closed(
    name: str, arguments: Any, desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(name)
    before = desk.contents()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert main(given) == 2
    # nothing was begun whose outcome cannot be told
    assert desk.contents() == before
    assert capsys.readouterr().err == "edgeadv: standard output is closed: send it to /dev/null if nobody reads it\n"
    for made in (partial(Path("/dev/full").open, "w"), no_reader):
        clear(desk)
        with made() as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            status = main(given)
        last = capsys.readouterr().err.splitlines()[-1]
        assert status == 2 and last.startswith("edgeadv: standard output takes no more ("), last
    clear(desk)
    assert main(given) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "another": lambda content: b"\x00\xff{[not what it was",
    "digits": lambda content: b"1" * 10_000,
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_damaged_input_is_2(name: str, how: str, arguments: Any, desk: Desk, capsys: Any) -> None:
    given = arguments(name)
    copies = {path: shutil.copytree(path, desk.home / path.name) for path in (desk.imagenet,) if str(path) in given}
    for file in list(desk.home.rglob("*")):
        # a pipeline of the user's own is a program
        if file.is_file() and file.suffix not in (".py", ".tsv"):
            file.write_bytes(DAMAGES[how](file.read_bytes()))
    capsys.readouterr()
    status = main([str(copies.get(Path(argument), argument)) for argument in given])
    said = capsys.readouterr().err
    # these two tell of what is wrong, whatever it is
    assert status in ((0, 2) if name in ("doctor", "runs") else (2,)), said
    assert "Traceback" not in said
    if status == 2:
        assert said.splitlines()[-1].startswith("edgeadv: ")


def test_a_bug_of_ours_is_70_with_its_traceback(desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: object, **more: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr("edgeadv.cli.runs.list_runs", wrong)
    status = main(["runs", str(desk.run().parent)])
    said = capsys.readouterr().err
    assert status == 70 and "Traceback" in said and "ZeroDivisionError: nobody thought of this" in said
    assert said.splitlines()[-1].startswith("edgeadv: this is a bug of edgeadv ")


class OutOfMemoryError(RuntimeError):
    """As PyTorch calls its own of a GPU."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_too_little_memory_is_2(error: Exception, desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("edgeadv.cli.runs.list_runs", large)
    assert main(["runs", str(desk.run().parent)]) == 2
    assert capsys.readouterr().err.startswith("edgeadv: there is too little memory: ")


@pytest.mark.parametrize("status", [0, 1, None, "a word"])
def test_code_that_ends_the_program_is_2(status: Any, desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaving(*given: object, **more: object) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("edgeadv.cli.runs.list_runs", leaving)
    assert main(["runs", str(desk.run().parent)]) == 2
    assert f"edgeadv: code that was run ended the program with {status!r}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("bundle", "show"), ("verify",), ("report",), ("runs",), ("gate",)])
def test_a_name_that_is_too_long_is_2(command: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    more = {"report": ["--out", str(tmp_path / "x.html")], "gate": ["--min-clean", "0.5"]}.get(command[0], [])
    assert main([*command, str(tmp_path / ("x" * 300)), *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("edgeadv: ") and said.count("\n") == 1


def command(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgeadv", *map(str, arguments)],
        env=PYTHON,
        text=True,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2), (0, 2)])
def test_streams_that_a_process_does_not_have(closed: tuple[int, ...], desk: Desk) -> None:
    """What is written must not land in the files that get their numbers."""

    def close() -> None:
        for number in closed:
            os.close(number)

    slim = ["bundle", "slim", desk.bundle(), "--variant", "fp16", "--out", "slim.edgeadv"]
    with command(*slim, stdout=subprocess.PIPE, preexec_fn=close) as process:
        out, err = process.communicate(timeout=120)
    if 1 in closed:
        assert process.returncode == 2 and out == "" and not (desk.home / "slim.edgeadv").exists()
        assert err == (
            "" if 2 in closed else "edgeadv: standard output is closed: send it to /dev/null if nobody reads it\n"
        )
    else:
        assert process.returncode == 0 and err == "" and "bundle id" in out
        Bundle.open(desk.home / "slim.edgeadv")


def test_standard_error_that_is_full_changes_nothing(desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, status in ((train(desk), 0), (["verify", "nowhere"], 2), (["nonsense"], 2)):
        with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", full)
            assert main([str(argument) for argument in given]) == status


def test_what_an_encoding_lacks_is_written_escaped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(desk.bundle() / "manifest.json", lambda manifest: manifest.update(title="café"), sign=True)
    path = desk.home / "out.txt"
    with path.open("w", encoding="ascii") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(["bundle", "show", str(desk.bundle())]) == 0
        assert main(["--help"]) == 0
    assert "title              caf\\xe9" in path.read_text()


def test_a_library_whose_import_was_interrupted_is_not_imported_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """NumPy cannot be: and whether the command has --resume is known only where its module is loaded."""

    def interrupt(given: list[str]) -> None:
        raise KeyboardInterrupt

    def fail(name: str) -> None:
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr("edgeadv.cli.refuse_processes", interrupt)
    monkeypatch.setattr("edgeadv.cli.subcommand", fail)
    assert main(["evaluate", "x"]) == 130
    assert capfd.readouterr().err == "edgeadv: interrupted\n"


@pytest.mark.parametrize("more", [0, 20])
def test_ctrl_c_at_any_moment_is_130(more: int, desk: Desk) -> None:
    """Once, and again and again by somebody who is impatient."""
    rng, seen, bundle = random.Random(more), set(), desk.bundle()
    began = time.monotonic()
    with command("verify", bundle, stdout=subprocess.PIPE) as process:
        process.communicate(timeout=120)
    whole = time.monotonic() - began
    for _ in range(10):
        wait = rng.uniform(0, 1.1 * whole)
        with command(
            *("verify", bundle),
            stdout=subprocess.PIPE,
            # whoever runs the tests in the background may have had SIGINT ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            time.sleep(wait)
            for _ in range(1 + more):
                process.send_signal(signal.SIGINT)
                time.sleep(0.002)
            _, err = process.communicate(timeout=120)
        # a shell calls both 130; the second is Python's own, before our first line or after our last one
        assert process.returncode in (0, 130, -signal.SIGINT), (process.returncode, wait, err)
        assert "edgeadv/cli" not in err and "edgeadv_runtime" not in err, (wait, err)
        seen.add(process.returncode)
    assert more or 130 in seen
