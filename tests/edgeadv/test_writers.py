"""What holds of every command that makes a file or a folder: rights follow the umask, and one works at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeadv.cli import _SUMMARIES, subcommand
from edgeadv_runtime import Bundle
from edgeadv_runtime.files import working_on
from tests.killing import Runner, runner
from tests.modes import modes

MAKES = {"out", "export", "picture", "junit", "json", "tensorboard"}
"""Options that name what a command makes."""
COMPOSED = {"demo"}
"""Commands that do nothing but call others."""


@pytest.fixture(scope="module")
def run_command() -> Iterator[Runner]:
    with runner() as found:
        yield found


@pytest.fixture(scope="module")
def home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, photos: Path
) -> Path:
    """A folder with what commands read, each under one name."""
    folder: Path = tmp_path_factory.mktemp("writers")
    for name, path in {
        "net.edgeadv": tiny_bundle.path,
        "photos": photos,
        "split": request.getfixturevalue("split"),
        "run": request.getfixturevalue("run"),
        "results.json": request.getfixturevalue("results"),
        "net.onnx": tiny_bundle.onnx_path("fp32"),
        "imagenet": request.getfixturevalue("imagenet_photos"),
        "weights.pth": request.getfixturevalue("imagenet_weights")["timm/test_resnet"],
    }.items():
        (folder / name).symlink_to(path)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / "key.pem"], check=True)
    return folder


TRAIN = "--data ../split --arch timm/test_resnet --epochs 1 --batch-size 16"
FGSM = "../net.edgeadv --data ../photos --eps 8/255 --attack fgsm"
LOOK = "--scale 0..1 --color rgb --preprocess resize=32,crop=32 --classes 10 --golden ../photos"
WRITERS = {
    "train": f"{TRAIN} --tensorboard events --out out",
    "distill": f"{TRAIN} --recipe soft-label --out out",
    "export": "../run --precision fp32 --out out",
    "import": f"../net.onnx {LOOK} --out out",
    "bundle slim": "../net.edgeadv --variant fp16 --out out",
    "bundle show": "../net.edgeadv --picture out.png",
    "bundle sign": "out --key ../key.pem",
    "engine": "../net.edgeadv --precision fp32 --target sm_86 --engine-cache cache --out out",
    "attack": f"{FGSM} --out out",
    "evaluate": f"{FGSM} --out out",
    "study": "--arch timm/test_resnet --weights timm/test_resnet=../weights.pth --data ../imagenet --n 4 --eps 1/255 "
    "--out out",
    "bench": "../net.edgeadv --runs 2 --warm-up 1 --out out",
    "perturbation": "../net.edgeadv --data ../photos --eps 76/255 --limit 20 --out out",
    "patch": "../net.edgeadv --data ../photos --area 20% --limit 20 --out out",
    "gate": "../results.json --min-clean 0.1 --junit out.xml --json out.json",
    "report": "../results.json --out out",
    "card": "../results.json --bundle ../net.edgeadv --out out.md",
}
"""A call of each, in a folder beside what it reads."""


def options_that_make() -> dict[str, set[str]]:
    """Of each command, the options that name what it makes, as the command line has them."""
    found: dict[str, set[str]] = {}
    for name in _SUMMARIES:
        command = subcommand(name)
        commands = {f"{name} {key}": each for key, each in getattr(command, "commands", {}).items()} or {name: command}
        for key, each in commands.items():
            if made := MAKES & {parameter.name for parameter in each.params}:
                found[key] = made
    return found


def test_every_command_that_writes_is_tried() -> None:
    # sign has no option for it: it writes into the bundle
    assert set(options_that_make()) | {"bundle sign"} == set(WRITERS) | COMPOSED
    # to what is made there belongs a lock
    assert {name for name, made in options_that_make().items() if "out" in made} - COMPOSED == set(LOCKED)


def in_place(name: str, home: Path, place: str) -> Path:
    if name == "engine":
        pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    folder = home / place.replace(" ", "-")
    folder.mkdir()
    if name == "bundle sign":
        shutil.copytree(home / "net.edgeadv", folder / "out")
    return folder


@pytest.mark.parametrize("umask", [0o077, 0o002], ids=oct)
@pytest.mark.parametrize("name", WRITERS)
def test_rights_follow_the_umask(name: str, umask: int, home: Path, run_command: Runner) -> None:
    folder = in_place(name, home, f"{name}-{umask}")
    before = set(folder.rglob("*"))
    done = run_command(folder, *name.split(), *WRITERS[name].split(), umask=umask)
    assert done.status == 0, done.err
    assert set(folder.rglob("*")) > before
    assert modes(folder, umask, but=before) == []


LOCKED = {name: call.split()[-1] for name, call in WRITERS.items() if "--out" in call.split()[-2:-1]}
"""What each of them makes."""


@pytest.mark.parametrize("name", LOCKED)
def test_the_second_is_refused_at_once_in_one_line(name: str, home: Path, run_command: Runner) -> None:
    folder, out = in_place(name, home, f"{name}-locked"), LOCKED[name]
    with working_on(folder / out):
        second = run_command(folder, *name.split(), *WRITERS[name].split())
    assert second.status == 2
    refusal = f"edgeadv: process {os.getpid()} works on {out}: wait until it is done, or choose another --out\n"
    assert second.err == refusal
    assert list(folder.iterdir()) == []
