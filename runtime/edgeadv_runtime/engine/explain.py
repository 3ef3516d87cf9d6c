"""Why a plan is used or built again: which field of its key is another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .options import BatchProfile
from .records import EngineRecord

Status = Literal["hit", "miss", "stale"]
# what somebody chose; the other fields of a key are what happened to be the case
OPTIONS = ("profile", "targets", "tf32", "workspace_mib", "library")
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
_HASH_SHOWN = 12


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


def nearest(wanted: Mapping[str, Any], records: Iterable[EngineRecord], *, label: str, folder: Path) -> Explanation:
    """Compare a key that is not in the cache with those that are.

    Args:
        wanted: the fields of the key.
        records: of the plans of the same artefact.
        label: the artefact in words.
        folder: the cache.

    Returns:
        ``"stale"`` or ``"miss"``, by the record with the fewest differences, the newest of those.
    """
    candidates = sorted(records, key=lambda record: record.created, reverse=True)
    found = [(differences(record.key.to_json(), wanted), record) for record in candidates]
    if not found:
        return Explanation("miss", f"{folder} has no engine of {label} yet")
    changed, record = min(found, key=lambda pair: (_chosen(pair[0]) != [], len(pair[0])))
    path = folder / record.file
    if chosen := _chosen(changed):
        has = ", ".join(f"{_word(name)} {_show(name, changed[name][0])}" for name in chosen)
        asked = ", ".join(_show(name, changed[name][1]) for name in chosen)
        return Explanation(
            "miss", f"no engine of {label} with these options; the nearest has {has} instead of {asked}", changed, path
        )
    moves = (f"{_word(name)} was {_show(name, old)} and is {_show(name, new)}" for name, (old, new) in changed.items())
    return Explanation("stale", f"{', '.join(moves)}: it has to be built again", changed, path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """``{field: (old, new)}`` of the fields whose values differ; None stands for a field that one does not have."""
    names = dict.fromkeys([*new, *old])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _chosen(changed: Mapping[str, Any]) -> list[str]:
    return [name for name in OPTIONS if name in changed]


def _word(name: str) -> str:
    return _WORDS.get(name, name)


def _show(name: str, value: Any) -> str:
    if name == "profile":
        return str(BatchProfile.from_json(value))
    if name == "targets":
        return ", ".join(value) or "the GPU present"
    if name == "tf32":
        return "on" if value else "off"
    if name == "workspace_mib":
        return "as TensorRT likes" if value is None else f"{value} MiB"
    if name == "onnx_sha256":
        return str(value)[:_HASH_SHOWN]
    return str(value)
