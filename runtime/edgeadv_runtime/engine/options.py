"""What a plan is built for: batch sizes, GPUs, TF32, workspace. Precision is not here: it is inside the ONNX graph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

# the tensors of a bundle's model, and so of its plans
INPUT, OUTPUT = "image", "logits"
# more than any GPU has, and still a number that the builder takes
LARGEST_WORKSPACE_MIB = 1 << 20
_NO_PROFILE = "batch {} is not a profile: give one size, such as 8, or smallest,usual,largest, such as 1,8,32"
_TARGET = re.compile(r"(?:sm_?)?([0-9]{2,3})|([0-9]{1,2})\.([0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class ImageSpec:
    """One image as a model takes it.

    Attributes:
        shape: (channels, height, width) of float32, (height, width, channels) of uint8.
        dtype: ``numpy.float32`` or ``numpy.uint8``.
    """

    shape: tuple[int, int, int]
    dtype: type[np.generic] = np.float32

    @classmethod
    def of(cls, input_shape: tuple[int, int, int], *, uint8: bool) -> ImageSpec:
        """That of an artefact that takes uint8 pixels, or a float tensor.

        Args:
            input_shape: (channels, height, width).
            uint8: whether it takes pixels.
        """
        return cls((*input_shape[1:], input_shape[0]), np.uint8) if uint8 else cls(input_shape)

    @property
    def type_name(self) -> str:
        """What TensorRT calls :attr:`dtype`."""
        return "UINT8" if self.dtype is np.uint8 else "FLOAT"

    def __str__(self) -> str:
        return f"{np.dtype(self.dtype)} {INPUT} of {self.shape}"


@dataclass(frozen=True)
class BatchProfile:
    """Smallest, most usual and largest batch of a plan. Three times the same number is a static batch, the fastest."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if any(type(size) is not int for size in self.to_json()) or not 1 <= self.min <= self.opt <= self.max:
            raise InputError(_NO_PROFILE.format(self))

    def __str__(self) -> str:
        return str(self.max) if self.is_static else f"{self.min},{self.opt},{self.max}"

    @property
    def is_static(self) -> bool:
        """Whether only one size is served."""
        return self.min == self.max

    @classmethod
    def parse(cls, text: str | int) -> BatchProfile:
        """Read ``"8"`` or ``"1,8,32"``.

        Raises:
            InputError: it is neither, or not in rising order.
        """
        parts = [part.strip() for part in str(text).split(",")]
        # isdigit alone takes digits that int() refuses, and more of them than it converts
        if len(parts) not in (1, 3) or not all(re.fullmatch("[0-9]{1,6}", part) for part in parts):
            raise InputError(_NO_PROFILE.format(repr(text)))
        sizes = [int(part) for part in parts]
        return cls(*(sizes if len(sizes) == 3 else sizes * 3))

    def to_json(self) -> list[int]:
        """``[min, opt, max]``."""
        return [self.min, self.opt, self.max]


STATIC_ONE = BatchProfile(1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What to build.

    Attributes:
        profile: the batch sizes that the plan serves.
        targets: GPUs to build for without having one, as ``"sm_86"``; empty for the GPU present.
        tf32: let float32 matrix products round their factors to TensorFloat-32, 10 bits of mantissa.
        workspace_mib: most scratch memory that a layer may use; None leaves it to TensorRT.
    """

    profile: BatchProfile = STATIC_ONE
    targets: tuple[str, ...] = ()
    tf32: bool = False
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", normalised(self.targets))
        size = self.workspace_mib
        if size is not None and (type(size) is not int or not 1 <= size <= LARGEST_WORKSPACE_MIB):
            raise InputError(
                f"a workspace of {size} MiB is not possible: give 1 to {LARGEST_WORKSPACE_MIB}, or leave it to TensorRT"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object of all of it."""
        return {**vars(self), "profile": self.profile.to_json(), "targets": list(self.targets)}


def parse_targets(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of GPUs: ``sm_86``, ``SM86`` and ``8.6`` are the same one.

    Returns:
        Their names in the form ``"sm_86"``, each once, in rising order.

    Raises:
        InputError: one of them is not written in such a way.
    """
    return normalised(text.split(","))


def normalised(targets: Iterable[str]) -> tuple[str, ...]:
    """``targets`` in the form ``"sm_86"``, each once, in rising order.

    Raises:
        InputError: one of them is not a compute capability.
    """
    numbers = set()
    for target in targets:
        match = _TARGET.fullmatch(target.strip())
        if match is None:
            raise InputError(
                f"target {target!r} is not a compute capability: write sm_86, or sm_86,sm_89 for a plan for both"
            )
        numbers.add(int(match[1] or match[2] + match[3]))
    return tuple(f"sm_{number}" for number in sorted(numbers))
