"""Why a plan is used or built again, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.cuda import Gpu
from edgeadv_runtime.engine import BatchProfile, EngineCache, EngineOptions, Library

Contents = Callable[[Path], list[str]]
NATIVE = EngineOptions()


def test_an_empty_cache(cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions) -> None:
    explanation = cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    assert str(explanation) == f"miss: {cache.folder} has no engine of tiny fp16 yet"
    assert explanation.changed == {} and explanation.path is None
    assert not cache.folder.exists()


def test_a_hit(cache: EngineCache, tiny_bundle: Bundle, rtx: Library, sm_86: EngineOptions) -> None:
    engine = cache.provide(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    explanation = cache.explain(tiny_bundle, "fp16", sm_86, library=rtx, gpu=None)
    created = engine.record.created
    assert (
        str(explanation) == f"hit: {engine.path.name} was built {created} with {rtx} from this model, for what is asked"
    )
    assert explanation.path == engine.path


def test_stale_says_which_field_changed_and_how(
    cache: EngineCache,
    bundle: Bundle,
    rtx: Library,
    gpu: Gpu,
    contents: Contents,
    changed_model: Callable[..., Bundle],
) -> None:
    cache.provide(bundle, "fp16", NATIVE, library=rtx, gpu=gpu)
    before = contents(cache.folder)

    def explain(library: Library = rtx, gpu: Gpu = gpu, bundle: Bundle = bundle) -> Any:
        return cache.explain(bundle, "fp16", NATIVE, library=library, gpu=gpu)

    assert str(explain(gpu=replace(gpu, driver="580.00"))) == (
        "stale: driver was 570.10 and is 580.00: it has to be built again"
    )
    assert str(explain(library=replace(rtx, version="9.9.9"))) == (
        f"stale: library version was {rtx.version} and is 9.9.9: it has to be built again"
    )
    ada = replace(gpu, name="NVIDIA L4", compute_capability=(8, 9))
    moved = explain(gpu=ada, library=replace(rtx, version="9.9.9"))
    assert str(moved) == (
        f"stale: library version was {rtx.version} and is 9.9.9, GPU was NVIDIA GeForce RTX 3060 and is NVIDIA L4, "
        "compute capability was sm_86 and is sm_89: it has to be built again"
    )
    assert moved.changed["compute_capability"] == ("sm_86", "sm_89")
    old = bundle.artifact_sha256("fp16")
    changed = changed_model(bundle)
    new = changed.artifact_sha256("fp16")
    assert str(explain(bundle=changed)) == (
        f"stale: ONNX file was {old[:12]} and is {new[:12]}: it has to be built again"
    )
    assert contents(cache.folder) == before


def test_stale_is_built_again_and_then_both_are_there(
    cache: EngineCache, bundle: Bundle, rtx: Library, sm_86: EngineOptions, changed_model: Callable[..., Bundle]
) -> None:
    first = cache.provide(bundle, "fp16", sm_86, library=rtx, gpu=None)
    again = changed_model(bundle)
    second = cache.provide(again, "fp16", sm_86, library=rtx, gpu=None)
    assert (second.origin, second.path != first.path) == ("built", True)
    assert first.read() and second.read()


def test_a_miss_names_the_nearest_options(cache: EngineCache, tiny_bundle: Bundle, rtx: Library, gpu: Gpu) -> None:
    dynamic = EngineOptions(profile=BatchProfile(1, 8, 32), targets=("sm_86",), tf32=True, workspace_mib=512)
    nearest = cache.provide(tiny_bundle, "fp16", dynamic, library=rtx, gpu=None)
    one = replace(dynamic, profile=BatchProfile(1, 1, 1))
    explanation = cache.explain(tiny_bundle, "fp16", one, library=rtx, gpu=None)
    assert (
        str(explanation) == "miss: no engine of tiny fp16 with these options; the nearest has batch 1,8,32 instead of 1"
    )
    assert (explanation.path, explanation.changed) == (nearest.path, {"profile": ((1, 8, 32), (1, 1, 1))})
    explanation = cache.explain(tiny_bundle, "fp16", NATIVE, library=rtx, gpu=gpu)
    assert str(explanation) == (
        "miss: no engine of tiny fp16 with these options; the nearest has batch 1,8,32, target sm_86, TF32 on, "
        "workspace "
        "512 MiB instead of 1, the GPU present, off, as TensorRT likes"
    )
    explanation = cache.explain(tiny_bundle, "fp32", one, library=rtx, gpu=None)
    assert str(explanation) == f"miss: {cache.folder} has no engine of tiny fp32 yet"
    other = cache.explain(tiny_bundle, "fp16", dynamic, library=replace(rtx, name="tensorrt", version="10.3"), gpu=None)
    assert other.status == "miss" and "the nearest has library tensorrt-rtx instead of tensorrt" in str(other)


def test_the_nearest_is_one_that_is_only_stale(cache: EngineCache, tiny_bundle: Bundle, rtx: Library, gpu: Gpu) -> None:
    cache.provide(tiny_bundle, "fp16", EngineOptions(profile=BatchProfile(2, 2, 2)), library=rtx, gpu=gpu)
    cache.provide(tiny_bundle, "fp16", NATIVE, library=rtx, gpu=replace(gpu, name="another", driver="1"))
    explanation = cache.explain(tiny_bundle, "fp16", NATIVE, library=rtx, gpu=gpu)
    assert (explanation.status, set(explanation.changed)) == ("stale", {"gpu", "driver"})
