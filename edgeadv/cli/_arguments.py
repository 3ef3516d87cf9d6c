"""Arguments that several commands take alike; groups of them are the library's own, see :mod:`._options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeadv_runtime import Bundle
from edgeadv_runtime.backends.onnxruntime import PROVIDERS
from edgeadv_runtime.records.suites import SUITES

from ..workflows.backends import BACKENDS


def at_least(least: int, text: str) -> Any:
    """The option of a number that is not below ``least``, with its help."""
    return typer.Option(min=least, help=text)


BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle.")]
Backends = Annotated[str, f"Comma-separated, of {', '.join(BACKENDS)}; or all that work here but torch-compiled."]
Precisions = Annotated[str, "Comma-separated variants, int8 or int8-u8in for the one that fits each backend; or all."]
Provider = Annotated[str, f"Of torch and ONNX Runtime: {', '.join(PROVIDERS)}; there is no fallback."]
PublicKey = Annotated[
    Path | None, "Ed25519 key (PEM) that must have signed the bundle; checked before anything is read."
]
_EPS = (
    "Comma-separated budgets in pixels of [0, 1], ascending, e.g. 1/255,8/255; whole grey levels where images "
    "are rounded to 8 bits."
)
EpsList = Annotated[str, _EPS]
EpsIfAny = Annotated[str | None, _EPS]
Suite = Annotated[str, f"How hard to try: {', '.join(SUITES)}."]
Attacks = Annotated[str | None, "Comma-separated attacks instead of the suite's, at the suite's effort."]


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """A bundle, and what must be true of it before anything is read."""

    path: BundlePath
    expected_sha256: Annotated[
        str | None, "SHA-256 that manifest.json must have, known from elsewhere: stops tampering."
    ] = None
    public_key: PublicKey = None

    def open(self) -> Bundle:
        """The bundle, with every hash checked."""
        return Bundle.open(**vars(self))
