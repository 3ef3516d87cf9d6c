"""The versions of TensorRT. TensorRT-RTX is real; classic TensorRT, which needs a GPU, is a namespace with its
names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeadv_runtime.engine import EngineOptions, Library, find_library
from edgeadv_runtime.engine.messages import Heard
from edgeadv_runtime.errors import EngineError, InputError, MissingDependencyError

CLASSIC = SimpleNamespace(
    __version__="10.3.0",
    Builder=object,
    ICudaEngine=object,
    IBuilderConfig=object,
    ILogger=object,
    NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1),
)


@pytest.fixture
def classic() -> Library:
    """What JetPack 6 has, by name."""
    return Library("tensorrt", "10.3.0", CLASSIC)


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_tensorrt_rtx_is_found(rtx: Library) -> None:
    assert (rtx.name, str(rtx)) == ("tensorrt-rtx", f"TensorRT-RTX {rtx.version}")
    assert rtx.version[:2] == "1."
    assert rtx.can_target and rtx.has_runtime_config and rtx.has_runtime_cache and rtx.captures_cuda_graphs
    assert {"sm_86", "sm_89"} <= set(rtx.known_targets)
    assert "sm_90" not in rtx.known_targets  # an H100; nor has it that of any Jetson
    numbers = [int(target[3:]) for target in rtx.known_targets]
    assert numbers == sorted(numbers)


def test_classic_tensorrt_comes_first(rtx: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", CLASSIC)
    assert (find_library().name, find_library().version) == ("tensorrt", "10.3.0")
    assert find_library("tensorrt-rtx") == rtx
    without(monkeypatch, "tensorrt")
    assert find_library() == rtx


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tensorrt", "tensorrt_rtx")
    for name, extra in ((None, "tensorrt"), ("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")):
        with pytest.raises(MissingDependencyError, match=rf'pip install "edgeadv\[{extra}\]"'):
            find_library(name)
    with pytest.raises(InputError, match="library 'onnx' is not one of tensorrt, tensorrt-rtx"):
        find_library("onnx")


def test_what_is_installed_and_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    without(monkeypatch, "tensorrt")  # so that what is imported here is forgotten at the end
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(EngineError, match=r"does not load: libnvinfer\.so\.10"):
        find_library()
    (tmp_path / "tensorrt.py").write_text("")
    with pytest.raises(EngineError, match="without its builder"):
        find_library("tensorrt")


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1.6", "9.3.0", "10.0.1", "10.2.0.post1", "of the future"])
def test_a_tensorrt_without_usable_strong_typing(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    names = {name: value for name, value in vars(CLASSIC).items() if not name.startswith("Network")}
    old = SimpleNamespace(**{**names, "__version__": version})
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    for name in (None, "tensorrt"):
        with pytest.raises(EngineError, match=rf"^TensorRT {version} is too old: before 10\.3 .* update it"):
            find_library(name)
    # nor is a flag that it lacks taken for one that it no longer needs
    builder = SimpleNamespace(create_network=lambda flags: pytest.fail("a network that chooses its own types"))
    with pytest.raises(EngineError, match="is too old"):
        Library("tensorrt", version, old).create_network(builder, Heard())


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "11.0.0", "11"])
def test_a_tensorrt_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(**{**vars(CLASSIC), "__version__": version}))
    assert find_library().version == version


def test_classic_tensorrt_targets_nothing(classic: Library) -> None:
    assert not classic.can_target
    assert classic.known_targets == ()
    assert not (classic.has_runtime_config or classic.has_runtime_cache or classic.captures_cuda_graphs)
    classic.check_targets(())
    with pytest.raises(
        InputError, match=r"TensorRT 10\.3\.0 builds only on and for the GPU present: .*sm_86.*tensorrt-rtx"
    ):
        classic.check_targets(("sm_86",))


def test_unknown_targets_are_named(rtx: Library) -> None:
    rtx.check_targets(("sm_86", "sm_89"))
    with pytest.raises(InputError, match=r"cannot build for sm_87, sm_110: it knows .*sm_86, sm_89.*on the device"):
        rtx.check_targets(("sm_86", "sm_87", "sm_110"))


def test_members_go_by_name(rtx: Library, classic: Library) -> None:
    flags = "NetworkDefinitionCreationFlag"
    assert classic.member(flags, "STRONGLY_TYPED") == 1
    assert int(rtx.member(flags, "STRONGLY_TYPED")) == 0
    assert rtx.member(flags, "EXPLICIT_BATCH") is None
    assert rtx.member("NoSuchEnum", "FP16") is None
    with pytest.raises(EngineError, match=r"has no BuilderFlag\.FP16"):
        rtx.need("BuilderFlag", "FP16")


def test_the_flag_of_the_network_is_the_version_s_own(classic: Library) -> None:
    asked: list[int] = []
    builder = SimpleNamespace(create_network=lambda flags: asked.append(flags) or object())
    classic.create_network(builder, Heard())
    bare = Library("tensorrt", "13.0", SimpleNamespace())  # a version that no longer has the name
    bare.create_network(builder, Heard())
    assert asked == [0b10, 0]


@pytest.mark.parametrize("tf32", [False, True])
def test_a_configuration_takes_what_is_asked(rtx: Library, tf32: bool) -> None:
    builder = rtx.make("Builder", Heard())
    assert rtx.create_network(builder, Heard()).get_flag(rtx.need("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    options = EngineOptions(tf32=tf32, workspace_mib=96)
    config = rtx.create_config(builder, options, targets=("sm_86", "sm_89"))
    assert rtx.read_back(config) == {
        "flags": ["TF32"] if tf32 else [],
        "targets": ["sm_86", "sm_89"],
        "workspace_mib": 96,
    }
    assert config.profiling_verbosity.name == "DETAILED"


class Stubborn:
    """A real configuration on which one method does nothing, as TensorRT does when it refuses: it only logs."""

    def __init__(self, config: Any, method: str) -> None:
        self.__dict__.update(config=config, method=method)

    def __getattr__(self, name: str) -> Any:
        return (lambda *arguments: None) if name == self.method else getattr(self.config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.config, name, value)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("clear_flag", EngineOptions(), "did not take TF32 off"),
        ("set_memory_pool_limit", EngineOptions(workspace_mib=64), "did not take a workspace of 64 MiB but keeps"),
        ("set_compute_capability", EngineOptions(), "did not take the targets sm_86"),
    ],
)
def test_a_setting_that_is_refused_is_noticed(rtx: Library, method: str, options: EngineOptions, says: str) -> None:
    real = rtx.make("Builder", Heard())
    builder = SimpleNamespace(create_builder_config=lambda: Stubborn(real.create_builder_config(), method))
    with pytest.raises(EngineError, match=says):
        rtx.create_config(builder, options, targets=("sm_86",))


def test_tf32_cannot_be_had_where_there_is_no_such_flag(rtx: Library) -> None:
    names = {name: getattr(rtx.module, name) for name in ("ProfilingVerbosity", "MemoryPoolType")}
    bare = Library("tensorrt", "12.0", SimpleNamespace(**names, IBuilderConfig=object))
    builder = rtx.make("Builder", Heard())
    bare.create_config(builder, EngineOptions(), targets=())
    with pytest.raises(EngineError, match=r"has no BuilderFlag\.TF32"):
        bare.create_config(builder, EngineOptions(tf32=True), targets=())


def test_no_builder_is_an_error_and_not_a_type_error(classic: Library) -> None:
    def refuse(logger: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    broken = Library("tensorrt", "10.3.0", SimpleNamespace(Builder=refuse, ILogger=object))
    heard = Heard()
    heard.add("ERROR", "no CUDA-capable device")
    with pytest.raises(EngineError, match="gives no builder here: no CUDA-capable device"):
        broken.make("Builder", heard)
