"""The report: results and bench files on one HTML page.

The page shows only what the files say and adds up nothing of its own. What counts comes first: the worst case of every
model at the largest eps, with the verdict on whether the measurement can be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.files import write_bytes

from .drawing import seen
from .inputs import load_inputs
from .page import render

__all__ = ["build_report"]


def build_report(files: Sequence[Path], out: Path, *, bundles: Sequence[Bundle] = ()) -> None:
    """Write a self-contained HTML page about ``files``: no script, no network, the same bytes for the same files.

    Args:
        files: results and bench files, in the order in which the page shows them.
        out: the page; a file that is there is replaced.
        bundles: of some of the files: the page draws what their models see of a golden frame.

    Raises:
        InputError: no file, a file named twice, a bundle of none of them, ``out`` is one of ``files``, or bench files
            of one device were measured in different power modes or other states that do not compare.
        SchemaError: a file is no results or bench file of this version, or it is incomplete.
        BundleError: a file is not readable.
        MissingDependencyError: the extra ``report`` is not installed.
        StorageError: ``out`` cannot be written.
    """
    if any(out.resolve() == path.resolve() for path in files):
        raise InputError(f"`out` {out} is one of the files to report on: choose another name for the page")
    inputs = load_inputs(files)
    write_bytes(out, render(inputs, seen=[seen(bundle, inputs) for bundle in bundles]).encode())
