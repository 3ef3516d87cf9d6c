"""The files of a report, read and checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edgeadv_runtime.benchmark.conditions import check_comparable
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.measurement import read_measurement
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import NORMS


@dataclass(frozen=True, kw_only=True)
class ResultsFile:
    """A results file and what the page calls it."""

    path: Path
    results: Results
    title: str


@dataclass(frozen=True, kw_only=True)
class BenchFile:
    """A bench file and what the page calls it."""

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
        return next((file.results.norm for file in self.results if file.results.budgets), NORMS[0])


def load_inputs(files: Sequence[Path]) -> Inputs:
    """Read results and bench files.

    Args:
        files: in the order in which the page shows them.

    Raises:
        InputError: no file, one named twice, results whose budgets are in different norms, or bench files of one device
            in different states.
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
        if read_measurement(path, "results", "bench")["kind"] == "results":
            measured = Results.load(path)
            results.append(ResultsFile(path=path, results=measured, title=measured.bundle.heading))
        else:
            bench = Bench.load(path)
            benches.append(BenchFile(path=path, bench=bench, title=bench.bundle.heading))
    check_comparable([file.bench for file in benches])
    norms = list(dict.fromkeys(file.results.norm for file in results if file.results.budgets))
    if len(norms) > 1:
        raise InputError(
            f"eps is measured in {' in some of these results, and in '.join(norms)} in others: make a report of each"
        )
    return Inputs(_distinct(results), _distinct(benches))


def _distinct(files: Sequence[_File]) -> tuple[_File, ...]:
    """Files of equal titles with as much of their paths behind it as differs: two runs of one model must stay tellable
    apart."""
    titles = [file.title for file in files]
    found = []
    for file in files:
        others = [other.path.resolve() for other in files if other.title == file.title and other is not file]
        parts = file.path.resolve().parts
        count = next((n for n in range(1, len(parts)) if all(o.parts[-n:] != parts[-n:] for o in others)), len(parts))
        end = "/".join(parts[-count:])
        found.append(replace(file, title=f"{file.title} ({end})") if titles.count(file.title) > 1 else file)
    return tuple(found)
