"""TensorRT plans of a bundle, for the GPU that is here or for one that is not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from edgeadv_runtime import BatchProfile, Bundle, EngineOptions, InputError
from edgeadv_runtime.backends.build_engine import BuiltEngine, EngineBuilder
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.bundle.variants import S8S8, TENSORRT_REFUSES_U8S8, U8S8, base_of, variant_for
from edgeadv_runtime.engine import parse_targets
from edgeadv_runtime.files import ensure_writable

from .alone import alone
from .inputs import ALL, names, open_bundle

_log = logging.getLogger(__name__)


@alone()
def build_engines(
    bundle: Bundle | str | Path,
    *,
    precisions: str | Iterable[str] = ("fp16",),
    batch: str = "1",
    targets: str | Iterable[str] | None = None,
    library: str | None = None,
    tf32: bool = False,
    workspace: int | None = None,
    engine_cache: str | Path | None = None,
    explain: bool = False,
    out: str | Path | None = None,
    progress: Progress | None = None,
    built: Callable[[BuiltEngine], None] | None = None,
) -> list[BuiltEngine]:
    """Build TensorRT plans, or find them, and prove those that can run here on the golden frames.

    TensorRT-RTX builds for named GPUs on a machine without one; classic TensorRT builds on the device, for its GPU::

        (built,) = build_engines("signs.edgeadv", precisions=["fp16"], batch="1,8,32")

    Args:
        bundle: what to build from, or where it is.
        precisions: variants, ``int8`` for the one that TensorRT runs; or ``all`` that it can run.
        batch: size of the batch, or its least, best and largest.
        targets: GPUs to build for without having one: ``"sm_86"``, or several for one plan.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``; None takes the first that is installed and can do it.
        tf32: let float32 products round to TensorFloat-32.
        workspace: most scratch memory of a layer in MiB; None leaves it to TensorRT.
        engine_cache: where plans are kept; None is the user's cache.
        explain: build nothing, only tell ``progress`` what is in the cache and why not.
        out: a folder to copy the plans into as well.
        progress: called before each plan with the plans done, all plans, and what is in the cache.

        built: called with each plan as soon as it is there.

    Returns:
        The plans.

    Raises:
        InputError: an argument does not fit, or TensorRT does not run a variant.
        EdgeAdvError: as :func:`~edgeadv_runtime.backends.build_engine.build_engine`.
    """
    wanted = () if targets is None else parse_targets(targets if isinstance(targets, str) else ",".join(targets))
    options = EngineOptions(profile=BatchProfile.parse(batch), targets=wanted, tf32=tf32, workspace_mib=workspace)
    folder = None if out is None else Path(out)
    if folder is not None:
        if explain:
            raise InputError("`explain` builds nothing that could be copied: leave out `out`")
        ensure_writable(folder)
    bundle = open_bundle(bundle)
    variants = _variants(bundle, names(precisions, field="precisions"))
    builder = EngineBuilder.find(options, library=library, cache=engine_cache)
    plans: list[BuiltEngine] = []
    for done, variant in enumerate(variants):
        if progress is not None:
            progress(done, len(variants), f"{variant}: {builder.explain(bundle, variant)}")
        if not explain:
            plans.append(builder.build(bundle, variant, out=folder, progress=_log.info))
            if built is not None:
                built(plans[-1])
    return plans


def _variants(bundle: Bundle, asked: tuple[str, ...]) -> list[str]:
    """The variants to build; logs which one is left out."""
    if asked == (ALL,):
        refused = [variant for variant in bundle.variants if base_of(variant) == U8S8]
        chosen = [variant for variant in bundle.variants if variant not in refused]
        if refused:
            are = "is" if len(refused) == 1 else "are"
            _log.info("%s %s left out: %s", " and ".join(refused), are, TENSORRT_REFUSES_U8S8)
        if not chosen:
            raise InputError(
                f"{bundle.path} carries no variant that TensorRT can run; {bundle.how_to_add('fp32,fp16')}"
            )
        return chosen
    found = [variant_for(name, "tensorrt") for name in asked]
    for variant in found:
        if base_of(variant) == U8S8:
            raise InputError(f"{TENSORRT_REFUSES_U8S8}: use `precisions` {variant.replace(U8S8, S8S8)}")
    for variant in found:
        bundle.onnx_path(variant)  # before the first of them is built
    return list(dict.fromkeys(found))
