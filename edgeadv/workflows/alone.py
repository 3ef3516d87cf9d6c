"""Workflows that write: each has what it makes to itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from edgeadv_runtime.files import working_on

from .processes import is_first

P = ParamSpec("P")
T = TypeVar("T")


def alone(*, file: bool = False) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a workflow have its argument ``out`` to itself from its first moment to its last, if one is given.

    Another process that works there, or another thread, is told at once. Of several processes that share the work the
    first has it for all of them.

    Args:
        file: ``out`` is a file, else a folder.
    """

    def decorate(workflow: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(workflow)

        @functools.wraps(workflow)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            out = bound.arguments["out"]
            if out is None or not is_first():
                return workflow(*args, **kwargs)
            with working_on(out, file=file):
                return workflow(*args, **kwargs)

        return run

    return decorate
