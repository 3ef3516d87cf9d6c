"""The wheel: what ships in it, and what it does in an empty environment without any extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = {
    "edgeadv": "edgeadv",
    "edgeadv_export": "export/edgeadv_export",
    "edgeadv_runtime": "runtime/edgeadv_runtime",
}
BASE = {
    "msgspec",
    "numpy",
    "nvidia-ml-py",
    "packaging",
    "pillow",
    "platformdirs",
    "psutil",
    "rich",
    "typer",
}
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "jinja2", "mlxtend", "matplotlib", "safetensors")


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must not see this checkout or this environment."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    environment |= {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, CHECKOUT, cwd=out)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_every_source_file_of_the_three_packages_ships_unchanged(contents):
    shipped = {name: data for name, data in contents.items() if ".dist-info/" not in name}
    expected = {
        f"{package}/{file.relative_to(CHECKOUT / folder).as_posix()}": file.read_bytes()
        for package, folder in SOURCES.items()
        for file in (CHECKOUT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert shipped.keys() == expected.keys()
    assert shipped == expected


def test_types_template_style_and_licence_ship_and_tests_do_not(contents):
    assert {f"{package}/py.typed" for package in SOURCES} <= contents.keys()
    assert {"edgeadv/reporting/template.html.j2", "edgeadv/reporting/style.css"} <= contents.keys()
    (licence,) = (name for name in contents if name.endswith(".dist-info/licenses/LICENSE"))
    assert contents[licence] == (CHECKOUT / "LICENSE").read_bytes()
    assert [name for name in contents if "test" in name or name.endswith(".pyc")] == []
    assert {name.partition("/")[0] for name in contents if ".dist-info/" not in name} == set(SOURCES)


def test_metadata_names_the_version_the_licence_the_command_and_the_base_requirements(contents, wheel):
    from edgeadv_runtime import __version__

    (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(contents[name].decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.name == f"edgeadv-{__version__}-py3-none-any.whl"
    required = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert {text.partition(">")[0].strip() for text in required} == BASE
    (name,) = (name for name in contents if name.endswith(".dist-info/entry_points.txt"))
    assert "edgeadv = edgeadv.__main__:entry" in contents[name].decode()


def test_every_extra_that_a_message_names_exists(contents):
    """``pip install "edgeadv[X]"`` in an error must be a command that works."""
    from edgeadv_runtime import doctor

    (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(contents[name].decode())
    assert set(doctor.EXTRAS) <= set(metadata.get_all("Provides-Extra"))
    required = set(metadata.get_all("Requires-Dist"))
    for extra, wanted in doctor.EXTRAS.items():
        assert {f"{package}>={version}; extra == '{extra}'" for package, version in wanted.items()} <= required


@pytest.fixture(scope="module")
def empty(wheel: Path, passing_folder: Callable[[str], Path]) -> Path:
    """The ``bin`` of an environment with the wheel and no extra."""
    home = passing_folder("empty") / "venv"
    venv.create(home, with_pip=True)
    installed = run(home / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, cwd=home)
    assert installed.returncode == 0, installed.stderr
    return home / "bin"


@pytest.mark.slow
def test_the_base_install_carries_neither_pytorch_nor_an_engine(empty, tmp_path):
    code = f"import importlib.util as u, json; print(json.dumps([m for m in {HEAVY!r} if u.find_spec(m)]))"
    outcome = run(empty / "python", "-c", code, cwd=tmp_path)
    assert (outcome.returncode, outcome.stdout.strip()) == (0, "[]"), outcome.stderr


@pytest.mark.slow
def test_the_base_install_shows_help_version_and_what_is_missing(empty, tmp_path):
    from edgeadv_runtime import __version__

    shown = run(empty / "edgeadv", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for command in (
        "demo",
        "train",
        "distill",
        "export",
        "bundle",
        "verify",
        "attack",
        "evaluate",
        "bench",
        "gate",
        "report",
        "doctor",
    ):
        assert command in shown.stdout.split()
        each = run(empty / "edgeadv", command, "--help", cwd=tmp_path)
        assert each.returncode == 0 and "Usage: edgeadv" in each.stdout, each.stderr
    assert run(empty / "edgeadv", "--version", cwd=tmp_path).stdout.split() == ["edgeadv", __version__]
    assert run(empty / "python", "-m", "edgeadv", "--version", cwd=tmp_path).stdout.split() == ["edgeadv", __version__]
    told = run(empty / "edgeadv", "doctor", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for extra in ("train", "export", "report", "ort"):
        assert f'pip install "edgeadv[{extra}]"' in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "--data", "mnist5k", "--arch", "resnet18", "--out", "run"], "train"),
        (["distill", "--data", "mnist5k", "--arch", "resnet18", "--out", "run"], "train"),
        (["attack", "bundle", "--data", "mnist5k", "--eps", "8/255", "--out", "run"], "train"),
        (["export", "somewhere", "--out", "run"], "export"),
        (["demo", "--out", "run"], "export"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(empty, tmp_path, arguments, extra):
    outcome = run(empty / "edgeadv", *arguments, cwd=tmp_path)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line == f'edgeadv: torch is not installed: pip install "edgeadv[{extra}]"'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_report_without_its_extra_says_what_to_install(empty, tmp_path):
    bench = {
        "schema_version": 1,
        "kind": "bench",
        "edgeadv_version": "0",
        "created": "",
        "rows": [],
        "skipped": [],
        "bundle": {"id": "0", "name": "x", "title": "x"},
        "environment": {},
        "conditions": {"before": {}, "after": {}},
    }
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    outcome = run(empty / "edgeadv", "report", "bench.json", "--out", "page.html", cwd=tmp_path)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line == 'edgeadv: jinja2 is not installed: pip install "edgeadv[report]"'
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
