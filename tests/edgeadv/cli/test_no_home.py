"""A container with any uid, no HOME, nobody in passwd: each command does its work, or says in a line what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeadv.cli import _SUMMARIES
from edgeadv_runtime import Bundle

# each command as it is given, what it ends with, and what it says where it needs a cache
COMMANDS: dict[str, tuple[str, int, str]] = {
    "train": ("train --data DATA --arch timm/test_resnet --epochs 1 --batch-size 8 --out OUT/run", 0, ""),
    "export": ("export OUT/run --out OUT/run.edgeadv --precision fp32", 0, ""),
    "distill": (
        "distill --data DATA --arch timm/test_resnet --recipe soft-label --teacher OUT/run --epochs 1 --batch-size 8 "
        "--out OUT/student",
        0,
        "",
    ),
    "runs": ("runs OUT", 0, ""),
    "bundle": ("bundle show BUNDLE", 0, ""),
    "import": ("import BUNDLE/model.fp32.onnx --check", 0, ""),
    "verify": ("verify BUNDLE", 0, ""),
    "diff": ("diff BUNDLE --with other:pixels --data DATA", 2, ""),
    "attack": ("attack BUNDLE --data DATA/test --eps 26/255 --attack fgsm --out OUT/x.pack", 0, ""),
    "evaluate": ("evaluate BUNDLE --data DATA/test --eps 0.1 --attack fgsm --out OUT/x.json", 0, ""),
    "gate": ("gate OUT/x.json --min-clean 0", 0, ""),
    "report": ("report OUT/x.json --out OUT/x.html", 0, ""),
    "bench": ("bench BUNDLE --runs 3 --precision fp32 --out OUT/b.json", 0, ""),
    "card": ("card OUT/x.json OUT/b.json --bundle BUNDLE --out OUT/c.html", 0, ""),
    "camera": ("camera BUNDLE --source DATA/test", 0, ""),
    "perturbation": ("perturbation BUNDLE --data DATA/test --eps 26/255 --out OUT/p.npz --limit 10", 0, ""),
    "patch": ("patch BUNDLE --data DATA/test --area 20% --out OUT/p.png --limit 10", 0, ""),
    "study": ("study --arch resnet18 --data DATA/none --eps 0.1 --out OUT/study", 2, ""),
    "engine": ("engine BUNDLE", 2, ""),
    "doctor": ("doctor BUNDLE", 0, ""),
    "demo": ("demo --out /proc/none", 2, ""),
    "torchvision": ("evaluate BUNDLE --data cifar10 --eps 0.1 --out OUT/c.json", 2, "--data-root"),
    "compile": (
        # a network that is compiled in seconds
        "train --data DATA --arch small:network --epochs 1 --batch-size 8 --compile --out OUT/compiled",
        0,
        "",
    ),
}
_NETWORK = """
from torch import nn
def network():
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
"""
_CHILD = """
import contextlib, io, json, os, sys, traceback
from edgeadv.cli import main
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(arguments)
        except BaseException:
            status = traceback.format_exc()
    found[name] = [status, said.getvalue()]
print(json.dumps(found))
"""


def images(folder: Path, ids: tuple[str, ...]) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for class_id in ids:
            (folder / part / class_id).mkdir(parents=True)
            for i in range(2):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / class_id / f"{i}.png")
    return folder


def test_every_command_is_tried() -> None:
    assert set(_SUMMARIES) <= COMMANDS.keys()


@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_without_a_home_every_command_works_or_says_what_it_lacks(
    home: str | None, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    bundle = tmp_path / "tiny.edgeadv"
    shutil.copytree(tiny_bundle.path, bundle)
    places = {"DATA": images(tmp_path / "data", tiny_bundle.classes.ids), "BUNDLE": bundle, "OUT": tmp_path / "out"}
    places["OUT"].mkdir()
    commands = {}
    for name, (text, _, _) in COMMANDS.items():
        for key, path in places.items():
            text = text.replace(key, str(path))
        commands[name] = text.split()
    # the names of this user too: getpass would take one of them
    gone = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in gone}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **({} if home is None else {"HOME": home})}
    # a uid of its own name space: files stay readable as they are
    other = ["unshare", "--user", "--map-user=12345"]
    if shutil.which("unshare") is None or subprocess.run([*other, "true"], capture_output=True).returncode:
        pytest.skip("unshare makes no name space of users here, so that nobody without a name in passwd can be played")
    (tmp_path / "small.py").write_text(_NETWORK)
    command = [*other, sys.executable, "-c", _CHILD, json.dumps(commands)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = []
    for name, (_, due, says) in COMMANDS.items():
        status, said = found[name]
        lines = [line for line in said.splitlines() if line.startswith("edgeadv: ")]
        if status != due or len(lines) != (due == 2) or says not in said:
            wrong.append((name, status, said[-400:]))
    assert not wrong, "\n".join(map(str, wrong))
