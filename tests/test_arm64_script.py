"""What of scripts/arm64.sh and the camera's unit file can be tested without downloads. The emulated run is in
docs/status.md."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest

from edgeadv.cli import subcommand
from edgeadv_runtime.bundle.bundle import Bundle

CHECKOUT = Path(__file__).resolve().parents[1]
SCRIPT = CHECKOUT / "scripts" / "arm64.sh"
UNIT = CHECKOUT / "examples" / "edgeadv-camera.service"
BASH = shutil.which("bash") or "bash"
on_x86 = platform.machine() not in ("aarch64", "arm64")


def arm64(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


def check_module():
    spec = importlib.util.spec_from_file_location("arm64_check", CHECKOUT / "scripts" / "arm64_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_is_sound_bash_and_may_be_executed():
    assert subprocess.run([BASH, "-n", str(SCRIPT)], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    if linter := shutil.which("shellcheck"):
        found = subprocess.run([linter, str(SCRIPT)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_what_is_no_bundle_is_refused_before_anything_is_fetched(tmp_path):
    told = arm64(tmp_path, ARM64_HOME=tmp_path / "home")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f"arm64: {tmp_path} is not a bundle: it has no manifest.json\n"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("absent", ["apt-get", "dpkg-deb"])
def test_a_missing_tool_is_named(tmp_path, tiny_bundle, absent):
    for tool in {"dirname", "uname", "apt-get", "dpkg", "dpkg-deb", "awk", "sha256sum"} - {absent}:
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/true")
    told = arm64(tiny_bundle.path, PATH=tmp_path, ARM64_HOME=tmp_path / "home")
    assert told.returncode == 2
    assert (f"{absent} is not here" if on_x86 else "this machine is ARM already") in told.stderr


def test_unreachable_repositories_are_an_error_that_says_what_to_set(tmp_path, tiny_bundle):
    nowhere = f"file:{tmp_path}/nowhere"
    told = arm64(tiny_bundle.path, PYTHON=sys.executable, DEBIAN=nowhere, ARM64_HOME=tmp_path / "home")
    assert told.returncode == 2
    if not on_x86:
        assert "this machine is ARM already" in told.stderr
    elif not all(map(shutil.which, ("apt-get", "dpkg", "dpkg-deb"))):
        assert "is not here" in told.stderr
    else:
        assert "set DEBIAN to the address of a mirror" in told.stderr
        assert nowhere in told.stderr  # apt's own words
        assert not list((tmp_path / "home").glob("*/.complete"))


def test_the_check_wants_the_wheel_on_arm_without_pytorch(tiny_bundle, capsys):
    assert check_module().main(str(tiny_bundle.path)) == 1
    told = capsys.readouterr()
    frames = len(tiny_bundle.golden().frames)
    for variant in tiny_bundle.variants:
        assert f"{variant}: {frames} of {frames} frames have the golden label" in told.out
    wrong = ["this is the checkout's edgeadv, not the wheel's", "this Python has PyTorch, which a device has not"]
    if on_x86:
        wrong.insert(0, f"this is {platform.machine()}, not aarch64")
    assert told.err.splitlines() == [f"WRONG: {line}" for line in wrong]


def test_the_check_sees_other_answers(tiny_bundle, capsys, monkeypatch):
    golden = tiny_bundle.golden()
    other = dataclasses.replace(golden, logits={name: np.roll(row, 1, 1) for name, row in golden.logits.items()})
    monkeypatch.setattr(Bundle, "golden", lambda _: other)
    assert check_module().main(str(tiny_bundle.path)) == 1
    told = capsys.readouterr().err
    assert all(f"{variant} answers other than when it was exported" in told for variant in tiny_bundle.variants)


@pytest.fixture
def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_runs_the_camera_as_its_own_user_and_comes_back(unit):
    service = unit["Service"]
    assert service["User"] == "edgeadv" and "video" in service["SupplementaryGroups"].split()
    assert service["Restart"] == "on-failure" and unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert 0 < int(service["RestartSec"]) < int(service["RestartMaxDelaySec"])
    program, command, *arguments = service["ExecStart"].split()
    assert (Path(program).name, command) == ("edgeadv", "camera")
    options = {name for parameter in subcommand("camera").params for name in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options


def test_the_unit_is_closed_to_all_but_cameras(unit):
    service = unit["Service"]
    assert service.get("PrivateDevices", "no") == "no", "cameras would be hidden"
    assert (service["DevicePolicy"], service["DeviceAllow"]) == ("closed", "char-video4linux rw")
    assert service["CapabilityBoundingSet"] == "" and service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict" and service["ProtectHome"] == "yes"


def test_systemd_understands_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # the tests above have parsed it
        return
    # the command is not installed here
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    told = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    # older than 254, as the file says
    known = re.compile(r"Unknown key (name )?'(RestartSteps|RestartMaxDelaySec)'")
    complaints = [line for line in told.stderr.splitlines() if UNIT.name in line and not known.search(line)]
    assert complaints == []
