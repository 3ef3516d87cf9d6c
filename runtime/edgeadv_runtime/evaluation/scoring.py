"""Scoring batches: what every artefact makes of the clean and the adversarial images, as outcomes of a few bits an
image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..attacks.base import CLEAN_KEY, AttackInfo, CraftedBatch, Evidence, Key
from ..attacks.crafting import answers_of, changed, changing, logits_of, progress_of
from ..attacks.margins import margins
from ..attacks.remembered import Remembered, pays
from ..backends.base import Backend
from ..bundle.bundle import Bundle
from ..bundle.confidence import softmax
from ..bundle.preprocess import to_tensor
from ..records.rows import NORMS
from ..records.suites import contradicts
from .outcomes import BatchOutcome, LabelledExample
from .tracks import first_track
from .worst_images import ExamplePicker

TOP = 5
_T = TypeVar("_T")


def score_batches(
    batches: Iterable[CraftedBatch],
    infos: Sequence[AttackInfo],
    *,
    bundle: Bundle,
    backends: Sequence[Backend],
    unreadable: Sequence[str],
    examples: int = 6,
    seen: Iterable[int] = (),
    overlap: bool = False,
    keep: Callable[[int, BatchOutcome], None] | None = None,
    names: Sequence[str] = (),
) -> Iterator[BatchOutcome]:
    """One outcome for each batch; the arguments and errors are those of :func:`edgeadv_runtime.evaluation.loop`.

    Args:
        batches: any of the batches of a run, in its order.
        infos: what each of their keys is.
        bundle: what is scored.
        backends: the artefacts, opened.
        unreadable: filled by the iterator; what is new with a batch goes into its outcome, what comes after the last
            one into one more.
        examples: how many images the results file is to show.
        seen: labels that batches before these have shown already.
        overlap: score a batch in a second thread while the caller's thread asks for the next one: two batches are held
            then. The outcomes are the same. It pays where crafting and scoring do not want the same cores: gradients on
            a GPU and artefacts on the processor, or threads enough for both. ``backends`` must bear calls from two
            threads if an attack asks them too; those of ONNX Runtime and TensorRT do.
        keep: given the position of each batch among ``batches`` and its outcome as soon as it is scored, in the thread
            that scored it: with ``overlap`` the outcome is yielded only when the next batch has been crafted, which may
            take an hour.
        names: of all images by their position, where tracks of them are scored: what each artefact answered is kept
            too, and the examples are frames of the first track.
    """
    check_budgets(infos, backends)
    scored = [info for info in infos if not info.control]
    temperature = 1.0 if bundle.confidence is None else bundle.confidence.temperature
    frames = first_track(names, examples) if names else ()
    picker = ExamplePicker(examples, scored, bundle.classes, seen, temperature=temperature, frames=frames)
    answers = bool(names)

    def score(position: int, complete: CraftedBatch, messages: tuple[str, ...]) -> BatchOutcome:
        batch = _without(complete, bundle.calibration_images)
        left_out = len(complete.clean.labels) - len(batch.clean.labels)
        if len(batch.clean.labels):
            found = _scored(batch, scored, backends, picker, temperature=temperature if answers else None)
            outcome = replace(found, left_out=left_out, unreadable=messages)
        else:
            outcome = _nothing_scored(infos, backends, messages, left_out=left_out, answers=answers)
        return finish(position, outcome)

    def finish(position: int, outcome: BatchOutcome) -> BatchOutcome:
        if keep is not None:
            keep(position, outcome)
        return outcome

    def calls() -> Iterator[Callable[[], BatchOutcome]]:
        reported, position = 0, -1
        for position, batch in enumerate(batches):
            messages = tuple(unreadable[reported:])
            reported += len(messages)
            yield partial(score, position, batch, messages)
        if late := tuple(unreadable[reported:]):
            yield partial(finish, position + 1, _nothing_scored(infos, backends, late, answers=answers))

    yield from _beside(calls()) if overlap else (call() for call in calls())


def _beside(calls: Iterator[Callable[[], _T]]) -> Iterator[_T]:
    """What ``calls`` return, in their order: each runs in a second thread while the next one is being made in this one.

    Crafting stays in the caller's thread, where an interruption reaches it; what was handed to the second thread is
    finished.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="scoring")
    before: Future[_T] | None = None
    try:
        for call in calls:
            following = pool.submit(call)
            if before is not None:
                yield before.result()
            before = following
        if before is not None:
            yield before.result()
    finally:
        pool.shutdown()


def _scored(
    batch: CraftedBatch,
    infos: Sequence[AttackInfo],
    backends: Sequence[Backend],
    picker: ExamplePicker,
    *,
    temperature: float | None,
) -> BatchOutcome:
    """What each artefact is right about in ``batch``, its evidence for the verdict, examples of what the last one makes
    of it, and with a ``temperature`` what each answers, and how sure it is."""
    about, labels = batch.clean, batch.clean.labels
    clean = to_tensor(about.pixels)
    ranks: list[dict[Key, NDArray[np.int64]]] = []
    progress: list[dict[Key, NDArray[np.float32]]] = []
    unstable: list[NDArray[np.bool_]] = []
    given: list[dict[Key, NDArray[np.int64]]] = []
    probability: list[dict[Key, NDArray[np.float32]]] = []
    found: tuple[LabelledExample, ...] = ()
    budgets = {info.key: info.eps for info in infos}
    # those of a pack are made when they are asked for: none is held
    held = isinstance(batch.adversarial, dict)
    for backend in backends:
        before = backend.infer_pixels(about.pixels) if backend.takes_uint8 else backend.infer(clean)
        rank, reached = {CLEAN_KEY: _rank(before, labels)}, {CLEAN_KEY: margins(before, labels)}
        said: dict[Key, NDArray[np.float32]] = {CLEAN_KEY: before} if temperature is not None else {}
        changes = changing(backend, clean, before)
        # who answers at random is asked anew each time: the worst of many answers counts
        asked = Remembered(backend) if held and pays(backend) and not changes.any() else backend
        for info in infos:
            images, norm = batch.adversarial[info.key], info.params.norm
            # the very question that is repeated below: other sizes of a batch may round otherwise
            whom = backend if info is infos[-1] else asked
            after = logits_of(whom, images, about.pixels, info.eps, norm=norm)
            rank[info.key], reached[info.key] = _rank(after, labels), margins(after, labels)
            if temperature is not None:
                said[info.key] = after
            if info is infos[-1]:
                changes |= changed(after, logits_of(backend, images, about.pixels, info.eps, norm=norm))
            if backend is backends[-1] and info.key == picker.key:
                found = picker.look(batch, clean, before, after, artefact=f"{backend.name} {backend.variant}")
        ours = {info.key for info in infos if "@" not in info.name or backend.has_gradients(info.gradients_sha256)}
        contradicting = [key for key in reached if contradicts(key[0])]
        progress.append({key: progress_of(key, reached, budgets, ours.__contains__) for key in contradicting})
        ranks.append(rank)
        unstable.append(changes)
        if temperature is not None:
            given.append({key: answers_of(logits, labels) for key, logits in said.items()})
            probability.append({key: _probability(logits, given[-1][key], temperature) for key, logits in said.items()})
    top1, top5 = (tuple({key: places < most for key, places in rank.items()} for rank in ranks) for most in (1, TOP))
    return BatchOutcome(
        about.index,
        labels,
        about.hashes,
        top1,
        top5,
        batch.evidence,
        examples=found,
        progress=tuple(progress),
        unstable=tuple(unstable),
        given=tuple(given),
        probability=tuple(probability),
    )


def check_budgets(infos: Iterable[AttackInfo], backends: Iterable[Backend]) -> None:
    """Refuse budgets that the 8 bits of a ``-u8in`` artefact cannot hold.

    Raises:
        InputError: there is one.
    """
    variant = next((backend.variant for backend in backends if backend.takes_uint8), None)
    for info in infos:
        if variant is not None and not info.control and info.params.norm in (None, NORMS[0]):
            info.eps.check_8_bits(instead=f"leave out {variant}, which takes such images, with `precisions`")


def _probability(logits: NDArray[np.float32], answers: NDArray[np.int64], temperature: float) -> NDArray[np.float32]:
    """Of the label that was given, float32 (n,)."""
    return softmax(logits, temperature=temperature)[np.arange(len(answers)), answers].astype(np.float32)


def _rank(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many labels come before the true one; ties go against the model."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before: NDArray[np.int64] = (logits >= own).sum(axis=1) - 1
    return before


def _without(batch: CraftedBatch, images: frozenset[str]) -> CraftedBatch:
    """``batch`` without those ``images``, which are named by the SHA-256 of their pixels."""
    if not images:
        return batch
    known = [image in images for image in batch.clean.hashes]
    return batch.select(~np.array(known, dtype=np.bool_)) if any(known) else batch


def _nothing_scored(
    infos: Sequence[AttackInfo],
    backends: Sequence[Backend],
    messages: tuple[str, ...],
    *,
    left_out: int = 0,
    answers: bool = False,
) -> BatchOutcome:
    """The outcome of a batch of which no image is scored."""
    evidence, scored = Evidence.nothing(infos), [info for info in infos if not info.control]
    labels, flags, each = evidence.answers[CLEAN_KEY], evidence.unstable, len(backends)
    hits = (dict.fromkeys([CLEAN_KEY, *(info.key for info in scored)], flags),) * each
    progress = {info.key: flags.astype(np.float32) for info in scored if contradicts(info.name)}
    outcome = BatchOutcome(
        labels, labels, (), hits, hits, evidence, left_out, messages, (), (progress,) * each, (flags,) * each
    )
    if not answers:
        return outcome
    keys = hits[0] if hits else {}
    given, probability = dict.fromkeys(keys, labels), dict.fromkeys(keys, labels.astype(np.float32))
    return replace(outcome, given=(given,) * each, probability=(probability,) * each)
