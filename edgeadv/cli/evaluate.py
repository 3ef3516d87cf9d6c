"""``edgeadv attack`` and ``edgeadv evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeadv_runtime.attack import AttackInfo, CraftedBatch, craft, infos
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.evaluate import DataInfo
from edgeadv_runtime.evaluate import evaluate as run_evaluation
from edgeadv_runtime.files import ensure_writable
from edgeadv_runtime.pack import AttackPack
from edgeadv_runtime.results import CLEAN, WORST_CASE, Results, Row, engine_sentence, engines
from edgeadv_runtime.verdict import BADGES

from ._backends import (
    BackendNames,
    EngineBatch,
    EngineChoice,
    EngineFolder,
    EngineLibrary,
    ExpectedHash,
    Precision,
    Provider,
    PublicKey,
    Tf32,
    TrustPlan,
    Workspace,
    backend_openers,
    open_torch,
)
from ._shared import ALL, image_bar, names, need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeadv.data import ImageSet
    from edgeadv_runtime.attack import Attack

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle.")]
EpsList = Annotated[
    str, typer.Option("--eps", help="Comma-separated budgets in pixels of [0, 1], e.g. 1/255,8/255 or 0.01.")
]
AttackNames = Annotated[str, typer.Option("--attacks", help="Comma-separated attacks, or all; a verdict needs all.")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most this many images, as many of each class.")]
Target = Annotated[str | None, typer.Option("--target", help="Class id that fgsm and fgsm-rescaled move towards.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")]
Unreadable = Annotated[bool, typer.Option("--allow-unreadable", help="Accept more than 1% of unreadable images.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download the data.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Where torchvision keeps its data.")]


@dataclass(frozen=True)
class Plan:
    """What is attacked, with what."""

    images: ImageSet
    order: NDArray[np.int64]
    data: DataInfo
    attacks: list[Attack]
    reference: Backend


def attack(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Labelled images: a name or a folder.")],
    eps: EpsList,
    out: Annotated[Path, typer.Option(help="The attack pack to make.")],
    attacks: AttackNames = ALL,
    float32: Annotated[
        bool, typer.Option("--float32", help="Store floats; by default 8-bit pixels, rounded within eps.")
    ] = False,
    limit: Limit = None,
    target: Target = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted pack.")] = False,
    provider: Provider = "cpu",
    workers: Workers = 0,
    allow_unreadable: Unreadable = False,
    download: Download = False,
    data_root: Root = None,
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
) -> None:
    """Attack the bundle's weights with PyTorch's gradients and write a pack that a device can score without PyTorch."""
    need("train")
    from edgeadv.pack import write_pack

    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    plan = make_plan(
        opened, data, eps, attacks=attacks, images=limit, target=target, provider=provider,
        allow_unreadable=allow_unreadable, download=download, root=data_root,
    )  # fmt: skip
    with image_bar("attacking") as progress:
        pack = write_pack(
            out, bundle=opened, images=plan.images, order=plan.order, attacks=plan.attacks, reference=plan.reference,
            data=plan.data, uint8=not float32, resume=resume, workers=workers, progress=progress,
        )  # fmt: skip
    size = sum(file.stat().st_size for file in pack.path.iterdir()) / 2**20
    typer.echo(f"{plan.data.total} images, {len(pack.infos)} attacks and budgets, {size:.1f} MiB: {pack.path}")


def evaluate(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="The results file; one that is there is replaced.")],
    data: Annotated[
        str | None, typer.Option(help="Labelled images: a name or a folder. Attacks are crafted here.")
    ] = None,
    pack: Annotated[Path | None, typer.Option(help="An attack pack instead of --data: needs no PyTorch.")] = None,
    eps: Annotated[str | None, typer.Option(help="With --data: budgets in pixels of [0, 1], e.g. 1/255,8/255.")] = None,
    backend: BackendNames = "onnxruntime",
    precision: Precision = ALL,
    attacks: AttackNames = ALL,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="With --data: round adversarial images to 8 bits, as a pack does.")
    ] = False,
    limit: Limit = None,
    target: Target = None,
    provider: Provider = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a call.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Images to keep in the file for the report.")] = 6,
    workers: Workers = 0,
    allow_unreadable: Unreadable = False,
    download: Download = False,
    data_root: Root = None,
    expected_sha256: ExpectedHash = None,
    public_key: PublicKey = None,
    engine_batch: EngineBatch = None,
    engine_cache: EngineFolder = None,
    trust_plan: TrustPlan = None,
    library: EngineLibrary = None,
    workspace: Workspace = None,
    tf32: Tf32 = False,
) -> None:
    """Clean and adversarial accuracy of the artefacts in a bundle, all on the same images.

    Give --data and --eps to craft the attacks here (that needs PyTorch), or --pack to score what was crafted before.
    """
    if (data is None) == (pack is None):
        raise InputError("evaluate takes either --data with --eps, or --pack")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name the file to write in it")
    opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
    openers, skipped = backend_openers(
        opened, backend=backend, precision=precision, provider=provider, threads=threads,
        engine=EngineChoice(engine_batch, engine_cache, trust_plan, library, workspace, tf32),
    )  # fmt: skip
    ensure_writable(out.parent)
    with ExitStack() as stack:
        if pack is not None:
            given = [value for value in (eps, target, limit, data_root) if value is not None]
            if given or attacks != ALL or uint8 or workers or allow_unreadable or download:
                raise InputError(
                    "--eps, --attacks, --target, --limit, --uint8, --workers, --allow-unreadable, --download and --data-root "
                    "were settled with the pack: leave them out"
                )
            source = _from_pack(pack, opened)
        else:
            if eps is None or data is None:
                raise InputError("--data needs --eps, e.g. --eps 1/255,8/255: there is no default budget")
            need("train")
            plan = make_plan(
                opened, data, eps, attacks=attacks, images=limit, target=target, provider=provider,
                allow_unreadable=allow_unreadable, download=download, root=data_root,
            )  # fmt: skip
            source = crafted(opened, plan, uint8=uint8, workers=workers)
        backends = [stack.enter_context(opener()) for opener in openers.values()]
        results = score(source, opened, backends, skipped=skipped, examples=examples)
    results.save(out)
    print_results(results)
    gates = [entry.get("gate", {}).get("data", {}).get("sha256") for entry in opened.manifest["variants"].values()]
    if results.data["sha256"] in gates:
        typer.echo("int8 was let through on these very images: quote its accuracy on others")
    typer.echo(f"written: {out}")


@dataclass(frozen=True)
class Source:
    """Images to score, crafted here or read from a pack.

    Attributes:
        batches: the images.
        infos: what their keys are.
        data: how results name them.
        unreadable: messages of images that could not be decoded, filled while ``batches`` is read.
    """

    batches: Iterator[CraftedBatch]
    infos: list[AttackInfo]
    data: DataInfo
    unreadable: list[str]


def _from_pack(path: Path, bundle: Bundle) -> Source:
    pack = AttackPack.open(path, bundle=bundle)
    unreadable: list[str] = []
    return Source(pack.batches(unreadable), pack.infos, pack.data, unreadable)


def crafted(bundle: Bundle, plan: Plan, *, uint8: bool = False, workers: int = 0) -> Source:
    """Images attacked as they are scored."""
    from edgeadv.pack import clean_batches

    unreadable: list[str] = []
    clean = clean_batches(plan.images, bundle, plan.order, unreadable=unreadable, workers=workers)
    stream = craft(clean, plan.attacks, plan.reference, uint8=uint8)
    return Source(stream, infos(plan.attacks, uint8=uint8), plan.data, unreadable)


def score(
    source: Source,
    bundle: Bundle,
    backends: list[Backend],
    *,
    skipped: list[dict[str, str]] | None = None,
    examples: int = 6,
) -> Results:
    """Run the evaluation loop under a progress bar."""
    with image_bar("scoring") as progress:
        return run_evaluation(
            source.batches, source.infos, bundle=bundle, backends=backends, data=source.data, unreadable=source.unreadable,
            skipped=skipped or (), examples=examples, progress=progress,
        )  # fmt: skip


def make_plan(
    bundle: Bundle, data: str, eps: str, *, attacks: str = ALL, images: int | None = None, target: str | None = None,
    provider: str = "cpu", allow_unreadable: bool = False, download: bool = False, root: Path | None = None,
) -> Plan:  # fmt: skip
    """Open the data, match its labels to the bundle's classes, and make the attacks on its weights."""
    from edgeadv.attacks import NAMES, standard_attacks
    from edgeadv.data import DEFAULT_ROOT, balanced_subset, open_data
    from edgeadv.torch_backend import TorchBackend

    budgets = Eps.parse_list(eps)
    opened = open_data(data, split="test", root=root or DEFAULT_ROOT, download=download).relabel(bundle.classes)
    order = balanced_subset(opened.labels, images)
    reference = open_torch(bundle, provider="cpu" if provider == "cpu" else "cuda")
    assert isinstance(reference, TorchBackend)
    chosen = NAMES if attacks == ALL else tuple(names(attacks, option="--attacks"))
    made = standard_attacks(
        reference.model, budgets, gradients_sha256=bundle.weights_sha256, names=chosen,
        target=None if target is None else bundle.classes.index(target),
    )  # fmt: skip
    info = DataInfo(name=Path(data).name, split=opened.split, total=len(order), allow_unreadable=allow_unreadable)
    return Plan(opened, order, info, made, reference)


def print_results(results: Results) -> None:
    """The table on the terminal: the worst case last and boldest, what plans ran and the verdict under it."""
    table = Table(
        title=Text(
            f"{results.bundle['title']} on {results.data['name']} ({results.data['split']}), {results.data['n']} images"
        ),
        title_justify="left",
    )
    for heading in ("artefact", "threat", "eps"):
        table.add_column(heading, no_wrap=True)
    attacks = list(dict.fromkeys(row.attack for row in results.rows if row.attack not in (CLEAN, WORST_CASE)))
    for heading in (CLEAN, *attacks, WORST_CASE):
        table.add_column(heading, justify="right", style="bold" if heading == WORST_CASE else None)
    for (backend, variant), rows in _by_artefact(results).items():
        (clean,) = (row for row in rows if row.attack == CLEAN)
        for worst in (row for row in rows if row.attack == WORST_CASE):
            at_eps = {row.attack: row for row in rows if row.eps == worst.eps}
            low, high = worst.top1_ci95
            cells = [
                f"{clean.top1:.1%}",
                *(_cell(at_eps.get(name)) for name in attacks),
                f"{worst.top1:.1%} [{low:.1%}, {high:.1%}]",
            ]
            table.add_row(*(Text(c) for c in (f"{backend} {variant}", worst.threat or "", worst.eps, *cells)))
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)
    for artefact, engine in engines(results.rows):
        console.print(Text(f"{artefact}: {engine_sentence(engine)}"))
    console.print(Text(BADGES[results.masking["verdict"]], style="bold"))
    for item in results.masking["evidence"]:
        if item["finding"] or item["rule"] == "coverage":
            console.print(Text(f"  {item['finding'] or 'note'}: {item['text']}"))
    for entry in results.skipped:
        console.print(Text(f"not scored: {entry['backend']} {entry['variant']}: {entry['reason']}"))
    if left_out := results.data.get("calibration_left_out"):
        console.print(Text(f"{left_out} images that int8 was calibrated on were left out"))
    if results.data["unreadable"]:
        console.print(Text(f"{len(results.data['unreadable'])} unreadable images were left out; the file lists them"))


def _by_artefact(results: Results) -> dict[tuple[str, str], list[Row]]:
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        grouped.setdefault((row.backend, row.variant), []).append(row)
    return grouped


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    hidden = f" ({row.zero_gradient_share:.0%} not attacked)" if row.zero_gradient_share else ""
    return f"{row.top1:.1%}{hidden}"
