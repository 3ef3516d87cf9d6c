"""For a bundle: which artefact would run here on which backend, and why the others would not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backends.onnxruntime import CPU, PROVIDERS, TENSORRT, OnnxRuntimeBackend
from ..bundle.bundle import Bundle
from ..bundle.variants import INT8, S8S8, TENSORRT_REFUSES_U8S8, U8IN, U8S8, base_of, int8_variant, precision_of
from ..engine import LIBRARIES, EngineCache, EngineOptions, Library
from ..engine.library import TENSORRT as CLASSIC
from ..errors import BackendError, EdgeAdvError, InputError, MissingDependencyError, ProviderError
from .checks import Check, Status
from .engines import Libraries
from .jetpack import refusal
from .machine import Machine

Answer = tuple[Status, str]
# the one GPU for which TensorRT-RTX was seen to build fp16 only
_TURING = "sm_75"


def open_bundle(path: Path, *, public_key: Path | None = None) -> tuple[Check, Bundle | None]:
    """Open a bundle, or say why it does not open."""
    name = f"bundle {path}"
    try:
        bundle = Bundle.open(path, public_key=public_key)
    except (EdgeAdvError, OSError) as error:
        return Check(name, "problem", str(error)), None
    left_out = bundle.manifest.left_out
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    here = ", ".join(bundle.variants) or "none"
    signed = "not signed"
    if bundle.signed:
        signed = "signed, by whom `public_key` tells" if public_key is None else f"signed as {public_key} says"
    return Check(name, "ok", f"id {bundle.id[:12]}, every hash fits, {signed}; variants here: {here}{without}"), bundle


def check_runs(bundle: Bundle, machine: Machine, libraries: Libraries, *, available: Sequence[str]) -> list[Check]:
    """Try every variant that is here on every backend; one check for those with the same answer.

    ONNX Runtime is opened and runs a golden frame. TensorRT is judged only: a plan may take minutes to build.

    Args:
        bundle: an opened bundle.
        machine: this one.
        libraries: TensorRT and TensorRT-RTX.
        available: the providers that ONNX Runtime was built with; none where it does not import.
    """
    try:
        pixels = bundle.golden().pixels[:1]
    except EdgeAdvError as error:
        return [Check("golden frames", "problem", str(error))]
    backends: dict[str, Callable[[str], Answer]] = {
        f"onnxruntime {provider}": partial(
            _try_onnxruntime, bundle, pixels, provider=provider, built_in=name in available
        )
        for provider, name in PROVIDERS.items()
    }
    # each try builds an engine
    backends[f"onnxruntime {TENSORRT}"] = _once(backends[f"onnxruntime {TENSORRT}"])
    for name in LIBRARIES:
        backends[name] = partial(_judge_tensorrt, bundle, library=libraries[name], machine=machine)
    checks = []
    for name, attempt in backends.items():
        grouped: dict[Answer, list[str]] = {}
        for variant in bundle.variants:
            grouped.setdefault(attempt(variant), []).append(variant)
        checks += [Check(f"{name}: {', '.join(group)}", *answer) for answer, group in grouped.items()]
    return [*checks, check_int8(bundle)]


def check_int8(bundle: Bundle, *, machine: str | None = None) -> Check:
    """Which variant ``int8`` stands for on each backend here, and whether this bundle has it.

    Args:
        bundle: an opened bundle.
        machine: the processor as ``platform.machine()`` names it; None is this one.
    """
    on_cpu = int8_variant("onnxruntime", provider=CPU, machine=machine)
    on_gpus = "" if on_cpu == S8S8 else f", {S8S8} on every GPU"
    means = f"int8 is {on_cpu} with onnxruntime on this processor{on_gpus}"
    known = bundle.manifest.variants
    wanted = list(dict.fromkeys((on_cpu, S8S8)))
    if pixels := [v + U8IN for v in wanted if v not in bundle.variants and v + U8IN in bundle.variants]:
        means += f"; {', '.join(pixels)} is here, which is {INT8}{U8IN}"
    absent = [v for v in wanted if v not in bundle.variants and v + U8IN not in pixels]
    if absent != wanted:
        return Check(INT8, "ok", f"{means}{'; not here: ' + ', '.join(absent) if absent else ''}")
    if any(variant in known for variant in absent):
        return Check(INT8, "missing", f"{means}; this copy left it out", "slim the full bundle again with `variant`")
    return Check(INT8, "missing", f"{means}; this bundle has none", bundle.how_to_add(INT8))


def _try_onnxruntime(
    bundle: Bundle, pixels: NDArray[np.uint8], variant: str, *, provider: str, built_in: bool
) -> Answer:
    try:
        with OnnxRuntimeBackend(bundle, variant=variant, provider=provider) as backend:
            backend.infer_pixels(pixels)
            share = backend.node_share.get(backend.provider, 1.0)
    except (MissingDependencyError, InputError) as error:
        return "missing", str(error)
    except ProviderError as error:
        return "problem" if built_in else "missing", str(error)
    except BackendError as error:
        return "problem", str(error)
    except (ImportError, AttributeError, OSError) as error:  # one installed over another gives any of these
        return "problem", f"onnxruntime does not import: {error}"
    most = "" if share == 1 else f"; it took {share:.0%} of the nodes, CUDA the others"
    right = int8_variant(OnnxRuntimeBackend.name, provider=provider)
    if precision_of(variant) == INT8 and base_of(variant) != right:
        return "ok", f"opened and ran, correct but slow: {right} is made for this processor{most}"
    return "ok", f"opened and ran{most}"


def _once(attempt: Callable[[str], Answer]) -> Callable[[str], Answer]:
    """Try variants until one runs, and take that for an answer about the others."""
    ran = False

    def answer(variant: str) -> Answer:
        nonlocal ran
        if base_of(variant) == U8S8:
            return "missing", TENSORRT_REFUSES_U8S8
        if ran:
            return "untried", "the provider works, and building another engine takes its time"
        result = attempt(variant)
        ran = result[0] == "ok"
        return result

    return answer


def _judge_tensorrt(bundle: Bundle, variant: str, *, library: Library | str, machine: Machine) -> Answer:
    """Everything that is known before a plan is built."""
    if base_of(variant) == U8S8:
        return "missing", TENSORRT_REFUSES_U8S8
    if isinstance(library, str):
        return "missing", library
    if machine.gpu is None:
        cross = ": edgeadv engine --target builds a plan for another machine" if library.can_target else ""
        return "missing", f"it needs a GPU to run{cross}"
    if library.name == CLASSIC and (why := refusal(machine.jetpack, library.version, board=machine.board)):
        return "problem", why
    if not library.serves(machine.gpu.sm):
        return "missing", f"{library} does not know the GPU here ({machine.gpu.sm})"
    if library.can_target and machine.gpu.sm == _TURING and precision_of(variant) != "fp16":
        return "missing", f"{library} has no float32 matrix product for {_TURING}, which this graph needs: use fp16"
    try:
        plan = EngineCache().explain(bundle, variant, EngineOptions(), library=library, gpu=machine.gpu)
    except EdgeAdvError as error:
        return "problem", str(error)
    return "ok", f"nothing speaks against it, edgeadv verify tries it; engine cache: {plan.status}"
