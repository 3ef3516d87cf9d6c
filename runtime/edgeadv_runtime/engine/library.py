"""TensorRT in its versions: the only module that knows how they differ.

Written for ``tensorrt`` 10.3 (JetPack 6), 10.13 and later, 11.x, and ``tensorrt_rtx`` 1.x. Whether something is there
is asked of the module itself, by name: the numbers behind the names differ between versions. The builder of
TensorRT-RTX 1.7 has run under this code; ``tensorrt`` and every runtime were written from their stubs and have not been
seen running.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..device.versions import older
from ..errors import EngineError, InputError, MissingDependencyError, require
from .messages import Heard, logger_of, one_line
from .options import EngineOptions

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
LIBRARIES = tuple(MODULES)
MIB = 1 << 20
# before it the types of a graph were hints, or the flag for more than hints was not yet to be relied upon
OLDEST_TENSORRT = "10.3"
# from here on every network keeps to the types of its graph, and a flag for it may be missing
_ALWAYS_STRONGLY_TYPED = "11"


@dataclass(frozen=True)
class Library:
    """A TensorRT that is installed.

    Attributes:
        name: one of :data:`LIBRARIES`.
        version: as the module gives it.
        module: the imported module.
    """

    name: str
    version: str
    module: Any

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.name == TENSORRT_RTX else 'TensorRT'} {self.version}"

    @property
    def can_target(self) -> bool:
        """Whether it builds for a GPU that is not here. Classic TensorRT builds on the GPU, for that GPU."""
        return self.has("ComputeCapability") and hasattr(self.module.IBuilderConfig, "set_compute_capability")

    def serves(self, sm: str) -> bool:
        """Whether it is for GPUs of this compute capability, ``"sm_86"``, as far as it tells."""
        return not self.can_target or sm in self.known_targets

    @property
    def known_targets(self) -> tuple[str, ...]:
        """GPUs that it can be told to build for, as ``"sm_86"``, in rising order; empty where it cannot."""
        if not self.can_target:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(f"sm_{n}" for n in sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name)))

    @property
    def has_runtime_config(self) -> bool:
        """Whether an engine makes a configuration for its execution contexts (10.13 and later, RTX)."""
        return hasattr(self.module.ICudaEngine, "create_runtime_config")

    @property
    def has_runtime_cache(self) -> bool:
        """Whether it compiles kernels on the device and keeps them in a runtime cache (RTX)."""
        return self.has("IRuntimeCache") and self.has_runtime_config

    @property
    def captures_cuda_graphs(self) -> bool:
        """Whether it makes CUDA graphs itself when told to (RTX); elsewhere the caller captures the stream."""
        return self.has("CudaGraphStrategy") and self.has_runtime_config

    def has(self, name: str) -> bool:
        """Whether the module has something of this name."""
        return hasattr(self.module, name)

    def member(self, enum: str, name: str) -> Any:
        """Member ``name`` of enumeration ``enum``, or None where this version does not have it."""
        return getattr(getattr(self.module, enum, None), name, None)

    def need(self, enum: str, name: str) -> Any:
        """Member ``name`` of enumeration ``enum``.

        Raises:
            EngineError: this version does not have it.
        """
        found = self.member(enum, name)
        if found is None:
            raise EngineError(f"{self} has no {enum}.{name}: use TensorRT 10.3 or newer, or leave out the option")
        return found

    def check_targets(self, targets: tuple[str, ...]) -> None:
        """Refuse GPUs that it cannot build for.

        Raises:
            InputError: there are such among ``targets``.
        """
        if targets and not self.can_target:
            raise InputError(
                f"{self} builds only on and for the GPU present: leave out the target {', '.join(targets)} and build "
                f"on that device, or use {TENSORRT_RTX}"
            )
        if unknown := [target for target in targets if target not in self.known_targets]:
            raise InputError(
                f"{self} cannot build for {', '.join(unknown)}: it knows {', '.join(self.known_targets)}; for another "
                f"GPU, a Jetson's too, build on the device with {TENSORRT}"
            )

    def logger(self) -> Any:
        """The ``ILogger`` of this process, to make builders, parsers and runtimes with. It prints nothing."""
        return logger_of(self.module)

    # ---- building

    def make(self, kind: str, heard: Heard) -> Any:
        """A ``"Builder"`` or a ``"Runtime"``.

        Args:
            kind: which.
            heard: what is being said, for the error.

        Raises:
            EngineError: there is none to be had, on classic TensorRT most likely for want of a GPU.
        """
        try:
            return getattr(self.module, kind)(self.logger())
        except (TypeError, RuntimeError) as error:  # what the bindings make of a null pointer
            raise EngineError(f"{self} gives no {kind.lower()} here: {heard.first_error(str(error))}") from error

    def create_network(self, builder: Any, heard: Heard) -> Any:
        """An empty network whose types are those of the graph. The caller keeps it: a parser alone does not.

        Args:
            builder: of :meth:`make`.
            heard: what is being said, for the error.

        Raises:
            EngineError: there is none to be had, or this version has only such as choose types of their own.
        """
        # TensorRT 11 knows no other kind of network, nor does TensorRT-RTX; should they drop the name, no flag is due
        flag = self.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        if flag is None and self.name == TENSORRT and older(self.version, _ALWAYS_STRONGLY_TYPED):
            raise EngineError(_too_old(self.version))
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        if network is None:
            raise EngineError(f"{self} gives no strongly typed network: {heard.first_error()}")
        if flag is not None and hasattr(network, "get_flag") and not network.get_flag(flag):
            raise EngineError(f"{self} was asked for a strongly typed network and gave another; use another version")
        return network

    def create_config(self, builder: Any, options: EngineOptions, *, targets: tuple[str, ...]) -> Any:
        """A ``IBuilderConfig`` that has taken everything asked of it: each setting is read back, for a refusal only
        logs.

        Args:
            builder: of :meth:`make`.
            options: TF32 and the workspace are taken from here.
            targets: GPUs to name to a library that can be told; ignored by one that cannot.

        Raises:
            EngineError: a setting was refused.
        """
        config = builder.create_builder_config()
        # on by default, which makes of float32 another precision than the one compared at export
        flag = (self.need if options.tf32 else self.member)("BuilderFlag", "TF32")
        if flag is not None:
            (config.set_flag if options.tf32 else config.clear_flag)(flag)
            if bool(config.get_flag(flag)) is not options.tf32:
                raise EngineError(
                    f"{self} did not take TF32 {'on' if options.tf32 else 'off'}: use another version of it"
                )
        config.profiling_verbosity = self.need("ProfilingVerbosity", "DETAILED")  # or the inspector would name no types
        if (mib := options.workspace_mib) is not None:
            pool = self.need("MemoryPoolType", "WORKSPACE")
            config.set_memory_pool_limit(pool, mib * MIB)
            if (got := config.get_memory_pool_limit(pool)) != mib * MIB:
                raise EngineError(
                    f"{self} did not take a workspace of {mib} MiB but keeps {got // MIB}: give a smaller one"
                )
        if self.can_target:
            config.num_compute_capabilities = len(targets)
            members = [self.need("ComputeCapability", target.replace("sm_", "SM")) for target in targets]
            for index, member in enumerate(members):
                config.set_compute_capability(member, index)
            if [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)] != members:
                raise EngineError(f"{self} did not take the targets {', '.join(targets)}: build for one at a time")
        return config

    def read_back(self, config: Any) -> dict[str, Any]:
        """What ``config`` says it is set to: ``flags`` that are on, ``targets`` and ``workspace_mib``."""
        flags = getattr(self.module.BuilderFlag, "__members__", {})
        named = range(config.num_compute_capabilities) if self.can_target else ()
        return {
            "flags": sorted(name for name, flag in flags.items() if config.get_flag(flag)),
            "targets": [config.get_compute_capability(index).name.replace("SM", "sm_") for index in named],
            "workspace_mib": config.get_memory_pool_limit(self.member("MemoryPoolType", "WORKSPACE")) // MIB,
        }

    def watch(self, config: Any, progress: Callable[[str, int, int], None]) -> Any:
        """Have the building of ``config`` reported to ``progress`` as (phase, step, steps), from any thread.

        Returns:
            The monitor, to be kept until the plan is built; None where this version has none.
        """
        if not self.has("IProgressMonitor") or not hasattr(config, "progress_monitor"):
            return None
        module: Any = self.module
        total: dict[str, int] = {}

        class Monitor(module.IProgressMonitor):  # type: ignore[misc]
            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                total[phase] = steps
                progress(phase, 0, steps)

            def step_complete(self, phase: str, step: int) -> bool:
                progress(phase, step + 1, total.get(phase, 0))
                return True  # False would cancel

            def phase_finish(self, phase: str) -> None:
                total.pop(phase, None)

        config.progress_monitor = monitor = Monitor()
        return monitor

    # ---- running

    def create_context(self, engine: Any, *, runtime_cache: bytes | None = None) -> tuple[Any, Any]:
        """An execution context of ``engine``, which captures CUDA graphs where :attr:`captures_cuda_graphs`; not run
        here, for want of a GPU.

        Args:
            engine: a deserialised ``ICudaEngine``.
            runtime_cache: what the cache of an earlier context was serialised to; ignored where there is no such cache.

        Returns:
            The context, or None where TensorRT refuses, and its runtime cache, or None where there is none.
        """
        if not self.has_runtime_cache:
            return engine.create_execution_context(), None
        config = engine.create_runtime_config()
        if self.captures_cuda_graphs:
            config.cuda_graph_strategy = self.need("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
        eager = self.member("DynamicShapesKernelSpecializationStrategy", "EAGER")
        if eager is not None:  # else the first calls of a new batch size run on a slower kernel
            config.dynamic_shapes_kernel_specialization_strategy = eager
        cache = config.create_runtime_cache()
        if runtime_cache is not None:
            cache.deserialize(runtime_cache)  # one of another GPU or version is refused, and the cache stays empty
        config.set_runtime_cache(cache)
        return engine.create_execution_context(config), cache


def find_library(name: str | None = None) -> Library:
    """The TensorRT that is installed.

    Args:
        name: one of :data:`LIBRARIES`; None takes classic TensorRT if it is there, else TensorRT-RTX.

    Raises:
        InputError: there is no library of this name.
        MissingDependencyError: it is not installed.
        EngineError: it is installed and does not load, or is too old.
    """
    if name is not None:
        if name not in LIBRARIES:
            raise InputError(f"library {name!r} is not one of {', '.join(LIBRARIES)}")
        return _load(name)
    try:
        return _load(TENSORRT)
    except MissingDependencyError as error:
        try:
            return _load(TENSORRT_RTX)
        except MissingDependencyError:
            raise error from None


def _load(name: str) -> Library:
    try:
        module = require(MODULES[name], extra=name)
    except (ImportError, OSError) as error:
        raise EngineError(f"{name} is installed and does not load: {one_line(str(error))}; install it again") from error
    version = getattr(module, "__version__", None)
    if version is None or not hasattr(module, "Builder"):
        raise EngineError(f"{name} is installed without its builder: install it again")
    if name == TENSORRT and older(str(version), OLDEST_TENSORRT):
        raise EngineError(_too_old(str(version)))
    return Library(name, str(version), module)


def _too_old(version: str) -> str:
    return (
        f"TensorRT {version} is too old: before {OLDEST_TENSORRT} it does not keep to the types of the ONNX file; "
        f"update it, on a Jetson with JetPack 6 or newer, or use {TENSORRT_RTX} where that serves the GPU"
    )
