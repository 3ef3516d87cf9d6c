"""JetPack: which one this is, and which TensorRT may be used with it.

The system says only which Jetson Linux (L4T) it is. Which JetPack that belongs to and which TensorRT comes with it is
from NVIDIA's release notes as far as they could be read, and for 6.0, 7.0 and 7.2 from what others report; which
TensorRT 11 supports which JetPack, from the TensorRT 11.4.1 migration guide for Jetson. No Jetson has been seen running
under this code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..device.versions import older
from ..engine.library import OLDEST_TENSORRT
from .checks import Check

RELEASE_FILE = Path("/etc/nv_tegra_release")
# first releases that NVIDIA supports TensorRT 11 on
FIRST_WITH_11, FIRST_11 = "7.2.2", "11.4.1"
_BOARDS_WITH_11 = "AGX Orin and Thor"
_RELEASE = re.compile(r"^#?\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", re.MULTILINE)
# a release that is not here is known by its first number alone: a guess at the others could be wrong
_JETPACKS = {
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    "39.2.1": "7.2.1",
}
_MAJORS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}
_BROUGHT = {
    "4.x": "8.2",
    "5.x": "8.5",
    "5.0": "8.4",
    "5.1": "8.5",
    "6.0": "8.6",
    "6.1": "10.3",
    "6.2": "10.3",
    "7.0": "10.13",
    "7.1": "10.13",
    "7.2": "10.16",
}


@dataclass(frozen=True)
class Jetpack:
    """A release of JetPack.

    Attributes:
        l4t: the Jetson Linux that the system says it is, e.g. ``"36.4.3"``.
        version: e.g. ``"6.2"``; ``"6.x"`` for a release that is not in the table; None for one of an unknown family.
    """

    l4t: str
    version: str | None

    def __str__(self) -> str:
        return f"JetPack {self.version or 'of unknown version'}"

    @property
    def brings(self) -> str | None:
        """The TensorRT that comes with it, e.g. ``"10.3"``; None where the table does not say."""
        return _BROUGHT.get(".".join((self.version or "").split(".")[:2]))

    @property
    def has_11(self) -> bool | None:
        """Whether NVIDIA supports a TensorRT 11 on it; None where too little of the version is known."""
        if self.version is None:
            return None
        known = self.version.removesuffix(".x")
        if known != self.version and not older(known, FIRST_WITH_11[0]):
            return None
        return not older(known, FIRST_WITH_11)


def parse_tegra_release(text: str) -> Jetpack | None:
    """Read ``/etc/nv_tegra_release``; None if there is no release in it."""
    match = _RELEASE.search(text)
    if match is None:
        return None
    l4t = re.sub(r"(\.0)+$", "", f"{match[1]}.{match[2]}")
    major = _MAJORS.get(int(match[1]))
    return Jetpack(l4t, _JETPACKS.get(l4t, None if major is None else f"{major}.x"))


def check_jetpack(jetpack: Jetpack | None, *, board: str | None, path: Path) -> Check | None:
    """Say which JetPack this is and which TensorRT may be used with it; None where this is no Jetson.

    Args:
        jetpack: what the system says.
        board: the board's name in the device tree.
        path: where the system was asked.
    """
    if jetpack is None and "jetson" not in (board or "").lower():
        return None
    if jetpack is None:
        hint = f"in a container, mount it: --volume {path}:{path}:ro"
        return Check("jetpack", "missing", f"{board}, and {path} does not tell the release", hint)
    found = f"{jetpack}, from L4T {jetpack.l4t} after NVIDIA's release notes"
    if jetpack.brings is not None and older(jetpack.brings, OLDEST_TENSORRT):
        hint = "for TensorRT update to JetPack 6.1 or newer; onnxruntime on the CPU runs as it is"
        return Check("jetpack", "problem", f"{found}: its TensorRT {jetpack.brings} is too old for edgeadv", hint)
    brings = f"; it brings TensorRT {jetpack.brings}" if jetpack.brings else ""
    return Check("jetpack", "ok", f"{found}{brings}; {_may_use(jetpack)}")


def refusal(jetpack: Jetpack | None, tensorrt: str, *, board: str | None) -> str | None:
    """Why TensorRT of this version is not for this machine, or None.

    Args:
        jetpack: of this machine; None where it is no Jetson.
        tensorrt: version of classic TensorRT.
        board: the board's name in the device tree.
    """
    if older(tensorrt, OLDEST_TENSORRT):
        return f"TensorRT {tensorrt} is too old: edgeadv builds with {OLDEST_TENSORRT} or newer"
    if jetpack is None or older(tensorrt, "11") or jetpack.has_11 is None:
        return None
    if not jetpack.has_11:
        return (
            f"NVIDIA does not support TensorRT {tensorrt} on {jetpack}: stay with the 10.x that it brings, or update "
            f"to JetPack {FIRST_WITH_11}"
        )
    small = "Orin" in (board or "") and "AGX" not in (board or "")  # Orin NX and Nano
    if small or older(tensorrt, FIRST_11):
        return (
            f"NVIDIA does not support TensorRT {tensorrt} on {board or 'a Jetson'}: of the 11.x only {FIRST_11} and "
            f"newer, on {_BOARDS_WITH_11}; stay with the 10.x that {jetpack} brings"
        )
    return None


def _may_use(jetpack: Jetpack) -> str:
    if jetpack.has_11 is None:
        return f"TensorRT 10.x may be used; 11 only from JetPack {FIRST_WITH_11} on"
    if jetpack.has_11:
        return f"TensorRT 10.x may be used, on {_BOARDS_WITH_11} {FIRST_11} and newer too (the SBSA package)"
    return f"only TensorRT 10.x may be used: NVIDIA supports 11 from JetPack {FIRST_WITH_11} on"
