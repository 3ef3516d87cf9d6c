"""In which precision attacks compute the gradients of the network that they attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeadv_runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgeadv.backends.pytorch import TorchBackend

FLOAT32, FLOAT16 = "float32", "float16"

GradientsIn = Annotated[
    str,
    typer.Option("--gradients", help=f"{FLOAT32}, or on a GPU {FLOAT16}: sooner, and attacks may be a little weaker."),
]


def check_gradients(precision: str, provider: str) -> None:
    """Make sure that gradients can be had in ``precision`` where attacks run.

    Raises:
        InputError: it is neither of the two, or float16 on a processor.
    """
    if precision not in (FLOAT32, FLOAT16):
        raise InputError(f"--gradients {precision!r} is not one of {FLOAT32}, {FLOAT16}")
    if precision == FLOAT16 and provider == "cpu":
        raise InputError(f"--gradients {FLOAT16} needs a GPU: add --provider cuda, or leave it out")


def network_to_follow(reference: TorchBackend, precision: str, x: NDArray[np.float32]) -> tuple[nn.Module, str]:
    """The network whose gradients attacks follow, and where these come from, in words for result rows.

    Args:
        reference: the network as it is scored.
        precision: ``"float32"`` or ``"float16"``.
        x: images such as are going to be attacked, float32 (n, 3, H, W) in [0, 1].

    Raises:
        InputError: the network does not run in float16.
    """
    import torch

    from edgeadv.attacks.batching import device_of
    from edgeadv.attacks.float16 import HALF, HalfCopy
    from edgeadv.attacks.suite import GRADIENTS
    from edgeadv.models.builder import PixelModel

    exact = reference.attack_model
    if precision == FLOAT32:
        return exact, GRADIENTS
    assert isinstance(exact, PixelModel)
    try:
        return HalfCopy(exact, torch.from_numpy(x).to(device_of(exact))), HALF
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"this network does not run in {FLOAT16} ({reason}): leave --gradients {FLOAT16} out"
        ) from error
