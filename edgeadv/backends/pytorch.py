"""The reference backend: an artefact's own graph in PyTorch, under the same contract as every other backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeadv_runtime import Backend, Bundle, InputError
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.variants import takes_uint8
from edgeadv_runtime.device.facts import processor_name

from ..attacks.batching import device_of
from ..attacks.suite import GRADIENTS
from ..gradients.artefact import open_graph
from ..models.device import arithmetic, memory_order


class ModuleBackend(Backend):
    """A classifier in PyTorch, scored as artefacts are: the side that gradients come from.

    Attributes:
        model: pixels in [0, 1] to logits, in evaluation mode and frozen; attacks follow its gradients.
        gradients: where these come from, in words for result rows.
        torch_device: where it runs.
    """

    name = "torch"

    def __init__(
        self,
        model: nn.Module,
        *,
        sha256: str,
        input_shape: tuple[int, int, int],
        n_classes: int,
        variant: str = "fp32",
        gradients: str = GRADIENTS,
    ) -> None:
        """Serve ``model``, on the device where it is.

        Args:
            model: as :attr:`model`.
            sha256: hash of the file that it comes from.
            input_shape: (channels, height, width) of its images.
            n_classes: logits that it gives.
            variant: the artefact that it is.
            gradients: where its gradients come from, in words.
        """
        self.model: nn.Module = model
        self.gradients: str = gradients
        self.torch_device: torch.device = device_of(model)
        cuda = self.torch_device.type == "cuda"
        self.variant: str = variant
        self.provider: str = "cuda" if cuda else "cpu"
        self.gpu_index: int | None = self.torch_device.index if cuda else None
        self.device: str = torch.cuda.get_device_name(self.torch_device) if cuda else processor_name()
        self.artifact_sha256: str = sha256
        self.input_shape: tuple[int, int, int] = input_shape
        self.n_classes: int = n_classes
        self.threads: int | None = None

    @property
    def gradients_sha256(self) -> str:
        """Hash of the file that the gradients belong to, of artefacts with uint8 input that of the one with floats."""
        return self.float_sha256 or self.artifact_sha256

    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        pixels = to_tensor(x) if takes_uint8(self.variant) else np.array(x)
        with torch.no_grad():
            # a copy: torch takes neither negative strides nor memory that must not be written
            batch = (
                torch.from_numpy(pixels).to(self.torch_device).contiguous(memory_format=memory_order(self.torch_device))
            )
            # other threads may attack in TF32; what is scored never is
            with arithmetic(self.torch_device, tf32=False):
                answer = self.model(batch)
            logits: NDArray[np.float32] = answer.float().cpu().numpy()
        return logits

    def _close(self) -> None:
        del self.model


class TorchBackend(ModuleBackend):
    """An artefact's own graph in PyTorch, float32 without TF32, as
    :class:`~edgeadv.gradients.artefact.ArtefactGraph` computes it."""

    def __init__(
        self, bundle: Bundle, *, variant: str = "fp32", device: torch.device | None = None, threads: int | None = None
    ) -> None:
        """Open the artefact's file.

        Args:
            bundle: an opened bundle.
            variant: one that it carries.
            device: where to run; None takes a GPU if there is one.
            threads: CPU threads for the whole process; None leaves them as they are.

        Raises:
            InputError: no such variant, or a graph that has no gradients here.
            BundleError: the file is no ONNX model.
        """
        if threads is not None:
            if threads < 1:
                raise InputError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        graph = open_graph(bundle, variant, device=device)
        super().__init__(
            graph,
            sha256=bundle.artifact_sha256(variant),
            input_shape=bundle.preprocess.input_shape,
            n_classes=len(bundle.classes),
            variant=variant,
            gradients=graph.gradients,
        )
        self.float_sha256 = bundle.float_sha256(variant)
        self.threads = threads
