"""TensorRT plans: built from a bundle's ONNX in a process of their own, kept in a cache, and looked into.

Loading this package loads no TensorRT.
"""

from .build import build_plan
from .cache import Engine, EngineCache, copy_engine, default_cache
from .explain import Explanation
from .library import LIBRARIES, Library, find_library
from .options import BatchProfile, EngineOptions, parse_targets

__all__ = [
    "LIBRARIES",
    "BatchProfile",
    "Engine",
    "EngineCache",
    "EngineOptions",
    "Explanation",
    "Library",
    "build_plan",
    "copy_engine",
    "default_cache",
    "find_library",
    "parse_targets",
]
