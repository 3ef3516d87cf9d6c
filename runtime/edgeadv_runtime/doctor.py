"""What works on this machine, what is missing, and the command that helps. Nothing found wanting is an error here."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .backends.ort import PROVIDERS, OnnxRuntimeBackend
from .bundle import Bundle
from .device import environment, library_versions
from .errors import EdgeAdvError, require
from .preprocess import to_tensor

Status = Literal["ok", "missing", "problem"]

# what each extra brings, and since which version; as in pyproject.toml
EXTRAS: dict[str, dict[str, str]] = {
    "train": {"torch": "2.9", "torchvision": "0.24", "timm": "1.0.15", "safetensors": "0.5"},
    "ort": {"onnxruntime": "1.23"},
    "ort-gpu": {"onnxruntime-gpu": "1.23"},
    "export": {"onnx": "1.18", "onnxscript": "0.5"},
    "report": {"jinja2": "3.1"},
    "demo": {"mlxtend": "0.23"},
}
OLDEST_PYTHON = "3.10"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``"ok"``; ``"missing"``, which matters only to those who need it; or ``"problem"``.
        detail: what was found.
        hint: what to do about it, or None.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None


def diagnose(bundles: Sequence[str | Path] = ()) -> list[Check]:
    """Look at the machine, at what is installed, and at ``bundles``.

    Args:
        bundles: folders of bundles to open; ONNX Runtime's providers are tried on the first that opens.

    Returns:
        The checks, from the machine up to the bundles.
    """
    bundle_checks, opened = [], None
    for path in bundles:
        check, bundle = _bundle(Path(path))
        bundle_checks.append(check)
        opened = opened or bundle
    return [
        *_machine(),
        *(
            check_extra(extra, library_versions(tuple(EXTRAS[extra])))
            for extra in EXTRAS
            if not extra.startswith("ort")
        ),
        *_onnxruntime(opened),
        check_nvidia_driver(),
        *bundle_checks,
    ]


def check_extra(extra: str, found: Mapping[str, str]) -> Check:
    """Compare what an extra needs with what is there.

    Args:
        extra: a key of :data:`EXTRAS`.
        found: version of each distribution that is installed; others than the extra's are ignored.
    """
    wanted = EXTRAS[extra]
    have = {name: found[name] for name in wanted if name in found}
    old = [
        f"{name} {version} (needs {wanted[name]})" for name, version in have.items() if _older(version, wanted[name])
    ]
    absent = [name for name in wanted if name not in found]
    if old:
        hint = f'pip install --upgrade "edgeadv[{extra}]"'
        return Check(f"extra {extra}", "problem", f"too old: {', '.join(old)}", hint)
    if absent:
        return Check(
            f"extra {extra}", "missing", f"not installed: {', '.join(absent)}", f'pip install "edgeadv[{extra}]"'
        )
    return Check(f"extra {extra}", "ok", ", ".join(f"{name} {version}" for name, version in have.items()))


def check_onnxruntime(found: Mapping[str, str]) -> list[Check]:
    """Judge the distributions that bring the module ``onnxruntime``.

    Args:
        found: version of each distribution that unpacks into the folder ``onnxruntime``.
    """
    if len(found) > 1:
        both = " and ".join(f"{name} {version}" for name, version in found.items())
        hint = f'pip uninstall {" ".join(found)}; then install one: "edgeadv[ort]" or "edgeadv[ort-gpu]"'
        return [Check("onnxruntime", "problem", f"{both} unpack into the same folder, one over the other", hint)]
    if "onnxruntime-gpu" in found:
        also = Check("extra ort", "ok", f"onnxruntime-gpu {found['onnxruntime-gpu']} runs on the CPU too")
        return [also, check_extra("ort-gpu", found)]
    if not found:
        return [check_extra("ort", {}), check_extra("ort-gpu", {})]
    # builds of other makers have names of their own, and are the same module
    ((name, version),) = found.items()
    hint = f'only for CUDA: pip uninstall {name}; pip install "edgeadv[ort-gpu]"'
    absent = Check("extra ort-gpu", "missing", f"{name} is installed in its place", hint)
    return [check_extra("ort", {"onnxruntime": version}), absent]


def check_nvidia_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Check:
    """Ask the NVIDIA driver itself whether it works; its library is all that this needs.

    Args:
        load: opens a shared library by name.
    """
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        hint = "only for CUDA: install NVIDIA's driver; in a container, start it with the NVIDIA runtime"
        return Check("nvidia driver", "missing", "libcuda.so.1 does not load", hint)
    status = cuda.cuInit(0)
    if status != 0:
        hint = "the driver is installed but gives no device: see nvidia-smi, and that this user may open /dev/nvidia*"
        return Check("nvidia driver", "problem", f"cuInit fails with CUDA error {status}", hint)
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return Check("nvidia driver", "ok", f"works, for CUDA {version.value // 1000}.{version.value % 1000 // 10}")


def _machine() -> list[Check]:
    facts = environment()
    system = f"{facts['os']}, kernel {facts['kernel']}, {facts['machine']}"
    linux = platform.system() == "Linux"
    checks = [
        Check("system", "ok" if linux else "problem", system, None if linux else "edgeadv is made for Linux"),
        _python(facts["python"]),
        Check("processor", "ok", f"{facts['processor']}, {facts.get('cores', 'unknown')} usable cores"),
    ]
    if "memory_mib" in facts:
        checks.append(Check("memory", "ok", f"{facts['memory_mib']} MiB"))
    if "board" in facts:
        checks.append(Check("board", "ok", facts["board"]))
    base = ", ".join(f"{name} {version}" for name, version in library_versions(("numpy", "pillow")).items())
    return [*checks, Check("edgeadv", "ok", f"{facts['versions']['edgeadv']}, with {base}")]


def _python(version: str) -> Check:
    if _older(version, OLDEST_PYTHON):
        return Check("python", "problem", version, f"edgeadv needs Python {OLDEST_PYTHON} or newer")
    return Check("python", "ok", version)


def _onnxruntime(bundle: Bundle | None) -> list[Check]:
    names = sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", ())))
    checks = check_onnxruntime(library_versions(names))
    if not names:
        return checks
    try:
        available = require("onnxruntime", extra="ort").get_available_providers()
    except (
        EdgeAdvError,
        ImportError,
        AttributeError,
        OSError,
    ) as error:  # one installed over another gives any of these
        hint = f"pip install --force-reinstall {names[0]}" if len(names) == 1 else None  # more have their hint already
        return [*checks, Check("onnxruntime", "problem", f"does not import: {error}", hint)]
    if bundle is None or not bundle.variants:
        hint = "whether they work here shows only with a bundle: edgeadv doctor BUNDLE"
        return [*checks, Check("onnxruntime", "ok", f"compiled in, not opened: {', '.join(available)}", hint)]
    usable = [_provider(bundle, short) for short, provider in PROVIDERS.items() if provider in available]
    return [*checks, *usable]


def _provider(bundle: Bundle, provider: str) -> Check:
    name, variant = f"onnxruntime {provider}", bundle.variants[0]
    try:
        with OnnxRuntimeBackend(bundle, variant=variant, provider=provider) as backend:
            backend.infer(to_tensor(bundle.golden().pixels[:1]))
            return Check(name, "ok", f"opened and ran {variant} of {bundle.path} with {backend.provider}")
    except EdgeAdvError as error:
        return Check(name, "problem", str(error))


def _bundle(path: Path) -> tuple[Check, Bundle | None]:
    name = f"bundle {path}"
    try:
        bundle = Bundle.open(path)
    except (EdgeAdvError, OSError) as error:
        return Check(name, "problem", str(error)), None
    left_out = bundle.manifest["left_out"]
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    here = ", ".join(bundle.variants) or "none"
    return Check(name, "ok", f"id {bundle.id[:12]}, every hash fits; variants here: {here}{without}"), bundle


def _older(version: str, than: str) -> bool:
    """Whether a version number is below another; what follows the numbers, as in 2.9.0+cu130, does not count."""
    mine, other = ([int(x) for x in re.findall(r"\d+", re.split(r"[^\d.]", v)[0])] for v in (version, than))
    width = max(len(mine), len(other))
    return mine + [0] * (width - len(mine)) < other + [0] * (width - len(other))
