"""What pip has installed, against what each extra needs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import replace

from ..bundle.variants import is_x86
from ..device.facts import library_versions
from ..device.versions import older
from .checks import Check

# what each extra brings, and since which version; as in pyproject.toml
EXTRAS: dict[str, dict[str, str]] = {
    "train": {
        "torch": "2.9",
        "torchvision": "0.24",
        "timm": "1.0.15",
        "onnx": "1.18",
        "safetensors": "0.5",
        "tensorboard": "2.19",
    },
    "ort": {"onnxruntime": "1.23"},
    "ort-gpu": {"onnxruntime-gpu": "1.23"},
    "tensorrt": {"tensorrt": "10.3"},
    "tensorrt-rtx": {"tensorrt-rtx": "1.2"},
    "sign": {"cryptography": "42"},
    "camera": {"opencv-python-headless": "4.10"},
    "video": {"av": "14"},
    "export": {"onnxscript": "0.5"},
    "report": {"jinja2": "3.1", "safetensors": "0.5"},
    "demo": {"mlxtend": "0.23"},
}
OLDEST_PYTHON = "3.10"
_JETSON_WHEEL = (
    "the onnxruntime-gpu wheel that NVIDIA's Jetson AI Lab builds for your JetPack, or one that you build: PyPI's "
    "has no code for Orin (sm_87) and Thor (sm_110)"
)


def check_extra(extra: str, found: Mapping[str, str]) -> Check:
    """Compare what an extra needs with what is there.

    Args:
        extra: a key of :data:`EXTRAS`.
        found: version of each distribution that is installed; others than the extra's are ignored.
    """
    wanted, what = EXTRAS[extra], f"extra {extra}"
    have = {name: found[name] for name in wanted if name in found}
    old = [f"{name} {version} (needs {wanted[name]})" for name, version in have.items() if older(version, wanted[name])]
    if old:
        return Check(what, "problem", f"too old: {', '.join(old)}", f'pip install --upgrade "edgeadv[{extra}]"')
    if absent := [name for name in wanted if name not in found]:
        return Check(what, "missing", f"not installed: {', '.join(absent)}", f'pip install "edgeadv[{extra}]"')
    return Check(what, "ok", ", ".join(f"{name} {version}" for name, version in have.items()))


def check_onnxruntime(found: Mapping[str, str], *, machine: str, jetson: bool) -> list[Check]:
    """Judge the distributions that bring the module ``onnxruntime``.

    Args:
        found: version of each distribution that unpacks into the folder ``onnxruntime``.
        machine: the processor as ``platform.machine()`` names it; on ARM the wheel for GPUs comes from elsewhere.
        jetson: whether this is a Jetson.
    """
    if len(found) > 1:
        both = " and ".join(f"{name} {version}" for name, version in found.items())
        hint = f'pip uninstall {" ".join(found)}; then install one: "edgeadv[ort]" or "edgeadv[ort-gpu]"'
        return [Check("onnxruntime", "problem", f"{both} unpack into the same folder, one over the other", hint)]
    if "onnxruntime-gpu" in found:
        also = Check("extra ort", "ok", f"onnxruntime-gpu {found['onnxruntime-gpu']} runs on the CPU too")
        own = check_extra("ort-gpu", found)
        note = f"it has to be {_JETSON_WHEEL}" if jetson else None
        return [also, replace(own, hint=own.hint or note)]
    if not found:
        return [check_extra("ort", {}), replace(check_extra("ort-gpu", {}), hint=_gpu_wheel(machine, jetson))]
    # builds of other makers have names of their own, and are the same module
    ((name, version),) = found.items()
    hint = f"only for CUDA: pip uninstall {name}; {_gpu_wheel(machine, jetson)}"
    instead = Check("extra ort-gpu", "missing", f"{name} is installed in its place", hint)
    return [check_extra("ort", {"onnxruntime": version}), instead]


def _gpu_wheel(machine: str, jetson: bool) -> str:
    install = 'pip install "edgeadv[ort-gpu]"'
    if jetson:
        return f"pip install {_JETSON_WHEEL}"
    if is_x86(machine):
        return install
    return f"{install} (for ARM PyPI has CUDA for sm_89, sm_90, sm_120 and sm_121 only, and no TensorRT provider)"


def owners(module: str) -> list[str]:
    """Names of the distributions that bring ``module``, in order."""
    # as packages_distributions() finds them, which makes a path of every file that is installed: ten times the work
    inside = re.compile(rf"^{re.escape(module)}(?:/|\.[^/,]+,)", re.MULTILINE)
    found = set()
    for each in importlib.metadata.distributions():
        declared = each.read_text("top_level.txt")
        if module in declared.split() if declared else inside.search(each.read_text("RECORD") or ""):
            found.add(each.metadata["Name"])
    return sorted(found)


def installed_version(distribution: str, module: str) -> str | None:
    """Version of ``distribution``, or where only parts of it are installed, of the part that brings ``module``."""
    found = library_versions((distribution,)) or library_versions(owners(module))
    return next(iter(found.values()), None)
