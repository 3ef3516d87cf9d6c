"""Clean and adversarial accuracy of the artefacts in a bundle, all on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from edgeadv_runtime.attacks.base import CraftedBatch, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.pack import SHARD_SIZE, AttackPack
from edgeadv_runtime.attacks.queries import query_attacks
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.backends.onnxruntime import CPU, PROVIDERS
from edgeadv_runtime.bundle.batches import Progress, check_readable, readable
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.device.facts import usable_cores
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.evaluation.loop import score_source, summarise
from edgeadv_runtime.evaluation.outcomes import Artefact, BatchOutcome, OutcomeStore
from edgeadv_runtime.evaluation.scoring import check_budgets
from edgeadv_runtime.evaluation.source import Source
from edgeadv_runtime.files import ensure_file_writable
from edgeadv_runtime.records.about import Skipped
from edgeadv_runtime.records.results import Results

from .attack_plan import (
    FLOAT32,
    STANDARD,
    AttackPlan,
    Workload,
    check_resumable,
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
    from edgeadv.data.sources import Data

    from .attack_plan import Attacks

# what makes the source of open artefacts and a folder for work under way; and variants without gradients of their own
_Images = tuple[Callable[[Sequence[Backend], Path | None], Source], list[Skipped]]


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
        print(results.verdict, [row.top1 for row in results.rows if row.attack == "worst-case"])

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
    asked = _Evaluation(
        bundle,
        data,
        eps,
        suite,
        attacks,
        backends,
        precisions,
        pack,
        plan or AttackPlan(),
        execution or Execution(),
        None if out is None else Path(out),
        progress,
    )
    with ExitStack() as stack:
        processes = stack.enter_context(join())
        with processes.in_turn():
            job = asked.prepared(stack, processes)
        if processes.first and job.store is not None:
            stack.enter_context(job.store)
        outcomes = job.score(processes)
        processes.wait()
        with processes.in_turn():
            if asked.out is not None and not processes.first:
                return Results.load(asked.out)
            return job.finish(outcomes)


@dataclass(frozen=True)
class _Evaluation:
    """What :func:`evaluate` is asked for."""

    bundle: Bundle | str | Path
    data: ImageSet | Data | str | Path | None
    eps: Budgets | None
    suite: str
    attacks: Attacks
    backends: str | Iterable[str]
    precisions: str | Iterable[str]
    pack: AttackPack | str | Path | None
    plan: AttackPlan
    execution: Execution
    out: Path | None
    progress: Progress | None

    def prepared(self, stack: ExitStack, processes: Processes) -> _Job:
        """Check everything, open the artefacts in ``stack``, and begin, or go on."""
        execution, out = self.execution, self.out
        self._check(processes)
        bundle = open_bundle(self.bundle)
        openers, skipped = backend_openers(
            bundle,
            backends=self.backends,
            precisions=self.precisions,
            provider=execution.provider,
            threads=execution.threads,
            plan=execution.tensorrt,
        )
        store = None
        if out is not None:
            ensure_file_writable(out)
            folder = out.with_name(out.name + ".partial")
            store = OutcomeStore(folder, n_classes=len(bundle.classes), shared=processes.world > 1)
        make = self._from_data if self.pack is None else self._from_pack
        source_of, more = make(bundle, processes, [variant for _, variant in openers])
        opened = [stack.enter_context(opener()) for opener in openers.values()]
        source = source_of(opened, None if store is None else store.folder)
        check_budgets(source.infos, opened)
        if store is not None:
            bound_to = source.binding(bundle, opened, execution.examples)
            store.start(bound_to, resume=execution.resume or not processes.first)
        return _Job(self, bundle, opened, source, [*skipped, *more], store)

    def _check(self, processes: Processes) -> None:
        """Refuse what does not go together."""
        plan = self.plan
        if self.data is None and self.pack is None:
            raise InputError("evaluate takes `data` with `eps`, or `pack`")
        if self.out is None and (processes.world > 1 or self.execution.resume):
            raise InputError(
                "out", "names the file beside which outcomes are kept: `resume` and several processes need it"
            )
        if self.pack is None:
            return
        fixed = [plan.target, plan.limit, plan.transfer_from, plan.allow_unreadable, plan.gradients != FLOAT32]
        if self.eps is not None or self.execution.uint8 or any(fixed):
            raise InputError(
                "`eps`, `target`, `limit`, `uint8`, `transfer_from`, `gradients` and `allow_unreadable` were settled "
                "with the pack: leave them out"
            )
        if self.data is None and (plan.workers or plan.download or plan.data_root):
            raise InputError("`workers`, `download` and `data_root` are for `data`: leave them out")
        if plan.queries is not None and self.attacks is None:
            raise InputError("with `pack`, `queries` needs `attacks` square")
        if self.suite != STANDARD and self.attacks is None:
            raise InputError("`suite` was settled with the pack: leave it out, or add `attacks` square")

    def _from_data(self, bundle: Bundle, processes: Processes, variants: Sequence[str]) -> _Images:
        assert self.data is not None
        need("train")
        plan, execution = self.plan, self.execution
        efforts, own = chosen_attacks(self.suite, self.attacks, plan.queries)
        work = make_workload(
            bundle,
            self.data,
            self.eps,
            efforts=efforts,
            variants=variants,
            plan=plan,
            own=own,
            provider=execution.provider,
            threads=execution.threads,
        )
        if execution.resume:
            check_resumable(work.images, own)
        if processes.first:
            work.check_training_images(bundle, workers=plan.workers, progress=self.progress)
        return partial(crafted, bundle, work, uint8=execution.uint8, workers=plan.workers), work.skipped

    def _from_pack(self, bundle: Bundle, processes: Processes, variants: Sequence[str]) -> _Images:
        assert self.pack is not None
        plan = self.plan
        efforts, own = ({}, []) if self.attacks is None else chosen_attacks(self.suite, self.attacks, plan.queries)
        without_gradients(efforts)
        if self.execution.resume:
            check_resumable(None, own)
        pack = self.pack if isinstance(self.pack, AttackPack) else AttackPack.open(self.pack, bundle=bundle)
        allowed = plan.allow_training_images or pack.data.allow_training_images
        if processes.first:
            if self.data is not None:
                need("train")
                from edgeadv.attacks.pack_writer import check_images

                images = labelled_images(self.data, bundle, root=plan.data_root, download=plan.download)
                check_images(pack, images, bundle, workers=plan.workers)
            pack.check_training_images(bundle, allowed=allowed)
        pack = replace(pack, data=replace(pack.data, allow_training_images=allowed))
        eps = list(dict.fromkeys(info.eps for info in pack.infos if not info.control))

        def source_of(opened: Sequence[Backend], state: Path | None) -> Source:
            return Source.of_pack(pack, query_attacks(efforts, eps, None, opened, state=state), own)

        return source_of, [entry for entry in pack.skipped if entry.variant in variants]


@dataclass(frozen=True)
class _Job:
    """An evaluation that is ready to begin."""

    asked: _Evaluation
    bundle: Bundle
    backends: list[Backend]
    source: Source
    skipped: list[Skipped]
    store: OutcomeStore | None

    def score(self, processes: Processes) -> dict[int, BatchOutcome]:
        """Score this process's batches; those that a store keeps are not among what is returned."""
        outcomes: dict[int, BatchOutcome] = {}
        store, execution = self.store, self.asked.execution
        score_source(
            self.source,
            bundle=self.bundle,
            backends=self.backends,
            kept={} if store is None else {number: store.get(number) for number in store.numbers()},
            keep=outcomes.__setitem__ if store is None else store.put,
            share=(processes.rank, processes.world),
            examples=execution.examples,
            overlap=self.asked.pack is None
            and processes.world == 1
            and _cores_for_both(self.backends, execution.threads),
            progress=self.asked.progress if processes.first else None,
        )
        return outcomes

    def finish(self, outcomes: Mapping[int, BatchOutcome]) -> Results:
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
                examples=self.asked.execution.examples,
            )
        except DataError:
            # no other option would make more of these outcomes
            if store is not None:
                store.remove()
            raise
        if store is not None and self.asked.out is not None:
            results.save(self.asked.out)
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
