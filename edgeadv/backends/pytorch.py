"""The reference backend: the bundle's weights in PyTorch, under the same contract as every other backend."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeadv_runtime import Backend, Bundle, InputError
from edgeadv_runtime.device.facts import processor_name

from ..attacks import attack_copy
from ..models.builder import Architecture, PixelModel, build
from ..models.checkpoints import load_state, read_weights
from ..models.device import default_device, full_precision

VARIANT = "fp32"


def load_model(bundle: Bundle, *, device: torch.device | None = None) -> PixelModel:
    """The bundle's weights in PyTorch, in evaluation mode, frozen.

    Raises:
        InputError: a slim bundle without weights, a network of own code, or weights that do not fit the architecture.
    """
    if bundle.manifest.architecture.source == "module":
        # code that a bundle names is never imported: a bundle may be anybody's
        raise InputError(
            f"{bundle.path} holds a network of own code ({bundle.manifest.architecture.name}), which is not imported "
            "for a bundle: use `backends` onnxruntime"
        )
    model = build(Architecture.from_json(bundle.manifest.architecture.to_json()))
    load_state(model.net, read_weights(bundle.weights_path), origin=str(bundle.weights_path))
    model.requires_grad_(False).eval()
    device = default_device() if device is None else device
    full_precision(device)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class TorchBackend(Backend):
    """The weights of a bundle in PyTorch, float32 without TF32: the side that gradients come from.

    Attributes:
        model: the network, as it is scored.
    """

    name = "torch"

    def __init__(
        self, bundle: Bundle, *, variant: str = VARIANT, device: torch.device | None = None, threads: int | None = None
    ) -> None:
        """Load the bundle's weights.

        Args:
            bundle: an opened bundle with weights.
            variant: must be ``"fp32"``: the other variants exist as ONNX only.
            device: where to run; None takes a GPU if there is one.
            threads: CPU threads for the whole process; None leaves them as they are.

        Raises:
            InputError: another variant, or no weights in the bundle.
        """
        if variant != VARIANT:
            raise InputError(
                f"torch serves fp32 only, not {variant}: the other variants are ONNX files; use `backends` onnxruntime"
            )
        if threads is not None:
            if threads < 1:
                raise InputError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        self.model: PixelModel = load_model(bundle, device=device)
        self._device = next(self.model.parameters()).device
        cuda = self._device.type == "cuda"
        self.variant: str = VARIANT
        self.provider: str = "cuda" if cuda else "cpu"
        self.gpu_index: int | None = self._device.index if cuda else None
        self.device: str = torch.cuda.get_device_name(self._device) if cuda else processor_name()
        self.artifact_sha256: str = bundle.weights_sha256
        self.input_shape: tuple[int, int, int] = bundle.preprocess.input_shape
        self.n_classes: int = len(bundle.classes)
        self.threads: int | None = threads

    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            # a copy: torch takes neither negative strides nor memory that must not be written
            batch = torch.from_numpy(np.array(x)).to(self._device).contiguous(memory_format=torch.channels_last)
            logits: NDArray[np.float32] = self.model(batch).float().cpu().numpy()
        return logits

    @cached_property
    def attack_model(self) -> nn.Module:
        """The same function of the pixels as :attr:`model`, with gradients that come sooner; see
        :func:`attack_copy`."""
        sample = torch.rand(2, *self.input_shape, generator=torch.Generator().manual_seed(0))
        return attack_copy(self.model, sample.to(self._device))

    def _close(self) -> None:
        del self.model
        self.__dict__.pop("attack_model", None)
