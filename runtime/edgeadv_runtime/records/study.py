"""The study file: several classifiers under one attack on the same images. ``docs/study.md`` describes every key.

What was measured of each classifier is a whole :class:`~edgeadv_runtime.Results`, so nothing about it is said twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SchemaError
from ..files import write_json
from .results import SCHEMA_VERSION, Results, read_measurement


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file.

    Attributes:
        settings: what was asked for: architectures with their weights and preprocessing, images, seed, attack, eps.
        results: one for each architecture, in the order of ``settings``; fewer where the study is not finished.
        created: UTC time of the last of them, ISO 8601.
        edgeadv_version: what measured them.
        path: the file that it was read from; None for one that was just measured.
    """

    settings: dict[str, Any]
    results: tuple[Results, ...]
    created: str = ""
    edgeadv_version: str = ""
    path: Path | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        return {
            "schema_version": SCHEMA_VERSION, "kind": "study", "edgeadv_version": self.edgeadv_version,
            "created": self.created, "settings": self.settings, "results": [result.to_json() for result in self.results],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study file.

        Raises:
            SchemaError: another kind or version, or a key is missing.
            BundleError: not readable.
        """
        value = read_measurement(path, kind="study")
        try:
            return cls(
                settings=value["settings"], results=tuple(Results.from_json(result, path=Path(path)) for result in value["results"]),
                created=value["created"], edgeadv_version=value["edgeadv_version"], path=Path(path),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise SchemaError(f"{path} is not a complete study file ({error!r}); measure again") from error
