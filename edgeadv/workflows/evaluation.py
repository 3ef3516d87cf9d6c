"""Clean and adversarial accuracy of the artefacts in a bundle, all on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgeadv_runtime.attacks.base import CraftedBatch, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.pack import AttackPack
from edgeadv_runtime.attacks.queries import query_attacks
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.backends.onnxruntime import CPU, PROVIDERS
from edgeadv_runtime.bundle.batches import Progress, check_readable
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.decoding import Options
from edgeadv_runtime.device.facts import usable_cores
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.evaluation.loop import score_source, summarise
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome, OutcomeStore
from edgeadv_runtime.evaluation.scoring import check_budgets
from edgeadv_runtime.evaluation.source import Source
from edgeadv_runtime.files import partial_of
from edgeadv_runtime.records.about import Skipped
from edgeadv_runtime.records.results import Results

from .alone import alone
from .attack_plan import (
    STANDARD,
    AttackPlan,
    Attacks,
    check_resumable,
    chosen_attacks,
    without_gradients,
)
from .backends import TensorRTPlan, backend_openers
from .corruptions import check_budget_kind, to_corrupt
from .extras import need
from .inputs import ALL, Budgets, labelled_images, open_bundle
from .patching import patch_workload
from .processes import Processes, join
from .workload import Workload, make_workload, shards

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv.data.sources import Data
    from edgeadv_runtime.attacks.base import Attack


# what makes the source of open artefacts and a folder for work under way; and variants without gradients of their own
_Images = tuple[Callable[[Sequence[Backend], Path | None], Source], list[Skipped]]


@dataclass(frozen=True, kw_only=True)
class Execution(Options):
    """Where and how artefacts are scored."""

    provider: Annotated[str, f"Of torch and ONNX Runtime: {', '.join(PROVIDERS)}; there is no fallback."] = "cpu"
    threads: Annotated[
        int | None,
        "CPU threads of a call, the attacks' too. With cores for twice as many, ONNX Runtime scores beside them.",
    ] = None
    uint8: Annotated[bool, "With `data`: round adversarial images to 8 bits, as a pack does."] = False
    examples: Annotated[int, "Images to keep in the file for the report."] = 6
    resume: Annotated[bool, "Continue an interrupted evaluation."] = False
    tensorrt: TensorRTPlan = field(default_factory=TensorRTPlan)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads is not None and self.threads < 1:
            raise InputError("threads", f"must be at least 1, not {self.threads}")
        if self.examples < 0:
            raise InputError("examples", f"must be at least 0, not {self.examples}")


@alone(file=True)
def evaluate(
    bundle: Bundle | str | Path,
    data: ImageSet | Data | str | Path | None = None,
    *,
    eps: Budgets | None = None,
    suite: str = STANDARD,
    attacks: Attacks = None,
    backends: str | Iterable[str] = ("onnxruntime",),
    precisions: str | Iterable[str] = (ALL,),
    pack: AttackPack | str | Path | None = None,
    plan: AttackPlan | None = None,
    execution: Execution | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Results:
    """Attack images and score artefacts on them, or score what a pack holds, which needs no PyTorch.

    Under ``torchrun`` the processes share the images. What ``progress`` raises, or an interruption, ends the
    evaluation; where ``out`` is named, what was finished is kept beside it, and ``resume`` goes on from there::

        results = evaluate("signs.edgeadv", "gtsrb/", eps=["2/255", "8/255"], backends=["torch", "onnxruntime"])
        print(results.overall_verdict, [row.top1 for row in results.rows if row.attack == "worst-case"])

    Args:
        bundle: what is scored, or where it is.
        data: labelled images, their name or their folder: attacks are crafted here. With ``pack``, what that must have
            been made from.
        eps: budgets in pixels of [0, 1], ascending.
        suite: how hard to try, of :data:`~edgeadv_runtime.records.suites.SUITES`.
        attacks: names, or efforts by name, and objects such as :class:`~edgeadv_runtime.CallableAttack`, instead of the
            suite's attacks; with
            ``pack``, what is added to its attacks, without gradients.
        backends: some of :data:`~edgeadv.workflows.backends.BACKENDS`, or ``all`` that work here.
        precisions: variants of the bundle, ``int8`` for the one that fits each backend; or ``all``.
        pack: an attack pack of this bundle, or where it is.
        plan: how images are attacked.
        execution: where and how they are scored.
        out: the results file to write; None keeps nothing on disk.
        progress: called with the images done, all images, and what is being done with them.

    Returns:
        One row for each artefact, attack and budget.

    Raises:
        InputError: arguments do not go together, or one does not fit the bundle or this machine.
        DataError: the images cannot be opened, or too many are unreadable, or not one could be scored.
        EdgeAdvError: whatever a backend or an attack raises.
    """
    plan, execution = plan or AttackPlan(), execution or Execution()
    out = None if out is None else Path(out)
    with ExitStack() as stack:
        processes = stack.enter_context(join())
        with processes.in_turn():
            _check(data, eps, suite, attacks, pack, plan, execution)
            if out is None and (processes.world > 1 or execution.resume):
                raise InputError(
                    "out", "names the file beside which outcomes are kept: `resume` and several processes need it"
                )
            bundle = open_bundle(bundle)
            openers, skipped = backend_openers(
                bundle,
                backends=backends,
                precisions=precisions,
                provider=execution.provider,
                threads=execution.threads,
                plan=execution.tensorrt,
            )
            variants = [variant for _, variant in openers]
            store = None if out is None else _store(out, bundle, processes)
            # one process looks for training images, for all
            look = processes.first
            if plan.corruptions is not None:
                source_of, more = to_corrupt(bundle, data, pack, plan, resume=execution.resume, look=look)
            elif pack is None:
                assert data is not None
                source_of, more = _to_craft(
                    bundle, data, eps, suite, attacks, variants, plan, execution, progress, look=look
                )
            else:
                source_of, more = _of_pack(bundle, pack, data, suite, attacks, variants, plan, execution, look=look)
            opened = [stack.enter_context(opener()) for opener in openers.values()]
            source = source_of(opened, None if store is None else store.folder)
            check_budgets(source.infos, opened)
            if store is not None:
                bound_to = source.binding(bundle, opened, execution.examples)
                store.start(bound_to, resume=execution.resume or not processes.first)
                if processes.first:
                    stack.enter_context(store)
        job = _Job(bundle, opened, source, [*skipped, *more], execution, store)
        # beside a pack there is nothing to wait for
        overlap = pack is None and _cores_for_both(opened, execution.threads)
        outcomes = job.score(processes, progress if processes.first else None, overlap=overlap)
        processes.wait()
        with processes.in_turn():
            return job.finish(outcomes, out) if processes.first or out is None else Results.load(out)


def _check(
    data: ImageSet | Data | str | Path | None,
    eps: Budgets | None,
    suite: str,
    attacks: Attacks,
    pack: AttackPack | str | Path | None,
    plan: AttackPlan,
    execution: Execution,
) -> None:
    """Refuse what does not go together."""
    if plan.corruptions is not None or plan.patch is not None or plan.patch_file is not None:
        check_budget_kind(data, pack, plan, with_attacks=eps is not None or attacks is not None or suite != STANDARD)
    elif pack is None and data is None:
        raise InputError("evaluate takes `data` with `eps`, or `pack`")
    if pack is None:
        return
    fixed = [
        plan.target,
        plan.limit,
        plan.images_list,
        plan.group,
        plan.transfer_from,
        plan.allow_unreadable,
        plan.gradients is not None,
    ]
    if eps is not None or execution.uint8 or any(fixed):
        raise InputError(
            "`eps`, `target`, `limit`, `images_list`, `group`, `uint8`, `transfer_from`, `gradients` and "
            "`allow_unreadable` were settled with the pack: leave them out"
        )
    if data is None and (plan.workers or plan.download or plan.data_root):
        raise InputError("`workers`, `download` and `data_root` are for `data`: leave them out")
    if plan.queries is not None and attacks is None:
        raise InputError("with `pack`, `queries` needs `attacks` square")
    if suite != STANDARD and attacks is None:
        raise InputError("`suite` was settled with the pack: leave it out, or add `attacks` square")


def _store(out: Path, bundle: Bundle, processes: Processes) -> OutcomeStore:
    folder = partial_of(out)
    return OutcomeStore(folder, n_classes=len(bundle.classes), shared=processes.world > 1)


def _to_craft(
    bundle: Bundle,
    data: ImageSet | Data | str | Path,
    eps: Budgets | None,
    suite: str,
    attacks: Attacks,
    variants: Sequence[str],
    plan: AttackPlan,
    execution: Execution,
    progress: Progress | None,
    *,
    look: bool,
) -> _Images:
    """Images that are attacked here."""
    need("train")
    where: dict[str, Any] = {"variants": variants, "provider": execution.provider, "threads": execution.threads}
    own: list[Attack] = []
    if plan.patch is not None:
        work = patch_workload(bundle, data, plan, **where)
    else:
        efforts, own = chosen_attacks(suite, attacks, plan.queries)
        work = make_workload(bundle, data, eps, efforts=efforts, plan=plan, own=own, **where)
    if execution.resume:
        check_resumable(work.images, own)
    if look:
        work.check_training_images(bundle, workers=plan.workers, progress=progress)
    make = partial(crafted, bundle, work, uint8=execution.uint8, workers=plan.workers, grouped=plan.group is not None)
    return make, work.skipped


def _of_pack(
    bundle: Bundle,
    pack: AttackPack | str | Path,
    data: ImageSet | Data | str | Path | None,
    suite: str,
    attacks: Attacks,
    variants: Sequence[str],
    plan: AttackPlan,
    execution: Execution,
    *,
    look: bool,
) -> _Images:
    """Images that were attacked before, and what is added to them."""
    efforts, own = ({}, []) if attacks is None else chosen_attacks(suite, attacks, plan.queries)
    without_gradients(efforts)
    if execution.resume:
        check_resumable(None, own)
    pack = pack if isinstance(pack, AttackPack) else AttackPack.open(pack, bundle=bundle)
    allowed = plan.allow_training_images or pack.data.allow_training_images
    if look and data is not None:
        need("train")
        from edgeadv.attacks.pack_writer import check_images

        images = labelled_images(data, bundle, root=plan.data_root, download=plan.download)
        check_images(pack, images, bundle, workers=plan.workers)
    if look:
        pack.check_training_images(bundle, allowed=allowed)
    held = replace(pack, data=replace(pack.data, allow_training_images=allowed))
    eps = list(dict.fromkeys(info.eps for info in held.infos if not info.control))

    def source_of(opened: Sequence[Backend], state: Path | None) -> Source:
        return Source.of_pack(held, query_attacks(efforts, eps, None, opened, state=state), own)

    return source_of, [entry for entry in held.skipped if entry.variant in variants]


@dataclass(frozen=True)
class _Job:
    """An evaluation that is ready to begin."""

    bundle: Bundle
    backends: list[Backend]
    source: Source
    skipped: list[Skipped]
    execution: Execution
    store: OutcomeStore | None

    def score(self, processes: Processes, progress: Progress | None, *, overlap: bool) -> dict[int, BatchOutcome]:
        """Score this process's batches; those that a store keeps are not among what is returned."""
        outcomes: dict[int, BatchOutcome] = {}
        store = self.store
        score_source(
            self.source,
            bundle=self.bundle,
            backends=self.backends,
            kept={} if store is None else {number: store.get(number) for number in store.numbers()},
            keep=outcomes.__setitem__ if store is None else store.put,
            share=(processes.rank, processes.world),
            examples=self.execution.examples,
            overlap=overlap and processes.world == 1,
            progress=progress,
        )
        return outcomes

    def finish(self, outcomes: Mapping[int, BatchOutcome], out: Path | None) -> Results:
        """What all outcomes say, written where it is wanted."""
        store, data = self.store, self.source.data
        found = list(outcomes.values()) if store is None else store.all(self.source.count)
        check_readable([message for outcome in found for message in outcome.unreadable], data)
        try:
            results = summarise(
                found,
                self.source.infos,
                [Artefact.of(each) for each in self.backends],
                bundle=self.bundle,
                data=data,
                skipped=self.skipped,
                examples=self.execution.examples,
                names=self.source.names,
            )
        except DataError:
            # no other option would make more of these outcomes
            if store is not None:
                store.remove()
            raise
        if store is not None and out is not None:
            results.save(out)
            store.remove()
        return results


def crafted(
    bundle: Bundle,
    work: Workload,
    backends: Sequence[Backend],
    state: Path | None = None,
    *,
    uint8: bool = False,
    workers: int = 0,
    grouped: bool = False,
) -> Source:
    """Images attacked as they are scored; ``state`` as for :func:`query_attacks`."""
    from edgeadv.attacks.pack_writer import images_sha256

    attacks = [*work.attacks, *query_attacks(work.efforts, work.eps, work.reference, backends, state=state)]

    clean, count = shards(bundle, work.images, work.order, work.data, workers=workers)

    def read(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CraftedBatch]:
        return craft(clean(numbers, unreadable), attacks, work.reference, uint8=uint8)

    origin = {"images": images_sha256(work.images, work.order), "reference": Artefact.of(work.reference).binding()}
    names = work.images.names if grouped else ()
    return Source(infos(attacks, uint8=uint8), work.data, read, count, origin, names)


def _cores_for_both(backends: Sequence[Backend], threads: int | None) -> bool:
    """Whether a batch can be scored while the next one is attacked on other cores.

    On the same cores both would only wait for each other; on a GPU, and in PyTorch, that was not measured.
    """
    on_cores = all(backend.provider == PROVIDERS[CPU] for backend in backends)
    return on_cores and threads is not None and 2 * threads <= (usable_cores() or 1)
