"""Corruptions through the evaluation of one artefact: how long, which stage is the slowest, how much memory.

    python benchmarks/corruptions.py signs.edgeadv --data gtsrb --out benchmarks/results/corruptions-cpu.json

The whole is ``edgeadv evaluate`` in a process of its own. The stages are measured beside it, one after the other, on
the same images: decoding and preprocessing once, each corruption, and the artefact's answers.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from paired import save

from edgeadv.attacks.pack_writer import clean_batches
from edgeadv.data.datasets import balanced_subset, open_data
from edgeadv_runtime import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.corruptions.kinds import SEVERITIES, corrupt, kinds_of

# images of each kind and severity, for the stages
_SAMPLE = 40


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """The command: seconds, and the most that it had in memory, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "edgeadv", "evaluate", str(options.bundle), "--data", options.data]
        command += ["--precision", options.precision, "--corruptions", options.kinds, "--limit", str(options.n)]
        command += ["--threads", str(options.threads), "--out", f"{folder}/r.json"]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"part": "whole", "s": round(seconds, 1), "peak_mib": round(peak)}


def stages(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds that each stage takes of the whole, one after the other."""
    bundle = Bundle.open(options.bundle)
    images = open_data(options.data, split="test").relabel(bundle.classes)
    order = balanced_subset(images.labels, options.n)
    begin = time.perf_counter()
    x = np.concatenate([to_tensor(batch.pixels) for batch in clean_batches(images, bundle, order, unreadable=[])])
    rows = [{"part": "decode", "s": round(time.perf_counter() - begin, 2)}]
    kinds = kinds_of(options.kinds)
    for kind in kinds:
        begin = time.perf_counter()
        for severity in range(1, SEVERITIES + 1):
            for image in x[:_SAMPLE]:
                corrupt(image, kind, severity)
        seconds = (time.perf_counter() - begin) * len(x) / min(_SAMPLE, len(x))
        rows.append({"part": "corrupt", "kind": kind, "s": round(seconds, 2)})
    with OnnxRuntimeBackend(bundle, variant=options.precision, threads=options.threads) as backend:
        backend.infer(x[:64])
        begin = time.perf_counter()
        for i in range(0, len(x), 64):
            backend.infer(x[i : i + 64])
        # each corrupted version once; the last one and the clean images twice, as the verdict has it
        seconds = (time.perf_counter() - begin) * (len(kinds) * SEVERITIES + 3)
    rows.append({"part": "score", "s": round(seconds, 2)})
    return rows


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--precision", default="int8-u8s8")
    parser.add_argument("--kinds", default="published")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [whole(options), *stages(options)]
    slowest = max(rows[1:], key=lambda row: row["s"])
    print(f"{rows[0]['s']} s, {rows[0]['peak_mib']} MiB; slowest: {slowest}")
    for row in rows[1:]:
        print(f"{row['part']:8s} {row.get('kind', ''):20s} {row['s']:8.2f} s")
    save(options.out, "corruptions", {**vars(options), "bundle": options.bundle.name}, rows)


if __name__ == "__main__":
    main()
