"""TensorRT and TensorRT-RTX: installed, of which version, and what that version can do here.

What a library can do is asked of the library. Classic TensorRT is not even imported on a machine without a GPU: a lean
runtime there ends the process with a segmentation fault, which nothing can catch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace

from ..device.versions import older
from ..engine import LIBRARIES, Library, find_library
from ..engine.library import MODULES, TENSORRT, TENSORRT_RTX
from ..errors import EdgeAdvError, MissingDependencyError
from .checks import Check
from .extras import check_extra, installed_version
from .jetpack import refusal
from .machine import Machine

# strong typing came in parts: NVIDIA's migration notes call it complete from here on
_COMPLETE_TYPING = "10.12"
Libraries = Mapping[str, Library | str]
"""For each of TensorRT and TensorRT-RTX the opened library, or the sentence why there is none."""


def open_libraries(machine: Machine) -> dict[str, Library | str]:
    """Open what is installed and may be opened."""
    return {name: _open(name, machine) for name in LIBRARIES}


def check_tensorrt(machine: Machine, libraries: Libraries) -> list[Check]:
    """Both extras, and what the opened ones can do."""
    checks = []
    for name in LIBRARIES:
        version = installed_version(name, MODULES[name])
        checks.append(check_installed(name, version, machine))
        if version is not None:
            checks.append(check_abilities(name, version, libraries[name], machine))
    return checks


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
        return replace(check, hint=hint)
    if version is None:
        # the bindings are for that one Python: on JetPack 6 for 3.10
        hint = "JetPack brings it for the system's Python: /usr/bin/python3 -m venv --system-site-packages VENV"
        return replace(check, hint=hint)
    why = refusal(machine.jetpack, version, board=machine.board)
    return check if why is None else Check(check.name, "problem", f"{check.detail}: {why}")


def check_abilities(name: str, version: str, library: Library | str, machine: Machine) -> Check:
    """What a library that is installed can do here."""
    if isinstance(library, str):
        unopened = name == TENSORRT and machine.gpu is None
        return Check(name, "missing" if unopened else "problem", f"{version}, not opened: {library}")
    typed = "strongly typed fp32, fp16 and int8"
    if name == TENSORRT and older(library.version, _COMPLETE_TYPING):
        typed = (
            f"strongly typed, by NVIDIA's notes in full only from {_COMPLETE_TYPING} on: try int8 with edgeadv verify"
        )
    targets = "builds on and for the GPU present only"
    if library.can_target:
        targets = f"builds for {', '.join(library.known_targets)}, on machines without a GPU too"
    cache = "keeps compiled kernels in a runtime cache" if library.has_runtime_cache else "has no runtime cache"
    can = f"{typed}; {targets}; {cache}"
    gpu = machine.gpu
    if gpu is not None and not library.serves(gpu.sm):
        hint = f'use classic TensorRT: pip install "edgeadv[{TENSORRT}]"'
        return Check(name, "problem", f"{library} does not know the GPU here ({gpu.sm}); {can}", hint)
    here = "opened" if gpu is not None else "opened for building only, there is no GPU to run on"
    return Check(name, "ok", f"{library}, {here}: {can}")


def _open(name: str, machine: Machine) -> Library | str:
    try:
        # without importing it; a module that was broken, or taken away, in this process is a ValueError
        there = importlib.util.find_spec(MODULES[name]) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        return str(MissingDependencyError(MODULES[name], name))
    if name == TENSORRT and machine.gpu is None:
        return machine.no_gpu
    try:
        return find_library(name)
    except EdgeAdvError as error:
        return str(error)
