"""The engine cache: plans outside the bundle, each found again only where it would be built the same.

A folder of pairs: ``NAME-VARIANT-KEY.plan``, the plan and nothing else, and ``NAME-VARIANT-KEY.json``, its record. KEY
is made of everything that decides whether a plan may be used: a native one belongs to one GPU, driver and library
version, one that was cross-built for named targets to the targets and the library version. A plan counts only if its
record is there and its hash is the recorded one. Two builds of the same key may differ in their bytes.

A plan is code, and its record vouches for nothing but its bytes: a cache is as safe as its folder.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import structs

from .._version import __version__
from ..bundle.bundle import Bundle
from ..decoding import convert
from ..device.facts import now
from ..errors import BundleError, EngineError, InputError, IntegrityError, StorageError
from ..files import sha256_bytes, write_bytes, write_json
from ..reading import file_hash, read_bytes
from .build import Progress, build_plan, build_targets
from .explain import Explanation, differences, nearest
from .library import Library
from .locks import locked
from .options import EngineOptions
from .records import KIND, PLAN, RECORD, SCHEMA_VERSION, EngineKey, EngineRecord, read_record

if TYPE_CHECKING:
    from ..device.cuda import Gpu

# part of every key: to be counted up when the same options come to be built in another way
RECIPE = 1
_SHA256 = re.compile("[0-9a-f]{64}")
Origin = Literal["hit", "built", "waited", "trusted"]


@dataclass(frozen=True)
class Engine:
    """A plan that may be loaded.

    Attributes:
        path: the plan.
        sha256: its hash.
        record: what is known of it.
        origin: ``"hit"``, ``"built"``, ``"waited"`` (another process built it meanwhile) or ``"trusted"`` (from a
            bundle).
    """

    path: Path
    sha256: str
    record: EngineRecord
    origin: Origin

    def read(self) -> bytes:
        """The plan, read once and checked: these are the bytes to load.

        Raises:
            IntegrityError: the file was changed or removed since it was found.
        """
        plan = read_bytes(self.path, what="TensorRT plan", error=IntegrityError)
        if sha256_bytes(plan) != self.sha256:
            raise IntegrityError(f"{self.path} was changed since it was found: build the engine again")
        return plan


@dataclass(frozen=True)
class Wanted:
    """A plan of ``variant`` of ``bundle`` that is looked for."""

    bundle: Bundle
    variant: str
    options: EngineOptions
    library: Library
    gpu: Gpu | None

    @property
    def name(self) -> str:
        """Of the bundle, as files have it."""
        return _plain(self.bundle.path.resolve().name.removesuffix(".edgeadv"))

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.name} {self.variant}"

    @cached_property
    def key(self) -> EngineKey:
        """Everything that decides whether a plan may be used.

        Raises:
            InputError: the bundle lacks the variant, or the options name no target and there is no GPU.
        """
        self.bundle.onnx_path(self.variant)
        fields = {
            "recipe": RECIPE,
            "onnx_sha256": self.bundle.artifact_sha256(self.variant),
            **self.options.to_json(),
            "library": self.library.name,
            "library_version": self.library.version,
        }
        if not self.options.targets:
            if self.gpu is None:
                raise InputError(
                    "there is no GPU here to find an engine for: name a target, such as sm_86, with tensorrt-rtx"
                )
            fields |= {"gpu": self.gpu.name, "compute_capability": self.gpu.sm, "driver": self.gpu.driver}
        return convert(fields, EngineKey, what="key of an engine")


def default_cache() -> Path:
    """``edgeadv/engines`` in the user's cache folder: below ``$XDG_CACHE_HOME`` if that is set, else ``~/.cache``.

    Raises:
        StorageError: this user has no home folder.
    """
    from platformdirs import user_cache_path

    try:
        return user_cache_path("edgeadv") / "engines"
    except RuntimeError as error:
        raise StorageError("this user has no home folder for a cache: name one with `engine_cache`") from error


class EngineCache:
    """Plans in a folder, for several processes and threads at once."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Use ``folder``, which is made when the first plan is built; None is :func:`default_cache`."""
        self.folder: Path = default_cache() if folder is None else Path(folder)

    def explain(
        self, bundle: Bundle, variant: str, options: EngineOptions, *, library: Library, gpu: Gpu | None
    ) -> Explanation:
        """Say whether a plan is here, and if not, what is different about one that is. Builds and changes nothing.

        Raises:
            InputError: the bundle lacks the variant, or the options name no target and there is no GPU.
        """
        found = self._look(Wanted(bundle, variant, options, library, gpu))
        if isinstance(found, Explanation):
            return found
        made = f"built {found.record.created} with {library}"
        return Explanation("hit", f"{found.path.name} was {made} from this model, for what is asked", path=found.path)

    def find(
        self, bundle: Bundle, variant: str, options: EngineOptions, *, library: Library, gpu: Gpu | None
    ) -> Engine | None:
        """The plan if it is here, else None. Builds and changes nothing.

        Raises:
            InputError: the bundle lacks the variant, or the options name no target and there is no GPU.
        """
        return self._find(Wanted(bundle, variant, options, library, gpu))

    def provide(
        self,
        bundle: Bundle,
        variant: str,
        options: EngineOptions,
        *,
        library: Library,
        gpu: Gpu | None,
        rebuild: bool = False,
        progress: Progress | None = None,
    ) -> Engine:
        """The plan if it is here, else a new one.

        Args:
            bundle: an opened bundle.
            variant: which artefact.
            options: what for.
            library: what builds it.
            gpu: the GPU present; may be None if ``options`` name targets.
            rebuild: build even if one is here, because it does not load.
            progress: called with what is being done.

        Raises:
            InputError: the bundle lacks the variant, or the library cannot build for what is asked.
            EngineError: TensorRT refuses, in its own words.
            StorageError: the cache cannot be written.
        """
        wanted = Wanted(bundle, variant, options, library, gpu)
        if not rebuild and (found := self._find(wanted)) is not None:
            return found
        build_targets(library, options, gpu)  # refuse before a folder is made
        with self._writing():  # it stays, even empty: who removed it could take it from under another process
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()  # before minutes go into a build
        say = progress or (lambda text: None)
        text = f"another process builds the engine of {wanted.label}: waiting for it"
        with locked(self._lock(wanted.key), waiting=lambda: say(text)) as waited:
            # of builders that were killed: their lock is ours now, so they are gone
            for leftover in self.folder.glob(f".*-{wanted.key.short}.*.tmp"):
                leftover.unlink(missing_ok=True)
            if (waited or not rebuild) and (found := self._find(wanted)) is not None:
                return replace(found, origin="waited" if waited else "hit")
            say(f"building the engine of {wanted.label} with {library}")
            return self._build(wanted, progress)

    def trusted(self, bundle: Bundle, variant: str, sha256: str) -> Engine:
        """A plan that came in the folder of ``bundle``, for a caller who knows its hash from elsewhere.

        A plan is code. None that came with a bundle is loaded in any other way than this.

        Its record has to be beside it: the bytes do not tell what they compute, and in which types.

        Raises:
            InputError: the bundle lacks the variant, or ``sha256`` is no SHA-256.
            IntegrityError: no plan there has this hash.
            EngineError: its record is missing, damaged, or of another plan or model.
        """
        bundle.onnx_path(variant)
        digest = sha256.strip().lower()
        if not _SHA256.fullmatch(digest):
            raise InputError(f"{sha256!r} is not a SHA-256: give its 64 hex digits, from whoever built the plan")
        plans = [path for path in sorted(bundle.path.glob(f"*{PLAN}")) if path.is_file() and not path.is_symlink()]
        path = next((path for path in plans if file_hash(path, what="TensorRT plan") == digest), None)
        if path is None:
            there = f"{', '.join(plan.name for plan in plans)} are others" if plans else "there is no plan in it"
            raise IntegrityError(
                f"no plan in {bundle.path} has the SHA-256 that you trust, {there}: ask whoever built it, or have it "
                "built here"
            )
        try:
            record = read_record(path.with_suffix(RECORD))
        except BundleError as error:
            raise EngineError(
                f"{path} is not used without its record, which says what it was built from ({error}): copy the "
                ".json beside it too"
            ) from error
        if record.sha256 != digest:
            raise EngineError(
                f"{path.with_suffix(RECORD)} is the record of another plan: copy the .json that came with this one"
            )
        if record.variant != variant or record.key.onnx_sha256 != bundle.artifact_sha256(variant):
            raise EngineError(
                f"{path} was built from another model than {variant} of this bundle, as {record.variant}: have it "
                "built here"
            )
        return Engine(path, digest, record, "trusted")

    def note(self, engine: Engine, **facts: Any) -> Engine:
        """Add facts, JSON values, to the record of ``engine``: its ``verification`` and its ``precision``.

        They are kept only where that is possible: not in a cache that cannot be written, not if the plan was replaced
        meanwhile, and not beside a plan in a bundle. The engine that is returned has them in any case.
        """
        noted = replace(engine, record=structs.replace(engine.record, **facts))
        if engine.origin == "trusted" or noted.record == engine.record:
            return noted
        file = engine.path.with_suffix(RECORD)
        with suppress(StorageError), locked(self._lock(engine.record.key)), suppress(BundleError):
            if (stored := read_record(file)).sha256 == engine.sha256:
                write_json(file, structs.replace(stored, **facts).to_json())
        return noted

    def discard(self, engine: Engine) -> None:
        """Have ``engine``, a plan of this cache, built again by whoever asks for it next: without its record it does
        not count.

        Raises:
            StorageError: the cache cannot be written.
        """
        with locked(self._lock(engine.record.key)), self._writing():
            engine.path.with_suffix(RECORD).unlink(missing_ok=True)

    def _build(self, wanted: Wanted, progress: Progress | None) -> Engine:
        """Build under the lock: the plan first, then the record that makes it count."""
        bundle, variant = wanted.bundle, wanted.variant
        plan = self.folder / f"{wanted.name}-{variant}-{wanted.key.short}{PLAN}"
        for path in (plan, plan.with_suffix(RECORD)):
            if path.is_dir() and not path.is_symlink():  # nobody's plan, and in the way of every build to come
                shutil.rmtree(path, ignore_errors=True)
        onnx = bundle.onnx_path(variant)
        report = build_plan(
            onnx,
            plan,
            options=wanted.options,
            library=wanted.library,
            gpu=wanted.gpu,
            onnx_sha256=wanted.key.onnx_sha256,
            progress=progress,
        )
        record = EngineRecord(
            schema_version=SCHEMA_VERSION,
            kind=KIND,
            created=now(),
            edgeadv_version=__version__,
            bundle=wanted.name,
            bundle_id=bundle.id,
            variant=variant,
            key=wanted.key,
            file=plan.name,
            sha256=report.sha256,
            bytes=report.bytes,
            build=report,
        )
        write_json(plan.with_suffix(RECORD), record.to_json())
        return Engine(plan, report.sha256, record, "built")

    def _find(self, wanted: Wanted) -> Engine | None:
        found = self._look(wanted)
        return found if isinstance(found, Engine) else None

    def _look(self, wanted: Wanted) -> Engine | Explanation:
        """The plan with this key, under whatever bundle's name it was built, or why there is none that may be used."""
        plans = sorted(self.folder.glob(f"*-{wanted.key.short}{PLAN}"))
        found = [_judged(plan, wanted.key) for plan in plans]
        usable = [each for each in found if isinstance(each, Engine)]
        if usable or found:
            return (usable or found)[0]
        return nearest(wanted.key, self._relatives(wanted), label=wanted.label, folder=self.folder)

    def _relatives(self, wanted: Wanted) -> Iterator[EngineRecord]:
        """Records of plans of the same artefact with other keys."""
        for file in sorted(self.folder.glob(f"*{RECORD}")):
            plan = file.with_suffix(PLAN)
            with suppress(BundleError):
                record = read_record(file)
                same = record.bundle == wanted.name or record.key.onnx_sha256 == wanted.key.onnx_sha256
                if same and record.variant == wanted.variant and plan.is_file():
                    yield structs.replace(record, file=plan.name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the engine cache {self.folder} cannot be written ({error.strerror}): choose another with "
                "`engine_cache`"
            ) from error

    def _lock(self, key: EngineKey) -> Path:
        return self.folder / f".{key.short}.lock"


def copy_engine(engine: Engine, folder: Path) -> Path:
    """Copy a plan of a cache with its record, so that both can travel, to files named after what they are for.

    Returns:
        The copy of the plan, e.g. ``model.fp16.tensorrt-rtx.sm_86+sm_89.b1-8-32.plan``.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    record, key = engine.record, engine.record.key
    place = "+".join(key.targets) or _plain(f"{key.gpu}.{key.compute_capability}")
    sizes = "-".join(str(size) for size in dict.fromkeys(key.profile))
    plan = folder / f"model.{record.variant}.{key.library}.{place}.b{sizes}{PLAN}"
    write_bytes(plan, engine.read())
    write_json(plan.with_suffix(RECORD), structs.replace(record, file=plan.name).to_json())
    return plan


def _plain(name: str) -> str:
    """``name`` as it may stand in a file name."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._-")[:48] or "model"


def _judged(plan: Path, wanted: EngineKey) -> Engine | Explanation:
    """The plan with the key that is wanted in its name, if its bytes are those that were built, or why it does not
    count."""
    again, file = "it has to be built again", plan.with_suffix(RECORD)
    if not file.exists():
        return Explanation("miss", f"{plan.name} has no record, its build was cut off: {again}", path=plan)
    try:
        record = read_record(file)
        if changed := differences(record.key, wanted):
            what = f"{file.name} was changed, its {', '.join(changed)} is not what its name stands for"
            return Explanation("stale", f"{what}: {again}", changed, plan)
        digest = file_hash(plan, what="TensorRT plan")
    except BundleError as error:
        return Explanation("stale", f"{error}: {again}", path=plan)
    if digest == record.sha256:
        return Engine(plan, digest, record, "hit")
    why = f"{plan.name} is damaged, its SHA-256 is not the recorded one: {again}"
    return Explanation("stale", why, {"sha256": (record.sha256, digest)}, plan)
