"""What every part of the diagnosis is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "untried", "missing", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``"ok"``; ``"untried"``, for what would take too long here; ``"missing"``, which matters only to those
            who need it; or ``"problem"``.
        detail: what was found.
        hint: what to do about it, or None.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None
