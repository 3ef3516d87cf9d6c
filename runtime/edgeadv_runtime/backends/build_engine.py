"""A TensorRT plan of a bundle: built or found in the cache, and proved on the golden frames if it runs here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..bundle.bundle import Bundle
from ..device.cuda import Gpu, find_gpu
from ..engine import Engine, EngineCache, EngineOptions, Explanation, Library, copy_engine, find_library
from ..engine.build import Progress
from ..errors import MissingDependencyError, ProviderError
from .tensorrt import TensorRTBackend, never_loaded


@dataclass(frozen=True)
class BuiltEngine:
    """A plan that is there.

    Attributes:
        engine: the plan and its record.
        library: what built it.
        proved_on: the GPU that gave the golden results with it; None where it cannot run.
        targets: GPUs that it was built for without having one, ``"sm_86"``; empty for the GPU here.
        copy: where it was also put.
    """

    engine: Engine
    library: Library
    proved_on: Gpu | None
    targets: tuple[str, ...]
    copy: Path | None = None


@dataclass(frozen=True)
class EngineBuilder:
    """What builds plans here, for which GPU, and where they are kept.

    Attributes:
        library: TensorRT or TensorRT-RTX.
        gpu: the GPU here; None where there is none and others are built for.
        options: of every plan.
        cache: where plans are kept.
    """

    library: Library
    gpu: Gpu | None
    options: EngineOptions
    cache: EngineCache

    @classmethod
    def find(
        cls, options: EngineOptions | None = None, *, library: str | None = None, cache: str | Path | None = None
    ) -> EngineBuilder:
        """Choose the library, the one that can build for GPUs that are named, and look for a GPU.

        Raises:
            MissingDependencyError: the library is not installed, or none is.
            ProviderError: no GPU is here, and none is named, or the library cannot build for those that are.
        """
        options = options or EngineOptions()
        found = _library(library, options)
        gpu = _gpu(found, options)
        if not found.can_target and gpu is not None and options.targets == (gpu.sm,):
            options = replace(options, targets=())  # the one that it builds for anyway
        found.check_targets(options.targets)
        return cls(found, gpu, options, EngineCache(None if cache is None else Path(cache)))

    def explain(self, bundle: Bundle, variant: str) -> Explanation:
        """Whether the plan is in the cache, and why not."""
        return self.cache.explain(bundle, variant, self.options, library=self.library, gpu=self.gpu)

    def build(
        self, bundle: Bundle, variant: str, *, out: Path | None = None, progress: Progress | None = None
    ) -> BuiltEngine:
        """Find or build one plan; see :func:`build_engine`."""
        options, gpu, proved_on = self.options, self.gpu, None
        if gpu is not None and (not options.targets or gpu.sm in options.targets):
            there = self.cache.find(bundle, variant, options, library=self.library, gpu=gpu)
            if there is not None and never_loaded(there, gpu):
                self.cache.discard(there)  # the one way to have it tried again
            with TensorRTBackend(
                bundle,
                variant=variant,
                options=options,
                cache=self.cache,
                library=self.library.name,
                progress=progress,
            ) as backend:
                engine = backend.engine
            proved_on = gpu
        else:
            engine = self.cache.provide(bundle, variant, options, library=self.library, gpu=gpu, progress=progress)
        copy = copy_engine(engine, out) if out is not None else None
        return BuiltEngine(engine, self.library, proved_on, options.targets, copy)


def build_engine(
    bundle: Bundle,
    variant: str = "fp16",
    *,
    options: EngineOptions | None = None,
    library: str | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build a TensorRT plan, or find it in the cache, and prove it on the golden frames if it can run here.

    ::

        built = build_engine(bundle, "int8-s8s8", options=EngineOptions(profile=BatchProfile.parse("1,8,32")))

    Args:
        bundle: an opened bundle.
        variant: an artefact of it that TensorRT can run.
        options: batch sizes, GPUs to build for, scratch memory; None takes batch 1 on the GPU here.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``; None takes the first that is installed and can do it.
        cache: where plans are kept; None is the user's cache.
        out: a folder to copy the plan into as well.
        progress: called with what begins, which may take minutes.

    Raises:
        InputError: the bundle has no such variant.
        MissingDependencyError: the library is not installed.
        ProviderError: no GPU is here, and none is named in ``options``.
        EngineError: the plan cannot be built, does not load, or does not give the golden results.
    """
    builder = EngineBuilder.find(options, library=library, cache=cache)
    return builder.build(bundle, variant, out=None if out is None else Path(out), progress=progress)


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
            raise ProviderError(f"{error}; or name the GPU to build for, such as `targets` sm_86") from error
        raise
