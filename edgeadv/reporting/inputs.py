"""The files of a report, read and checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeadv_runtime.benchmark.conditions import check_comparable
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.eps import AREA, SEVERITY
from edgeadv_runtime.records.measurement import read_measurement
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import NORMS


@dataclass(frozen=True)
class Inputs:
    """All files of one report, in the order given, and what the page calls each.

    Attributes:
        results: of attacks within eps, and of none.
        benches: latencies.
        titles: of all of them.
        shifts: results of patches and of corruptions.
    """

    results: dict[Path, Results]
    benches: dict[Path, Bench]
    titles: dict[Path, str]
    shifts: dict[Path, Results] = field(default_factory=dict)

    @property
    def norm(self) -> str:
        """In which all budgets of the results are measured."""
        return next((results.norm for results in self.results.values() if results.budgets), NORMS[0])


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
    results: dict[Path, Results] = {}
    benches: dict[Path, Bench] = {}
    shifts: dict[Path, Results] = {}
    for path in files:
        if path.resolve() in seen:
            raise InputError(f"{path} is named twice: name every file once")
        seen.add(path.resolve())
        if read_measurement(path, "results", "bench")["kind"] == "results":
            measured = Results.load(path)
            (shifts if measured.norm in (AREA, SEVERITY) else results)[path] = measured
        else:
            benches[path] = Bench.load(path)
    check_comparable(list(benches.values()))
    norms = list(dict.fromkeys(measured.norm for measured in results.values() if measured.budgets))
    if len(norms) > 1:
        raise InputError(
            f"eps is measured in {' in some of these results, and in '.join(norms)} in others: make a report of each"
        )
    # a model has one name on the page, whatever was done to it
    titles = _titles(results) | _titles(benches)
    for norm in (AREA, SEVERITY):
        titles |= _titles({path: each for path, each in shifts.items() if each.norm == norm})
    return Inputs(results, benches, titles, shifts)


def _titles(files: Mapping[Path, Results | Bench]) -> dict[Path, str]:
    """What bundles are called, those of equal names with as much of their paths behind it as differs: two runs of one
    model must stay tellable apart."""
    titles = {path: file.bundle.heading for path, file in files.items()}
    found = {}
    for path, title in titles.items():
        others = [other.resolve() for other in titles if titles[other] == title and other != path]
        parts = path.resolve().parts
        count = next((n for n in range(1, len(parts)) if all(o.parts[-n:] != parts[-n:] for o in others)), len(parts))
        found[path] = f"{title} ({'/'.join(parts[-count:])})" if others else title
    return found
