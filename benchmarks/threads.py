"""How PyTorch's threads should wait: training, FGSM, PGD and export, alone on the machine and beside others.

Each setting is a process of its own, for OpenMP reads its settings when PyTorch is loaded; all of them are started at
the beginning and work in turn, in random order, while the others sleep. ``default`` is PyTorch left alone, ``edgeadv``
what the command chooses, a number the turns of a wait. Beside the job runs nothing, one busy loop, two, or a rival:
another PyTorch process that trains with as many threads, left alone. ``of_quiet`` is a setting's speed there over that
of ``default`` in the same round with nothing beside it; the fair share is 0.75 of it beside one busy loop and 0.5
beside two, or beside the rival, on two cores. All settings must compute the same bits.

    python benchmarks/threads.py --out benchmarks/results/threads-cpu.json      # about 13 minutes
    python benchmarks/threads.py --tiny --out /tmp/threads.json                 # a try: its figures mean nothing
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paired import ratio, save

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
DEFAULT, OURS, PASSIVE, RIVAL = "default", "edgeadv", "passive", "rival"
NOTHING = "nothing"
# how many busy loops there are beside the job
LOOPS = {NOTHING: 0, "one loop": 1, "two loops": 2, RIVAL: 0}
# what of two cores is a job's share beside them
FAIR = {"one loop": 0.75, "two loops": 0.5, RIVAL: 0.5}
# an export takes longer, and has fewer settings
EXPORT, EXPORT_WAYS = "export", (DEFAULT, OURS)
BATCH, PGD_BATCH = 64, 16


def jobs() -> dict[str, Callable[[], tuple[int, bytes]]]:
    """What is timed, each giving how many images it had and what came of them."""
    import numpy as np
    import torch
    from torch.nn import functional

    from edgeadv.attacks import cross_entropy, fgsm, pgd
    from edgeadv.data.datasets import balanced_subset, open_data
    from edgeadv.models.builder import Architecture, build
    from edgeadv_export import Origin, export_bundle
    from edgeadv_runtime import Preprocess
    from edgeadv_runtime.bundle.preprocess import to_tensor

    images, preprocess = open_data("mnist5k", split="train"), Preprocess(resize=32, crop=32)
    order = balanced_subset(images.labels, BATCH)
    x = torch.cat([torch.from_numpy(to_tensor(preprocess(images.image(int(i)))[None])) for i in order])
    y = torch.from_numpy(images.labels[order]).long()

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return build(Architecture.find("regnet_y_400mf", num_classes=10))

    learner, attacked = network().train(), network().eval()
    optimizer = torch.optim.SGD(learner.parameters(), 0.01, momentum=0.9)
    begin = {name: value.clone() for name, value in learner.state_dict().items()}

    def train() -> tuple[int, bytes]:
        learner.load_state_dict(begin)
        optimizer.state.clear()
        loss = functional.cross_entropy(learner(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(x), loss.detach().numpy().tobytes()

    def export() -> tuple[int, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            export_bundle(
                network().eval(),
                Path(folder) / "bundle",
                classes=images.classes,
                preprocess=preprocess,
                frames=[np.asarray(images.image(int(i)).convert("RGB")) for i in order[:8]],
                variants=["fp32"],
                origin=Origin(title="random weights", provenance={}),
            )
        return 1, b""

    few, theirs = x[:PGD_BATCH], y[:PGD_BATCH]
    steps: dict[str, Any] = {"eps": 8 / 255, "steps": 10, "loss": cross_entropy, "leave": float("inf")}
    return {
        "train": train,
        "fgsm": lambda: (len(x), fgsm(attacked, x, y, eps=8 / 255)[0].x.numpy().tobytes()),
        "pgd-10": lambda: (len(few), pgd(attacked, few, theirs, **steps).x.numpy().tobytes()),
        EXPORT: export,
    }


def work(setting: str) -> None:
    """Answer each line of standard input, a job and for how many seconds at least, with what was done."""
    if setting == OURS:
        from edgeadv.workflows.threads import share_processor

        share_processor()
    known = jobs()
    known["train"]()
    print(json.dumps({name: os.environ[name] for name in NAMES if name in os.environ}), flush=True)
    while setting == RIVAL:
        known["train"]()
    for line in sys.stdin:
        asked = json.loads(line)
        known[asked["job"]]() if asked["job"] != EXPORT else None
        done, begin, spent = 0, time.perf_counter(), time.process_time()
        while not done or time.perf_counter() - begin < asked["seconds"]:
            count, made = known[asked["job"]]()
            done += count
        wall = time.perf_counter() - begin
        answer = {"rate": done / wall, "cores": (time.process_time() - spent) / wall}
        print(json.dumps(answer | {"sha256": hashlib.sha256(made).hexdigest()}), flush=True)


def start(setting: str, threads: int) -> subprocess.Popen[str]:
    """The process of a setting."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment["OMP_NUM_THREADS"] = str(threads)
    if setting == PASSIVE:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    elif setting.isdigit():
        environment["GOMP_SPINCOUNT"] = setting
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", setting],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(worker: subprocess.Popen[str], **what: object) -> dict[str, Any]:
    """Its next answer, after asking for ``what`` if that is anything."""
    assert worker.stdin is not None and worker.stdout is not None
    if what:
        print(json.dumps(what), file=worker.stdin, flush=True)
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


@contextlib.contextmanager
def beside(what: str, rival: subprocess.Popen[str]) -> Iterator[None]:
    """Keep the processor busy with ``what``."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOOPS[what])]
    try:
        if what == RIVAL:
            rival.send_signal(signal.SIGCONT)
        if what != NOTHING:
            time.sleep(0.3)
        yield
    finally:
        rival.send_signal(signal.SIGSTOP)
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(options: argparse.Namespace) -> None:
    """Time all, show a row for each job, surrounding and setting, and write them after each job."""
    names = [DEFAULT, PASSIVE, *options.spins.split(","), OURS]
    workers: dict[str, subprocess.Popen[str]] = {}
    settled, found = {}, dict[tuple[str, str, str], list[dict[str, Any]]]()
    try:
        for name in (*names, RIVAL):
            workers[name] = start(name, options.threads)
            settled[name] = ask(workers[name])
        rival = workers[RIVAL]
        rival.send_signal(signal.SIGSTOP)
        for job in options.jobs.split(","):
            ways = [name for name in names if job != EXPORT or name in EXPORT_WAYS]
            for i in range(options.exports if job == EXPORT else options.rounds):
                for what in LOOPS:
                    for name in random.Random(i).sample(ways, len(ways)):
                        with beside(what, rival):
                            answer = ask(workers[name], job=job, seconds=options.seconds)
                        found.setdefault((job, what, name), []).append(answer)
            told = list(rows(found, settled))
            print("\n".join(shown(row) for row in told if row["job"] == job), flush=True)
            save(options.out, "threads", vars(options), told)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def rows(found: dict[tuple[str, str, str], list[dict[str, Any]]], settled: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What came of all rounds."""
    for (job, what, name), answers in found.items():
        rates = [answer["rate"] for answer in answers]
        quiet = [answer["rate"] for answer in found[job, NOTHING, DEFAULT]]
        alike = {answer["sha256"] for key, others in found.items() if key[0] == job for answer in others}
        row: dict[str, Any] = {
            "job": job,
            "beside": what,
            "way": name,
            "environment": settled[name],
            "rounds": len(rates),
            "rate_median": round(statistics.median(rates), 2),
            "cores_median": round(statistics.median(answer["cores"] for answer in answers), 2),
            "same_bits": len(alike) == 1,
        }
        if len(rates) > 1:
            row["of_quiet"] = ratio(rates, quiet)
            row["over_default"] = ratio(rates, [answer["rate"] for answer in found[job, what, DEFAULT]])
            if what in FAIR:
                row["of_fair_share"] = round(row["of_quiet"]["median"] / FAIR[what], 3)
        yield row


def shown(row: dict[str, Any]) -> str:
    """A row as a line of a table."""
    unit = "exports/s" if row["job"] == "export" else "images/s"
    quiet = row.get("of_quiet", {"median": float("nan"), "quartiles": [float("nan")] * 2})
    fair = f", {row['of_fair_share']:.2f} of the fair share" if "of_fair_share" in row else ""
    return (
        f"{row['job']:8} beside {row['beside']:9} {row['way']:8} {row['rate_median']:9.2f} {unit:10} "
        f"{quiet['median']:.2f} [{quiet['quartiles'][0]:.2f}, {quiet['quartiles'][1]:.2f}] of quiet{fair}; "
        f"{row['cores_median']:.2f} cores{'' if row['same_bits'] else '; NOT THE SAME BITS'}"
    )


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--spins", default="100,300,1000", help="counts of turns that are settings of their own")
    parser.add_argument("--jobs", default="train,fgsm,pgd-10,export")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--exports", type=int, default=2, help="rounds of the export, which takes longer")
    parser.add_argument("--seconds", type=float, default=0.8, help="of a job in a round, at least")
    parser.add_argument("--tiny", action="store_true", help="the least that runs")
    parser.add_argument("--worker", metavar="SETTING", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker)
        return
    if options.out is None:
        parser.error("--out is missing")
    if options.tiny:
        options.spins, options.rounds, options.exports, options.seconds = "1000", 2, 2, 0.1
    measure(options)


if __name__ == "__main__":
    main()
