"""The bench file: one schema for latency and energy, read by the report. ``docs/bench.md`` describes every key.

Readers ignore keys that they do not know; keys that came later have a default, so older files of this version load.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import SchemaError
from ..files import write_json
from .results import SCHEMA_VERSION, read_measurement

Mode = Literal["back-to-back", "paced"]
Stage = Literal["preprocess", "inference", "end-to-end", "copy-in", "compute", "copy-out"]
STAGES: tuple[Stage, ...] = ("preprocess", "inference", "end-to-end")
SPLIT_STAGES: tuple[Stage, ...] = ("copy-in", "compute", "copy-out")
# a stage that only older files have, of a check that this version does not make
_IGNORED = "guarded"


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One stage of one artefact at one batch size.

    Attributes:
        variant: the artefact's name in the bundle.
        artifact_sha256: hash of the file that was run.
        backend: what ran it; with ``provider`` and ``device`` this says whose figure it is.
        provider: what executed it inside the backend.
        device: the device in words.
        threads: CPU threads a call may use; None where that is left to the library.
        batch: images in a call.
        mode: ``"back-to-back"``: the next call at once; ``"paced"``: a call at every tick of ``rate_hz``.
        rate_hz: ticks per second; None for back-to-back.
        stage: ``"preprocess"``, ``"inference"`` or ``"end-to-end"``; of a backend that times the parts of a call on the
            device also ``"copy-in"``, ``"compute"`` and ``"copy-out"``.
        n: timed calls; every one of them is in the figures.
        warm_up: calls before them that were not timed.
        p50_ms: median time of a call, of the whole batch.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; None for fewer than 1,000 calls.
        max_ms: the slowest call.
        images_per_s: images over the wall time of the whole series; for paced the rate that was kept.
        late: frames not finished when the next was due; None for back-to-back.
        includes: what is in the time and what is not.
        energy_mj_per_image: millijoules over the whole series for each of its images; None where nothing measured it, or
            the series was too short for what did.
        energy_source: what measured it and what it covers; None where nothing could.
        engine: the plan that ran, as :attr:`~edgeadv_runtime.Backend.engine_info` has it; None for a backend without one.
    """

    variant: str
    artifact_sha256: str
    backend: str
    provider: str
    device: str
    threads: int | None
    batch: int
    mode: Mode
    rate_hz: float | None
    stage: Stage
    n: int
    warm_up: int
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    max_ms: float
    images_per_s: float
    late: int | None
    includes: str
    energy_mj_per_image: float | None = None
    energy_source: str | None = None
    engine: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as the file holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BenchRow:
        """Read what :meth:`to_json` wrote, also before the keys with a default were there."""
        return cls(**{f.name: value[f.name] for f in fields(cls) if f.default is MISSING or f.name in value})


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A bench file.

    Attributes:
        bundle: id, name and title of what was measured.
        environment: what :func:`~edgeadv_runtime.device.facts.environment` told.
        conditions: what :func:`~edgeadv_runtime.device.facts.conditions` told ``before`` and ``after`` all measurements.
        rows: what was measured.
        warnings: sentences on what happened to the machine meanwhile, such as throttling, and on CUDA graphs that failed.
        skipped: pairs of backend and variant that were asked for as ``all`` and cannot be, with the reason.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
        path: the file that it was read from; None for one that was just measured.
    """

    bundle: dict[str, Any]
    environment: dict[str, Any]
    conditions: dict[str, dict[str, Any]]
    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...] = ()
    skipped: tuple[dict[str, str], ...] = ()
    created: str = ""
    edgeadv_version: str = ""
    path: Path | None = field(default=None, compare=False)

    def select(self, **wanted: Any) -> list[BenchRow]:
        """Rows whose attributes equal ``wanted``, e.g. ``select(stage="end-to-end", batch=1)``."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in wanted.items())]

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        return {
            "schema_version": SCHEMA_VERSION, "kind": "bench", "edgeadv_version": self.edgeadv_version,
            "created": self.created, "bundle": self.bundle, "environment": self.environment,
            "conditions": self.conditions, "warnings": list(self.warnings),
            "rows": [row.to_json() for row in self.rows], "skipped": list(self.skipped),
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Bench:
        """Read a bench file. Rows of the stage ``guarded``, which older files may have, are left out.

        Raises:
            SchemaError: another kind or version, or a key is missing.
            BundleError: not readable.
        """
        value = read_measurement(path, kind="bench")
        try:
            return cls(
                bundle=value["bundle"], environment=value["environment"], conditions=value["conditions"],
                rows=tuple(BenchRow.from_json(row) for row in value["rows"] if row["stage"] != _IGNORED),
                warnings=tuple(str(text) for text in value.get("warnings", ())), skipped=tuple(value["skipped"]),
                created=value["created"], edgeadv_version=value["edgeadv_version"], path=Path(path),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise SchemaError(f"{path} is not a complete bench file ({error!r}); measure again") from error
