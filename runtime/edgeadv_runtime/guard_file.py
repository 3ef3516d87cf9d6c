"""The guard file: what a guard flags and what gets past it. ``docs/confidence.md`` describes every key.

Readers ignore keys that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import SchemaError
from .files import write_json
from .results import SCHEMA_VERSION, WORST_CASE, AttackParams, read_measurement
from .stats import wilson_interval

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Whose figures these are: the artefact, and what ran it where, as in a results row."""

    variant: str
    artifact_sha256: str
    backend: str
    provider: str
    device: str

    @property
    def who(self) -> str:
        """Backend and variant."""
        return f"{self.backend} {self.variant}"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Any:
        """Read what ``to_json`` wrote; shares are derived again from the counts."""
        known = {f.name: value[f.name] for f in fields(cls)}
        if "params" in known:
            known["params"] = AttackParams.from_json(known["params"])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class CleanRow(Scored):
    """Clean images that the guard was not fitted on.

    Attributes:
        n: all of them, right or wrong.
        right: whose first label is right.
        flagged: false alarms, among all n.
    """

    n: int
    right: int
    flagged: int

    def __post_init__(self) -> None:
        _check(self.n, self.right, self.flagged)

    @property
    def false_alarm_rate(self) -> float:
        """Share of clean images that are flagged."""
        return self.flagged / self.n

    @property
    def false_alarm_rate_ci95(self) -> Interval:
        """Its Wilson 95% interval."""
        return wilson_interval(self.flagged, self.n)

    def to_json(self) -> dict[str, Any]:
        """The row as the file holds it."""
        return {
            **asdict(self), "false_alarm_rate": self.false_alarm_rate,
            "false_alarm_rate_ci95": list(self.false_alarm_rate_ci95),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GuardRow(Scored):
    """One attack on images that are right without it.

    Attributes:
        attack: its name, or ``"worst-case"``: per image over all attacks within this budget.
        eps: the budget as written.
        eps_value: the budget in pixels of [0, 1].
        params: how it was run.
        adaptive: whether it knows the guard.
        n: clean images that this artefact is right about: all were attacked.
        succeeded: those that have a wrong label under attack; for the worst case, under any.
        evaded: those of them that are not flagged; for the worst case, under any attack that gives a wrong label.
    """

    attack: str
    eps: str
    eps_value: float
    params: AttackParams
    adaptive: bool
    n: int
    succeeded: int
    evaded: int

    def __post_init__(self) -> None:
        _check(self.n, self.succeeded)
        if not 0 <= self.evaded <= self.succeeded:
            raise ValueError(f"{self.evaded} of {self.succeeded} attacks that succeeded cannot be unflagged")

    @property
    def flagged(self) -> int:
        """Attacks with a wrong label that are flagged."""
        return self.succeeded - self.evaded

    @property
    def detection_rate(self) -> float | None:
        """Share of the attacks with a wrong label that are flagged; None where there are none."""
        return self.flagged / self.succeeded if self.succeeded else None

    @property
    def detection_rate_ci95(self) -> Interval | None:
        """Its Wilson 95% interval."""
        return wilson_interval(self.flagged, self.succeeded) if self.succeeded else None

    @property
    def evasion_rate(self) -> float:
        """Share of all attacked images with a wrong label and no flag: what the attacker has of it."""
        return self.evaded / self.n

    @property
    def evasion_rate_ci95(self) -> Interval:
        """Its Wilson 95% interval."""
        return wilson_interval(self.evaded, self.n)

    def to_json(self) -> dict[str, Any]:
        """The row as the file holds it."""
        interval = self.detection_rate_ci95
        return {
            **asdict(self), "params": self.params.to_json(), "flagged": self.flagged, "detection_rate": self.detection_rate,
            "detection_rate_ci95": None if interval is None else list(interval), "evasion_rate": self.evasion_rate,
            "evasion_rate_ci95": list(self.evasion_rate_ci95),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GuardFile:
    """A guard file.

    Attributes:
        bundle: id, name, title and weights hash.
        data: name, split, number scored, hash, unreadable images, and images left out because the guard was fitted on them.
        environment: device facts and versions.
        guard: what the manifest says of it.
        clean: false alarms, a row for each artefact.
        rows: attacks.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
        path: the file that it was read from.
    """

    bundle: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    guard: dict[str, Any]
    clean: tuple[CleanRow, ...]
    rows: tuple[GuardRow, ...]
    created: str = ""
    edgeadv_version: str = ""
    path: Path | None = field(default=None, compare=False)

    @property
    def sentences(self) -> list[str]:
        """What must be read before any rate of detection: for each artefact, what gets past the guard at the largest eps."""
        largest = max((row.eps_value for row in self.rows), default=0.0)
        told = []
        for row in self.rows:
            if row.attack == WORST_CASE and row.eps_value == largest:
                low, high = row.evasion_rate_ci95
                told.append(
                    f"{row.who}, eps {row.eps}: attackers who know the guard get a wrong label and no flag on {row.evasion_rate:.1%} "
                    f"[{low:.1%}, {high:.1%}] of {row.n} images; without the guard they get a wrong label on {row.succeeded / row.n:.1%}"
                )
        return told

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        return {
            "schema_version": SCHEMA_VERSION, "kind": "guard", "edgeadv_version": self.edgeadv_version, "created": self.created,
            "bundle": self.bundle, "data": self.data, "environment": self.environment, "guard": self.guard,
            "clean": [row.to_json() for row in self.clean], "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> GuardFile:
        """Read a guard file.

        Raises:
            SchemaError: another kind or version, or a key is missing.
            BundleError: not readable.
        """
        value = read_measurement(path, kind="guard")
        try:
            return cls(
                bundle=dict(value["bundle"]), data=dict(value["data"]), environment=dict(value["environment"]),
                guard=dict(value["guard"]), clean=tuple(CleanRow.from_json(row) for row in value["clean"]),
                rows=tuple(GuardRow.from_json(row) for row in value["rows"]),
                created=str(value["created"]), edgeadv_version=str(value["edgeadv_version"]), path=Path(path),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SchemaError(f"{path} is not a complete guard file ({error!r}); measure again") from error


def _check(n: int, *counts: int) -> None:
    if not all(type(count) is int for count in (n, *counts)) or n < 1 or not all(0 <= count <= n for count in counts):
        raise ValueError(f"{counts} of {n} are not numbers of images")
