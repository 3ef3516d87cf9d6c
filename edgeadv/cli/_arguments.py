"""Arguments that several commands take alike; groups of them are the library's own, see :mod:`._options`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeadv_runtime.backends.onnxruntime import PROVIDERS
from edgeadv_runtime.records.suites import SUITES

from ..workflows.backends import BACKENDS

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle.")]
BackendNames = Annotated[
    str,
    typer.Option(
        "--backend", help=f"Comma-separated, of {', '.join(BACKENDS)}; or all that work here but torch-compiled."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Comma-separated variants, int8 or int8-u8in for the one that fits each backend; or all."
    ),
]
Provider = Annotated[
    str,
    typer.Option("--provider", help=f"Of torch and ONNX Runtime: {', '.join(PROVIDERS)}; there is no fallback."),
]
PublicKey = Annotated[
    Path | None,
    typer.Option(help="Ed25519 key (PEM) that must have signed the bundle; checked before anything is read."),
]
ExpectedHash = Annotated[
    str | None,
    typer.Option(
        "--expected-sha256", help="SHA-256 that manifest.json must have, known from elsewhere: stops tampering."
    ),
]
EpsList = Annotated[
    str,
    typer.Option(
        "--eps",
        help="Comma-separated budgets in pixels of [0, 1], ascending, e.g. 1/255,8/255; whole grey levels where images "
        "are rounded to 8 bits.",
    ),
]
Suite = Annotated[str, typer.Option("--suite", help=f"How hard to try: {', '.join(SUITES)}.")]
AttackNames = Annotated[
    str | None, typer.Option("--attack", help="Comma-separated attacks instead of the suite's, at the suite's effort.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")]
Unreadable = Annotated[bool, typer.Option("--allow-unreadable", help="Accept more than 1% of unreadable images.")]
