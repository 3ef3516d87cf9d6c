"""The record beside a plan, ``*.json``, as somebody may have left it: read whole, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError, InputError
from ..files import canonical_json, read_json
from .options import BatchProfile

SCHEMA_VERSION = 1
KIND = "engine"
PLAN, RECORD = ".plan", ".json"
SHA256 = re.compile("[0-9a-f]{64}")


def read_record(file: Path) -> dict[str, Any]:
    """The record in ``file``, in which everything that is used later is of the right type.

    Raises:
        BundleError: there is none, or it is not one that this version wrote in whole; the message says what is wrong with it.
    """
    try:
        record = read_json(file, what="engine record")
        canonical_json(record)  # as it will be written again: NaN is JSON to Python, and to nobody else
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file.name} is not a readable engine record ({error})") from error
    if record.get("kind") != KIND or record.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"{file.name} is no engine record of schema {SCHEMA_VERSION}")
    for name, fits in _FIELDS.items():
        if not fits(record.get(name)):
            raise BundleError(f"{file.name} has no usable {name!r}")
    # what was noted later is found out again where it cannot be read
    return {name: value for name, value in record.items() if name not in _FACTS or isinstance(value, dict)}


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def _profile(value: Any) -> bool:
    try:
        return isinstance(value, list) and len(value) == 3 and bool(BatchProfile.from_json(value))
    except (InputError, TypeError):
        return False


def _with(fields: Mapping[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(value.get(name)) for name, fits in fields.items())


def _key(value: Any) -> bool:
    # a plan that is for no named target is for the GPU that it was built on
    return _KEY(value) and (
        bool(value["targets"]) or (_text(value.get("gpu")) and _text(value.get("compute_capability")))
    )


_KEY = _with(
    {
        "onnx_sha256": _digest, "profile": _profile, "targets": _texts, "tf32": lambda value: isinstance(value, bool),
        "workspace_mib": lambda value: value is None or _number(value), "library": _text, "library_version": _text,
    }
)  # fmt: skip
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "created": _text, "bundle": _text, "variant": _text, "file": _text, "sha256": _digest, "key": _key,
    "build": _with({"bytes": _number, "seconds": _number, "targets": _texts, "flags": _texts, "profile": _profile}),
}  # fmt: skip
_FACTS = ("verification", "precision", "runtime_cache", "not_loaded")
