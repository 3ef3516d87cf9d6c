"""The evaluation of a folder of photographs: its stages alone, the whole, and how time and memory grow with the number
of images.

``stages`` are images/s of decoding and resizing, of FGSM and of scoring by ONNX Runtime, each alone on the same images,
one thread each; ``whole`` is the evaluation of the same images by the same calls: once with scoring in a second thread
beside the attack, and once one after the other, with decoding alone beside them (``--workers``). ``over_slowest`` is a
whole over the slowest stage alone, and ``over_sum`` over what the stages would take one after the other. Everything
runs in turn, ``--rounds`` times; ratios are medians of those of each round, with the quartiles.

``steady`` leaves out what a long evaluation does not notice, its start, the first batch and the last: images/s of
``edgeadv evaluate`` between a small run and one of all images, over those of the attack alone.

``allocator`` is the command on the same images, over the command with glibc left alone
(:mod:`edgeadv.models.allocator`).

``growth`` runs ``edgeadv evaluate`` on more and more images: seconds, peak memory of the process, and the exponent of a
fitted power law, 1 for linear.

    python benchmarks/evaluation_pipeline.py m.edgeadv --data photos/ --limit 448 --growth 1000,4000,16000 --growth-data
        cifar10-png/ \\ --growth-bundle small.edgeadv --out benchmarks/results/evaluation_pipeline-cpu.json
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import in_turn, ratio, save

from edgeadv.attacks import build_attacks
from edgeadv.attacks.pack_writer import clean_batches
from edgeadv.backends.pytorch import TorchBackend
from edgeadv.data.datasets import ImageSet, balanced_subset, open_data
from edgeadv.models.allocator import keep_freed_memory
from edgeadv_runtime import Bundle, DataInfo, Eps, OnnxRuntimeBackend
from edgeadv_runtime.attacks.base import Attack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.pack import SHARD_SIZE
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.evaluation.loop import evaluate
from edgeadv_runtime.records.suites import FGSM, Effort

EPS = (Eps.parse("8/255"),)


def exhaust(batches: Iterable[object]) -> None:
    """Take all of them."""
    for _ in batches:
        pass


def opened(options: argparse.Namespace) -> tuple[Bundle, ImageSet, TorchBackend, list[Attack]]:
    """What the command opens for FGSM with one thread, in a process whose memory is settled as the command settles
    it."""
    keep_freed_memory()
    bundle = Bundle.open(options.bundle)
    images = open_data(options.data, split="test").relabel(bundle.classes)
    reference = TorchBackend(bundle, threads=1)
    attacks = build_attacks(
        reference.model,
        EPS,
        efforts={FGSM: Effort()},
        classes=len(bundle.classes),
        gradients_sha256=reference.gradients_sha256,
    )
    return bundle, images, reference, attacks


def stages(options: argparse.Namespace) -> dict[str, Any]:
    """Each stage alone, then all together."""
    bundle, images, reference, attacks = opened(options)
    order = balanced_subset(images.labels, options.limit)
    with OnnxRuntimeBackend(bundle, variant=options.variant, threads=1) as backend:

        def clean(workers: int) -> Any:
            return clean_batches(images, bundle, order, unreadable=[], workers=workers)

        held = list(clean(0))
        attacks[0].craft(to_tensor(held[0].pixels[:4]), held[0].labels[:4])  # warms up
        n = sum(len(batch.labels) for batch in held)
        data, listed = DataInfo("photographs", images.split, len(order)), infos(attacks, uint8=False)
        crafted = list(craft(iter(held), attacks, reference, uint8=False))

        def whole(overlap: bool) -> object:
            stream = craft(clean(options.workers), attacks, reference, uint8=False)
            return evaluate(bundle, stream, infos=listed, backends=[backend], data=data, overlap=overlap)

        calls: dict[str, Callable[[int], object]] = {
            "decode": lambda _: exhaust(clean(0)),
            "attack": lambda _: exhaust(craft(iter(held), attacks, reference, uint8=False)),
            "score": lambda _: evaluate(bundle, crafted, infos=listed, backends=[backend], data=data),
            "whole": lambda _: whole(True),
            "one_after_the_other": lambda _: whole(False),
        }
        seconds = in_turn(calls, rounds=options.rounds, warm_up=0)
    alone = [seconds[name] for name in ("decode", "attack", "score")]
    slowest = max(alone, key=statistics.median)
    together = [sum(taken) for taken in zip(*alone, strict=True)]
    row = {
        "part": "stages",
        "n": n,
        "workers": options.workers,
        "variant": options.variant,
        "rounds": options.rounds,
        **{f"{name}_images_per_s": round(n / statistics.median(taken), 2) for name, taken in seconds.items()},
        **{
            name: {"over_slowest": ratio(slowest, seconds[name]), "over_sum": ratio(together, seconds[name])}
            for name in ("whole", "one_after_the_other")
        },
    }
    print(row, flush=True)
    return row


def command(bundle: Path, data: str, n: int, environment: Mapping[str, str], *, workers: int = 0) -> dict[str, float]:
    """Seconds, processor seconds and peak memory of ``edgeadv evaluate`` with FGSM on ``n`` images."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [
            sys.executable,
            "-m",
            "edgeadv",
            "evaluate",
            str(bundle),
            "--data",
            data,
            "--eps",
            "8/255",
            "--attack",
            FGSM,
            "--precision",
            "fp32",
            "--threads",
            "1",
            "--workers",
            str(workers),
            "--limit",
            str(n),
            "--out",
            str(Path(folder) / "results.json"),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(
            asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(asked)}: {said}")
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "s": round(time.perf_counter() - start, 2),
        "cpu_s": round(cpu, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


def steady(options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of the command beyond its first batch, over those of the attack alone in this process."""
    bundle, images, reference, attacks = opened(options)
    held = list(clean_batches(images, bundle, balanced_subset(images.labels, 3 * SHARD_SIZE), unreadable=[]))
    alone: list[float] = []

    def attack(_: int) -> None:
        # a system may have taken the memory of a process that waited for a minute
        exhaust(craft(iter(held[:1]), attacks, reference, uint8=False))
        start = time.perf_counter()
        exhaust(craft(iter(held), attacks, reference, uint8=False))
        alone.append((time.perf_counter() - start) / sum(len(batch.labels) for batch in held))

    def run(n: int, _: int) -> None:
        command(options.bundle, options.data, n, {}, workers=options.workers)

    calls = {
        "first": functools.partial(run, SHARD_SIZE),
        "all": functools.partial(run, options.limit),
        "attack": attack,
    }
    seconds = in_turn(calls, rounds=options.rounds, warm_up=0)
    beyond = [
        (whole - first) / (options.limit - SHARD_SIZE)
        for whole, first in zip(seconds["all"], seconds["first"], strict=True)
    ]
    row = {
        "part": "steady",
        "n": options.limit - SHARD_SIZE,
        "workers": options.workers,
        "rounds": options.rounds,
        "command_images_per_s": round(1 / statistics.median(beyond), 2),
        "attack_images_per_s": round(1 / statistics.median(alone), 2),
        "over_attack": ratio(alone, beyond),
    }
    print(row, flush=True)
    return row


def allocator(options: argparse.Namespace) -> dict[str, Any]:
    """The command as it is, and with glibc left alone, in turn."""
    # settled in the environment, if only by an empty list, it is left alone
    environments: dict[str, dict[str, str]] = {"edgeadv": {}, "glibc": {"GLIBC_TUNABLES": ""}}
    used: dict[str, list[dict[str, float]]] = {name: [] for name in environments}

    def run(name: str, _: int) -> None:
        used[name].append(command(options.bundle, options.data, options.limit, environments[name]))

    seconds = in_turn({name: functools.partial(run, name) for name in environments}, rounds=options.rounds, warm_up=0)
    row = {
        "part": "allocator",
        "workers": 0,
        "n": options.limit,
        "rounds": options.rounds,
        "speedup": ratio(seconds["glibc"], seconds["edgeadv"]),
        **{f"{name}_peak_mib": statistics.median(each["peak_mib"] for each in runs) for name, runs in used.items()},
    }
    print(row, flush=True)
    return row


def fitted(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Start, cost and exponent of ``start + cost n^exponent`` through the processor's seconds, each run's error in
    proportion to them."""
    n, seconds = np.array([m["n"] for m in measured]), np.array([m["cpu_s"] for m in measured])
    best = (np.inf, 0.0, 0.0, 0.0)
    for exponent in np.arange(0.5, 2, 0.005):
        cost, start_s = np.polyfit(n**exponent, seconds, 1, w=1 / seconds)
        error = float(np.square((start_s + cost * n**exponent) / seconds - 1).sum())
        best = min(best, (error, float(exponent), float(cost), float(start_s)))
    _, exponent, cost, start_s = best
    return {
        "ms_per_image": round(1000 * cost * float(n[-1]) ** (exponent - 1), 3),
        "start_s": round(start_s, 2),
        "exponent": round(exponent, 3),
    }


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of the command on more and more images."""
    measured: list[dict[str, float]] = []
    for n in map(int, options.growth.split(",")):
        used = command(options.growth_bundle or options.bundle, options.growth_data or options.data, n, {})
        measured.append({"n": n, **used})
        print(measured[-1], flush=True)
    row = {"part": "growth", "workers": 0, "sizes": measured, **fitted(measured)}
    print(row, flush=True)
    return row


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="labelled photographs")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="allocator,growth,steady,stages", help="comma-separated")
    parser.add_argument("--growth", default="250,500,1000", help="comma-separated numbers of images")
    parser.add_argument("--growth-data", help="labelled images for it")
    parser.add_argument("--growth-bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # a process that has held much counts it among the memory of those it starts
    parts = {"allocator": allocator, "growth": growth, "steady": steady, "stages": stages}
    rows = [parts[name](options) for name in options.parts.split(",")]
    save(options.out, "evaluation_pipeline", vars(options), rows)


if __name__ == "__main__":
    main()
