"""Results and bench files, or the same in memory, as one HTML page."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeadv_runtime import Bench, Results

from ..reporting import build_report

Measurement = Results | Bench | str | Path


def report(measurements: Measurement | Sequence[Measurement], out: str | Path = "report.html") -> Path:
    """Write one self-contained HTML page: the worst case first, with its masking verdict, then all the rest.

    ::

        page = report(["results.json", "bench.json"], "report.html")

    Args:
        measurements: results and benches, or their files, in the order in which the page shows them. What is in memory
            is called ``results-1.json``, ``bench-2.json``, ... by its place among them.
        out: the page; a file that is there is replaced.

    Returns:
        ``out``.

    Raises:
        InputError: there are none, one is named twice, or they do not compare.
        BundleError: a file is not readable, or no results or bench file of this version.
        MissingDependencyError: the extra ``report`` is not installed.
        StorageError: ``out`` cannot be written.
    """
    given = [measurements] if isinstance(measurements, Results | Bench | str | Path) else measurements
    files: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, each in enumerate(given, start=1):
            if isinstance(each, str | Path):
                files.append(Path(each))
            else:
                files.append(Path(folder) / f"{'results' if isinstance(each, Results) else 'bench'}-{i}.json")
                each.save(files[-1])
        build_report(files, Path(out))
    return Path(out)
