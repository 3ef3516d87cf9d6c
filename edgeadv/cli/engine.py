"""``edgeadv engine``: TensorRT plans of a bundle, for the GPU that is here or for one that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.backends import TensorRTBackend
from edgeadv_runtime.backends.tensorrt import never_loaded
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.variants import S8S8, TENSORRT_REFUSES_U8S8, U8S8, base_of, variant_for
from edgeadv_runtime.device.cuda import Gpu, find_gpu
from edgeadv_runtime.engine import (
    LIBRARIES,
    BatchProfile,
    Engine,
    EngineCache,
    EngineOptions,
    Library,
    copy_engine,
    find_library,
    parse_targets,
)
from edgeadv_runtime.errors import InputError, MissingDependencyError, ProviderError
from edgeadv_runtime.files import ensure_writable

from ._backends import EngineFolder, PublicKey, to_stderr
from ._fields import say
from ._shared import ALL, names

MIB = 1 << 20


def engine(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to build from.")],
    precision: Annotated[
        str, typer.Option(help="Comma-separated variants, int8, int8-u8in, or all of the bundle that TensorRT can run.")
    ] = "fp16",
    batch: Annotated[str, typer.Option(help="Batch size of the plan, or its least, best and largest: 1,8,32.")] = "1",
    target: Annotated[
        str | None, typer.Option(help="GPUs to build for without having one: sm_86, or sm_86,sm_89 in one plan.")
    ] = None,
    library: Annotated[
        str | None, typer.Option(help=f"{' or '.join(LIBRARIES)}; else the first that is installed and can do it.")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let float32 products round to TensorFloat-32.")] = False,
    workspace: Annotated[int | None, typer.Option(help="Most scratch memory of a layer in MiB.")] = None,
    engine_cache: EngineFolder = None,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what is in the cache and why not.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Also copy the plans into this folder, such as the bundle's, to take them along."),
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Build TensorRT plans, or find them in the cache, and prove those that can run here on the golden frames.

    Precision is what the ONNX file says, never a switch of the builder. TensorRT-RTX builds for named GPUs on a machine
    without one; classic TensorRT builds on the device, for its GPU.
    """
    options = EngineOptions(
        profile=BatchProfile.parse(batch), targets=parse_targets(target) if target is not None else (), tf32=tf32,
        workspace_mib=workspace,
    )  # fmt: skip
    if out is not None:
        if explain:
            raise InputError("--explain builds nothing that could be copied: leave out --out")
        ensure_writable(out)
    opened = Bundle.open(bundle, public_key=public_key)
    variants = _variants(opened, precision)
    builder = _library(library, options)
    gpu = _gpu(builder, options)
    if not builder.can_target and gpu is not None and options.targets == (gpu.sm,):
        options = replace(options, targets=())  # the one that it builds for anyway
    builder.check_targets(options.targets)
    cache = EngineCache(engine_cache)
    for variant in variants:
        say(f"{variant}: {cache.explain(opened, variant, options, library=builder, gpu=gpu)}")
        if not explain:
            _provide(opened, variant, options, builder, gpu, cache, out)


def _provide(
    bundle: Bundle, variant: str, options: EngineOptions, library: Library, gpu: Gpu | None, cache: EngineCache,
    out: Path | None,
) -> None:  # fmt: skip
    """Find or build one plan, prove it if it runs here, and print what it is."""
    if gpu is not None and (not options.targets or gpu.sm in options.targets):
        there = cache.find(bundle, variant, options, library=library, gpu=gpu)
        if there is not None and never_loaded(there, gpu):
            cache.discard(there)  # the one way to have it tried again
        with TensorRTBackend(
            bundle, variant=variant, options=options, cache=cache, library=library.name, progress=to_stderr
        ) as backend:
            found = backend.engine
        proof = f"verified       on the golden frames of the bundle, on {gpu.name}"
    else:
        found = cache.provide(bundle, variant, options, library=library, gpu=gpu, progress=to_stderr)
        proof = f"not verified   needs an {' or '.join(options.targets)} GPU; "
        if out is not None:
            proof += f"run edgeadv verify there --backend tensorrt --precision {variant} --trust-plan {found.sha256}"
        else:
            proof += "take the plan along with --out, or run edgeadv engine on that machine"
    copy = copy_engine(found, out) if out is not None else None
    _show(found, library)
    say(f"  {proof}")
    if copy is not None:
        say(f"  copy           {copy}")


def _show(engine: Engine, library: Library) -> None:
    build = engine.record.build
    place = ", ".join(build.targets) or engine.record.key.gpu
    what = f"{build.bytes / MIB:.2f} MiB for {place}, batch {BatchProfile.from_json(build.profile)}"
    label = (engine.record.precision or {}).get("label", "declared")
    say(f"  built          in {build.seconds:.1f} s by {library}, {what}")
    say(f"  precision      {label} as {engine.record.variant}{', with TF32' if 'TF32' in build.flags else ''}")
    say(f"  plan sha256    {engine.sha256}")
    say(f"  plan           {engine.path}")


def _variants(bundle: Bundle, precision: str) -> list[str]:
    """The variants to build; says which one is left out."""
    if precision == ALL:
        refused = [variant for variant in bundle.variants if base_of(variant) == U8S8]
        chosen = [variant for variant in bundle.variants if variant not in refused]
        if refused:
            to_stderr(
                f"{' and '.join(refused)} {'is' if len(refused) == 1 else 'are'} left out: {TENSORRT_REFUSES_U8S8}"
            )
        if not chosen:
            raise InputError(f"{bundle.path} carries no variant that TensorRT can run; export it with --precision")
        return chosen
    asked = [variant_for(name, "tensorrt") for name in names(precision, option="--precision")]
    for variant in asked:
        if base_of(variant) == U8S8:
            raise InputError(f"{TENSORRT_REFUSES_U8S8}: use --precision {variant.replace(U8S8, S8S8)}")
    for variant in asked:
        bundle.onnx_path(variant)  # before the first of them is built
    return list(dict.fromkeys(asked))


def _library(name: str | None, options: EngineOptions) -> Library:
    """The library asked for; else, for a named GPU, the one that can build for it."""
    if name is None and options.targets:
        try:
            return find_library("tensorrt-rtx")
        except MissingDependencyError:
            pass
    return find_library(name)


def _gpu(library: Library, options: EngineOptions) -> Gpu | None:
    """The GPU here; None if there is none and a named one is built for."""
    try:
        return find_gpu()
    except ProviderError as error:
        if options.targets:
            return None
        if library.can_target:
            raise ProviderError(f"{error}; or name the GPU to build for, such as --target sm_86") from error
        raise
