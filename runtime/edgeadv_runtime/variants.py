"""The names of artefacts, and which int8 artefact is the right one where."""

from __future__ import annotations

import platform

VARIANTS = ("fp32", "fp16", "int8-s8s8", "int8-u8s8")
INT8 = "int8"
PRECISIONS = ("fp32", "fp16", INT8)
"""What ``--precision`` may say beside a variant; ``int8`` stands for :func:`int8_variant` of the backend."""
S8S8, U8S8 = "int8-s8s8", "int8-u8s8"
TENSORRT_REFUSES_U8S8 = f"TensorRT takes symmetric int8 only, that is {S8S8}; {U8S8} is for x86 processors"
_X86 = ("x86_64", "amd64", "i386", "i686")


def is_x86(machine: str | None = None) -> bool:
    """Whether ``machine``, by default this one, has an x86 processor."""
    return (machine or platform.machine()).lower() in _X86


def precision_of(variant: str) -> str:
    """``"fp32"``, ``"fp16"`` or ``"int8"``."""
    return variant.partition("-")[0]


def int8_variant(backend: str, *, provider: str = "cpu", machine: str | None = None) -> str:
    """The int8 variant that ``backend`` is to run.

    An x86 processor without VNNI adds pairs of 8-bit products in 16 bits and saturates: with full-range signed
    activations it silently loses 20 points of top-1. ``int8-u8s8`` leaves the headroom. TensorRT takes symmetric int8
    only, and on ARM nothing saturates.

    Args:
        backend: ``"onnxruntime"`` or ``"tensorrt"``.
        provider: what executes it inside ONNX Runtime.
        machine: as ``platform.machine()`` names it; None is this one.
    """
    return U8S8 if backend == "onnxruntime" and provider == "cpu" and is_x86(machine) else S8S8
