"""TensorRT: a plan of the artefact, built for this GPU, proved on it, and run without PyTorch.

Everything but the calls into CUDA and TensorRT is tested on stand-ins for the two; neither has been seen running on a
GPU under this code. ``docs/how-to/tensorrt.md`` lists what was run where.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..bundle.variants import TENSORRT_REFUSES_U8S8, U8S8, base_of
from ..device.cuda import Gpu, find_gpu
from ..device.facts import now
from ..engine.build import Progress
from ..engine.cache import Engine, EngineCache
from ..engine.execution import STEPS, Session
from ..engine.inspect import compare_precision
from ..engine.library import TENSORRT, Library, find_library
from ..engine.options import BatchProfile, EngineOptions, ImageSpec
from ..engine.plan import PlanRefusedError
from ..errors import BackendError, BundleError, EngineError, InputError, IntegrityError, ProviderError, StorageError
from ..files import sha256_bytes, write_bytes
from ..reading import read_bytes
from ..records.rows import EngineInfo
from .base import Backend

RUNTIME_CACHE = ".runtime"
# of the logits, as a share of the largest: TensorFloat-32 rounds factors as float16 does, and may err as much
TF32_TOLERANCE = 1e-2
# one for what TensorRT sets up, one to capture a CUDA graph, one to run it
_WARM_UP_CALLS = 3
_DEFAULT = EngineOptions()


class TensorRTBackend(Backend):
    """A variant of a bundle in TensorRT or TensorRT-RTX. Calls of :meth:`infer` from several threads are safe.

    They wait for one another: one instance has one execution context and one stream. To work in parallel open several.

    Attributes:
        gpu: the GPU it runs on, and ``gpu_index`` its number.
        engine: the plan with its record, whose ``verification`` and ``precision`` were made of this plan on this GPU.
        plan_sha256: hash of the plan; ``artifact_sha256`` is that of the ONNX file it was built from.
        profile: the batch sizes that the plan serves; other batches are padded or cut.
        precision_label: ``"verified"`` if the engine inspector showed every convolution and matrix product in the type
            of its ONNX, else ``"declared"``.
    """

    name = "tensorrt"
    engine: Engine

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str = "fp16",
        options: EngineOptions = _DEFAULT,
        cache: EngineCache | None = None,
        library: str | None = None,
        trust_plan: str | None = None,
        gpu_index: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Open ``variant`` of ``bundle``: take its plan from the cache or build it, load it and, once for each plan,
        prove it.

        A plan that does not load is built again, once, and if that one does not load either, not at the next start
        again. A plan that was not proved on this GPU replays the golden frames, and its layers are compared with the
        ONNX; the outcome is kept beside it.

        Args:
            bundle: an opened bundle.
            variant: which artefact; not ``"int8-u8s8"`` nor ``"int8-u8s8-u8in"``, which TensorRT cannot run.
            options: batch sizes and the like; a trusted plan brings its own.
            cache: where plans are kept; None is the user's cache folder.
            library: ``"tensorrt"`` or ``"tensorrt-rtx"``; None takes the first that is installed.
            trust_plan: SHA-256 of a plan in the bundle's folder, to load instead of one of the cache.
            gpu_index: which GPU, as CUDA counts them.
            progress: called with what takes time.

        Raises:
            InputError: a variant that the bundle lacks or TensorRT cannot run, or targets without the GPU that is here.
            ProviderError: there is no usable GPU, or the library does not serve it.
            MissingDependencyError: no TensorRT is installed.
            EngineError: TensorRT refuses, or the plan is not what was asked for or does not pass the self-test.
            IntegrityError: no plan with the trusted hash is there.
            BackendError: CUDA fails, most likely for want of memory.
        """
        bundle.onnx_path(variant)
        if base_of(variant) == U8S8:
            raise InputError(TENSORRT_REFUSES_U8S8)
        # before anything of TensorRT's runtime is touched: some crash where there is no GPU
        self.gpu: Gpu = find_gpu(gpu_index)
        self.gpu_index, self.device = self.gpu.index, self.gpu.name
        self._library = find_library(library)
        check_gpu(self._library, self.gpu, options)
        self._bundle, self._options, self._cache = bundle, options, EngineCache() if cache is None else cache
        self._lock, self._held = threading.RLock(), ExitStack()
        self._describe(bundle, variant)
        try:
            self._session = self._open(trust_plan, progress)
            self._held.callback(self._session.close)
            self._held.callback(self._save_runtime_cache)
            self.provider = f"{self._library} with TF32" if self._tf32 else str(self._library)
            self.profile: BatchProfile = self._session.profile
            self.plan_sha256: str = self.engine.sha256
            if not is_proved(self.engine, self.gpu):
                if progress is not None:
                    progress(f"proving the engine of {variant} on {self.gpu.name}")
                self._prove()
            self.precision_label: str = str((self.engine.record.precision or {})["label"])
        except BaseException:
            with suppress(BackendError):  # the one that is being raised says more
                self.close()
            raise

    @property
    def engine_info(self) -> EngineInfo:
        """The plan behind the figures, as :attr:`Backend.engine_info` has it; once this is closed, as it was at the
        end.

        ``cuda_graphs`` is what is known now: null until a batch size has come again and was captured. Of TensorRT-RTX,
        which captures by itself, it only says that it was asked to.
        """
        with self._lock:
            captured, note = self._session.cuda_graphs, self._session.graph_note
        return EngineInfo(
            plan_sha256=self.plan_sha256,
            profile=(self.profile.min, self.profile.opt, self.profile.max),
            precision="verified" if self.precision_label == "verified" else "declared",
            library=str(self._library),
            compute_capability=self.gpu.sm,
            driver=self.gpu.driver,
            tf32=self._tf32,
            cuda_graphs=captured,
            cuda_graph_note=note,
        )

    @property
    def _tf32(self) -> bool:
        """Whether the plan may use TensorFloat-32: of a trusted one only its record knows."""
        return self.engine.record.key.tf32

    def warm_up(self) -> None:
        """Run the sizes of the profile until nothing is left that is done only once: CUDA graphs, compiled kernels."""
        for size in sorted(set(self.profile.to_json())):
            for _ in range(_WARM_UP_CALLS):
                self.infer_pixels(np.zeros((size, *self.input_shape[1:], self.input_shape[0]), dtype=np.uint8))

    def infer_split(self, x: NDArray[Any]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """:meth:`infer`, with the time that each of its steps takes on the GPU, by CUDA events.

        Args:
            x: as :meth:`infer` takes it, or uint8 as :meth:`infer_pixels` does.

        Returns:
            The logits, and milliseconds of ``"copy-in"``, ``"compute"`` and ``"copy-out"``, each the sum over the
            pieces of the batch. What the processor does, such as filling the staging memory, is in none of them.
        """
        with self._lock:
            session = self._running()
            session.times = dict.fromkeys(STEPS, 0.0)
            try:
                pixels = getattr(x, "dtype", None) == np.uint8
                return self.infer_pixels(x) if pixels else self.infer(x), session.times
            finally:
                session.times = None

    def _infer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        with self._lock:
            return self._running().run(x)

    def _running(self) -> Session:
        self._check_open()
        return self._session

    def _close(self) -> None:
        with self._lock:
            self._held.close()

    def _open(self, trust_plan: str | None, progress: Progress | None) -> Session:
        """Get the plan and load it; sets :attr:`engine`."""
        if trust_plan is not None:
            self.engine = self._cache.trusted(self._bundle, self.variant, trust_plan)
            return self._load()
        provide = partial(
            self._cache.provide,
            self._bundle,
            self.variant,
            self._options,
            library=self._library,
            gpu=self.gpu,
            progress=progress,
        )
        self.engine = provide()
        if self.engine.origin == "hit":
            try:
                session = self._load()
                if never_loaded(self.engine, self.gpu):  # but now it does
                    self.engine = self._cache.note(self.engine, not_loaded=None)
                return session
            except (PlanRefusedError, IntegrityError) as error:  # no other failure is one that other bytes would mend
                if isinstance(error, PlanRefusedError) and never_loaded(self.engine, self.gpu):
                    raise EngineError(
                        f"{error}; it did not when it was new either: delete {self.engine.path} or run edgeadv engine "
                        "again once the cause is gone"
                    ) from error
                if progress is not None:
                    progress(f"building the engine of {self.variant} again, because {error}")
            self.engine = provide(rebuild=True)
        try:
            return self._load()
        except PlanRefusedError as error:
            self.engine = self._cache.note(
                self.engine, not_loaded={**_found_on(self.engine, self.gpu), "why": str(error)}
            )
            raise

    def _load(self) -> Session:
        session = Session(
            self._library,
            self.gpu,
            self.engine.read(),
            image=ImageSpec.of(self.input_shape, uint8=self.takes_uint8),
            n_classes=self.n_classes,
            runtime_cache=self._saved_runtime_cache(),
        )
        if self.engine.origin != "trusted" and session.profile != self._options.profile:
            session.close()
            raise EngineError(
                f"the plan serves batch {session.profile}, not {self._options.profile} as it was built for: "
                f"{self._library} did not keep to the profile; use another version of it"
            )
        return session

    def _prove(self) -> None:
        """Replay the golden frames and look into the plan; raises if either is not as it should be."""
        from .golden_check import verify  # which imports the backends

        (verification,) = verify(self._bundle, [self])
        if self._tf32:
            verification = replace(verification, tolerance=max(verification.tolerance, TF32_TOLERANCE))
        precision = compare_precision(
            self._session.inspect(),
            self.variant,
            nodes=self._bundle.manifest.variants[self.variant].compute,
            written_in=self._bundle.written_in(self.variant),
            tf32=self._tf32,
        )
        errors = self._batch_errors()
        wrong = [size for size, error in errors.items() if error > verification.tolerance]
        of_this = _found_on(self.engine, self.gpu)
        self.engine = self._cache.note(
            self.engine,
            verification={
                **asdict(verification),
                "ok": verification.ok and not wrong,
                **of_this,
                "batches": [{"size": size, "max_relative_error": error} for size, error in errors.items()],
                "time": now(),
            },
            precision={**asdict(precision), **of_this},
        )
        if precision.problems:
            raise EngineError(
                f"{self.engine.path.name}: {precision.sentence}; export with another precision or use another TensorRT"
            )
        if not verification.ok:
            raise EngineError(
                f"{self.engine.path.name} does not pass the self-test on this GPU, do not use it: {verification}; "
                "build it again with another version of TensorRT, or use fp32"
            )
        if wrong:
            raise EngineError(
                f"{self.engine.path.name} gives other logits in a batch of {wrong[0]} than one image at a time on "
                f"this GPU, do not use it: relative error {errors[wrong[0]]:.2g} (at most {verification.tolerance:g}); "
                "build it again with another version of TensorRT, or for batch 1"
            )

    def _batch_errors(self) -> dict[int, float]:
        """How far the logits of golden frames in batches of the profile's larger sizes are from those of one frame at a
        time.

        A plan has kernels of its own for each of these sizes, and the self-test gives it one frame at a time.

        Returns:
            By batch size, the largest difference as a share of the largest absolute logit.
        """
        sizes = sorted({self.profile.opt, self.profile.max} - {1})
        if not sizes:
            return {}
        frames = self._bundle.golden().pixels
        alone = np.concatenate([self.infer_pixels(frames[i : i + 1]) for i in range(len(frames))])
        scale = float(np.abs(alone).max()) or 1.0
        errors = {}
        for size in sizes:
            order = np.arange(size) % len(frames)
            errors[size] = float(np.abs(self.infer_pixels(frames[order]) - alone[order]).max()) / scale
        return errors

    def _saved_runtime_cache(self) -> bytes | None:
        """What TensorRT-RTX compiled on this device before, if it is what was written then.

        It is code, as the plan is. Beside a plan in a bundle it would be code that nobody vouched for: there is none.
        """
        noted = self.engine.record.runtime_cache
        if self.engine.origin != "trusted" and noted is not None:
            with suppress(BundleError):
                data = read_bytes(self.engine.path.with_suffix(RUNTIME_CACHE), what="cache of TensorRT-RTX")
                return data if sha256_bytes(data) == noted.get("sha256") else None
        return None

    def _save_runtime_cache(self) -> None:
        """Keep it for the next time; a cache that cannot be written costs that time only, and a GPU that has failed
        still has to be let go of."""
        with suppress(BackendError, StorageError):
            data = None if self.engine.origin == "trusted" else self._session.runtime_cache()
            if data is None:
                return
            noted = {"sha256": sha256_bytes(data)}
            if noted != self.engine.record.runtime_cache:
                write_bytes(self.engine.path.with_suffix(RUNTIME_CACHE), data)
                self.engine = self._cache.note(self.engine, runtime_cache=noted)


def check_gpu(library: Library, gpu: Gpu, options: EngineOptions) -> None:
    """Refuse a GPU that the library or the plan is not for.

    Raises:
        ProviderError: the library does not serve it.
        InputError: it is not among the targets.
    """
    if not library.serves(gpu.sm):
        raise ProviderError(
            f"{library} does not serve {gpu.name} ({gpu.sm}), only {', '.join(library.known_targets)}: use classic "
            f'TensorRT here, pip install "edgeadv[{TENSORRT}]", on a Jetson the one that JetPack brings'
        )
    if options.targets and gpu.sm not in options.targets:
        raise InputError(
            f"an engine for {', '.join(options.targets)} does not run on {gpu.name}, which is {gpu.sm}: add that to "
            "the targets, or leave them out"
        )


def _found_on(engine: Engine, gpu: Gpu) -> dict[str, str]:
    """What a fact in a plan's record is bound to: another plan, GPU or driver has to be looked at anew."""
    return {"plan_sha256": engine.sha256, "gpu": gpu.name, "driver": gpu.driver}


def is_proved(engine: Engine, gpu: Gpu) -> bool:
    """Whether the record says that this very plan passed on this GPU with this driver."""
    verification, precision = engine.record.verification or {}, engine.record.precision or {}
    ours = _found_on(engine, gpu)
    return (
        engine.origin != "trusted"  # what came with a bundle is not believed about itself
        and verification.items() >= ours.items()
        and precision.items() >= {**ours, "problems": []}.items()
        and "batches" in verification
        and "label" in precision
        and verification.get("ok") is True
    )


def never_loaded(engine: Engine, gpu: Gpu) -> bool:
    """Whether the record says that this very plan was refused on this GPU with this driver when it had just been
    built."""
    noted = engine.record.not_loaded or {}
    return noted.items() >= _found_on(engine, gpu).items()
