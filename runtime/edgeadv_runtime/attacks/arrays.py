"""Reading arrays that were stored: what the block needs is there, or one sentence says what the file is not."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, SchemaError

_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, SchemaError)


@contextmanager
def stored_arrays(path: Path, *, what: str, mend: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays of an ``.npz`` without pickles, while the block runs.

    Args:
        path: the file.
        what: what it is not if that fails, or if the block fails over what it finds there.
        mend: what to do about it, for the message.

    Raises:
        BundleError: it is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except _DAMAGED as error:
        raise BundleError(f"{path} is {what} ({error}): {mend}") from error
