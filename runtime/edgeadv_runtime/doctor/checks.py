"""What every part of the diagnosis is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "untried", "missing", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``"ok"``; ``"untried"``, for what would take too long here; ``"missing"``, which matters only to those who need it; or ``"problem"``.
        detail: what was found.
        hint: what to do about it, or None.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None


def older(version: str, than: str) -> bool:
    """Whether a version number is below another; what follows the numbers, as in 2.9.0+cu130, does not count."""
    mine, other = ([int(x) for x in re.findall(r"\d+", re.split(r"[^\d.]", v)[0])] for v in (version, than))
    width = max(len(mine), len(other))
    return mine + [0] * (width - len(mine)) < other + [0] * (width - len(other))
