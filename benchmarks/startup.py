"""How long it takes to begin: importing the runtime, ``edgeadv --help``, ``edgeadv doctor``; each in a process of its
own, in turn with Python alone and with NumPy alone.

    python benchmarks/startup.py --out benchmarks/results/startup-cpu.json
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paired import in_turn, ratio, save

PYTHON, NUMPY = "python -c pass", "import numpy"
COMMANDS = {
    PYTHON: ["-c", "pass"],
    NUMPY: ["-c", NUMPY],
    "import edgeadv_runtime": ["-c", "import edgeadv_runtime"],
    "from edgeadv_runtime import Classifier": ["-c", "from edgeadv_runtime import Classifier"],
    "import edgeadv": ["-c", "import edgeadv"],
    "edgeadv --help": ["-m", "edgeadv", "--help"],
    "edgeadv doctor": ["-m", "edgeadv", "doctor"],
}
GOALS_S = {"import edgeadv_runtime": 0.12, "edgeadv --help": 0.3, "edgeadv doctor": 1.0}


def starter(arguments: list[str], cpu: list[float]) -> Callable[[int], None]:
    """What runs Python with ``arguments`` to its end, and appends the processor's seconds, all threads, to ``cpu``."""

    def start(i: int) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if i >= 0:
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return start


def spread(name: str, seconds: list[float]) -> dict[str, Any]:
    """Median and quartiles of ``seconds``, under names that begin with ``name``."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {f"{name}_median": round(middle, 4), f"{name}_quartiles": [round(low, 4), round(high, 4)]}


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cpu: dict[str, list[float]] = defaultdict(list)
    calls = {name: starter(arguments, cpu[name]) for name, arguments in COMMANDS.items()}
    # the first of each writes what Python compiles
    seconds = in_turn(calls, rounds=options.rounds, warm_up=1)
    rows: list[dict[str, Any]] = []
    for name in COMMANDS:
        row = {"start": name, **spread("s", seconds[name]), **spread("cpu_s", cpu[name])}
        if name in GOALS_S:
            row["goal_s"] = GOALS_S[name]
        row["over_numpy"] = ratio(seconds[name], seconds[NUMPY])
        rows.append(row)
        print(f"{name}: {row['s_median']:.3f} s {row['s_quartiles']}, CPU {row['cpu_s_median']:.3f} s")
    save(options.out, "startup", vars(options), rows)


if __name__ == "__main__":
    main()
