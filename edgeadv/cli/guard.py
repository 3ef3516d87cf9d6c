"""``edgeadv guard``: what the guard of a bundle flags, and what gets past it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.files import ensure_file_writable
from edgeadv_runtime.guard import Guard
from edgeadv_runtime.guard_file import GuardFile, GuardRow
from edgeadv_runtime.guard_measure import check_enough, measure_guard
from edgeadv_runtime.results import WORST_CASE
from edgeadv_runtime.suites import FGSM, PGD_CE, PGD_MARGIN, SUITES

from ._attacks import Download, EpsList, Limit, Root, Unreadable, Workers, make_plan
from ._backends import BackendNames, BundlePath, ExpectedHash, Precision, Provider, PublicKey, backend_openers
from ._shared import image_bar, need, wide_console

ATTACKS = (FGSM, PGD_CE, PGD_MARGIN)
NO_ROBUSTNESS = "A guard is no robustness: a rate of detection holds for attackers who do not know it."
_WIDTH = 160


def guard(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Labelled images: a name or a folder; those fitted on are left out.")],
    eps: EpsList,
    out: Annotated[Path, typer.Option(help="The guard file; one that is there is replaced.")],
    backend: BackendNames = "onnxruntime",
    precision: Precision = "fp32",
    limit: Limit = None,
    provider: Provider = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a call.")] = None,
    workers: Workers = 0,
    allow_unreadable: Unreadable = False,
    download: Download = False,
    data_root: Root = None,
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """False alarms of a bundle's guard, detection of fgsm, pgd-ce and pgd-margin, and an attack that knows the guard.

    Adversarial frames are rounded to 8 bits. The attacks use the gradients of the weights in PyTorch; on other artefacts than
    fp32 they are transferred, so that more may get past than is counted.
    """
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    fitted = Guard.of(opened)
    openers, skipped = backend_openers(opened, backend=backend, precision=precision, provider=provider, threads=threads)
    ensure_file_writable(out)
    need("train")
    from edgeadv.guard_attack import AdaptiveAttack
    from edgeadv.pack import clean_batches
    from edgeadv.torch_backend import TorchBackend

    plan = make_plan(
        opened, data, eps, efforts={name: SUITES["standard"][name] for name in ATTACKS}, variants=(), images=limit,
        provider=provider, allow_unreadable=allow_unreadable, download=download, root=data_root,
    )  # fmt: skip
    assert isinstance(plan.reference, TorchBackend)
    adaptive = AdaptiveAttack(plan.reference.attack_model, fitted, opened.weights_sha256, plan.eps)
    unreadable: list[str] = []
    with ExitStack() as stack:
        backends = [stack.enter_context(opener()) for opener in openers.values()]
        with image_bar("looking at the images") as progress:
            looked_at = clean_batches(plan.images, opened, plan.order, unreadable=[], workers=workers)
            check_enough(looked_at, opened, plan.data, progress=progress)
        progress = stack.enter_context(image_bar("attacking"))
        batches = clean_batches(plan.images, opened, plan.order, unreadable=unreadable, workers=workers)
        measured = measure_guard(
            batches, plan.attacks, adaptive=[adaptive], bundle=opened, backends=backends, data=plan.data, unreadable=unreadable,
            progress=progress,
        )  # fmt: skip
    measured.save(out)
    _print(measured)
    for entry in skipped:
        typer.echo(f"not measured: {entry['backend']} {entry['variant']}: {entry['reason']}")
    typer.echo(f"written: {out}")


def _print(measured: GuardFile) -> None:
    """What gets past the guard first, then what it flags."""
    console = wide_console(_WIDTH)
    for sentence in (*measured.sentences, NO_ROBUSTNESS):
        console.print(Text(sentence, style="bold"))
    stated = measured.guard["false_alarms"]
    for clean in measured.clean:
        low, high = clean.false_alarm_rate_ci95
        console.print(
            Text(
                f"{clean.who}: {clean.false_alarm_rate:.1%} [{low:.1%}, {high:.1%}] of {clean.n} clean images flagged, {stated:.1%} stated"
            )
        )
    table = Table()
    for heading in ("artefact", "eps", "attack"):
        table.add_column(heading, no_wrap=True)
    for heading in ("attacked", "wrong label", "of them flagged", "wrong and not flagged"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in measured.rows:
        table.add_row(*(Text(cell) for cell in _cells(row)), style="bold" if row.adaptive else None)
    console.print(table)


def _cells(row: GuardRow) -> list[str]:
    name = row.attack + (" (knows the guard)" if row.adaptive and row.attack != WORST_CASE else "")
    detected = "" if row.detection_rate is None else f"{row.detection_rate:.1%}"
    low, high = row.evasion_rate_ci95
    return [
        row.who, row.eps, name, str(row.n), f"{row.succeeded / row.n:.1%}", detected, f"{row.evasion_rate:.1%} [{low:.1%}, {high:.1%}]",
    ]  # fmt: skip
