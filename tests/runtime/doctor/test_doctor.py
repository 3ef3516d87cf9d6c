"""Doctor: what it finds, what it says is missing, and that nothing stops it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from edgeadv_runtime import doctor, errors
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.variants import TENSORRT_REFUSES_U8S8
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.doctor import EXTRAS, Check, bundles, diagnose, diagnosis, engines, extras, machine
from edgeadv_runtime.doctor.extras import check_extra, check_onnxruntime
from edgeadv_runtime.doctor.machine import Machine, check_gpu, check_python, look
from edgeadv_runtime.engine import LIBRARIES, Library, find_library
from edgeadv_runtime.errors import ProviderError

TRAIN = {
    "torch": "2.14.1+cu130",
    "torchvision": "0.29.1",
    "timm": "1.0.15",
    "onnx": "1.19.0",
    "safetensors": "0.8.0",
    "tensorboard": "2.20.0",
}
RTX_3060 = Gpu(0, "NVIDIA GeForce RTX 3060", (8, 6), "550.54.14", 12288, 11000, False)
ORIN = Gpu(0, "Orin", (8, 7), "540.4.0", 7607, 5000, True)
BARE = Machine(None, "no NVIDIA driver here", False, None, None, Path("/etc/nv_tegra_release"))
DESKTOP = replace(BARE, gpu=RTX_3060, no_gpu="", has_driver=True)


def no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def named(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def starting(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name.startswith(name)]


# ---- what is installed


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [
        (TRAIN, "ok", "torch 2.14.1+cu130"),
        (TRAIN | {"torch": "2.9"}, "ok", "torch 2.9"),
        (TRAIN | {"torch": "2.9.0rc1"}, "ok", "torch 2.9.0rc1"),
        (TRAIN | {"torch": "2.8.1"}, "problem", "torch 2.8.1 (needs 2.9)"),
        ({"torch": "2.14.1"}, "missing", "torchvision, timm, onnx, safetensors, tensorboard"),
        ({}, "missing", "torch, torchvision, timm, onnx, safetensors, tensorboard"),
        ({"torch": "1.13.0"}, "problem", "torch 1.13.0"),
    ],
)
def test_extra(found: dict[str, str], status: str, says: str) -> None:
    check = check_extra("train", found)
    assert check.status == status
    assert says in check.detail
    assert (check.hint is None) == (status == "ok")
    if check.hint is not None:
        assert '"edgeadv[train]"' in check.hint


@pytest.mark.parametrize("jetson", [False, True])
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
def test_onnxruntime_distributions(found: dict[str, str], statuses: dict[str, str], jetson: bool) -> None:
    checks = check_onnxruntime(found, machine="aarch64" if jetson else "x86_64", jetson=jetson)
    assert {check.name: check.status for check in checks} == statuses


def test_hint_never_adds_a_second_onnxruntime() -> None:
    (_, gpu) = check_onnxruntime({"onnxruntime": "1.32.0"}, machine="x86_64", jetson=False)
    assert gpu.hint is not None
    assert gpu.hint.index("pip uninstall onnxruntime;") < gpu.hint.index('"edgeadv[ort-gpu]"')
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    (clash,) = check_onnxruntime(both, machine="x86_64", jetson=False)
    assert "pip uninstall onnxruntime onnxruntime-gpu" in str(clash.hint)


@pytest.mark.parametrize("found", [{}, {"onnxruntime": "1.32.0"}, {"onnxruntime-gpu": "1.31.1"}])
def test_where_the_wheel_for_gpus_comes_from(found: dict[str, str]) -> None:
    jetson = str(check_onnxruntime(found, machine="aarch64", jetson=True)[-1].hint)
    assert "Jetson AI Lab" in jetson and "no code for Orin (sm_87) and Thor (sm_110)" in jetson
    assert '"edgeadv[ort-gpu]"' not in jetson
    server = check_onnxruntime(found, machine="aarch64", jetson=False)[-1].hint
    desktop = check_onnxruntime(found, machine="x86_64", jetson=False)[-1].hint
    if "onnxruntime-gpu" in found:
        assert server is None and desktop is None
    else:
        assert "sm_89, sm_90, sm_120 and sm_121 only" in str(server) and "sm_89" not in str(desktop)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_extras_are_those_of_the_distribution() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["optional-dependencies"]
    for extra, wanted in EXTRAS.items():
        own = [line for line in declared[extra] if not line.startswith("edgeadv")]
        assert {re.split(">=|==", line)[0]: re.split(">=|==", line)[1] for line in own} == wanted
    bundled = {"all", "dev", "docs"}  # they bring other extras, and what only developers need
    assert set(declared) - bundled == set(EXTRAS)
    assert project["requires-python"] == f">={extras.OLDEST_PYTHON}"


@pytest.mark.parametrize(
    "module", ["onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "PIL", "yaml", "psutil", "six", "os", "onnx.x", "on"]
)
def test_who_brings_a_module_is_as_the_standard_library_finds_it(module: str) -> None:
    expected = importlib.metadata.packages_distributions().get(module, [])
    assert extras.owners(module) == sorted(set(expected))


def test_a_part_of_tensorrt_rtx_tells_its_version_too() -> None:
    assert extras.installed_version("no such distribution", "tensorrt_rtx") == extras.installed_version(
        "tensorrt-rtx", "os"
    )
    assert extras.installed_version("no such distribution", "no_such_module") is None


@pytest.mark.parametrize(
    ("version", "status"), [("3.9.19", "problem"), ("3.10.0", "ok"), ("3.14.0", "ok"), ("3.15.0a1+", "ok")]
)
def test_python(version: str, status: str) -> None:
    assert check_python(version).status == status


# ---- the machine


def test_a_machine_without_a_driver() -> None:
    found = look(load=no_library)
    assert (found.gpu, found.has_driver) == (None, False)
    check = check_gpu(found)
    assert (check.status, check.hint) == ("missing", None)
    assert "libcuda.so.1" in check.detail


def test_a_driver_that_gives_no_gpu_is_a_problem() -> None:
    found = look(load=lambda name: SimpleNamespace())
    assert (found.gpu, found.has_driver) == (None, True)
    assert check_gpu(found).status == "problem"


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (RTX_3060, "NVIDIA GeForce RTX 3060, sm_86, driver 550.54.14, 11000 of 12288 MiB free"),
        (ORIN, "Orin, sm_87, driver 540.4.0, 5000 of 7607 MiB free, shared with the processor"),
        (replace(RTX_3060, driver="CUDA 13.0"), "NVIDIA GeForce RTX 3060, sm_86, CUDA 13.0, 11000 of 12288 MiB free"),
    ],
)
def test_a_gpu(gpu: Gpu, says: str) -> None:
    assert check_gpu(replace(DESKTOP, gpu=gpu)) == Check("gpu", "ok", says)


def test_a_jetson_is_recognised_by_its_release_or_its_board(tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    assert not look(load=no_library, release_file=release, board="Some Board").is_jetson
    assert look(load=no_library, release_file=release, board="NVIDIA Jetson Orin NX Engineering Reference").is_jetson
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    found = look(load=no_library, release_file=release, board="Some Board")
    assert found.is_jetson and found.jetpack is not None and found.jetpack.version == "6.2"
    assert named(machine.check_machine(found), "jetpack").status == "ok"
    assert named(machine.check_machine(found), "board").detail == "Some Board"


# ---- TensorRT


class ClassicModule:
    """What doctor asks of TensorRT 10.3, of which no wheel runs here: names from its stubs."""

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    class IBuilderConfig:
        pass

    class ICudaEngine:
        pass


CLASSIC = Library("tensorrt", "10.3.0", ClassicModule)


def test_what_tensorrt_rtx_can_do_is_asked_of_it() -> None:
    library = find_library("tensorrt-rtx")
    check = engines.check_abilities("tensorrt-rtx", library.version, library, BARE)
    assert check.status == "ok"
    for says in (str(library), "building only", "sm_86, sm_89", "runtime cache", "strongly typed fp32, fp16 and int8"):
        assert says in check.detail
    assert "building only" not in engines.check_abilities("tensorrt-rtx", library.version, library, DESKTOP).detail


@pytest.mark.parametrize("capability", [(8, 7), (9, 0), (11, 0)])
def test_tensorrt_rtx_does_not_know_every_gpu(tiny_bundle: Bundle, capability: tuple[int, int]) -> None:
    library = find_library("tensorrt-rtx")
    here = replace(DESKTOP, gpu=replace(RTX_3060, compute_capability=capability))
    check = engines.check_abilities("tensorrt-rtx", library.version, library, here)
    assert check.status == "problem" and '"edgeadv[tensorrt]"' in str(check.hint)
    assert f"does not know the GPU here (sm_{capability[0]}{capability[1]})" in check.detail
    answer = bundles._judge_tensorrt(tiny_bundle, "fp16", library=library, machine=here)
    assert answer[0] == "missing" and "does not know the GPU here" in answer[1]


def test_classic_tensorrt_builds_on_the_gpu_present() -> None:
    check = engines.check_abilities("tensorrt", "10.3.0", CLASSIC, DESKTOP)
    assert check.status == "ok"
    for says in ("TensorRT 10.3.0", "for the GPU present only", "no runtime cache", "in full only from 10.12"):
        assert says in check.detail
    newer = engines.check_abilities("tensorrt", "10.13.2", replace(CLASSIC, version="10.13.2"), DESKTOP)
    assert "in full only" not in newer.detail


def test_classic_tensorrt_is_not_imported_before_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    opened = engines.open_libraries(BARE)
    assert opened["tensorrt"] == BARE.no_gpu
    check = engines.check_abilities("tensorrt", "10.3.0", opened["tensorrt"], BARE)
    assert check == Check("tensorrt", "missing", "10.3.0, not opened: no NVIDIA driver here")
    with pytest.raises(SystemExit, match="imported"):
        engines.open_libraries(DESKTOP)


def test_a_tensorrt_that_does_not_load_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    opened = engines.open_libraries(DESKTOP)
    check = engines.check_abilities("tensorrt", "10.3.0", opened["tensorrt"], DESKTOP)
    assert check.status == "problem" and "libnvinfer.so.10" in check.detail


def test_on_a_jetson_tensorrt_is_jetpacks() -> None:
    jetson = replace(BARE, board="NVIDIA Jetson Orin Nano Developer Kit")
    absent = engines.check_installed("tensorrt", None, jetson)
    assert absent.status == "missing" and "--system-site-packages" in str(absent.hint)
    assert "pip install" in str(engines.check_installed("tensorrt", None, BARE).hint)
    rtx = engines.check_installed("tensorrt-rtx", "1.7.1.116", jetson)
    assert "no code for the GPUs of a Jetson" in str(rtx.hint)
    assert engines.check_installed("tensorrt", "8.6.2", BARE).status == "problem"


# ---- bundles


def with_int8(bundle: Bundle, folder: Path) -> Bundle:
    """``bundle`` with its fp32 file as both int8 variants too: doctor looks at names here, not into files."""
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for variant in ("int8-s8s8", "int8-u8s8"):
        name = f"model.{variant}.onnx"
        shutil.copyfile(folder / "model.fp32.onnx", folder / name)
        manifest["variants"][variant] = manifest["variants"]["fp32"] | {"file": name}
    manifest["bundle_id"] = bundle_id(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


def runs(bundle: Bundle, here: Machine, libraries: dict[str, Library | str], available: list[str]) -> list[Check]:
    return bundles.check_runs(bundle, here, libraries, available=available)


def test_every_variant_is_opened_and_run_or_has_its_reason(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_int8(tiny_bundle, tmp_path / "int8.edgeadv")
    checks = runs(bundle, BARE, engines.open_libraries(BARE), onnxruntime.get_available_providers())
    told: dict[str, list[str]] = {}
    for check in checks[:-1]:
        backend, _, variants = check.name.partition(": ")
        told.setdefault(backend, []).extend(variants.split(", "))
    assert set(told) == {"onnxruntime cpu", "onnxruntime cuda", "onnxruntime tensorrt", *LIBRARIES}
    assert {tuple(sorted(variants)) for variants in told.values()} == {("fp16", "fp32", "int8-s8s8", "int8-u8s8")}
    on_cpu = starting(checks, "onnxruntime cpu")
    assert {check.status for check in on_cpu} == {"ok"}
    assert any("opened and ran" in check.detail for check in on_cpu)
    for backend in ("onnxruntime tensorrt", *LIBRARIES):
        (unsigned,) = [check for check in starting(checks, f"{backend}: ") if "int8-u8s8" in check.name]
        assert "symmetric int8 only" in unsigned.detail
    assert checks[-1].name == "int8" and checks[-1].status == "ok"


def test_the_int8_variant_of_another_processor_is_said_to_be_slow(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_int8(tiny_bundle, tmp_path / "int8.edgeadv")
    checks = starting(runs(bundle, BARE, engines.open_libraries(BARE), []), "onnxruntime cpu")
    (slow,) = [check for check in checks if "slow" in check.detail]
    right = str(bundles.int8_variant("onnxruntime"))
    assert right in slow.detail and right not in slow.name and "int8" in slow.name


def test_the_variants_that_take_pixels_run_too(digits_bundle: Bundle, tmp_path: Path) -> None:
    names = [variant for variant in digits_bundle.variants if variant.endswith("-u8in")]
    bundle = digits_bundle.slim(tmp_path / "slim", variants=names, weights=False)
    checks = runs(bundle, BARE, engines.open_libraries(BARE), [])
    on_cpu = starting(checks, "onnxruntime cpu")
    assert {check.status for check in on_cpu} == {"ok"}
    (slow,) = [check for check in on_cpu if "slow" in check.detail]
    right = str(bundles.int8_variant("onnxruntime"))
    assert f"{right} is made for this processor" in slow.detail and right not in slow.name and "-u8in" in slow.name
    for backend in LIBRARIES:
        (unsigned,) = [check for check in starting(checks, f"{backend}: ") if "int8-u8s8-u8in" in check.name]
        assert "symmetric int8 only" in unsigned.detail
    assert checks[-1].status == "ok" and f"{right}-u8in" in checks[-1].detail and "int8-u8in" in checks[-1].detail


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_which_variant_int8_is(tiny_bundle: Bundle, tmp_path: Path, processor: str) -> None:
    absent = bundles.check_int8(tiny_bundle, machine=processor)
    right = "int8-u8s8" if processor == "x86_64" else "int8-s8s8"
    assert absent.status == "missing" and f"int8 is {right} with onnxruntime" in absent.detail
    assert "`precisions` int8" in str(absent.hint)
    both = with_int8(tiny_bundle, tmp_path / "int8.edgeadv")
    assert bundles.check_int8(both, machine=processor).status == "ok"
    one = both.slim(tmp_path / "one", variants=["int8-s8s8"], weights=False)
    assert bundles.check_int8(one, machine=processor).status == "ok"
    assert ("not here: int8-u8s8" in bundles.check_int8(one, machine=processor).detail) == (processor == "x86_64")
    none = both.slim(tmp_path / "none", variants=["fp16"], weights=False)
    assert "slim the full bundle again" in str(bundles.check_int8(none, machine=processor).hint)


def test_tensorrt_is_judged_by_everything_known_before_a_build(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rtx = find_library("tensorrt-rtx")

    def judge(variant: str, library: Library | str, here: Machine) -> tuple[str, str]:
        return bundles._judge_tensorrt(tiny_bundle, variant, library=library, machine=here)

    assert judge("fp16", "not installed", DESKTOP) == ("missing", "not installed")
    assert judge("fp16", rtx, BARE)[0] == "missing" and "edgeadv engine --target" in judge("fp16", rtx, BARE)[1]
    assert judge("fp16", CLASSIC, BARE) == ("missing", "it needs a GPU to run")
    for library in (rtx, CLASSIC):
        status, says = judge("fp16", library, DESKTOP)
        assert status == "ok" and says.endswith("engine cache: miss")
    turing = replace(DESKTOP, gpu=replace(RTX_3060, compute_capability=(7, 5)))
    assert judge("fp32", rtx, turing)[0] == "missing" and judge("fp16", rtx, turing)[0] == "ok"
    assert judge("fp16", replace(CLASSIC, version="8.6.2"), DESKTOP)[0] == "problem"
    assert not (tmp_path / "edgeadv").exists()  # asking makes nothing


def test_onnxruntime_with_tensorrt_builds_no_engine_for_every_variant() -> None:
    tried = []

    def attempt(variant: str) -> tuple[Any, str]:
        tried.append(variant)
        return ("missing", "TF32") if variant == "fp32" else ("ok", "opened and ran")

    answer = bundles._once(attempt)
    assert [answer(variant)[0] for variant in ("fp32", "fp16", "int8-s8s8")] == ["missing", "ok", "untried"]
    assert tried == ["fp32", "fp16"]
    assert answer("int8-u8s8") == ("missing", TENSORRT_REFUSES_U8S8)  # whatever ran before


# ---- all of it


def test_machine_and_extras_are_always_told() -> None:
    checks = diagnose()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"system", "python", "processor", "edgeadv", "gpu"} <= set(names)
    assert {f"extra {extra}" for extra in EXTRAS} <= set(names)
    assert {check.status for check in checks} <= {"ok", "missing", "problem"}
    assert named(checks, "tensorrt-rtx").status in ("ok", "problem")


def test_without_a_bundle_providers_are_not_called_usable() -> None:
    check = named(diagnose(), "onnxruntime providers")
    assert "compiled in, not opened" in check.detail
    assert "CPUExecutionProvider" in check.detail
    assert "edgeadv doctor BUNDLE" in str(check.hint)


def test_with_a_bundle_the_provider_is_opened_and_run(tiny_bundle: Bundle) -> None:
    checks = diagnose([tiny_bundle.path])
    assert named(checks, "onnxruntime cpu: fp32, fp16") == Check("onnxruntime cpu: fp32, fp16", "ok", "opened and ran")
    assert "onnxruntime providers" not in [check.name for check in checks]
    bundle = named(checks, f"bundle {tiny_bundle.path}")
    assert bundle.status == "ok"
    assert tiny_bundle.id[:12] in bundle.detail and "not signed" in bundle.detail
    assert "variants here: fp32, fp16" in bundle.detail


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_compiled_in_and_does_not_open_is_a_problem(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    checks = diagnose([tiny_bundle.path])
    assert named(checks, "onnxruntime cpu: fp32, fp16").status == "ok"
    cuda = named(checks, "onnxruntime cuda: fp32, fp16")
    if cuda.status == "ok":
        pytest.skip("this machine has a working CUDA provider")
    assert cuda.status == "problem"
    with pytest.raises(ProviderError) as refused:
        bundles.OnnxRuntimeBackend(tiny_bundle, variant="fp32", provider="cuda")
    assert cuda.detail == str(refused.value)


def test_slim_and_damaged_bundles_are_told_and_stop_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    (slim.path / "manifest.json.sig").write_bytes(b"\0" * 64)
    damaged = tmp_path / "damaged.edgeadv"
    shutil.copytree(tiny_bundle.path, damaged)
    with (damaged / "model.fp32.onnx").open("r+b") as stream:
        stream.write(b"\xff")
    checks = diagnose([tmp_path / "nowhere", damaged, slim.path])
    assert named(checks, f"bundle {tmp_path / 'nowhere'}").status == "problem"
    assert named(checks, f"bundle {damaged}").status == "problem"
    assert "SHA-256" in named(checks, f"bundle {damaged}").detail
    found = named(checks, f"bundle {slim.path}").detail
    assert "variants here: fp16; left out:" in found and "`public_key`" in found
    assert named(checks, "onnxruntime cpu: fp16").status == "ok"


def test_a_golden_file_that_is_none_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy.edgeadv"))
    (folder / "golden.npz").write_bytes(b"text")
    (check,) = runs(Bundle(folder, tiny_bundle.manifest), BARE, {}, [])
    assert check.status == "problem" and "golden.npz is damaged: its SHA-256" in check.detail


def test_an_empty_install_is_diagnosed_too(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def base(names: Sequence[str]) -> dict[str, str]:
        return {name: "9.9" for name in names if name in ("numpy", "pillow")}

    for module in (extras, machine, diagnosis):
        monkeypatch.setattr(module, "library_versions", base)
    monkeypatch.setattr(extras.importlib.metadata, "distributions", list)
    for name in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    checks = diagnose([tiny_bundle.path], load=no_library)
    assert {check.name for check in checks if check.status == "missing"} >= {f"extra {extra}" for extra in EXTRAS}
    assert not [check for check in checks if check.name in ("onnxruntime", "onnxruntime providers")]
    assert named(checks, f"bundle {tiny_bundle.path}").status == "ok"
    for backend, extra in (("onnxruntime cpu", "ort"), ("onnxruntime cuda", "ort-gpu"), ("tensorrt", "tensorrt")):
        check = named(checks, f"{backend}: fp32, fp16")
        assert check.status == "missing" and f'pip install "edgeadv[{extra}]"' in check.detail


def test_an_onnxruntime_that_does_not_import_is_a_problem_with_its_reason(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = named(diagnose(), "onnxruntime")
    assert check.status == "problem"
    assert "does not import" in check.detail
    assert str(check.hint).startswith("pip install --force-reinstall onnxruntime")

    def half(module: str) -> Any:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(errors.importlib, "import_module", half)
    answer = bundles._try_onnxruntime(tiny_bundle, None, "fp32", provider="cpu", built_in=False)  # type: ignore[arg-type]
    assert answer == ("problem", "onnxruntime does not import: undefined symbol")


def test_the_package_offers_what_others_use() -> None:
    assert set(doctor.__all__) == {"EXTRAS", "Check", "Status", "diagnose"}
    assert ctypes.CDLL is diagnose.__kwdefaults__["load"]
