"""Clean and adversarial accuracy of the artefacts in a bundle, all on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from edgeadv_runtime.attacks.base import CraftedBatch, infos
from edgeadv_runtime.attacks.batches import Progress, check_readable, readable
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.pack import SHARD_SIZE, AttackPack
from edgeadv_runtime.attacks.queries import query_attacks
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.backends.onnxruntime import CPU, PROVIDERS
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.facts import usable_cores
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.evaluation.loop import score_source, summarise
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome, OutcomeStore
from edgeadv_runtime.evaluation.scoring import check_budgets
from edgeadv_runtime.evaluation.source import Source
from edgeadv_runtime.files import ensure_file_writable
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.suites import Effort

from .attack_plan import (
    FLOAT32,
    STANDARD,
    AttackPlan,
    Workload,
    chosen_attacks,
    make_workload,
    without_gradients,
)
from .backends import TensorRTPlan, backend_openers
from .extras import need
from .inputs import ALL, Budgets, labelled_images, open_bundle
from .processes import Processes, join

if TYPE_CHECKING:
    from edgeadv.data.datasets import ImageSet
    from edgeadv_runtime.attacks.base import Attack

    from .attack_plan import Attacks


@dataclass(frozen=True, kw_only=True)
class Execution:
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
        if self.threads is not None and self.threads < 1:
            raise InputError("threads", f"must be at least 1, not {self.threads}")
        if self.examples < 0:
            raise InputError("examples", f"must be at least 0, not {self.examples}")


def evaluate(
    bundle: Bundle | str | Path,
    data: ImageSet | str | Path | None = None,
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

    Under ``torchrun`` the processes share the images. What ``progress`` raises, or an interruption, ends the evaluation;
    where ``out`` is named, what was finished is kept beside it, and ``execution`` with ``resume`` goes on from there::

        results = evaluate("signs.edgeadv", "gtsrb/", eps=["2/255", "8/255"], backends=["torch", "onnxruntime"])
        print(results.verdict, [row.top1 for row in results.rows if row.attack == "worst-case"])

    Args:
        bundle: what is scored, or where it is.
        data: labelled images, their name or their folder: attacks are crafted here. With ``pack``, what that must have been
            made from.
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
    target = None if out is None else Path(out)
    with ExitStack() as stack:
        team = stack.enter_context(join())
        with team.in_turn():
            job = _prepared(
                stack,
                team,
                open_bundle(bundle),
                _Request(data, eps, suite, attacks, pack, plan),
                backends=backends,
                precisions=precisions,
                execution=execution,
                out=target,
                progress=progress,
            )
        if team.first and job.store is not None:
            stack.enter_context(job.store)
        outcomes = job.score(team, execution, progress if team.first else None)
        team.wait()
        with team.in_turn():
            if team.first or target is None:
                results = job.results(outcomes, execution.examples)
                if target is not None:
                    results.save(target)
                if job.store is not None:
                    job.store.remove()
            else:
                results = Results.load(target)
    return results


@dataclass(frozen=True)
class _Request:
    """Which images are asked for, and how they are attacked."""

    data: ImageSet | str | Path | None
    eps: Budgets | None
    suite: str
    attacks: Attacks
    pack: AttackPack | str | Path | None
    plan: AttackPlan

    def check(self, execution: Execution) -> None:
        """Refuse what does not go together."""
        plan = self.plan
        if self.data is None and self.pack is None:
            raise InputError("evaluate takes `data` with `eps`, or `pack`")
        if self.pack is None:
            return
        fixed = [plan.target, plan.limit, plan.transfer_from, plan.allow_unreadable, plan.gradients != FLOAT32]
        if self.eps is not None or execution.uint8 or any(value not in (None, False, ()) for value in fixed):
            raise InputError(
                "`eps`, `target`, `limit`, `uint8`, `transfer_from`, `gradients` and `allow_unreadable` were settled with the "
                "pack: leave them out"
            )
        if self.data is None and (plan.workers or plan.download or plan.data_root):
            raise InputError("`workers`, `download` and `data_root` are for `data`: leave them out")
        if plan.queries is not None and self.attacks is None:
            raise InputError("with `pack`, `queries` needs `attacks` square")
        if self.suite != STANDARD and self.attacks is None:
            raise InputError("`suite` was settled with the pack: leave it out, or add `attacks` square")


@dataclass(frozen=True)
class _Job:
    """An evaluation that is ready to begin."""

    bundle: Bundle
    backends: list[Backend]
    source: Source
    skipped: list[dict[str, str]]
    store: OutcomeStore | None
    overlap: bool

    def score(self, team: Processes, execution: Execution, progress: Progress | None) -> dict[int, BatchOutcome]:
        """Score this process's batches; those that a store keeps are not among what is returned."""
        outcomes: dict[int, BatchOutcome] = {}
        kept: Mapping[int, BatchOutcome] = {}
        keep: Callable[[int, BatchOutcome], None] = outcomes.__setitem__
        if self.store is not None:
            kept, keep = {number: self.store.get(number) for number in self.store.numbers()}, self.store.put
        score_source(
            self.source,
            bundle=self.bundle,
            backends=self.backends,
            kept=kept,
            keep=keep,
            share=(team.rank, team.world),
            examples=execution.examples,
            overlap=self.overlap and team.world == 1,
            progress=progress,
        )
        return outcomes

    def results(self, outcomes: Mapping[int, BatchOutcome], examples: int) -> Results:
        """What all outcomes say."""
        found = list(outcomes.values()) if self.store is None else self.store.all(self.source.count)
        check_readable([message for outcome in found for message in outcome.unreadable], self.source.data)
        try:
            return summarise(
                found,
                self.source.infos,
                [Artefact.of(each) for each in self.backends],
                bundle=self.bundle,
                data=self.source.data,
                skipped=self.skipped,
                examples=examples,
            )
        except DataError:
            # no other option would make more of these outcomes
            if self.store is not None:
                self.store.remove()
            raise


def _prepared(
    stack: ExitStack,
    team: Processes,
    bundle: Bundle,
    request: _Request,
    *,
    backends: str | Iterable[str],
    precisions: str | Iterable[str],
    execution: Execution,
    out: Path | None,
    progress: Progress | None,
) -> _Job:
    """Check everything, open the artefacts in ``stack``, and begin, or go on."""
    request.check(execution)
    if out is None and (team.world > 1 or execution.resume):
        raise InputError("`out` names the file beside which outcomes are kept: `resume` and several processes need it")
    openers, skipped = backend_openers(
        bundle,
        backends=backends,
        precisions=precisions,
        provider=execution.provider,
        threads=execution.threads,
        plan=execution.tensorrt,
    )
    variants = [variant for _, variant in openers]
    store: OutcomeStore | None = None
    if out is not None:
        ensure_file_writable(out)
        folder = out.with_name(out.name + ".partial")
        store = OutcomeStore(folder, n_classes=len(bundle.classes), shared=team.world > 1)
    state = None if store is None else store.folder

    def opened_all() -> list[Backend]:
        return [stack.enter_context(opener()) for opener in openers.values()]

    if request.pack is not None:
        opened, source, more = _from_pack(bundle, request, team, variants, opened_all, state=state)
    else:
        need("train")
        work = _workload(bundle, request, variants, execution)
        if team.first:
            work.check_training_images(bundle, workers=request.plan.workers, progress=progress)
        opened, more = opened_all(), work.skipped
        source = crafted(bundle, work, opened, uint8=execution.uint8, workers=request.plan.workers, state=state)
    check_budgets(source.infos, opened)
    if store is not None:
        bound_to = source.binding(bundle, opened, execution.examples)
        store.start(bound_to, resume=execution.resume or not team.first)
    overlap = request.pack is None and _cores_for_both(opened, execution.threads)
    return _Job(bundle, opened, source, [*skipped, *more], store, overlap)


def _chosen(request: _Request) -> tuple[dict[str, Effort], list[Attack]]:
    return chosen_attacks(request.suite, request.attacks, request.plan.queries)


def _workload(bundle: Bundle, request: _Request, variants: Sequence[str], execution: Execution) -> Workload:
    assert request.data is not None
    efforts, own = _chosen(request)
    return make_workload(
        bundle,
        request.data,
        request.eps,
        efforts=efforts,
        variants=variants,
        plan=request.plan,
        own=own,
        provider=execution.provider,
        threads=execution.threads,
    )


def _from_pack(
    bundle: Bundle,
    request: _Request,
    team: Processes,
    variants: Sequence[str],
    opened_all: Callable[[], list[Backend]],
    *,
    state: Path | None,
) -> tuple[list[Backend], Source, list[dict[str, str]]]:
    """The artefacts opened, the pack's images and what is added to them, and which variants their own gradients did not attack."""
    efforts, own = ({}, []) if request.attacks is None else _chosen(request)
    without_gradients(efforts)
    pack = _opened_pack(bundle, request, team)
    opened = opened_all()
    eps = list(dict.fromkeys(info.eps for info in pack.infos if not info.control))
    source = Source.of_pack(pack, [*query_attacks(efforts, eps, None, opened, state=state), *own])
    return opened, source, [entry for entry in pack.skipped if entry["variant"] in variants]


def _opened_pack(bundle: Bundle, request: _Request, team: Processes) -> AttackPack:
    """The pack, made from these images, with no more training images than may be."""
    plan, pack = request.plan, request.pack
    assert pack is not None
    carried = pack if isinstance(pack, AttackPack) else AttackPack.open(pack, bundle=bundle)
    allowed = plan.allow_training_images or carried.data.allow_training_images
    if team.first:
        if request.data is not None:
            need("train")
            from edgeadv.attacks.pack_writer import check_images

            images = labelled_images(request.data, bundle, root=plan.data_root, download=plan.download)
            check_images(carried, images, bundle, workers=plan.workers)
        carried.check_training_images(bundle, allowed=allowed)
    return replace(carried, data=replace(carried.data, allow_training_images=allowed))


def crafted(
    bundle: Bundle,
    work: Workload,
    backends: Sequence[Backend],
    *,
    uint8: bool = False,
    workers: int = 0,
    state: Path | None = None,
) -> Source:
    """Images attacked as they are scored; ``state`` as for :func:`query_attacks`."""
    from edgeadv.attacks.pack_writer import clean_batches, images_sha256

    attacks = [*work.attacks, *query_attacks(work.efforts, work.eps, work.reference, backends, state=state)]

    def read(numbers: Sequence[int], unreadable: list[str]) -> Iterator[CraftedBatch]:
        parts = [work.order[number * SHARD_SIZE : (number + 1) * SHARD_SIZE] for number in numbers]
        order = np.concatenate(parts) if parts else work.order[:0]
        clean = clean_batches(work.images, bundle, order, unreadable=unreadable, workers=workers)
        return craft(readable(clean, unreadable, work.data), attacks, work.reference, uint8=uint8)

    origin = {"images": images_sha256(work.images, work.order), "reference": Artefact.of(work.reference).binding()}
    count = -(-len(work.order) // SHARD_SIZE)
    return Source(infos(attacks, uint8=uint8), work.data, read, count, origin)


def _cores_for_both(backends: Sequence[Backend], threads: int | None) -> bool:
    """Whether a batch can be scored while the next one is attacked on other cores.

    On the same cores both would only wait for each other; on a GPU, and in PyTorch, that was not measured.
    """
    on_cores = all(backend.provider == PROVIDERS[CPU] for backend in backends)
    return on_cores and threads is not None and 2 * threads <= (usable_cores() or 1)
