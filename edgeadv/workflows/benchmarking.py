"""Latency of a bundle on this machine."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgeadv_runtime import Bench, Bundle, InputError
from edgeadv_runtime.benchmark import latency
from edgeadv_runtime.bundle.batches import Progress
from edgeadv_runtime.files import partial_of
from edgeadv_runtime.records.about import Skipped

from .alone import alone
from .backends import TensorRTPlan, backend_openers
from .inputs import ALL, open_bundle

_log = logging.getLogger(__name__)


@alone(file=True)
def bench(
    bundle: Bundle | str | Path,
    *,
    backends: str | Iterable[str] = ("onnxruntime",),
    precisions: str | Iterable[str] = (ALL,),
    batches: str | Iterable[int] = (1,),
    runs: int = 200,
    warm_up: int = 20,
    rate_hz: float | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    tensorrt: TensorRTPlan | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Measure preprocessing, inference and both together; see :func:`edgeadv_runtime.benchmark.latency.bench`.

    Where ``out`` is named, what was measured before a failure or an interruption is in ``OUT.partial``::

        measured = bench("signs.edgeadv", precisions=["fp16", "int8"], batches=[1, 8], rate_hz=30)
        print([(row.variant, row.p50_ms) for row in measured.select(stage="inference")])

    Args:
        bundle: what is measured, or where it is.
        backends: some of :data:`~edgeadv.workflows.backends.BACKENDS`, or ``all`` that work here.
        precisions: variants of the bundle, ``int8`` for the one that fits each backend; or ``all`` that are for this
            processor.
        batches: batch sizes of the back-to-back series.
        runs: timed calls of each series, at least 1; p99 takes 1000.
        warm_up: calls before each series that are not timed.
        rate_hz: also single frames at this rate; None for none.
        provider: of torch and ONNX Runtime; there is no fallback.
        threads: CPU threads of a call; None leaves them to the library.
        tensorrt: how TensorRT's plans are had.
        out: the bench file to write; None writes none.
        progress: called with the series done, all series and the name of the next, never while one is timed.

    Raises:
        InputError: an argument is out of range, or nothing would run.
        BackendError: a backend cannot be opened, or fails.
    """
    bundle = open_bundle(bundle)
    openers, skipped = backend_openers(
        bundle,
        backends=backends,
        precisions=precisions,
        provider=provider,
        threads=threads,
        plan=tensorrt,
        for_speed=True,
    )
    sizes = _numbers(batches)
    with _partial(out, list(openers), skipped) as keep:
        measured = latency.bench(
            bundle,
            list(openers.values()),
            batches=sizes,
            runs=runs,
            warm_up=warm_up,
            rate_hz=rate_hz,
            progress=progress,
            keep=keep,
        )
        measured = replace(measured, skipped=tuple(skipped))
        if out is not None:
            measured.save(out)
    return measured


@contextmanager
def _partial(
    out: str | Path | None, asked: list[tuple[str, str]], skipped: list[Skipped]
) -> Iterator[Callable[[Bench], None] | None]:
    """What keeps beside ``out`` what there is so far, for the rest may take an hour; the file says what it lacks."""
    if out is None:
        yield None
        return
    path, kept = partial_of(Path(out)), False

    def keep(measured: Bench) -> None:
        nonlocal kept
        there = {(row.backend, row.variant) for row in measured.rows}
        missing = [
            Skipped(backend=name, variant=variant, reason="the measurement ended before it")
            for name, variant in asked
            if (name, variant) not in there
        ]
        replace(measured, skipped=(*skipped, *missing)).save(path)
        kept = True

    try:
        yield keep
    except BaseException:
        if kept:
            _log.warning("what was measured before is in %s", path)
        raise
    path.unlink(missing_ok=True)


def _numbers(given: str | Iterable[int]) -> list[int]:
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Iterable) else [given]
    try:
        return [int(part) if isinstance(part, str) else operator.index(part) for part in parts]
    except (ValueError, TypeError) as error:
        raise InputError("batches", f"{given!r} is a comma-separated list of whole numbers, such as 1,8") from error
