"""Why a plan is used or built again: which field of its key is another one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from msgspec import structs

from .options import BatchProfile
from .records import EngineKey, EngineRecord

Status = Literal["hit", "miss", "stale"]
# what somebody chose; the other fields of a key are what happened to be the case
_OPTIONS = {"profile", "targets", "tf32", "workspace_mib", "library"}
_WORDS = {
    "profile": "batch",
    "targets": "target",
    "tf32": "TF32",
    "workspace_mib": "workspace",
    "onnx_sha256": "ONNX file",
    "library_version": "library version",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "recipe": "edgeadv's way of building",
}


@dataclass(frozen=True)
class Explanation:
    """What the cache has for what was asked.

    Attributes:
        status: ``"hit"``: a plan that may be used; ``"stale"``: only one whose model, library, GPU or driver was
            another, or a damaged one; ``"miss"``: none with these options.
        sentence: why, in words.
        changed: for each field of the key that differs its value in the nearest plan and the value asked for.
        path: the plan that the sentence is about, or None.
    """

    status: Status
    sentence: str
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    path: Path | None = None

    def __str__(self) -> str:
        return f"{self.status}: {self.sentence}"


def nearest(wanted: EngineKey, records: Iterable[EngineRecord], *, label: str, folder: Path) -> Explanation:
    """Compare a key that is not in the cache with those that are.

    Args:
        wanted: the key.
        records: of the plans of the same artefact.
        label: the artefact in words.
        folder: the cache.

    Returns:
        ``"stale"`` or ``"miss"``, by the record with the fewest differences, the newest of those.
    """
    candidates = sorted(records, key=lambda record: record.created, reverse=True)
    found = [(differences(record.key, wanted), record) for record in candidates]
    if not found:
        return Explanation("miss", f"{folder} has no engine of {label} yet")
    changed, record = min(found, key=lambda pair: (bool(_OPTIONS & pair[0].keys()), len(pair[0])))
    chosen, path = [name for name in changed if name in _OPTIONS], folder / record.file
    told = [(_WORDS.get(name, name), *(_show(name, value) for value in changed[name])) for name in chosen or changed]
    if chosen:
        has, asked = ", ".join(f"{word} {old}" for word, old, _ in told), ", ".join(new for _, _, new in told)
        why = f"no engine of {label} with these options; the nearest has {has} instead of {asked}"
        return Explanation("miss", why, changed, path)
    moves = ", ".join(f"{word} was {old} and is {new}" for word, old, new in told)
    return Explanation("stale", f"{moves}: it has to be built again", changed, path)


def differences(old: EngineKey, new: EngineKey) -> dict[str, tuple[Any, Any]]:
    """``{field: (old, new)}`` of the fields whose values differ."""
    was = structs.asdict(old)
    return {name: (was[name], now) for name, now in structs.asdict(new).items() if was[name] != now}


def _show(name: str, value: Any) -> str:
    if name == "profile":
        return str(BatchProfile(*value))
    if name == "targets":
        return ", ".join(value) or "the GPU present"
    if name == "tf32":
        return "on" if value else "off"
    if name == "workspace_mib":
        return "as TensorRT likes" if value is None else f"{value} MiB"
    if name == "onnx_sha256":
        return str(value)[:12]
    return str(value)
