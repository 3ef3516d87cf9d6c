"""ONNX Runtime: the artefact as it ships, on exactly the device that was asked for."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..device import gpu_name, processor_name
from ..errors import BackendError, InputError, ProviderError, require
from .base import Backend

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeBackend(Backend):
    """A variant of a bundle in ONNX Runtime. Calls of :meth:`infer` from several threads are safe."""

    name = "onnxruntime"

    def __init__(
        self, bundle: Bundle, *, variant: str = "fp32", provider: str = "cpu", threads: int | None = None
    ) -> None:
        """Open ``variant`` of ``bundle``.

        Args:
            bundle: an opened bundle.
            variant: which artefact.
            provider: ``"cpu"`` or ``"cuda"``; there is no fallback from one to the other.
            threads: intra-op threads; None leaves them to ONNX Runtime.

        Raises:
            InputError: unknown provider, or a variant that the bundle lacks.
            ProviderError: the provider cannot be had here.
            BackendError: ONNX Runtime refuses the file.
            MissingDependencyError: onnxruntime is not installed.
        """
        path = bundle.onnx_path(variant)
        if provider not in PROVIDERS:
            raise InputError(f"ONNX Runtime provider {provider!r} is not one of {', '.join(PROVIDERS)}")
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        ort = require("onnxruntime", extra="ort" if provider == "cpu" else "ort-gpu")
        wanted = PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise ProviderError(
                f"ONNX Runtime {ort.__version__} here is built without {wanted}: replace it, "
                'pip uninstall onnxruntime; pip install "edgeadv[ort-gpu]"'
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            # TF32, on by default, would make fp32 another precision than the one that was compared at export
            chosen = [(wanted, {"use_tf32": "0"})] if provider == "cuda" else [wanted]
            session = ort.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise BackendError(f"ONNX Runtime cannot open {path}: {_first_line(error)}") from error
        session.disable_fallback()
        if session.get_providers()[0] != wanted:
            raise ProviderError(
                f"asked ONNX Runtime for {wanted} and got {session.get_providers()[0]}: {_why_no_cuda()}"
            )
        self._session: Any = session
        self.variant = variant
        self.provider = wanted
        self.device = processor_name() if provider == "cpu" else gpu_name()
        self.artifact_sha256 = bundle.artifact_sha256(variant)
        self.input_shape = bundle.preprocess.input_shape
        self.n_classes = len(bundle.classes)
        self.threads = threads
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if [i.name for i in inputs] != ["image"] or [o.name for o in outputs] != ["logits"]:
            raise BackendError(
                f"{path} does not have the one input 'image' and the one output 'logits' of a bundle; export it again"
            )

    def _infer(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = self._session.run(["logits"], {"image": x})[0]
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise BackendError(f"ONNX Runtime failed on {self.variant}: {_first_line(error)}") from error
        return logits

    def _close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _why_no_cuda() -> str:
    """Name the first missing piece of CUDA, as far as the dynamic loader can tell."""
    for library, meaning in (
        ("libcuda.so.1", "no NVIDIA driver"),
        ("libcudnn.so.9", "no cuDNN 9"),
        ("libcublas.so.12", "no CUDA 12 or 13 libraries"),
    ):
        try:
            ctypes.CDLL(library)
        except OSError:
            return f"{meaning} here ({library} does not load on this {platform.machine()} machine)"
    return "the CUDA provider did not load; ONNX Runtime's own message is on standard error"
