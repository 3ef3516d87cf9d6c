"""``kill -9`` before every operation on files of every command that writes: what it makes is whole, absent or to be
resumed; the next run leaves nothing of the first, and its result is that of a run that was not killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeadv.training.runs import Run
from edgeadv_runtime import AttackPack, Bundle, Results
from tests.killing import Runner, runner


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        arguments: without the files that :meth:`prepare` makes; ``out`` is what it makes.
        result: what is compared of what it made; raises where that is not whole.
        prepare: fills the folder in which it runs.
        resume: added in the next run.
        refused: whether the next run may find that all is done, and refuse to do it again.
    """

    arguments: list[object]
    result: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda home: None
    resume: tuple[str, ...] = ()
    refused: bool = False


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key not in keys}


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def of_bundle(path: Path) -> object:
    opened = Bundle.open(path)
    assert {file.name for file in path.iterdir()} == {*opened.files, "manifest.json"} - set(opened.manifest.left_out)
    return without(hashes(path), "manifest.json")


def of_signed(path: Path) -> object:
    assert {file.name for file in path.iterdir()} <= {*Bundle.open(path).files, "manifest.json", "manifest.json.sig"}
    signature = path / "manifest.json.sig"
    if not signature.exists():
        raise FileNotFoundError(signature)
    assert Bundle.open(path, public_key=path.parent / "public.pem").signed
    return hashes(path)


def of_pack(path: Path) -> object:
    pack = AttackPack.open(path, bundle=Bundle.open(path.parent / "net.edgeadv"))
    assert {file.name for file in path.iterdir()} == {"pack.json", *(shard.file for shard in pack.manifest.shards)}
    return without(hashes(path), "pack.json"), without(json.loads((path / "pack.json").read_text()), "created")


def of_results(path: Path) -> object:
    return Results.load(path).rows


def of_page(path: Path) -> object:
    page = path.read_bytes()
    assert page.endswith(b"</html>\n") or page.endswith(b"</html>")
    return page


def of_run(path: Path) -> object:
    if not (path / "run.json").exists():
        raise FileNotFoundError(path)
    run = Run.open(path)
    # of a killed run, --resume removes it
    assert {file.name for file in path.iterdir()} - {"state.bin"} == {
        "run.json",
        "weights.safetensors",
        "training-images.npy",
    }
    return run.info.weights_sha256, run.info.training_images


@pytest.fixture(scope="module")
def run_command() -> Iterator[Runner]:
    with runner() as found:
        yield found


@pytest.fixture
def commands(
    request: pytest.FixtureRequest, tiny_bundle: Bundle, photos: Path, split: Path, tmp_path: Path
) -> dict[str, Callable[[], Command]]:
    def key(home: Path) -> None:
        shutil.copytree(tiny_bundle.path, home / "out")
        for make in (
            ["genpkey", "-algorithm", "ed25519", "-out", "key.pem"],
            ["pkey", "-in", "key.pem", "-pubout", "-out", "public.pem"],
        ):
            subprocess.run(["openssl", *make], cwd=home, check=True)

    def bundle(home: Path) -> None:
        (home / "net.edgeadv").symlink_to(tiny_bundle.path)

    def old(home: Path) -> None:
        tiny_bundle.slim(home / "out", variants=["fp32"], weights=False)

    slim: list[object] = ["bundle", "slim", tiny_bundle.path, "--variant", "fp16", "--out", "out"]
    fgsm: list[object] = ["--data", photos, "--eps", "8/255", "--attack", "fgsm", "--out", "out"]
    train: list[object] = ["--data", split, "--arch", "timm/test_resnet", "--batch-size", "16", "--epochs", "2"]

    def export() -> list[object]:
        return ["export", request.getfixturevalue("run"), "--precision", "fp32", "--out", "out"]

    def report(home: Path) -> None:
        results = Path(request.getfixturevalue("results"))
        shutil.copyfile(results, home / "results.json")

    return {
        "slim": lambda: Command(slim, of_bundle, refused=True),
        "slim-overwrite": lambda: Command([*slim, "--overwrite"], of_bundle, prepare=old),
        "sign": lambda: Command(["bundle", "sign", "out", "--key", "key.pem"], of_signed, prepare=key),
        "attack": lambda: Command(["attack", "net.edgeadv", *fgsm], of_pack, bundle, ("--resume",), refused=True),
        "evaluate": lambda: Command(["evaluate", tiny_bundle.path, *fgsm], of_results, resume=("--resume",)),
        "report": lambda: Command(["report", "results.json", "--out", "out"], of_page, prepare=report),
        "train": lambda: Command(["train", *train, "--out", "out"], of_run, resume=("--resume",)),
        "export": lambda: Command(export(), of_bundle, refused=True),
    }


NAMES = ["slim", "slim-overwrite", "sign", "attack", "evaluate", "report", "train", "export"]


def sweep(command: Command, run_command: Runner, home: Path, every: int) -> int:
    """Kill ``command`` before every so-manieth operation; returns how many there are."""

    def fresh(name: str) -> Path:
        (home / name).mkdir()
        command.prepare(home / name)
        return home / name

    whole = fresh("whole")
    before = {path.name for path in whole.iterdir()}
    ended = run_command(whole, *command.arguments)
    assert (ended.status, before | {"out"}) == (0, {path.name for path in whole.iterdir()}), ended.err
    wanted, operations = command.result(whole / "out"), ended.operations
    assert operations is not None
    for number in range(1, operations + 1, every):
        place = fresh(str(number))
        if (place / "key.pem").exists():
            for name in ("key.pem", "public.pem"):
                shutil.copyfile(whole / name, place / name)
        there = (place / "out").exists()
        killed = run_command(place, *command.arguments, kill_before=number)
        assert killed.status == -9, killed.err
        if there:
            # a bundle is there at every moment
            Bundle.open(place / "out")
        done = False
        if (place / "out").exists():
            try:
                done = command.result(place / "out") == wanted
            except FileNotFoundError:  # not finished
                assert command.resume or there
        again = run_command(place, *command.arguments, *command.resume)
        if again.status != 0:
            assert done and command.refused and again.status == 2 and "exists" in again.err, (number, again.err)
        assert command.result(place / "out") == wanted, number
        assert {path.name for path in place.iterdir()} == before | {"out"}, number
        assert not [path for path in (place / "out").rglob(".*") if (place / "out").is_dir()], number
        shutil.rmtree(place)
    print(f"{operations} operations")
    return operations


FEW = {"export": 16, "train": 12, "evaluate": 8, "attack": 8}
"""Of these, which take seconds each, every so-manieth operation; all of them is for ``slow``."""


@pytest.mark.parametrize("name", NAMES)
def test_killed(name: str, commands: dict[str, Callable[[], Command]], run_command: Runner, tmp_path: Path) -> None:
    assert sweep(commands[name](), run_command, tmp_path, FEW.get(name, 1)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_killed_before_every_operation(
    name: str, commands: dict[str, Callable[[], Command]], run_command: Runner, tmp_path: Path
) -> None:
    assert sweep(commands[name](), run_command, tmp_path, 1) > FEW[name]
