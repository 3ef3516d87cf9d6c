"""Backends that a device can run. Importing this package loads none of their libraries."""

from .base import Backend
from .ort import OnnxRuntimeBackend

__all__ = ["Backend", "OnnxRuntimeBackend"]
