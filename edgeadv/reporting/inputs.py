"""The files of a report, read and checked before anything is drawn."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from edgeadv_runtime.attacks.perturbation import NORMS
from edgeadv_runtime.benchmark.conditions import check_comparable
from edgeadv_runtime.bundle.training_images import overlap_sentence, too_many
from edgeadv_runtime.errors import InputError, SchemaError
from edgeadv_runtime.records.bench import Bench, BenchRow
from edgeadv_runtime.records.results import CLEAN, Results, Row, Verdict, engine_sentence, engines, read_measurement
from edgeadv_runtime.records.statistics import mcnemar_p, paired_difference_interval

from .confidence import Calibrated

VERDICTS: tuple[str, ...] = get_args(Verdict)
_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# below this a browser's smoothing hides the pixels that the attack changed
_PIXELATED_BELOW = 128


@dataclass(frozen=True)
class Picture:
    """A PNG as the page embeds it.

    Attributes:
        uri: the image as a data URI.
        width: in pixels.
        height: in pixels.
    """

    uri: str
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        """Whether it is so small that it must be enlarged without smoothing."""
        return max(self.width, self.height) < _PIXELATED_BELOW

    @classmethod
    def from_base64(cls, text: str) -> Picture:
        """Read a PNG in base64.

        Raises:
            ValueError: it is not one.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError("an example image is not base64") from error
        if not data.startswith(_PNG_HEAD) or len(data) < len(_PNG_HEAD) + 8:
            raise ValueError("an example image is not a PNG")
        width, height = struct.unpack_from(">II", data, len(_PNG_HEAD))
        # encoded again, so that nothing but base64 can reach the page
        return cls(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image before and after an attack; the keys of ``results.examples``."""

    index: int
    label: str
    attack: str
    eps: str
    amplification: float
    clean: Picture
    perturbation: Picture
    adversarial: Picture
    clean_prediction: str
    adversarial_prediction: str
    clean_probability: float
    adversarial_probability: float
    artefact: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Example:
        """Read one entry of ``results.examples``; unknown keys are ignored."""
        return cls(
            index=int(value["index"]),
            label=str(value["label"]),
            attack=str(value["attack"]),
            eps=str(value["eps"]),
            amplification=float(value["amplification"]),
            clean=Picture.from_base64(value["clean_png"]),
            perturbation=Picture.from_base64(value["perturbation_png"]),
            adversarial=Picture.from_base64(value["adversarial_png"]),
            clean_prediction=str(value["clean_prediction"]),
            adversarial_prediction=str(value["adversarial_prediction"]),
            clean_probability=float(value["clean_probability"]),
            adversarial_probability=float(value["adversarial_probability"]),
            artefact=str(value["artefact"]),
        )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one masking rule found, or why the rules could not tell.

    Attributes:
        rule: the rule's name.
        eps: the budget it looked at, if one.
        artefact: backend and variant whose images it counted; None for the weights.
        finding: ``"MASKED"``, ``"SUSPECT"``, or None where it found nothing.
        text: the finding in words.
        numbers: whatever else the entry carries.
    """

    rule: str
    eps: str | None
    artefact: str | None
    finding: str | None
    text: str
    numbers: dict[str, Any]

    @property
    def obstacle(self) -> bool:
        """Whether this is no finding of a rule but the reason why the attacks that ran cannot earn a ``PASS``."""
        return self.rule == "coverage"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """Read one entry of ``masking.evidence``."""
        known = ("rule", "eps", "artefact", "finding", "text")
        if value["finding"] not in (None, *VERDICTS):
            raise ValueError(f"finding {value['finding']!r} is not a verdict")
        return cls(
            rule=str(value["rule"]),
            eps=value.get("eps"),
            artefact=value.get("artefact"),
            finding=value["finding"],
            text=str(value["text"]),
            numbers={key: number for key, number in value.items() if key not in known},
        )


# backend, variant and hash of what was scored
Side = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One artefact against another, image by image; an entry of ``results.comparisons``.

    Attributes:
        attack: ``"clean"`` or ``"worst-case"``.
        eps: the budget as written; ``"0"`` for clean.
        baseline: what is compared with.
        artefact: what is compared.
        n: images.
        lost: images that only the baseline gets right.
        gained: images that only the artefact gets right.
    """

    attack: str
    eps: str
    baseline: Side
    artefact: Side
    n: int
    lost: int
    gained: int

    @property
    def drop(self) -> float:
        """Share of the images that the artefact lost, less what it gained."""
        return (self.lost - self.gained) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval."""
        return paired_difference_interval(self.lost, self.gained, self.n)

    @property
    def p(self) -> float:
        """Of McNemar's test."""
        return mcnemar_p(self.lost, self.gained)

    @property
    def reversed(self) -> Paired:
        """The same, with the two in each other's place."""
        return replace(self, baseline=self.artefact, artefact=self.baseline, lost=self.gained, gained=self.lost)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Paired:
        """Read one entry; shares are derived again from the counts."""
        counts = {key: value[key] for key in ("n", "lost", "gained")}
        if not all(type(count) is int for count in counts.values()):
            raise ValueError(f"{counts} are not numbers of images")
        baseline, artefact = (
            (str(side["backend"]), str(side["variant"]), str(side["artifact_sha256"]))
            for side in (value["baseline"], value["artefact"])
        )
        paired = cls(attack=str(value["attack"]), eps=str(value["eps"]), baseline=baseline, artefact=artefact, **counts)
        _ = paired.interval  # counts that do not fit are found here
        return paired


@dataclass(frozen=True, kw_only=True)
class ResultsFile:
    """A results file and what the report reads out of its open parts."""

    path: Path
    results: Results
    title: str
    verdict: str
    findings: tuple[Finding, ...]
    examples: tuple[Example, ...]
    comparisons: tuple[Paired, ...]
    calibrated: Calibrated | None

    @property
    def trained_on(self) -> str:
        """What a reader must know of images that were trained on; empty where that is nothing, and of older files."""
        data = self.results.data
        return overlap_sentence(data["training_images"], data.get("n", 0)) if "training_images" in data else ""

    @property
    def flatters(self) -> bool:
        """Whether too many of the images were trained on."""
        return too_many(self.results.data.get("training_images"), self.results.data.get("n", 0))


@dataclass(frozen=True, kw_only=True)
class BenchFile:
    """A bench file and the title of what it is about."""

    path: Path
    bench: Bench
    title: str


_File = TypeVar("_File", ResultsFile, BenchFile)


@dataclass(frozen=True)
class Inputs:
    """All files of one report, in the order given."""

    results: tuple[ResultsFile, ...]
    benches: tuple[BenchFile, ...]

    @property
    def norm(self) -> str:
        """In which all budgets of the results are measured."""
        return _norms(self.results)[0] if self.results else NORMS[0]


def load_inputs(files: Sequence[Path]) -> Inputs:
    """Read results and bench files.

    Args:
        files: in the order in which the page shows them.

    Raises:
        InputError: no file, one named twice, results whose budgets are in different norms, or bench files of one device in
            different states.
        SchemaError: a file is no results or bench file of this version, or it is incomplete.
        BundleError: a file is not readable.
    """
    if not files:
        raise InputError("a report needs at least one file: name what evaluate and bench wrote")
    seen: set[Path] = set()
    results: list[ResultsFile] = []
    benches: list[BenchFile] = []
    for path in files:
        if path.resolve() in seen:
            raise InputError(f"{path} is named twice: name every file once")
        seen.add(path.resolve())
        kind = read_measurement(path)["kind"]
        with _complete(path):
            if kind == "results":
                results.append(_results_file(path))
            else:
                benches.append(_bench_file(path))
    check_comparable([file.bench for file in benches])
    if len(norms := _norms(results)) > 1:
        raise InputError(
            f"eps is measured in {' in some of these results, and in '.join(norms)} in others: make a report of each"
        )
    return Inputs(_told_apart(results), _told_apart(benches))


def _norms(results: Sequence[ResultsFile]) -> list[str]:
    """The norms of the budgets, in the order of the files; of results without an attack the first one there is."""
    found = [row.params.norm or NORMS[0] for file in results for row in file.results.rows if row.attack != CLEAN]
    return list(dict.fromkeys(found)) or [NORMS[0]]


def _told_apart(files: Sequence[_File]) -> tuple[_File, ...]:
    """Files of equal titles with as much of their paths behind it as differs: two runs of one model must stay tellable apart."""
    titles = [file.title for file in files]
    told = []
    for file in files:
        others = [other.path.resolve() for other in files if other.title == file.title and other is not file]
        parts = file.path.resolve().parts
        count = next((n for n in range(1, len(parts)) if all(o.parts[-n:] != parts[-n:] for o in others)), len(parts))
        end = "/".join(parts[-count:])
        told.append(replace(file, title=f"{file.title} ({end})") if titles.count(file.title) > 1 else file)
    return tuple(told)


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaError(f"{path} is not a complete results or bench file ({error!r}); measure again") from error


def _results_file(path: Path) -> ResultsFile:
    results = Results.load(path)
    for row in results.rows:
        _ = row.top1_ci95, row.top5_ci95  # counts that are not a share are found here, not half-way down the page
        if row.attack != CLEAN and not (0 < row.eps_value <= 1 or (row.params.norm == "l2" and row.eps_value > 0)):
            raise ValueError(f"eps {row.eps_value} of {row.attack} is not in (0, 1]")
        if row.zero_gradient_share is not None and not 0 <= row.zero_gradient_share <= 1:
            raise ValueError(f"zero_gradient_share {row.zero_gradient_share} of {row.attack} is not a share")
        _check_verdict((row.masking or results.masking)["verdict"])
        _check_texts(row.variant, row.backend, row.provider, row.device, row.attack, row.eps)
        if row.rounding_lost is not None and type(row.rounding_lost) is not int:
            raise ValueError(f"rounding_lost {row.rounding_lost!r} of {row.attack} is not a number of images")
    _check_texts(results.created, results.edgeadv_version)
    _check_objects(results.bundle, results.data, results.environment, *results.skipped)
    _check_plans(results.rows)
    trained_on = results.data.get("training_images")
    counts = {"calibration_left_out": results.data.get("calibration_left_out", 0)}
    if trained_on is not None:
        counts |= {"training_images": trained_on, "n": results.data["n"]}
    for key, count in counts.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"{key} {count!r} is not a number of images")
    confidence = results.bundle.get("confidence")
    verdict = results.masking["verdict"]
    _check_verdict(verdict)
    return ResultsFile(
        path=path,
        results=results,
        title=_title(results.bundle),
        verdict=str(verdict),
        findings=tuple(Finding.from_json(entry) for entry in results.masking.get("evidence") or ()),
        examples=tuple(Example.from_json(entry) for entry in results.examples),
        comparisons=tuple(Paired.from_json(entry) for entry in results.comparisons),
        calibrated=None if confidence is None else Calibrated.from_json(confidence),
    )


def _bench_file(path: Path) -> BenchFile:
    bench = Bench.load(path)
    for row in bench.rows:
        if not 0 <= row.p50_ms <= row.p90_ms <= row.max_ms:
            raise ValueError(f"p50 {row.p50_ms}, p90 {row.p90_ms} and max {row.max_ms} ms do not ascend")
        if row.energy_mj_per_image is not None and not row.energy_mj_per_image > 0:
            raise ValueError(f"energy of {row.energy_mj_per_image} mJ is not above 0")
        _check_texts(row.variant, row.backend, row.provider, row.device, row.mode, row.stage, row.includes)
        if row.late is not None and type(row.late) is not int:
            raise ValueError(f"late {row.late!r} is not a number of frames")
    _check_texts(bench.created, bench.edgeadv_version)
    _check_objects(bench.bundle, bench.environment, bench.conditions, *bench.skipped)
    _check_plans(bench.rows)
    return BenchFile(path=path, bench=bench, title=_title(bench.bundle))


def _check_verdict(verdict: Any) -> None:
    if verdict not in VERDICTS:
        raise ValueError(f"masking verdict {verdict!r} is not one of {', '.join(VERDICTS)}")


def _check_texts(*values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} stands where a text is expected")


def _check_objects(*values: Any) -> None:
    if not all(isinstance(value, dict) for value in values):
        raise TypeError("an object is expected")


def _check_plans(rows: Sequence[Row] | Sequence[BenchRow]) -> None:
    for _, engine in engines(rows):
        _check_objects(engine)
        engine_sentence(engine)  # one that lacks a key is found here, not half-way down the page


def _title(bundle: Mapping[str, Any]) -> str:
    return str(bundle.get("title") or bundle["name"])
