"""From names to functions that open backends."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edgeadv_runtime import (
    BatchProfile,
    Bundle,
    EdgeAdvError,
    EngineCache,
    EngineOptions,
    InputError,
    OnnxRuntimeBackend,
    TensorRTBackend,
)
from edgeadv_runtime.backends.onnxruntime import PROVIDERS
from edgeadv_runtime.backends.tensorrt import check_gpu
from edgeadv_runtime.benchmark.latency import Opener
from edgeadv_runtime.bundle.variants import (
    INT8,
    TENSORRT_REFUSES_U8S8,
    U8S8,
    base_of,
    int8_variant,
    precision_of,
    variant_for,
)
from edgeadv_runtime.decoding import Options
from edgeadv_runtime.device.cuda import find_gpu
from edgeadv_runtime.engine import LIBRARIES, find_library
from edgeadv_runtime.errors import ProviderError
from edgeadv_runtime.records.about import Skipped

from .extras import need
from .inputs import ALL, names, one_of

if TYPE_CHECKING:
    import torch

    from edgeadv.backends.pytorch import TorchBackend

_log = logging.getLogger(__name__)
COMPILED = "torch-compiled"
BACKENDS = ("torch", "onnxruntime", "tensorrt", COMPILED)
# a backend that takes minutes to start is not among "all"
_PROMPT = ("torch", "onnxruntime", "tensorrt")
_COMPILED = ("fp32", "fp16")


@dataclass(frozen=True, kw_only=True)
class TensorRTPlan(Options):
    """What only TensorRT needs to know; as it is by default nothing was asked of it."""

    engine_batch: Annotated[
        str | None, "TensorRT: batch of the plan, default 1, or its least, best and largest: 1,8,32."
    ] = None
    engine_cache: Annotated[Path | None, "TensorRT: where plans are kept; by default the user's cache."] = None
    trust_plan: Annotated[
        str | None, "TensorRT: run the plan in the bundle's folder that has this SHA-256. A plan is code."
    ] = None
    library: Annotated[str | None, f"TensorRT: {' or '.join(LIBRARIES)}; by default the first installed."] = None
    workspace: Annotated[int | None, "TensorRT: most scratch memory of a layer in MiB."] = None
    tf32: Annotated[bool, "TensorRT: let float32 products round to TensorFloat-32."] = False


def backend_openers(
    bundle: Bundle,
    *,
    backends: str | Iterable[str],
    precisions: str | Iterable[str] = ALL,
    provider: str = "cpu",
    threads: int | None = None,
    plan: TensorRTPlan | None = None,
    for_speed: bool = False,
) -> tuple[dict[tuple[str, str], Opener], list[Skipped]]:
    """Turn names into functions that open backends, and list the pairs of them that cannot be.

    Every backend and every variant that was named must be part of a pair that can be.

    Args:
        bundle: what to open.
        backends: some of :data:`BACKENDS`, or ``all`` of them that are quick to start and work here.
        precisions: variants, ``int8`` or ``int8-u8in`` for the one that is right on each backend, or ``all`` that the
            bundle carries.
        provider: of torch and ONNX Runtime.
        threads: CPU threads of a call.
        plan: how TensorRT's plans are had.
        for_speed: leave out what is computed in another precision here, and with ``all`` the int8 variant that is not
            made for this processor.

    Returns:
        For each backend and variant a function that opens it; and the pairs that cannot be, with the reason.

    Raises:
        InputError: a name is unknown, or something that was named could not run at all.
    """
    named, asked_for = names(backends, field="backends"), names(precisions, field="precisions")
    any_backend, any_variant = named == (ALL,), asked_for == (ALL,)
    chosen, wanted = _PROMPT if any_backend else named, bundle.variants if any_variant else asked_for
    for name in chosen:
        one_of(name, BACKENDS, field="backends")
    one_of(provider, PROVIDERS, field="provider")
    plan = plan or TensorRTPlan()
    if "tensorrt" not in chosen and plan != TensorRTPlan():
        raise InputError(
            "options of TensorRT's plans were given without `backends` tensorrt: add it, or leave them out"
        )
    openers: dict[tuple[str, str], Opener] = {}
    skipped, served = [], set()
    for name in chosen:
        absent = _absent(name) if any_backend else None
        for asked in wanted:
            variant = variant_for(asked, name, provider=provider)
            reason = _misfit(name, variant, provider, for_speed=for_speed, named=not any_variant) or absent
            if name == "torch" and reason is None and variant in bundle.variants:
                reason = bundle.no_gradients(variant)
            if reason is not None:
                skipped.append(Skipped(backend=name, variant=variant, reason=reason))
                continue
            openers[name, variant] = _opener(name, bundle, variant, provider, threads, plan)
            served |= {name, asked}
    idle = [] if any_backend else [name for name in chosen if name not in served]
    idle += [] if any_variant else [asked for asked in wanted if asked not in served]
    if idle or not openers:
        why = "; ".join(dict.fromkeys(pair.reason for pair in skipped)) or "the bundle carries no variant"
        raise InputError(f"nothing would run {' and '.join(idle) or 'here'}: {why}")
    return openers, skipped


def _opener(name: str, bundle: Bundle, variant: str, provider: str, threads: int | None, plan: TensorRTPlan) -> Opener:
    # before anything is opened: a variant that is not here, or that the export refused, is the user's slip
    bundle.onnx_path("fp32" if name == COMPILED else variant)
    if name in ("torch", COMPILED):
        compiled = name == COMPILED
        return partial(open_torch, bundle, variant=variant, provider=provider, threads=threads, compiled=compiled)
    if name == "onnxruntime":
        return partial(OnnxRuntimeBackend, bundle, variant=variant, provider=provider, threads=threads)
    profile = BatchProfile.parse(plan.engine_batch or "1")
    return partial(
        TensorRTBackend,
        bundle,
        variant=variant,
        options=EngineOptions(profile=profile, workspace_mib=plan.workspace, tf32=plan.tf32),
        cache=EngineCache(plan.engine_cache),
        library=plan.library,
        trust_plan=plan.trust_plan,
        progress=_log.info,
    )


def _misfit(name: str, variant: str, provider: str, *, for_speed: bool, named: bool) -> str | None:
    """Why this backend does not run this variant, or None."""
    if name in ("torch", COMPILED):
        if provider not in ("cpu", "cuda"):
            return f"torch has no provider {provider}"
        if name == "torch":
            slow = for_speed and precision_of(variant) != "fp32"
            return f"torch computes {variant} in float32, so its speed is not that of {variant}" if slow else None
        if variant not in _COMPILED:
            return f"{name} serves {' and '.join(_COMPILED)} only"
        return f"{name} computes {variant} on a GPU only" if (variant, provider) == ("fp16", "cpu") else None
    if name == "tensorrt":
        return TENSORRT_REFUSES_U8S8 if base_of(variant) == U8S8 else None
    right = int8_variant(name, provider=provider)
    if for_speed and not named and precision_of(variant) == INT8 and base_of(variant) != right:
        return f"on this processor int8 means {right}; name {variant} to time it all the same"
    return None


def _absent(name: str) -> str | None:
    """Why a backend cannot be among ``all``, or None."""
    try:
        if name == "torch":
            need("train")
        elif name == "tensorrt":
            gpu = find_gpu()  # first: of some libraries not even the import is safe without a driver
            check_gpu(find_library(), gpu, EngineOptions())
    except EdgeAdvError as error:
        return str(error)
    return None


def open_torch(
    bundle: Bundle, *, variant: str = "fp32", provider: str = "cpu", threads: int | None = None, compiled: bool = False
) -> TorchBackend:
    """An artefact's graph in PyTorch, or what TorchInductor makes of it, on exactly the device asked for."""
    need("train")
    from edgeadv.backends.pytorch import TorchBackend
    from edgeadv.backends.pytorch_compiled import CompiledTorchBackend

    kind = CompiledTorchBackend if compiled else TorchBackend
    return kind(bundle, variant=variant, device=torch_device(provider), threads=threads)


def torch_device(provider: str) -> torch.device:
    """The device of a provider's name.

    Raises:
        InputError: it is neither ``"cpu"`` nor ``"cuda"``.
        ProviderError: there is no such device here.
    """
    import torch

    if provider not in ("cpu", "cuda"):
        raise InputError(f"torch has no provider {provider}: use `provider` cpu or cuda")
    if provider == "cuda" and not torch.cuda.is_available():
        raise ProviderError(f"torch {torch.__version__} finds no CUDA device here: use `provider` cpu")
    return torch.device(provider)
