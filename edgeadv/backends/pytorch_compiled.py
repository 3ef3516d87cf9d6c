"""An artefact's graph compiled by TorchInductor: PyTorch as the engine of a device that has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from edgeadv_runtime import Bundle, InputError
from edgeadv_runtime.errors import BackendError
from edgeadv_runtime.files import sha256_bytes

from ..models.compiling import why_not
from ..models.device import arithmetic
from .pytorch import TorchBackend

VARIANTS = ("fp32", "fp16")


class CompiledTorchBackend(TorchBackend):
    """The graph of fp32 compiled; on a GPU each batch size is one CUDA graph, so that no time goes into
    launching kernels.

    Batches are padded to the next power of two, so that an attack which asks about fewer and fewer images does not
    compile again and again. The first call of each such size compiles it, which takes from seconds to minutes. Without
    a GPU the processor's kernels are compiled, float32 only. On a GPU float32 was run, on an H100
    (``benchmarks/torch_latency.py``); **float16 was not run yet**.
    """

    name = "torch-compiled"

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str = "fp32",
        device: torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the graph; nothing is compiled yet.

        Args:
            bundle: an opened bundle that carries fp32.
            variant: ``"fp32"``, without TF32; or ``"fp16"``, the same weights rounded to float16, on a GPU.
            device: where to run; None takes a GPU if there is one.
            threads: CPU threads for the whole process; None leaves them as they are.

        Raises:
            InputError: another variant, float16 without a GPU, or no fp32 in the bundle.
            BackendError: PyTorch compiles nothing here.
        """
        if variant not in VARIANTS:
            raise InputError(
                f"torch-compiled serves {' and '.join(VARIANTS)}, not {variant}: use `backends` onnxruntime for "
                "other variants"
            )
        super().__init__(bundle, device=device, threads=threads)
        if variant == "fp16" and self.provider == "cpu":
            raise InputError("torch-compiled computes fp16 on a GPU only: use `provider` cuda, or `precisions` fp32")
        if (reason := why_not(self.torch_device)) is not None:
            raise BackendError(f"{reason}; or use `backends` torch")
        self.variant = variant
        self._dtype = torch.float32
        if variant == "fp16":
            self._dtype = torch.float16
            # another function than the one that gradients come from
            self.artifact_sha256 = sha256_bytes(f"fp16 of {self.artifact_sha256}".encode())
        self.model = self.model.to(self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled: dict[int, Any] = {}  # by the size of the batch

    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        padded = np.zeros((1 << (len(x) - 1).bit_length(), *x.shape[1:]), dtype=np.float32)
        padded[: len(x)] = x
        batch = (
            torch.from_numpy(padded).to(self.torch_device, self._dtype).contiguous(memory_format=torch.channels_last)
        )
        try:
            with torch.inference_mode(), arithmetic(self.torch_device, tf32=False):
                if len(padded) not in self._compiled:
                    self._compiled[len(padded)] = self._compile(batch)
                logits: NDArray[np.float32] = self._compiled[len(padded)](batch).float()[: len(x)].cpu().numpy()
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise _refusal(error) from error
            raise
        return logits

    def _compile(self, batch: Tensor) -> Any:
        """The graph for batches of one size, its shapes computed."""
        mode = "reduce-overhead" if self.provider == "cuda" else "default"
        with torch.inference_mode(False), torch.no_grad():
            traced = make_fx(self.model)(batch.clone())
        try:
            # fullgraph: what cannot be compiled is an error, where PyTorch would run it uncompiled and say so in a log
            return torch.compile(traced, dynamic=False, fullgraph=True, mode=mode)
        except RuntimeError as error:
            raise _refusal(error) from error

    def _close(self) -> None:
        self._compiled.clear()
        super()._close()


def _refusal(error: Exception) -> BackendError:
    reason = " ".join(str(error).split())[:300]
    return BackendError(f"torch {torch.__version__} cannot compile this network here: {reason}; use `backends` torch")
