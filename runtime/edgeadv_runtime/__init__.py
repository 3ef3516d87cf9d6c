"""edgeadv on the device: classify, verify, evaluate and time what ships. It needs no PyTorch.

Importing this loads next to nothing, not even NumPy; a name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
import typing

from ._version import __version__

if typing.TYPE_CHECKING:
    from .attacks.base import Attack, CallableAttack, Crafted
    from .attacks.noise import NoiseAttack
    from .attacks.pack import AttackPack
    from .attacks.square_attack import SquareAttack, square
    from .backends import Backend, OnnxRuntimeBackend, TensorRTBackend
    from .backends.build_engine import build_engine
    from .backends.golden_check import verify
    from .benchmark.latency import bench
    from .bundle.batches import DataInfo
    from .bundle.bundle import Bundle
    from .bundle.preprocess import Preprocess
    from .camera.stream import Stream
    from .engine import BatchProfile, EngineCache, EngineOptions
    from .errors import EdgeAdvError, InputError
    from .evaluation.loop import evaluate
    from .inference.classifier import Classifier, Label
    from .inference.smoothing import Smoother
    from .records.bench import Bench
    from .records.eps import Eps
    from .records.results import Results
    from .records.rows import Row

__all__ = [
    "Attack",
    "AttackPack",
    "Backend",
    "BatchProfile",
    "Bench",
    "Bundle",
    "CallableAttack",
    "Classifier",
    "Crafted",
    "DataInfo",
    "EdgeAdvError",
    "EngineCache",
    "EngineOptions",
    "Eps",
    "InputError",
    "Label",
    "NoiseAttack",
    "OnnxRuntimeBackend",
    "Preprocess",
    "Results",
    "Row",
    "Smoother",
    "SquareAttack",
    "Stream",
    "TensorRTBackend",
    "__version__",
    "bench",
    "build_engine",
    "evaluate",
    "square",
    "verify",
]

_LAZY = {
    ".attacks.base": "Attack CallableAttack Crafted",
    ".attacks.noise": "NoiseAttack",
    ".attacks.pack": "AttackPack",
    ".attacks.square_attack": "SquareAttack square",
    ".backends": "Backend OnnxRuntimeBackend TensorRTBackend",
    ".backends.build_engine": "build_engine",
    ".backends.golden_check": "verify",
    ".benchmark.latency": "bench",
    ".bundle.batches": "DataInfo",
    ".bundle.bundle": "Bundle",
    ".bundle.preprocess": "Preprocess",
    ".camera.stream": "Stream",
    ".engine": "BatchProfile EngineCache EngineOptions",
    ".errors": "EdgeAdvError InputError",
    ".evaluation.loop": "evaluate",
    ".inference.classifier": "Classifier Label",
    ".inference.smoothing": "Smoother",
    ".records.bench": "Bench",
    ".records.eps": "Eps",
    ".records.results": "Results",
    ".records.rows": "Row",
}
_WHERE = {name: module for module, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> typing.Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_WHERE[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
