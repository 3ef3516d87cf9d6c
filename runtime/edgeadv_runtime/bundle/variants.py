"""The names of artefacts, which of them take 8-bit pixels, and which int8 artefact is the right one where."""

from __future__ import annotations

import platform

FLOAT_VARIANTS = ("fp32", "fp16", "int8-s8s8", "int8-u8s8")
"""Artefacts whose input is float32 NCHW in [0, 1]."""
U8IN = "-u8in"
"""Suffix of the artefact that takes the same pixels as uint8 NHWC in 0..255 and is the same graph after that."""
VARIANTS = (*FLOAT_VARIANTS, *(variant + U8IN for variant in FLOAT_VARIANTS))
INT8 = "int8"
PRECISIONS = ("fp32", "fp16", INT8)
"""What :func:`precision_of` gives; ``int8``, alone or with ``-u8in``, stands for :func:`int8_variant` of the
backend."""
S8S8, U8S8 = "int8-s8s8", "int8-u8s8"
TENSORRT_REFUSES_U8S8 = f"TensorRT takes symmetric int8 only, that is {S8S8}; {U8S8} is for x86 processors"
_X86 = ("x86_64", "amd64", "i386", "i686")


def is_x86(machine: str | None = None) -> bool:
    """Whether ``machine``, by default this one, has an x86 processor."""
    return (machine or platform.machine()).lower() in _X86


def takes_uint8(variant: str) -> bool:
    """Whether the input of ``variant`` is uint8 NHWC in 0..255, and not float32 NCHW in [0, 1]."""
    return variant.endswith(U8IN)


def base_of(variant: str) -> str:
    """``variant`` with float input, of which the one with uint8 input is made: ``"fp16"`` of ``"fp16-u8in"`` and of
    itself."""
    return variant.removesuffix(U8IN)


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


def variant_for(name: str, backend: str, *, provider: str = "cpu") -> str:
    """The variant that ``name`` means on ``backend``: itself, but for ``"int8"`` and ``"int8-u8in"``.

    Args:
        name: a variant, or one of these two.
        backend: as for :func:`int8_variant`.
        provider: as for :func:`int8_variant`.
    """
    if base_of(name) != INT8:
        return name
    return int8_variant(backend, provider=provider) + name.removeprefix(INT8)


def expanded(names: list[str], known: tuple[str, ...]) -> list[str]:
    """``names`` in which ``"int8"`` and ``"int8-u8in"`` are every variant of ``known`` that they may stand for.

    Args:
        names: variants, and these two; one that stands for none of ``known`` stays as it is.
        known: variants to choose from.
    """
    found: list[str] = []
    for name in names:
        meant = [v for v in known if base_of(name) == INT8 == precision_of(v) and takes_uint8(v) == takes_uint8(name)]
        found += meant or [name]
    return found
