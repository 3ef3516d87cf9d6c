"""TensorRT and TensorRT-RTX: installed, of which version, and what that version can do here.

What a library can do is asked of the library. Classic TensorRT is not even imported on a machine without a GPU: a lean
runtime there ends the process with a segmentation fault, which nothing can catch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from ..device.versions import older
from ..engine import LIBRARIES, Library, find_library
from ..engine.library import TENSORRT, TENSORRT_RTX
from ..errors import EdgeAdvError, MissingDependencyError
from .checks import Check
from .extras import check_extra, installed_version
from .jetpack import refusal
from .machine import Machine

MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
_LEAN = ("tensorrt_lean", "tensorrt_lean_bindings")
# strong typing came in parts: NVIDIA's migration notes call it complete from here on
_COMPLETE_TYPING = "10.12"
Libraries = Mapping[str, Library | str]
"""For each of TensorRT and TensorRT-RTX the opened library, or the sentence why there is none."""


def open_libraries(machine: Machine) -> dict[str, Library | str]:
    """Open what is installed and may be opened."""
    return {name: _open(name, machine) for name in LIBRARIES}


def check_tensorrt(machine: Machine, libraries: Libraries) -> list[Check]:
    """Both extras, what the opened ones can do, and the lean runtime where it lies in wait."""
    checks = []
    for name in LIBRARIES:
        version = installed_version(name, MODULES[name])
        checks.append(check_installed(name, version, machine))
        if version is not None:
            checks.append(check_abilities(name, version, libraries[name], machine))
    lean = check_lean(present=[m for m in _LEAN if _is_there(m)], full=_is_there(MODULES[TENSORRT]))
    return [*checks, *([] if lean is None else [lean])]


def check_installed(name: str, version: str | None, machine: Machine) -> Check:
    """Whether an extra is installed, in a version that this machine may use.

    Args:
        name: of the library and its extra.
        version: what is installed, or None.
        machine: this one.
    """
    check = check_extra(name, {} if version is None else {name: version})
    if not machine.is_jetson or check.status == "problem":
        return check
    if name == TENSORRT_RTX:
        hint = "it has no code for the GPUs of a Jetson, Orin (sm_87) and Thor (sm_110): use JetPack's own TensorRT"
        return Check(check.name, check.status, check.detail, hint)
    if version is None:
        # the bindings are for that one Python: on JetPack 6 for 3.10
        hint = "JetPack brings it for the system's Python: /usr/bin/python3 -m venv --system-site-packages VENV"
        return Check(check.name, check.status, check.detail, hint)
    if (why := refusal(machine.jetpack, version, board=machine.board)) is not None:
        return Check(check.name, "problem", f"{check.detail}: {why}")
    return check


def check_abilities(name: str, version: str, library: Library | str, machine: Machine) -> Check:
    """What a library that is installed can do here."""
    if isinstance(library, str):
        unopened = name == TENSORRT and machine.gpu is None
        return Check(name, "missing" if unopened else "problem", f"{version}, not opened: {library}")
    abilities = [_typing(library), _targets(library)]
    abilities.append(
        "keeps compiled kernels in a runtime cache" if library.has_runtime_cache else "has no runtime cache"
    )
    gpu = machine.gpu
    if gpu is not None and library.can_target and gpu.sm not in library.known_targets:
        hint = f'use classic TensorRT: pip install "edgeadv[{TENSORRT}]"'
        return Check(name, "problem", f"{library} does not know the GPU here ({gpu.sm}); {'; '.join(abilities)}", hint)
    here = "opened" if gpu is not None else "opened for building only, there is no GPU to run on"
    return Check(name, "ok", f"{library}, {here}: {'; '.join(abilities)}")


def check_lean(*, present: list[str], full: bool) -> Check | None:
    """The lean runtime, which edgeadv does not use and which is easily taken for TensorRT; None where it is not here.

    Args:
        present: which of its modules can be imported.
        full: whether TensorRT itself can be.
    """
    if not present:
        return None
    trap = "the lean runtime only loads plans, and without a GPU it ends the process with a segmentation fault"
    if _LEAN[0] not in present:
        trap += f"; its bindings alone do not give the module {_LEAN[0]}"
    if full:
        return Check("tensorrt-lean", "ok", f"installed, and not used: {trap}")
    return Check(
        "tensorrt-lean", "problem", f"installed without TensorRT: {trap}", f'pip install "edgeadv[{TENSORRT}]"'
    )


def _typing(library: Library) -> str:
    if library.name == TENSORRT and older(library.version, _COMPLETE_TYPING):
        return (
            f"strongly typed, by NVIDIA's notes in full only from {_COMPLETE_TYPING} on: try int8 with edgeadv verify"
        )
    return "strongly typed fp32, fp16 and int8"


def _targets(library: Library) -> str:
    if library.can_target:
        return f"builds for {', '.join(library.known_targets)}, on machines without a GPU too"
    return "builds on and for the GPU present only"


def _open(name: str, machine: Machine) -> Library | str:
    if not _is_there(MODULES[name]):
        return str(MissingDependencyError(MODULES[name], name))
    if name == TENSORRT and machine.gpu is None:
        return machine.no_gpu
    try:
        return find_library(name)
    except EdgeAdvError as error:
        return str(error)


def _is_there(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a module that was broken, or taken away, in this process
        return False
