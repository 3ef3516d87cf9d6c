"""The machine: system, Python, processor, GPU with its driver, JetPack."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device.cuda import Gpu, find_gpu
from ..device.facts import board_name, environment, library_versions, read_text
from ..device.versions import older
from ..errors import ProviderError
from .checks import Check
from .extras import OLDEST_PYTHON
from .jetpack import RELEASE_FILE, Jetpack, check_jetpack, parse_tegra_release


@dataclass(frozen=True)
class Machine:
    """What the other checks depend on.

    Attributes:
        gpu: the first GPU, or None.
        no_gpu: why there is none; empty if there is one.
        has_driver: whether NVIDIA's driver is installed, even if it gives no GPU.
        jetpack: the release, or None where the system tells none.
        board: the board's name in the device tree, or None.
        release_file: where the system was asked for the release.
    """

    gpu: Gpu | None
    no_gpu: str
    has_driver: bool
    jetpack: Jetpack | None
    board: str | None
    release_file: Path

    @property
    def is_jetson(self) -> bool:
        """Whether this is a Jetson."""
        return self.jetpack is not None or "jetson" in (self.board or "").lower()


def look(
    *, load: Callable[[str], Any] = ctypes.CDLL, release_file: Path = RELEASE_FILE, board: str | None = None
) -> Machine:
    """Look at this machine; the driver is asked, nothing of TensorRT is touched.

    Args:
        load: loads a shared library by its name.
        release_file: where a Jetson tells its release.
        board: what to take for the board's name; None asks the device tree.
    """
    gpu, no_gpu, has_driver = None, "", True
    try:
        gpu = find_gpu(load=load)
    except ProviderError as error:
        no_gpu, has_driver = str(error), not isinstance(error.__cause__, OSError)
    jetpack = parse_tegra_release(read_text(release_file) or "")
    return Machine(gpu, no_gpu, has_driver, jetpack, board or board_name(), release_file)


def check_machine(machine: Machine) -> list[Check]:
    """System, Python, processor, memory, board, GPU, JetPack and edgeadv's own base."""
    facts = environment()
    system = f"{facts['os']}, kernel {facts['kernel']}, {facts['machine']}"
    linux = platform.system() == "Linux"
    checks = [
        Check("system", "ok" if linux else "problem", system, None if linux else "edgeadv is made for Linux"),
        check_python(facts["python"]),
        Check("processor", "ok", f"{facts['processor']}, {facts.get('cores', 'unknown')} usable cores"),
    ]
    if "memory_mib" in facts:
        checks.append(Check("memory", "ok", f"{facts['memory_mib']} MiB"))
    if machine.board is not None:
        checks.append(Check("board", "ok", machine.board))
    checks.append(check_gpu(machine))
    release = check_jetpack(machine.jetpack, board=machine.board, path=machine.release_file)
    base = ", ".join(f"{name} {version}" for name, version in library_versions(("numpy", "pillow")).items())
    own = Check("edgeadv", "ok", f"{facts['versions']['edgeadv']}, with {base}")
    return [*checks, *([] if release is None else [release]), own]


def check_python(version: str) -> Check:
    """Whether this Python is new enough."""
    if older(version.rstrip("+"), OLDEST_PYTHON):  # a Python built from a checkout ends its version with a plus
        return Check("python", "problem", version, f"edgeadv needs Python {OLDEST_PYTHON} or newer")
    return Check("python", "ok", version)


def check_gpu(machine: Machine) -> Check:
    """The GPU with its driver, or why there is none; only GPU backends need it."""
    if machine.gpu is None:
        return Check("gpu", "problem" if machine.has_driver else "missing", machine.no_gpu)
    gpu = machine.gpu
    memory = f"{gpu.free_mib} of {gpu.memory_mib} MiB free{', shared with the processor' if gpu.integrated else ''}"
    driver = gpu.driver if gpu.driver.startswith("CUDA") else f"driver {gpu.driver}"
    return Check("gpu", "ok", f"{gpu.name}, {gpu.sm}, {driver}, {memory}")
