"""What must be installed for a workflow."""

from __future__ import annotations

from edgeadv_runtime.doctor import EXTRAS
from edgeadv_runtime.errors import require

# extras that are made of others and of what is listed for themselves
_INCLUDES = {"export": ("train", "ort")}


def need(extra: str) -> None:
    """Make sure that every module of ``extra`` is installed.

    Raises:
        MissingDependencyError: one is not; the message says what to install.
    """
    for part in (*_INCLUDES.get(extra, ()), extra):
        for distribution in EXTRAS[part]:
            require(distribution.replace("-", "_"), extra=extra)
