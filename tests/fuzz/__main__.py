"""``python -m tests.fuzz --seconds N --seed S``: every format for as long, each in a process of its own.

The seeds of a run are kept in ``--seeds``, if that is given; ``--number`` makes one input again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.running import HANG_S, NAMES, as_line, fuzz
from tests.fuzz.seeds import make


def main() -> int:
    """Run; returns 0 where nothing was wrong, 1 where something was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--most", type=int, help="Inputs of a format.")
    parser.add_argument("--seeds", type=Path, help="A folder with whole files; made if it is not there.")
    parser.add_argument("--format", action="append", choices=NAMES, help="By default all.")
    parser.add_argument("--here", action="store_true", help="In this process; writes JSON.")
    given = parser.parse_args()
    if given.here:
        with tempfile.TemporaryDirectory() as work:
            found = fuzz(
                given.format[0], given.seeds, Path(work), seed=given.seed, seconds=given.seconds, most=given.most
            )
        sys.__stdout__.write(json.dumps(found))  # type: ignore[union-attr]
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        seeds = given.seeds or Path(temporary) / "seeds"
        if not seeds.exists():
            seeds.mkdir()
            make(seeds)
        inputs, faults = 0, 0
        for name in given.format or NAMES:
            found = in_child(name, seeds, seed=given.seed, seconds=given.seconds, most=given.most)
            inputs, faults = inputs + found["inputs"], faults + len(found["faults"])
            print(as_line(name, found), flush=True)
            for fault in found["faults"]:
                print(fault, flush=True)
    print(f"seed {given.seed}: {inputs} inputs, {faults} faults")
    return 1 if faults else 0


def in_child(name: str, seeds: Path, *, seed: int, seconds: float, most: int | None = None) -> dict[str, object]:
    """:func:`fuzz` in a process of its own, whose death is a fault."""
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--format", name, "--seeds", str(seeds)]
    command += ["--seed", str(seed), "--seconds", str(seconds), *([] if most is None else ["--most", str(most)])]
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + 10 * HANG_S, check=False
        )
        del work
    if done.returncode:
        return {"inputs": 0, "faults": [f"{name} {seed}: ended with {done.returncode}: {done.stderr[-3000:]}"]}
    return json.loads(done.stdout)  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
