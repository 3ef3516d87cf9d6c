"""Results and bench files, or the same in memory, as one HTML page."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeadv_runtime import Bench, Bundle, InputError, Results
from edgeadv_runtime.bundle.pictures import load
from edgeadv_runtime.files import write_bytes

from ..reporting import build_report
from ..reporting.drawing import drawn_png
from .alone import alone
from .inputs import open_bundle

Measurement = Results | Bench | str | Path


@alone(file=True)
def report(
    measurements: Measurement | Sequence[Measurement],
    out: str | Path = "report.html",
    *,
    bundles: Sequence[Bundle | str | Path] = (),
) -> Path:
    """Write one self-contained HTML page: the worst case first, with its masking verdict, then all the rest.

    ::

        page = report(["results.json", "bench.json"], "report.html")

    Args:
        measurements: results and benches, or their files, in the order in which the page shows them. What is in memory
            is called ``results-1.json``, ``bench-2.json``, ... by its place among them.
        out: the page; a file that is there is replaced.
        bundles: of some of them: the page draws what their models see of a golden frame.

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
        build_report(files, Path(out), bundles=[open_bundle(bundle) for bundle in bundles])
    return Path(out)


@alone(file=True)
def draw_preprocess(bundle: Bundle | str | Path, out: str | Path, *, frame: str | Path | None = None) -> Path:
    """Draw what a bundle's model sees of a frame: the frame with the region of interest and the crop outlined, and the
    model's input beside it, whose pixels are those of :attr:`Bundle.preprocess`.

    ::

        picture = draw_preprocess("signs.edgeadv", "seen.png", frame="photo.jpg")

    Args:
        bundle: whose preprocessing is drawn, or where it is.
        out: the PNG; a file that is there is replaced.
        frame: a picture; None takes the first golden frame.

    Returns:
        ``out``.

    Raises:
        InputError: the preprocessing makes nothing of the frame, or ``out`` is no PNG.
        DataError: the frame is no readable picture.
        StorageError: ``out`` cannot be written.
    """
    opened, path = open_bundle(bundle), Path(out)
    if path.suffix.lower() != ".png":
        raise InputError("picture", f"{path} is written as a PNG: call it {path.with_suffix('.png').name}")
    if frame is None:
        pixels = opened.golden().frames[0]
    else:
        image = load(Path(frame))
        try:
            pixels = opened.preprocess.frame(image)
        except InputError as error:
            raise InputError("frame", f"{frame}: {error}") from error
    write_bytes(path, drawn_png(opened.preprocess, pixels))
    return path
