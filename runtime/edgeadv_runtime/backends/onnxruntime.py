"""ONNX Runtime: the artefact as it ships, on exactly the device that was asked for.

The provider is what was asked for, or an error: on a GPU no node may fall back to the CPU. Which library is missing
where a provider does not load was seen with onnxruntime-gpu 1.31 on a machine without a GPU; neither CUDA nor TensorRT
has been seen running under this code.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import FLOAT, Bundle
from ..bundle.variants import S8S8, TENSORRT_REFUSES_U8S8, U8S8, base_of, is_x86, takes_uint8
from ..device.cuda import find_gpu
from ..device.facts import limited_cores, processor_name, usable_cores
from ..engine.external_data import check_self_contained
from ..errors import BackendError, InputError, ProviderError, require
from .base import Backend

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
# TF32, on by default, would make of fp32 another precision than the one that was compared at export
_CUDA_OPTIONS = {"use_tf32": "0"}
# Precision is in the graph. With all of these flags off ONNX Runtime is meant to take it from there (a strongly typed
# network, since TensorRT 10); its documentation does not tie Q/DQ nodes to trt_int8_enable, and a TensorRT that wants
# the flag fails to build, which is an error here. They are set, or the environment (ORT_TENSORRT_...) would decide.
# ONNX Runtime's cache of engines does not see that a model has changed: it is not used.
_TENSORRT_OPTIONS = dict.fromkeys(
    ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_timing_cache_enable"),
    "False",
)
# ONNX Runtime has no option for TF32 in TensorRT: only this variable of NVIDIA's switches it off
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
# libraries that the providers are linked with, one of each line, and what it means that none loads
_LIBRARIES = {("libcublas.so.13", "libcublas.so.12"): "no CUDA 12 or 13 libraries", ("libcudnn.so.9",): "no cuDNN 9"}
_TENSORRT_LIBRARIES = {("libnvinfer.so.11", "libnvinfer.so.10"): "no TensorRT 10 or 11 where the loader looks"}
# what ONNX Runtime says where a provider does not load, or does not take every node
_NOT_ALL = ("fallback to CPU EP has been explicitly disabled", "Please install TensorRT libraries")
_ON_STDERR = "ONNX Runtime's own message is on standard error"


class OnnxRuntimeBackend(Backend):
    """A variant of a bundle in ONNX Runtime. Calls of :meth:`infer` from several threads are safe.

    With ``tensorrt`` ONNX Runtime builds an engine when it is opened and again for every new size of the batch.

    Attributes:
        node_share: for each provider the share of the graph's nodes that it took; empty where an older ONNX Runtime
            does not tell.
    """

    name = "onnxruntime"
    node_share: dict[str, float]

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str = "fp32",
        provider: str = CPU,
        threads: int | None = None,
        spin: bool | None = None,
    ) -> None:
        """Open ``variant`` of ``bundle``.

        Args:
            bundle: an opened bundle.
            variant: which artefact.
            provider: ``"cpu"``, ``"cuda"``, or ``"tensorrt"`` with CUDA for the nodes that TensorRT does not take;
                there is no fallback from one to the other.
            threads: intra-op threads; None leaves them to ONNX Runtime, or takes the cores that a quota or the
                process's affinity leaves of the machine's, which ONNX Runtime does not see.
            spin: whether threads spin for milliseconds after a call: the soonest answers where calls follow each other
                at once, and many times the processor time where they do not. The logits are the same. None is True,
                and lets :func:`~edgeadv_runtime.bench` time a rate both ways.

        Raises:
            InputError: unknown provider, a variant that the bundle lacks, or one that this provider does not take.
            ProviderError: the provider cannot be had here, or leaves nodes to the CPU.
            BundleError: the file has values in another one.
            BackendError: ONNX Runtime refuses the file.
            MissingDependencyError: onnxruntime is not installed.
        """
        path = bundle.onnx_path(variant)
        if provider not in PROVIDERS:
            raise InputError(f"ONNX Runtime provider {provider!r} is not one of {', '.join(PROVIDERS)}")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads must be at least 1, not {threads!r}")
        if provider == TENSORRT and base_of(variant) == U8S8:
            raise InputError(TENSORRT_REFUSES_U8S8)
        ort = require("onnxruntime", extra="ort" if provider == CPU else "ort-gpu")
        wanted = PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise ProviderError(
                f"ONNX Runtime {ort.__version__} here is built without {wanted}: replace it, "
                'pip uninstall onnxruntime; pip install "edgeadv[ort-gpu]"; edgeadv doctor tells which wheel on ARM'
            )
        data = bundle.onnx(variant)
        check_self_contained(data, path)
        if provider == TENSORRT and os.environ.get(TF32_VARIABLE) != "0" and FLOAT in bundle.written_in(variant):
            raise ProviderError(
                f"ONNX Runtime cannot switch TF32 off in TensorRT, and what is float32 in {variant} would be of "
                f"another precision than exported: start with {TF32_VARIABLE}=0 in the environment, or use "
                "`provider` cuda or `backends` tensorrt"
            )
        if provider == CPU and threads is None:
            threads = limited_cores()
        session = open_session(
            ort, data, path, variant=variant, provider=provider, threads=threads, spin=spin is not False
        )
        del data
        self._session: Any = session
        self._describe(bundle, variant)
        self._one_by_one = bundle.fixed_batch(variant)
        self.provider, self.threads = wanted, threads
        if provider == CPU and (threads or usable_cores()) != 1:
            self.spin = spin is not False
            # a subclass may need more to be opened, and this class would be another one
            if spin is None and type(self) is OnnxRuntimeBackend:
                self.unspun = partial(OnnxRuntimeBackend, bundle, variant=variant, threads=threads, spin=False)
        self.device = processor_name() if provider == CPU else find_gpu().name
        self.node_share = _node_share(session)
        if self.node_share and wanted not in self.node_share:
            raise ProviderError(
                f"{wanted} opened {path} and took none of its nodes, all are left to {', '.join(self.node_share)}: "
                "use that provider, or `backends` tensorrt"
            )
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if [i.name for i in inputs] != ["image"] or [o.name for o in outputs] != ["logits"]:
            raise BackendError(
                f"{path} does not have the one input 'image' and the one output 'logits' of a bundle; export it again"
            )
        due = "uint8" if takes_uint8(variant) else "float"
        if inputs[0].type != f"tensor({due})":
            raise BackendError(f"{path} takes {inputs[0].type} where {variant} takes tensor({due}); export it again")

    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        parts = np.split(x, len(x)) if self._one_by_one else [x]
        try:
            logits = [self._session.run(["logits"], {"image": part})[0] for part in parts]
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise BackendError(f"ONNX Runtime failed on {self.variant}: {first_line(error)}") from error
        return np.concatenate(logits) if self._one_by_one else logits[0]

    def _close(self) -> None:
        self._session = None


def open_session(
    ort: Any,
    data: bytes,
    path: Path,
    *,
    variant: str,
    provider: str = CPU,
    threads: int | None = None,
    spin: bool = True,
) -> Any:
    """A session with ``provider`` and no way around it, as ``variant`` needs it to be computed.

    Args:
        ort: the module ``onnxruntime``.
        data: the ONNX file, as it was read and checked: :func:`check_self_contained` has seen these very bytes.
        path: where they are from, for messages.
        variant: what they are of.
        provider: as :class:`OnnxRuntimeBackend` has it.
        threads: likewise; None leaves them to ONNX Runtime.
        spin: likewise.

    Raises:
        BackendError: ONNX Runtime refuses the file, or does not give the provider.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    if base_of(variant) == S8S8 and provider == CPU and is_x86():
        # without VNNI the default arithmetic saturates in 16 bits and silently loses 20 points of top-1
        options.add_session_config_entry("session.x64quantprecision", "1")
    # it rounds the weights of a layer that was left in float32 between two rounded tensors, to one scale for all
    # channels; int8-s8s8 cannot do without it, for its biases are float32 too
    disabled = ["WeightBiasQuantization"] if base_of(variant) == U8S8 else None
    wanted = PROVIDERS[provider]
    chosen: list[Any] = [wanted]
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if hasattr(ort, "preload_dlls"):  # what pip installed of CUDA is not where the loader looks
            with redirect_stdout(sys.stderr):  # it prints what it does not find
                ort.preload_dlls()
        chosen = [(PROVIDERS[CUDA], _CUDA_OPTIONS)]
        if provider == TENSORRT:
            chosen.insert(0, (wanted, _TENSORRT_OPTIONS))
    try:
        # without enable_fallback=0 a provider that fails is left out, and the next one tried
        session = ort.InferenceSession(data, options, providers=chosen, enable_fallback=0, disabled_optimizers=disabled)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise _refusal(error, path, provider) from error
    session.disable_fallback()
    # it would hold the file beside the weights it has made of it, for a fallback that there is not
    session._model_bytes = None
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"asked ONNX Runtime for {wanted} and got {session.get_providers()[0]}: {_missing(provider) or _ON_STDERR}"
        )
    return session


def _refusal(error: Exception, path: Path, provider: str) -> BackendError:
    """What an exception of ONNX Runtime means for somebody who asked for ``provider``."""
    wanted, text = PROVIDERS[provider], first_line(error)
    if provider != CPU and (why := _missing(provider)):
        return ProviderError(f"asked ONNX Runtime for {wanted}, which cannot be had here: {why}")
    if any(said in text for said in _NOT_ALL):
        return ProviderError(
            f"{wanted} did not load, or leaves nodes of {path} to the CPU; {_ON_STDERR}; use `provider` cpu or "
            "`backends` tensorrt"
        )
    return BackendError(f"ONNX Runtime cannot open {path}: {text}")


def _missing(provider: str) -> str | None:
    """The first missing piece of what a provider for GPUs needs, or None where all of it is here."""
    try:
        find_gpu()
    except ProviderError as error:
        return str(error)
    for names, meaning in (_LIBRARIES | (_TENSORRT_LIBRARIES if provider == TENSORRT else {})).items():
        if not any(_loads(name) for name in names):
            return (
                f"{meaning} ({' or '.join(names)} does not load): install them, or add their folder to LD_LIBRARY_PATH"
            )
    return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _node_share(session: Any) -> dict[str, float]:
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return {name: count / nodes.total() for name, count in nodes.items()}


def first_line(error: Exception) -> str:
    """What an exception of ONNX Runtime says, without the rest."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
