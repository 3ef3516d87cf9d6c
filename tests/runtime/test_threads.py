"""One bundle and one backend in several threads at once: each gets what it gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgeadv_runtime import Bundle, CallableAttack, DataInfo, Eps, OnnxRuntimeBackend, SquareAttack, evaluate
from edgeadv_runtime.attacks.base import Attack, CraftedBatch, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.records.results import Results

THREADS, EPS = 6, Eps.parse("8/255")


@pytest.fixture(scope="module")
def backend(tiny_bundle: Bundle) -> Iterator[OnnxRuntimeBackend]:
    with OnnxRuntimeBackend(tiny_bundle, variant="fp32", threads=1) as opened:
        yield opened


def clean(bundle: Bundle) -> list[CleanBatch]:
    golden = bundle.golden()
    labels = golden.logits["fp32"].argmax(axis=1)
    return [CleanBatch(np.arange(8) + 8 * part, golden.pixels, labels) for part in range(2)]


def counts(results: Results) -> list[tuple[str, str | None, int, int]]:
    return [(row.attack, row.eps, row.n, row.correct_top1) for row in results.rows]


def test_evaluations_at_once_count_what_one_counts(tiny_bundle: Bundle, backend: OnnxRuntimeBackend) -> None:
    def run(_: int = 0) -> Results:
        # an attack belongs to one thread
        attacks: list[Attack] = [SquareAttack(backend, [EPS], queries=20)]
        attacks.append(CallableAttack(lambda x, y: np.minimum(x + np.float32(EPS.value), 1), "brighten", EPS))
        batches: Iterator[CraftedBatch] = craft(clean(tiny_bundle), attacks, backend, uint8=False)
        data = DataInfo(name="golden", split="test", total=16)
        return evaluate(tiny_bundle, batches, backends=[backend], infos=infos(attacks, uint8=False), data=data)

    alone = counts(run())
    assert len(alone) == 4
    with ThreadPoolExecutor(THREADS) as pool:
        assert [counts(results) for results in pool.map(run, range(THREADS))] == [alone] * THREADS


def test_one_bundle_gives_every_thread_the_same_frames_and_hashes(tiny_bundle: Bundle) -> None:
    def run(_: int = 0) -> tuple[bytes, bytes, str]:
        opened = Bundle.open(tiny_bundle.path)
        golden = tiny_bundle.golden()
        return golden.pixels.tobytes(), tiny_bundle.preprocess(golden.pixels[0], color_order="rgb").tobytes(), opened.id

    alone = run()
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(run, range(THREADS))) == [alone] * THREADS
