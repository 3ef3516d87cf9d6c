"""Doctor: what it finds, what it says is missing, and that nothing stops it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgeadv.cli.doctor import doctor as doctor_command
from edgeadv_runtime import doctor
from edgeadv_runtime.doctor import EXTRAS, Check, check_extra, check_nvidia_driver, check_onnxruntime, diagnose
from edgeadv_runtime.errors import ProviderError

TRAIN = {"torch": "2.14.1+cu130", "torchvision": "0.29.1", "timm": "1.0.15", "safetensors": "0.8.0"}


class Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, status=0, version=13020):
        self.status, self.version = status, version

    def cuInit(self, flags):  # noqa: N802  (the names are NVIDIA's)
        assert flags == 0
        return self.status

    def cuDriverGetVersion(self, pointer):  # noqa: N802
        pointer._obj.value = self.version
        return 0


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


def named(checks, name):
    (check,) = [check for check in checks if check.name == name]
    return check


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [
        (TRAIN, "ok", "torch 2.14.1+cu130"),
        (TRAIN | {"torch": "2.9"}, "ok", "torch 2.9"),
        (TRAIN | {"torch": "2.9.0rc1"}, "ok", "torch 2.9.0rc1"),
        (TRAIN | {"torch": "2.8.1"}, "problem", "torch 2.8.1 (needs 2.9)"),
        ({"torch": "2.14.1"}, "missing", "torchvision, timm, safetensors"),
        ({}, "missing", "torch, torchvision, timm, safetensors"),
        ({"torch": "1.13.0"}, "problem", "torch 1.13.0"),
    ],
)
def test_extra(found, status, says):
    check = check_extra("train", found)
    assert check.status == status
    assert says in check.detail
    assert (check.hint is None) == (status == "ok")
    if check.hint is not None:
        assert '"edgeadv[train]"' in check.hint


@pytest.mark.parametrize(
    ("found", "statuses"),
    [
        ({}, {"extra ort": "missing", "extra ort-gpu": "missing"}),
        ({"onnxruntime": "1.32.0"}, {"extra ort": "ok", "extra ort-gpu": "missing"}),
        ({"onnxruntime": "1.20.0"}, {"extra ort": "problem", "extra ort-gpu": "missing"}),
        ({"onnxruntime-openvino": "1.24.1"}, {"extra ort": "ok", "extra ort-gpu": "missing"}),
        ({"onnxruntime-gpu": "1.31.1"}, {"extra ort": "ok", "extra ort-gpu": "ok"}),
        ({"onnxruntime-gpu": "1.18.0"}, {"extra ort": "ok", "extra ort-gpu": "problem"}),
        ({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, {"onnxruntime": "problem"}),
    ],
)
def test_onnxruntime_distributions(found, statuses):
    assert {check.name: check.status for check in check_onnxruntime(found)} == statuses


def test_hint_never_adds_a_second_onnxruntime():
    (_, gpu) = check_onnxruntime({"onnxruntime": "1.32.0"})
    assert gpu.hint is not None
    assert gpu.hint.index("pip uninstall onnxruntime;") < gpu.hint.index('"edgeadv[ort-gpu]"')
    (both,) = check_onnxruntime({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    assert "pip uninstall onnxruntime onnxruntime-gpu" in str(both.hint)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_extras_are_those_of_the_distribution():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, wanted in EXTRAS.items():
        own = [line for line in project["optional-dependencies"][extra] if not line.startswith("edgeadv")]
        assert {re.split(">=|==", line)[0]: re.split(">=|==", line)[1] for line in own} == wanted
    assert project["requires-python"] == f">={doctor.OLDEST_PYTHON}"


@pytest.mark.parametrize(
    ("load", "status", "says"),
    [
        (no_library, "missing", "libcuda.so.1"),
        (lambda name: Driver(status=100), "problem", "CUDA error 100"),
        (lambda name: Driver(), "ok", "CUDA 13.2"),
    ],
)
def test_nvidia_driver(load, status, says):
    check = check_nvidia_driver(load)
    assert check.status == status
    assert says in check.detail


def test_machine_and_extras_are_always_told():
    checks = diagnose()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"system", "python", "processor", "edgeadv", "nvidia driver"} <= set(names)
    assert {f"extra {extra}" for extra in EXTRAS} <= set(names)
    assert {check.status for check in checks} <= {"ok", "missing", "problem"}


def test_without_a_bundle_providers_are_not_called_usable():
    check = named(diagnose(), "onnxruntime")
    assert "compiled in, not opened" in check.detail
    assert "CPUExecutionProvider" in check.detail
    assert "edgeadv doctor BUNDLE" in str(check.hint)


def test_with_a_bundle_the_provider_is_opened_and_run(tiny_bundle):
    checks = diagnose([tiny_bundle.path])
    assert named(checks, "onnxruntime cpu").status == "ok"
    assert "onnxruntime" not in [check.name for check in checks]
    bundle = named(checks, f"bundle {tiny_bundle.path}")
    assert bundle.status == "ok"
    assert tiny_bundle.id[:12] in bundle.detail
    assert "variants here: fp32, fp16" in bundle.detail


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_compiled_in_and_does_not_open_is_a_problem(tiny_bundle, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    checks = diagnose([tiny_bundle.path])
    assert named(checks, "onnxruntime cpu").status == "ok"
    cuda = named(checks, "onnxruntime cuda")
    if cuda.status == "ok":
        pytest.skip("this machine has a working CUDA provider")
    assert cuda.status == "problem"
    with pytest.raises(ProviderError) as refused:
        doctor.OnnxRuntimeBackend(tiny_bundle, variant="fp32", provider="cuda")
    assert cuda.detail == str(refused.value)


def test_slim_and_damaged_bundles_are_told_and_stop_nothing(tiny_bundle, tmp_path):
    slim = tiny_bundle.slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    damaged = tmp_path / "damaged.edgeadv"
    shutil.copytree(tiny_bundle.path, damaged)
    with (damaged / "model.fp32.onnx").open("r+b") as stream:
        stream.write(b"\xff")
    checks = diagnose([tmp_path / "nowhere", damaged, slim.path])
    assert named(checks, f"bundle {tmp_path / 'nowhere'}").status == "problem"
    assert named(checks, f"bundle {damaged}").status == "problem"
    assert "SHA-256" in named(checks, f"bundle {damaged}").detail
    assert "variants here: fp16; left out:" in named(checks, f"bundle {slim.path}").detail
    assert "ran fp16" in named(checks, "onnxruntime cpu").detail


def test_an_empty_install_is_diagnosed_too(tiny_bundle, monkeypatch):
    monkeypatch.setattr(doctor, "library_versions", lambda names: {n: "9.9" for n in names if n in ("numpy", "pillow")})
    monkeypatch.setattr(doctor.importlib.metadata, "packages_distributions", dict)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    checks = diagnose([tiny_bundle.path])
    assert {check.name for check in checks if check.status == "missing"} >= {f"extra {extra}" for extra in EXTRAS}
    assert not [check for check in checks if check.name.startswith("onnxruntime")]
    assert named(checks, f"bundle {tiny_bundle.path}").status == "ok"


def test_an_onnxruntime_that_does_not_import_is_a_problem_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = named(diagnose(), "onnxruntime")
    assert check.status == "problem"
    assert "does not import" in check.detail
    assert str(check.hint).startswith("pip install --force-reinstall onnxruntime")


def cli(*args):
    app = typer.Typer()
    app.command()(doctor_command)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_command_shows_every_check_whole_and_succeeds_whatever_is_missing(monkeypatch):
    import edgeadv.cli.doctor as module

    checks = [
        Check("extra train", "missing", "not installed: torch", 'pip install "edgeadv[train]"'),
        Check("a problem", "problem", "x" * 120, None),
    ]
    monkeypatch.setattr(module, "diagnose", lambda bundles: checks)
    run = cli()
    assert run.exit_code == 0, run.output
    for check in checks:
        for text in (check.status, check.name, check.detail, check.hint or ""):
            assert text in run.stdout


def test_command_opens_the_bundles_it_is_given(tiny_bundle, tmp_path):
    run = cli(tiny_bundle.path, tmp_path / "nowhere")
    assert run.exit_code == 0, run.output
    assert tiny_bundle.id[:12] in run.stdout
    assert "does not exist" in run.stdout
