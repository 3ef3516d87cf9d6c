"""A plan that TensorRT has loaded, and what can be asked of it.

Written from the documentation of TensorRT 10 and 11 and TensorRT-RTX 1.7. Refusing a damaged plan has run under this
code, with TensorRT-RTX; loading one has not, for want of a GPU, and is tested on a stand-in.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import BackendError, EngineError
from .library import Library
from .messages import Heard, listening
from .options import INPUT, OUTPUT, BatchProfile, ImageSpec

_WHY_INVALID = {
    "VERSION_MISMATCH": "another version built it",
    "UNSUPPORTED_CC": "it was built for another GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the memory of the GPU is not enough",
    "MALFORMED_ENGINE": "it is damaged or no plan at all",
}
_NO_MEMORY = re.compile(
    r"out of memory|out_?of_?memory|memory.{0,40} could not be allocated|insufficient.{0,8} memory", re.IGNORECASE
)
MAKE_ROOM = "close what uses the memory of the GPU, or use a smaller batch"


class PlanRefusedError(EngineError):
    """TensorRT does not take the bytes of a plan: another one may do."""


class LoadedPlan:
    """A plan that TensorRT has taken. Make it only after the driver was probed: without a GPU a runtime may crash."""

    def __init__(self, library: Library, plan: bytes) -> None:
        """Have ``library`` load ``plan``, whose hash was checked before.

        Raises:
            PlanRefusedError: it refuses the plan, in its own words.
            EngineError: there is no runtime to be had.
            BackendError: the memory of the GPU is not enough.
        """
        self.library = library
        with listening() as heard:
            self.runtime = library.make("Runtime", heard)
            self.engine = self.runtime.deserialize_cuda_engine(plan)
            if self.engine is None:
                raise self._refusal(plan, heard)

    def _refusal(self, plan: bytes, heard: Heard) -> BackendError:
        why = self._why_invalid(plan)
        text = f"{self.library} does not load the plan{f', {why}' if why else ''}: {heard.first_error()}"
        if any(map(_NO_MEMORY.search, heard.errors)) or why == _WHY_INVALID["INSUFFICIENT_GPU_MEMORY"]:
            return BackendError(f"{text}; {MAKE_ROOM}")
        return PlanRefusedError(text)

    def _why_invalid(self, plan: bytes) -> str:
        """What TensorRT-RTX can tell of a plan that it does not load; nothing elsewhere."""
        if not hasattr(self.runtime, "get_engine_validity"):
            return ""
        bits = int(self.runtime.get_engine_validity(plan)[1])
        flags = {name: self.library.member("EngineInvalidityDiagnostics", name) for name in _WHY_INVALID}
        return ", ".join(_WHY_INVALID[name] for name, flag in flags.items() if flag is not None and bits & int(flag))

    def profile(self, image: ImageSpec, n_classes: int) -> BatchProfile:
        """The batch sizes that the plan serves, after a look at what goes in and comes out.

        Args:
            image: what one image is.
            n_classes: number of logits.

        Raises:
            EngineError: its tensors are not those of the bundle.
        """
        engine = self.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        got = {name: (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))) for name in names}
        wanted = {INPUT: (image.type_name, image.shape), OUTPUT: ("FLOAT", (n_classes,))}
        if {name: (kind, shape[1:]) for name, (kind, shape) in got.items()} != wanted:
            there = ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in got.items())
            raise EngineError(
                f"the plan was built from another model: it has {there}, not a {image} and {n_classes} {OUTPUT}; "
                "delete it and have it built here"
            )
        if (size := got[INPUT][1][0]) > 0:
            return BatchProfile(size, size, size)
        return BatchProfile(*(int(shape[0]) for shape in engine.get_tensor_profile_shape(INPUT, 0)))

    def inspect(self, context: Any) -> Any:
        """What the engine inspector tells, parsed; None where it tells nothing that can be read.

        Args:
            context: an execution context whose shapes are set: without it plans of many batch sizes tell no types.
        """
        inspector = self.engine.create_engine_inspector()
        if inspector is None:
            return None
        inspector.execution_context = context
        text = inspector.get_engine_information(self.library.need("LayerInformationFormat", "JSON"))
        try:
            return json.loads(text, strict=False)  # names are separated by control characters
        except (TypeError, ValueError):
            return None

    def close(self) -> None:
        """Let go of the engine, then of the runtime. The GPU's context must be current."""
        self.engine = None
        self.runtime = None
