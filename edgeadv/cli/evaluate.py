"""``edgeadv evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edgeadv_runtime import __version__
from edgeadv_runtime.attacks.base import AttackInfo, CraftedBatch, check_infos, infos
from edgeadv_runtime.attacks.crafting import craft, extend
from edgeadv_runtime.attacks.pack import PACK_FILE, SHARD_SIZE, AttackPack, info_to_json
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.backends.onnxruntime import CPU, PROVIDERS
from edgeadv_runtime.bundle.batches import DataInfo, check_readable, readable
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.facts import library_versions, usable_cores
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.evaluation.loop import evaluate as run_evaluation
from edgeadv_runtime.evaluation.loop import summarise
from edgeadv_runtime.evaluation.outcomes import Artefact, OutcomeStore
from edgeadv_runtime.evaluation.scoring import check_budgets, score_batches
from edgeadv_runtime.files import ensure_file_writable, sha256_file
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.suites import Effort

from ..workflows.processes import Processes, join
from ._attacks import (
    STANDARD,
    AttackNames,
    Download,
    Limit,
    Plan,
    Queries,
    Root,
    Suite,
    Target,
    TrainingImagesToo,
    TransferFrom,
    Unreadable,
    Workers,
    efforts_of,
    make_plan,
    query_attacks,
    without_gradients,
)
from ._backends import (
    BackendNames,
    BundlePath,
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
)
from ._fields import say
from ._gradients import FLOAT32, GradientsIn
from ._shared import ALL, image_bar, need, need_pytorch
from ._table import print_results

DISTILLED = ("papernot", "soft-label")
"""Recipes whose runs keep a teacher that is not defended."""


def evaluate(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="The results file; one that is there is replaced.")],
    data: Annotated[
        str | None, typer.Option(help="Labelled images: a name or a folder. Attacks are crafted here.")
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(help="An attack pack: needs no PyTorch. With --data, which then must be what it was made from."),
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="With --data: budgets in pixels of [0, 1], ascending, e.g. 1/255,8/255.")
    ] = None,
    backend: BackendNames = "onnxruntime",
    precision: Precision = ALL,
    suite: Suite = STANDARD,
    attack: AttackNames = None,
    queries: Queries = None,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="With --data: round adversarial images to 8 bits, as a pack does.")
    ] = False,
    limit: Limit = None,
    target: Target = None,
    transfer_from: TransferFrom = None,
    gradients: GradientsIn = FLOAT32,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted evaluation.")] = False,
    provider: Provider = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU threads of a call, the attacks' too. With cores for twice as many, ONNX Runtime scores beside them.",
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Images to keep in the file for the report.")] = 6,
    workers: Workers = 0,
    allow_unreadable: Unreadable = False,
    allow_training_images: TrainingImagesToo = False,
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

    Give --data and --eps to craft the attacks here (that needs PyTorch), or --pack to score what was crafted before. Under
    torchrun the processes share the images; an evaluation that was interrupted goes on with --resume.
    """
    with ExitStack() as stack:
        team = stack.enter_context(join(own_gpu=provider in ("cuda", "tensorrt") or "tensorrt" in backend))
        with team.in_turn():
            _check_options(
                data=data, pack=pack, eps=eps, settled=[target, limit, uint8, transfer_from, allow_unreadable, gradients != FLOAT32], for_data=[workers, data_root, download]
            )  # fmt: skip
            opened = Bundle.open(bundle, expected_sha256=expected_sha256, public_key=public_key)
            openers, skipped = backend_openers(
                opened, backend=backend, precision=precision, provider=provider, threads=threads,
                engine=EngineChoice(engine_batch, engine_cache, trust_plan, library, workspace, tf32),
            )  # fmt: skip
            ensure_file_writable(out)
            store = OutcomeStore(
                out.with_name(out.name + ".partial"), n_classes=len(opened.classes), shared=team.world > 1
            )
            if pack is not None:
                if queries is not None and attack is None:
                    raise InputError("with --pack, --queries needs --attack square")
                if suite != STANDARD and attack is None:
                    raise InputError("--suite was settled with the pack: leave it out, or add --attack square")
                added = {} if attack is None else without_gradients(efforts_of(suite, attack, queries))
                carried = AttackPack.open(pack, bundle=opened)
                if data is not None and team.first:
                    _check_pack(carried, data, opened, workers=workers, download=download, root=data_root)
                allowed = allow_training_images or carried.data.allow_training_images
                if team.first:
                    carried.check_training_images(opened, allowed=allowed)
                carried = replace(carried, data=replace(carried.data, allow_training_images=allowed))
                scored = {variant for _, variant in openers}
                skipped += [entry for entry in carried.skipped if entry["variant"] in scored]
                backends = [stack.enter_context(opener()) for opener in openers.values()]
                source = packed(carried, added, backends, state=store.folder)
            else:
                assert data is not None and eps is not None
                need_pytorch()
                plan = make_plan(
                    opened, data, eps, efforts=efforts_of(suite, attack, queries),
                    variants=[variant for _, variant in openers], images=limit, target=target, provider=provider,
                    threads=threads, allow_unreadable=allow_unreadable, allow_training_images=allow_training_images,
                    download=download, root=data_root, transfer_from=transfer_from or (), gradients=gradients,
                )  # fmt: skip
                if team.first:
                    _check_training_images(plan, opened, workers=workers)
                skipped += plan.skipped
                backends = [stack.enter_context(opener()) for opener in openers.values()]
                source = crafted(opened, plan, backends, uint8=uint8, workers=workers, state=store.folder)
            check_budgets(source.infos, backends)
            binding = source.bound_to(opened, backends, examples)
            store.start(binding, resume=resume or not team.first)
        if team.first:
            stack.enter_context(store)
        overlap = pack is None and team.world == 1 and _cores_for_both(backends, threads)
        _score_share(source, opened, backends, store, team, examples=examples, overlap=overlap)
        team.wait()
        if not team.first:
            return
        artefacts = [Artefact.of(each) for each in backends]
        outcomes = store.all(source.count)
        check_readable([message for outcome in outcomes for message in outcome.unreadable], source.data)
        try:
            results = summarise(
                outcomes,
                source.infos,
                artefacts,
                bundle=opened,
                data=source.data,
                skipped=skipped,
                examples=examples,
            )
        except DataError:
            # no other option would make more of these outcomes
            store.remove()
            raise
        results.save(out)
        store.remove()
    print_results(results)
    gates = [entry.get("gate", {}).get("data", {}).get("sha256") for entry in opened.manifest["variants"].values()]
    if results.data["sha256"] in gates:
        say("int8 was let through on these very images: quote its accuracy on others")
    if pack is None and not transfer_from and (advice := _advice(opened)):
        say(advice)
    say(f"written: {out}")


def _advice(bundle: Bundle) -> str | None:
    """What else to try on a network that was trained to withstand attacks; None for any other."""
    provenance = bundle.manifest["provenance"]
    about = provenance.get("recipe") if isinstance(provenance, dict) else None
    recipe = about.get("recipe", "undefended") if isinstance(about, dict) else "undefended"
    if recipe in ("undefended", "teacher"):
        return None
    whose = (
        "its teacher, exported from RUN/teacher, or any undefended one" if recipe in DISTILLED else "an undefended one"
    )
    return (
        f"trained by {recipe}: try images that break {whose} of these classes too, with --transfer-from OTHER.edgeadv"
    )


def _check_options(
    *, data: str | None, pack: Path | None, eps: str | None, settled: Sequence[object], for_data: Sequence[object]
) -> None:
    """Refuse options that do not go together; those in the lists are falsy where they were not given."""
    if data is None and pack is None:
        raise InputError("evaluate takes --data with --eps, or --pack")
    if pack is None:
        if eps is None:
            raise InputError("--data needs --eps, e.g. --eps 1/255,8/255: there is no default budget")
        return
    if eps is not None or any(value not in (None, False) for value in settled):
        raise InputError(
            "--eps, --target, --limit, --uint8, --transfer-from, --gradients and --allow-unreadable were settled with the pack: leave them out"
        )
    if data is None and any(for_data):
        raise InputError("--workers, --download and --data-root are for --data: leave them out")


def _check_pack(
    pack: AttackPack, data: str, bundle: Bundle, *, workers: int, download: bool, root: Path | None
) -> None:
    """Make sure that the pack was made from ``data``."""
    need("train")
    from edgeadv.attacks.pack_writer import check_images
    from edgeadv.data.datasets import DEFAULT_ROOT, open_data

    images = open_data(data, split="test", root=root or DEFAULT_ROOT, download=download)
    check_images(pack, images.relabel(bundle.classes), bundle, workers=workers)


def _check_training_images(plan: Plan, bundle: Bundle, *, workers: int) -> None:
    from edgeadv.attacks.pack_writer import check_training_images

    with image_bar("looking at the images") as progress:
        check_training_images(plan.images, bundle, plan.order, data=plan.data, workers=workers, progress=progress)


@dataclass(frozen=True)
class Source:
    """Images to score, crafted here or read from a pack.

    Attributes:
        read: the batches of these numbers, ascending; the list gets messages of images that could not be decoded.
        count: how many batches there are.
        infos: what their keys are.
        data: how results name them.
        origin: JSON value of where they come from.
    """

    read: Callable[[Sequence[int], list[str]], Iterator[CraftedBatch]]
    count: int
    infos: list[AttackInfo]
    data: DataInfo
    origin: dict[str, Any] = field(default_factory=dict)

    def bound_to(self, bundle: Bundle, backends: Sequence[Backend], examples: int) -> dict[str, Any]:
        """Everything that outcomes depend on."""
        return {
            "edgeadv_version": __version__, "versions": library_versions(), "bundle_id": bundle.id, "data": self.data.binding(), "origin": self.origin,
            "attacks": [info_to_json(info) for info in self.infos], "examples": examples,
            "artefacts": [Artefact.of(backend).binding() for backend in backends],
        }  # fmt: skip


def packed(
    pack: AttackPack, efforts: Mapping[str, Effort], backends: Sequence[Backend], *, state: Path | None = None
) -> Source:
    """Images of a pack, and attacks on the opened artefacts that need no gradients; ``state`` as for :func:`query_attacks`."""
    budgets = list(dict.fromkeys(info.eps for info in pack.infos if not info.control))
    held = {info.key: info for info in pack.infos}
    # the pack's are the same images: noise is nobody's in particular, and the reference's weights are the pack's
    added = []
    for attack in query_attacks(efforts, budgets, None, backends, state=state):
        there = [held.get((attack.name, eps.text)) for eps in attack.eps]
        if None in there:
            added.append(attack)
            continue
        asked = attack.params(attack.eps[0]).queries
        fewest = min(info.params.queries or 0 for info in there if info is not None)
        if asked is not None and fewest < asked:
            raise InputError(
                f"the pack holds {attack.name} with {fewest} queries, and {asked} were asked for: ask for {fewest} with --queries, or make "
                "another pack"
            )
    listed = [*pack.infos, *infos(added, uint8=pack.uint8)]
    check_infos(listed)

    def read(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CraftedBatch]:
        batches = pack.batches(unreadable, numbers)
        return extend(batches, added, pack.infos, uint8=pack.uint8) if added else batches

    return Source(read, pack.shards, listed, pack.data, {"pack": sha256_file(pack.path / PACK_FILE)})


def crafted(
    bundle: Bundle, plan: Plan, backends: Sequence[Backend], *, uint8: bool = False, workers: int = 0,
    state: Path | None = None,
) -> Source:  # fmt: skip
    """Images attacked as they are scored; ``state`` as for :func:`query_attacks`."""
    from edgeadv.attacks.pack_writer import clean_batches, images_sha256

    attacks = [*plan.attacks, *query_attacks(plan.efforts, plan.eps, plan.reference, backends, state=state)]

    def read(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CraftedBatch]:
        parts = [plan.order[number * SHARD_SIZE : (number + 1) * SHARD_SIZE] for number in numbers]
        order = np.concatenate(parts) if parts else plan.order[:0]
        clean = clean_batches(plan.images, bundle, order, unreadable=unreadable, workers=workers)
        return craft(readable(clean, unreadable, plan.data), attacks, plan.reference, uint8=uint8)

    origin = {"images": images_sha256(plan.images, plan.order), "reference": Artefact.of(plan.reference).binding()}
    count = -(-len(plan.order) // SHARD_SIZE)
    return Source(read, count, infos(attacks, uint8=uint8), plan.data, origin)


def score(source: Source, bundle: Bundle, backends: list[Backend], *, examples: int = 6) -> Results:
    """Run the evaluation loop under a progress bar, keeping nothing on the way."""
    unreadable: list[str] = []
    with image_bar("scoring") as progress:
        return run_evaluation(
            source.read(range(source.count), unreadable), source.infos, bundle=bundle, backends=backends, data=source.data,
            unreadable=unreadable, examples=examples, progress=progress,
        )  # fmt: skip


def _cores_for_both(backends: Sequence[Backend], threads: int | None) -> bool:
    """Whether a batch can be scored while the next one is attacked on other cores.

    On the same cores both would only wait for each other; on a GPU, and in PyTorch, that was not measured.
    """
    on_cores = all(backend.provider == PROVIDERS[CPU] for backend in backends)
    return on_cores and threads is not None and 2 * threads <= (usable_cores() or 1)


def _score_share(
    source: Source,
    bundle: Bundle,
    backends: Sequence[Backend],
    store: OutcomeStore,
    team: Processes,
    *,
    examples: int,
    overlap: bool,
) -> None:
    """Score those batches of this process that are not in the store, and put them there."""
    there = {number: store.get(number) for number in store.numbers()}
    if not source.data.allow_unreadable:
        # an image that could not be read may have been mended since
        there = {number: outcome for number, outcome in there.items() if not outcome.unreadable}
    numbers = [number for number in team.share(source.count) if number not in there]
    # of what is there, only what comes before this process's batches says what need not be shown again
    seen = {
        example.label for number, outcome in there.items() if numbers and number < numbers[0] for example in outcome.examples
    }  # fmt: skip
    unreadable: list[str] = []
    outcomes = score_batches(
        source.read(numbers, unreadable), source.infos, bundle=bundle, backends=backends, unreadable=unreadable,
        examples=examples, seen=seen, overlap=overlap, keep=lambda i, outcome: store.put(numbers[i], outcome),
    )  # fmt: skip
    with image_bar("scoring") if team.first else nullcontext() as progress:
        for _ in zip(numbers, outcomes, strict=True):
            if progress is not None:
                # of all processes together
                progress(source.data.total * len(store.numbers()) // source.count, source.data.total)
