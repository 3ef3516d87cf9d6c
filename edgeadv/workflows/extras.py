"""What must be installed for a workflow."""

from __future__ import annotations

from importlib.util import find_spec

from edgeadv_runtime.doctor import EXTRAS
from edgeadv_runtime.errors import MissingDependencyError

# extras that are made of others and of what is listed for themselves
_INCLUDES = {"export": ("train", "ort")}


def need(extra: str) -> None:
    """Make sure that every module of ``extra`` is installed; each is loaded where it is used, for some take seconds.

    Raises:
        MissingDependencyError: one is not; the message says what to install.
    """
    for part in (*_INCLUDES.get(extra, ()), extra):
        for distribution in EXTRAS[part]:
            if find_spec(module := distribution.replace("-", "_")) is None:
                raise MissingDependencyError(module, extra)
