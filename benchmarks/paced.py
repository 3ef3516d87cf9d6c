"""Frames at a rate in ONNX Runtime: processor time of a frame and the time of its answer, by threads and by how these
wait for the next one.

Each way has its session open from the beginning, and all take turns in random order, some seconds of frames each; a
session that is not called sleeps. ``cpu_over_one`` is a way's processor time over that of one thread in the same round,
``answer_over_one`` its median time of an answer.

    python benchmarks/paced.py regnet-32.edgeadv --out benchmarks/results/paced-cpu.json      # under three minutes
"""

from __future__ import annotations

import argparse
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from paired import ratio, save

from edgeadv_runtime import Bundle, OnnxRuntimeBackend
from edgeadv_runtime.benchmark.timing import paced

ONE = "1 thread"


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rate", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=75, help="of a way in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="the least that runs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.tiny:
        options.frames, options.rounds = 5, 2
    bundle = Bundle.open(options.bundle)
    pixels = bundle.golden().pixels
    asked: dict[str, dict[str, Any]] = {
        ONE: {"threads": 1},
        f"{options.threads} threads, spinning": {"threads": options.threads, "spin": True},
        f"{options.threads} threads, sleeping": {"threads": options.threads, "spin": False},
    }
    cpu: dict[str, list[float]] = {way: [] for way in asked}
    answers: dict[str, list[np.ndarray]] = {way: [] for way in asked}
    logits: dict[str, bytes] = {}
    with ExitStack() as stack:
        backends = {way: stack.enter_context(OnnxRuntimeBackend(bundle, **how)) for way, how in asked.items()}
        for i in range(options.rounds):
            for way in random.Random(i).sample(list(asked), len(asked)):
                infer = backends[way].infer_pixels
                times = paced(
                    lambda i: pixels[[i % len(pixels)]], infer, rate_hz=options.rate, runs=options.frames, warm_up=3
                )
                assert times.cpu_ns is not None
                cpu[way].append(times.cpu_ns / 1e6 / options.frames)
                answers[way].append(times.durations_ns[:, -1] / 1e6)
                logits[way] = infer(pixels[:1]).tobytes()
    medians = {way: [float(np.median(each)) for each in times] for way, times in answers.items()}
    rows = []
    for way in asked:
        p50, p90 = np.percentile(np.concatenate(answers[way]), [50, 90])
        rows.append(
            {
                "way": way,
                "cpu_ms_per_frame_median": round(float(np.median(cpu[way])), 3),
                "answer_p50_ms": round(float(p50), 3),
                "answer_p90_ms": round(float(p90), 3),
                "cpu_over_one": ratio(cpu[way], cpu[ONE]),
                "answer_over_one": ratio(medians[way], medians[ONE]),
                "same_bits": logits[way] == logits[ONE],
            }
        )
        print(rows[-1], flush=True)
    save(options.out, "paced", vars(options), rows)


if __name__ == "__main__":
    main()
