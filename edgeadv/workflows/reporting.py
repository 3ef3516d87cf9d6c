"""Results and bench files, or the same in memory, as one HTML page, or with their bundle as its card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeadv_runtime import Bench, Bundle, InputError, Results
from edgeadv_runtime.bundle.pictures import load
from edgeadv_runtime.files import write_bytes
from edgeadv_runtime.records.card import Card

from ..reporting import build_report
from ..reporting.card import make_card
from ..reporting.card_page import check_ending, write_card
from ..reporting.drawing import drawn_png
from ..reporting.inputs import load_inputs
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
    with _as_files(measurements) as files:
        build_report(files, Path(out), bundles=[open_bundle(bundle) for bundle in bundles])
    return Path(out)


@contextmanager
def _as_files(measurements: Measurement | Sequence[Measurement]) -> Iterator[list[Path]]:
    """The files of measurements; what is in memory is one for the block."""
    given = [measurements] if isinstance(measurements, Results | Bench | str | Path) else measurements
    files: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, each in enumerate(given, start=1):
            if isinstance(each, str | Path):
                files.append(Path(each))
            else:
                files.append(Path(folder) / f"{'results' if isinstance(each, Results) else 'bench'}-{i}.json")
                each.save(files[-1])
        yield files


@alone(file=True)
def card(
    measurements: Measurement | Sequence[Measurement],
    bundle: Bundle | str | Path,
    out: str | Path | None = None,
    *,
    public_key: str | Path | None = None,
) -> Card:
    """Make the card of a bundle: what it is, what it withstands with the verdict beside it, how fast it is, where that
    ends, and which file says so.

    ::

        made = card(["results.json", "bench.json"], "signs.edgeadv", "card.html")

    The same files give the same bytes.

    Args:
        measurements: results and benches of the bundle, or their files, results at least one. What is in memory is
            called as by :func:`report`.
        bundle: that all of them are of, or where it is.
        out: a page ``card.html``, the record ``card.json``, or ``card.md`` with the front matter of a model card; a
            file that is there is replaced. None writes nothing.
        public_key: PEM file with the Ed25519 public key that must have signed the bundle.

    Raises:
        InputError: there are no results, a file is of another bundle, two results disagree, or ``out`` ends otherwise.
        BundleError: a file is not readable, no results or bench file of this version, or not signed with the key.
        MissingDependencyError: of a page, or of a bundle with weights: the extra ``report`` is not installed.
        StorageError: ``out`` cannot be written.
    """
    page = None if out is None else Path(out)
    if page is not None:
        check_ending(page)
    key = None if public_key is None else Path(public_key)
    where = bundle.path if isinstance(bundle, Bundle) else bundle
    opened = open_bundle(bundle) if key is None else Bundle.open(where, public_key=key)
    with _as_files(measurements) as files:
        if page is not None and any(page.resolve() == path.resolve() for path in files):
            raise InputError("out", f"{page} is one of the files that the card is of: choose another name")
        made = make_card(load_inputs(files), opened, public_key=key)
        if page is not None:
            write_card(made, page)
    return made


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
