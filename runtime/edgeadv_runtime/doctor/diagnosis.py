"""All checks in the order in which they are read: the machine, what is installed, the bundles."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..device.facts import library_versions
from ..errors import EdgeAdvError, require
from .bundles import check_runs, open_bundle
from .checks import Check
from .engines import check_tensorrt, open_libraries
from .extras import EXTRAS, check_extra, check_onnxruntime, owners
from .jetpack import RELEASE_FILE
from .machine import check_machine, look

# judged by what brings their module
_APART = ("ort", "ort-gpu", "tensorrt", "tensorrt-rtx")


def diagnose(
    bundles: Sequence[str | Path] = (),
    *,
    public_key: Path | None = None,
    load: Callable[[str], Any] = ctypes.CDLL,
    release_file: Path = RELEASE_FILE,
) -> list[Check]:
    """Look at the machine, at what is installed, and at ``bundles``.

    Args:
        bundles: folders of bundles to open; every variant of each is tried in ONNX Runtime.
        public_key: a key that must have signed each of them.
        load: loads the NVIDIA driver's library by its name.
        release_file: where a Jetson tells its release.

    Returns:
        The checks, from the machine up to the bundles.
    """
    machine = look(load=load, release_file=release_file)
    libraries = open_libraries(machine)
    names = owners("onnxruntime")
    installed = check_onnxruntime(library_versions(names), machine=platform.machine(), jetson=machine.is_jetson)
    available, broken = _providers(names)
    checks = [
        *check_machine(machine),
        *(check_extra(extra, library_versions(tuple(EXTRAS[extra]))) for extra in EXTRAS if extra not in _APART),
        *installed,
        *broken,
        *check_tensorrt(machine, libraries),
    ]
    for path in bundles:
        check, bundle = open_bundle(Path(path), public_key=public_key)
        checks.append(check)
        if bundle is not None:
            checks += check_runs(bundle, machine, libraries, available=available)
    if available and not bundles:
        hint = "whether they work here shows only with a bundle: edgeadv doctor BUNDLE"
        checks.append(Check("onnxruntime providers", "ok", f"compiled in, not opened: {', '.join(available)}", hint))
    return checks


def _providers(names: Sequence[str]) -> tuple[list[str], list[Check]]:
    """What ONNX Runtime was built with, and the check that it does not import, if it is there and does not."""
    if not names:
        return [], []
    try:
        return list(require("onnxruntime", extra="ort").get_available_providers()), []
    except (
        EdgeAdvError,
        ImportError,
        AttributeError,
        OSError,
    ) as error:  # one installed over another gives any of these
        hint = f"pip install --force-reinstall {names[0]}" if len(names) == 1 else None  # more have their hint already
        return [], [Check("onnxruntime", "problem", f"does not import: {error}", hint)]
