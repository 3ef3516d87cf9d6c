"""The record beside a plan, ``*.json``, as somebody may have left it: read whole, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..bundle.entries import Entry
from ..decoding import Count, Sha256, convert, read
from ..errors import InputError, SchemaError
from ..files import canonical_json, sha256_bytes
from .options import BatchProfile

SCHEMA_VERSION: Literal[1] = 1
KIND: Literal["engine"] = "engine"
PLAN, RECORD = ".plan", ".json"
_WHAT, _MEND = "engine record", "it counts for nothing"
Profile = tuple[int, int, int]
Name = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\Z")]


class EngineKey(Entry, frozen=True, kw_only=True):
    """Everything that decides whether a plan may be used; a plan without targets is for the GPU that it was built
    on."""

    onnx_sha256: Sha256
    profile: Profile
    targets: tuple[Name, ...]
    tf32: bool
    workspace_mib: Count | None
    library: Name
    library_version: Name
    recipe: Count | None = None
    gpu: Name | None = None
    compute_capability: Name | None = None
    driver: Name | None = None

    def __post_init__(self) -> None:
        _check_profile(self.profile)
        if not self.targets and None in (self.gpu, self.compute_capability):
            raise ValueError("neither targets nor a GPU")

    @property
    def short(self) -> str:
        """What stands for it in names of files: 16 hex digits of its SHA-256."""
        return sha256_bytes(canonical_json(self.to_json()))[:16]


class BuildReport(Entry, frozen=True, kw_only=True):
    """How a plan was built, as read back from the library that built it.

    Attributes:
        bytes: size of the plan.
        seconds: duration of the build, without the start of the process.
        targets: GPUs named to the library, empty where it builds for the one present.
        flags: builder flags that were on.
        profile: [min, opt, max] batch.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        version: of the library.
        onnx_sha256: hash of the model that was read.
        sha256: hash of the plan.
        workspace_mib: limit of the scratch memory.
        warnings: what TensorRT warned of, each once.
    """

    bytes: Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    targets: tuple[Name, ...]
    flags: tuple[Name, ...]
    profile: Profile
    library: Name | None = None
    version: Name | None = None
    onnx_sha256: Name | None = None
    sha256: Name = ""
    workspace_mib: int | None = None
    warnings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_profile(self.profile)


class EngineRecord(Entry, frozen=True, kw_only=True):
    """What is known of a plan. The last four are facts that were found out later, JSON objects, each bound to a plan,
    GPU and driver."""

    schema_version: Literal[1]
    kind: Literal["engine"]
    created: Name
    bundle: Name
    variant: Name
    file: Name
    sha256: Sha256
    key: EngineKey
    build: BuildReport
    edgeadv_version: Name | None = None
    bundle_id: Name | None = None
    bytes: Count | None = None
    verification: dict[str, Any] | None = None
    precision: dict[str, Any] | None = None
    runtime_cache: dict[str, Any] | None = None
    not_loaded: dict[str, Any] | None = None


def read_record(file: Path) -> EngineRecord:
    """The record in ``file``.

    Raises:
        BundleError: there is none, or it is not one that this version wrote in whole; the message says what is wrong
            with it.
    """
    found = read(file, dict[str, Any], what=_WHAT, mend=_MEND)
    if found.get("kind") != KIND or found.get("schema_version") != SCHEMA_VERSION:
        raise SchemaError(f"{file.name} is no engine record of schema {SCHEMA_VERSION}")
    # what was noted later is found out again where it cannot be read
    kept = {name: value for name, value in found.items() if name not in _FACTS or isinstance(value, dict)}
    return convert(kept, EngineRecord, what=_WHAT, path=Path(file.name), mend=_MEND)


_FACTS = ("verification", "precision", "runtime_cache", "not_loaded")


def _check_profile(value: Profile) -> None:
    try:
        BatchProfile(*value)
    except InputError as error:
        raise ValueError(str(error)) from error
