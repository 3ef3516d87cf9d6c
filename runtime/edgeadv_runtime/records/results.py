"""The results file: one schema for what was measured, read by the report, tables and CI gates.

``docs/results.md`` describes every key. Readers ignore keys that they do not know; keys that came later have a default, so
older files of this version load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import SchemaError
from ..files import read_json, write_json
from .statistics import wilson_interval

SCHEMA_VERSION = 1
Verdict = Literal["UNCHECKED", "PASS", "SUSPECT", "MASKED"]
ORDER: tuple[Verdict, ...] = ("PASS", "UNCHECKED", "SUSPECT", "MASKED")
"""From the most to the least believable."""
Threat = Literal["white-box", "transfer", "query"]
CLEAN = "clean"
WORST_CASE = "worst-case"
SURROGATE = "surrogate"
"""Stands for a backend in ``skipped`` where an int8 variant was scored but not attacked by its own gradients."""


@dataclass(frozen=True)
class AttackParams:
    """How an attack was run; None where a parameter does not apply.

    ``library`` is a third party's whose attack it is, with its version, in words; None for edgeadv's own. ``draws``: calls that a
    gradient is the mean of. ``cumulative``: it ran on what the attacks before it left standing, and its row counts what stands
    after all of them.
    """

    norm: str | None = None
    loss: str | None = None
    steps: int | None = None
    step_size: str | None = None
    restarts: int | None = None
    seed: int | None = None
    queries: int | None = None
    target: str | None = None
    uint8: bool | None = None
    attacks: tuple[str, ...] | None = None
    library: str | None = None
    draws: int | None = None
    cumulative: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The parameters that apply."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AttackParams:
        """Read what :meth:`to_json` wrote; unknown keys are ignored."""
        known: dict[str, Any] = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        if "attacks" in known:
            known["attacks"] = tuple(known["attacks"])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artefact under one attack at one budget. Accuracy is over all ``n`` scored images.

    Attributes:
        variant: the artefact's name in the bundle.
        artifact_sha256: hash of the file that was scored.
        backend: what scored it; with ``provider`` and ``device`` this says whose figure it is.
        provider: what executed it inside the backend.
        device: the device in words.
        attack: ``"clean"``, ``"fgsm"``, ..., or ``"worst-case"``: per image, over the clean image and every adversarial
            image within ``eps``.
        params: how the attack was run.
        eps: the budget as written; ``"0"`` for clean.
        eps_value: the budget in pixels of [0, 1].
        threat: None for clean; ``"white-box"`` where the gradients belong to the scored artefact, ``"transfer"`` where
            they come from another one and for attacks without any, ``"query"`` where the attack asked the scored artefact. A
            worst case has the first of these three, in the order white-box, query, transfer, that one of its attacks has.
        gradients: where the attack's gradients come from; None for clean.
        n: scored images.
        correct_top1: images whose first label is right.
        correct_top5: images whose true label is among the first five; None for five classes or fewer, and under
            attacks that are content with another first label (all but plain and rescaled FGSM and one draw of noise).
        zero_gradient_share: share of the ``n`` images whose gradient was zero or not finite, so not attacked; None if
            unknown or not applicable.
        masking: the artefact's verdict, with the sentences of what was found as ``evidence``; None for clean.
        engine: the plan that ran, as :attr:`~edgeadv_runtime.Backend.engine_info` has it; None for a backend without one.
        rounding_lost: images that the attack broke before they were rounded to 8 bits and not afterwards; None where nothing
            was rounded or it cannot be told. ``docs/results.md`` says on which model.
        training_images: of the ``n`` images, those that the network was trained on; None where that is not known. More than 1%,
            and the row flatters: it is there only because that was allowed.
    """

    variant: str
    artifact_sha256: str
    backend: str
    provider: str
    device: str
    attack: str
    params: AttackParams
    eps: str
    eps_value: float
    threat: Threat | None
    gradients: str | None
    n: int
    correct_top1: int
    correct_top5: int | None
    zero_gradient_share: float | None
    masking: dict[str, Any] | None
    engine: dict[str, Any] | None = None
    rounding_lost: int | None = None
    training_images: int | None = None

    @property
    def top1(self) -> float:
        """Share of images whose first label is right."""
        return self.correct_top1 / self.n

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """Wilson 95% interval of :attr:`top1`."""
        return wilson_interval(self.correct_top1, self.n)

    @property
    def top5(self) -> float | None:
        """Share of images whose true label is among the first five."""
        return None if self.correct_top5 is None else self.correct_top5 / self.n

    @property
    def top5_ci95(self) -> tuple[float, float] | None:
        """Wilson 95% interval of :attr:`top5`."""
        return None if self.correct_top5 is None else wilson_interval(self.correct_top5, self.n)

    def to_json(self) -> dict[str, Any]:
        """The row as the file holds it, the derived shares included."""
        return {
            "variant": self.variant, "artifact_sha256": self.artifact_sha256, "backend": self.backend,
            "provider": self.provider, "device": self.device, "attack": self.attack, "params": self.params.to_json(),
            "eps": self.eps, "eps_value": self.eps_value, "threat": self.threat, "gradients": self.gradients, "n": self.n,
            "correct_top1": self.correct_top1, "top1": self.top1, "top1_ci95": self.top1_ci95,
            "correct_top5": self.correct_top5, "top5": self.top5, "top5_ci95": self.top5_ci95,
            "zero_gradient_share": self.zero_gradient_share, "masking": self.masking, "engine": self.engine,
            "rounding_lost": self.rounding_lost, "training_images": self.training_images,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        """Read what :meth:`to_json` wrote; shares and intervals are derived again from the counts."""
        known = {f.name: value[f.name] for f in fields(cls) if f.default is MISSING or f.name in value}
        return cls(**{**known, "params": AttackParams.from_json(known["params"])})


def reversed_comparison(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of :attr:`Results.comparisons` with baseline and artefact in each other's place."""
    low, high = entry["drop_ci95"]
    return {
        **entry, "baseline": entry["artefact"], "artefact": entry["baseline"], "lost": entry["gained"], "gained": entry["lost"],
        "drop": -entry["drop"], "drop_ci95": [-high, -low],
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Results:
    """A results file.

    Attributes:
        bundle: id, name, title, weights hash and architecture of what was scored.
        data: name, split, hash, number scored, unreadable images, images that the network was trained on.
        environment: device facts and versions.
        masking: the verdict on the weights' gradients: ``{"verdict", "evidence"}``.
        rows: what was measured.
        skipped: pairs of backend and variant that were asked for as ``all`` and cannot be, with the reason.
        examples: a few images with their predictions, PNG in base64.
        comparisons: each pair of artefacts, image by image, on the clean images and in the worst case at each budget;
            ``docs/results.md`` has the keys.
        created: UTC time, ISO 8601.
        edgeadv_version: what wrote it.
    """

    bundle: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    masking: dict[str, Any]
    rows: tuple[Row, ...]
    skipped: tuple[dict[str, str], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    comparisons: tuple[dict[str, Any], ...] = ()
    created: str = ""
    edgeadv_version: str = ""
    path: Path | None = field(default=None, compare=False)

    @property
    def verdict(self) -> Verdict:
        """The least believable verdict of the file: on the weights, or on any artefact that was attacked."""
        found = [self.masking["verdict"], *(row.masking["verdict"] for row in self.rows if row.masking)]
        return max(found, key=ORDER.index)

    def select(self, **conditions: Any) -> list[Row]:
        """Rows whose attributes equal ``conditions``, e.g. ``select(backend="torch", attack="clean")``."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in conditions.items())]

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value."""
        return {
            "schema_version": SCHEMA_VERSION, "kind": "results", "edgeadv_version": self.edgeadv_version,
            "created": self.created, "bundle": self.bundle, "data": self.data, "environment": self.environment,
            "masking": self.masking, "rows": [row.to_json() for row in self.rows], "skipped": list(self.skipped),
            "examples": list(self.examples), "comparisons": list(self.comparisons),
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read a results file.

        Raises:
            SchemaError: another kind or version, or a key is missing.
            BundleError: not readable.
        """
        return cls.from_json(read_measurement(path, kind="results"), path=Path(path))

    @classmethod
    def from_json(cls, value: dict[str, Any], *, path: Path | None = None) -> Results:
        """Read what :meth:`to_json` wrote."""
        try:
            return cls(
                bundle=value["bundle"], data=value["data"], environment=value["environment"], masking=value["masking"],
                rows=tuple(Row.from_json(row) for row in value["rows"]), skipped=tuple(value["skipped"]),
                examples=tuple(value["examples"]), comparisons=tuple(value.get("comparisons", ())),
                created=value["created"], edgeadv_version=value["edgeadv_version"], path=path,
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise SchemaError(
                f"{path or 'this value'} is not a complete results file ({error!r}); measure again"
            ) from error


def read_measurement(path: str | Path, *, kind: Literal["results", "bench", "study"] | None = None) -> dict[str, Any]:
    """Read a results, bench or study file, checking its kind and schema version.

    Args:
        path: the file.
        kind: the kind it must be; None takes results or bench.

    Raises:
        SchemaError: another kind or version.
        BundleError: not readable.
    """
    what = f"{kind or 'results or bench'} file"
    value = read_json(Path(path), what=what)
    kinds = (kind,) if kind else ("results", "bench")
    if value.get("kind") not in kinds or value.get("schema_version") != SCHEMA_VERSION:
        raise SchemaError(
            f"{path} is a {value.get('kind')!r} of schema version {value.get('schema_version')!r}, not a {what} of version "
            f"{SCHEMA_VERSION}"
        )
    return value


class _Measured(Protocol):
    """A row of either file."""

    @property
    def backend(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def engine(self) -> dict[str, Any] | None: ...


def engine_sentence(engine: Mapping[str, Any]) -> str:
    """What a person must know of a plan: its hash, shortened, the batch sizes it serves, whether its precision was seen.

    Args:
        engine: ``engine`` of a row.

    Raises:
        KeyError, TypeError, ValueError: it is not complete.
    """
    least, best, most = engine["profile"]
    batch = f"{most}" if least == most else f"{least} to {most}, best {best}"
    seen = {"verified": "precision verified", "declared": "precision declared, not verified"}[engine["precision"]]
    return f"plan {engine['plan_sha256'][:12]}, batch {batch}, {seen}"


def engines(rows: Iterable[_Measured]) -> list[tuple[str, dict[str, Any]]]:
    """The plans behind ``rows``, each once, with the backend and variant that ran it."""
    found: list[tuple[str, dict[str, Any]]] = []
    for row in rows:
        if row.engine is not None and (entry := (f"{row.backend} {row.variant}", row.engine)) not in found:
            found.append(entry)
    return found
