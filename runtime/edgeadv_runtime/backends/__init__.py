"""Backends that a device can run. Importing this package loads none of their libraries."""

from .base import Backend
from .onnxruntime import OnnxRuntimeBackend
from .tensorrt import TensorRTBackend

__all__ = ["Backend", "OnnxRuntimeBackend", "TensorRTBackend"]
