"""``edgeadv engine``: TensorRT plans of a bundle, for the GPU that is here or for one that is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgeadv_runtime import BatchProfile
from edgeadv_runtime.backends.build_engine import BuiltEngine
from edgeadv_runtime.engine import LIBRARIES

from ..workflows.engines import build_engines
from ._arguments import BundleFile
from ._fields import say

MIB = 1 << 20


@dataclass
class _Plans:
    precisions: Annotated[
        str, "Comma-separated variants, int8, int8-u8in, or all of the bundle that TensorRT can run."
    ] = "fp16"
    batch: Annotated[str, "Batch size of the plan, or its least, best and largest: 1,8,32."] = "1"
    targets: Annotated[str | None, "GPUs to build for without having one: sm_86, or sm_86,sm_89 in one plan."] = None
    library: Annotated[str | None, f"{' or '.join(LIBRARIES)}; else the first that is installed and can do it."] = None
    tf32: Annotated[bool, "Let float32 products round to TensorFloat-32."] = False
    workspace: Annotated[int | None, "Most scratch memory of a layer in MiB."] = None
    engine_cache: Annotated[Path | None, "TensorRT: where plans are kept; by default the user's cache."] = None
    explain: Annotated[bool, "Only say what is in the cache and why not."] = False
    out: Annotated[Path | None, "Also copy the plans into this folder, such as the bundle's, to take them along."] = (
        None
    )


def engine(bundle: BundleFile, asked: _Plans) -> None:
    """Build TensorRT plans, or find them in the cache, and prove those that can run here on the golden frames.

    Precision is what the ONNX file says, never a switch of the builder. TensorRT-RTX builds for named GPUs on a machine
    without one; classic TensorRT builds on the device, for its GPU.
    """
    build_engines(
        bundle.open(),
        **vars(asked),
        progress=lambda done, total, text: say(text),
        built=_show,
    )


def _show(built: BuiltEngine) -> None:
    engine, record = built.engine, built.engine.record
    build = record.build
    place = ", ".join(build.targets) or record.key.gpu
    what = f"{build.bytes / MIB:.2f} MiB for {place}, batch {BatchProfile(*build.profile)}"
    label = (record.precision or {}).get("label", "declared")
    say(f"  built          in {build.seconds:.1f} s by {built.library}, {what}")
    say(f"  precision      {label} as {record.variant}{', with TF32' if 'TF32' in build.flags else ''}")
    say(f"  plan sha256    {engine.sha256}")
    say(f"  plan           {engine.path}")
    if built.proved_on is not None:
        say(f"  verified       on the golden frames of the bundle, on {built.proved_on.name}")
    else:
        there = f"run edgeadv verify there --backend tensorrt --precision {record.variant} --trust-plan {engine.sha256}"
        take = "take the plan along with --out, or run edgeadv engine on that machine"
        say(f"  not verified   needs an {' or '.join(built.targets)} GPU; {take if built.copy is None else there}")
    if built.copy is not None:
        say(f"  copy           {built.copy}")
