"""Inputs of one format after another, in this process: what came of each, and what is wrong with that."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from edgeadv_runtime.errors import EdgeAdvError
from tests.fuzz.formats import FORMATS, Format, command_line, copy

HANG_S = 20
FEWEST = 3
MOST_MIB = 2048
LONGEST = 300
OPTIONS = "options"
WITH_TORCH = (OPTIONS, "state", "run", "run's weights")
NAMES = [*FORMATS, OPTIONS]


def fuzz(
    name: str, seeds: Path, work: Path, *, seed: int, seconds: float, most: int | None = None
) -> dict[str, object]:
    """Change files of a format and read them, until ``seconds`` are over or ``most`` were read; a few in any case.

    Returns:
        How many inputs there were, what came of them, and a list of faults: each has its number, so that the seed and
        it make the same input again.
    """
    if name in WITH_TORCH:
        for library in ("torch._dynamo", "torchvision", "timm"):  # on a busy machine that alone may take a while
            importlib.import_module(library)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    end, number = time.monotonic() + seconds, 0
    while (number < FEWEST or time.monotonic() < end) and (most is None or number < most):
        rng = random.Random(f"{name} {seed} {number}")
        (work / "number").write_text(str(number))
        # a hang, in Python or in C, ends this process with a traceback; the number tells of which input
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            done = _options(seeds, work / "x", rng) if name == OPTIONS else _file(FORMATS[name], seeds, work / "x", rng)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if done is None:
            return {"inputs": 0, "outcomes": {}, "faults": [], "skipped": "no seed of this format can be made here"}
        outcome, fault = done
        peak = peak_mib()
        if fault is None and peak > MOST_MIB:
            fault = f"{peak} MiB at most"
        outcomes[outcome] += 1
        if fault is not None:
            faults.append(f"{name} {seed} {number}: {fault}")
        if peak > MOST_MIB:
            break  # the peak does not come down again
        number += 1
    return {"inputs": sum(outcomes.values()), "outcomes": dict(outcomes), "faults": faults}


def _file(format_: Format, seeds: Path, folder: Path, rng: random.Random) -> tuple[str, str | None] | None:
    if not copy(seeds, folder, format_.copies):
        return None
    files = sorted(file for pattern in format_.changed for file in folder.glob(pattern))
    file = rng.choice(files)
    file.write_bytes(format_.mutate(file.read_bytes(), rng))
    format_.fits(folder, file)
    read = rng.choice(format_.reads)
    if callable(read):
        outcome, fault = _called(read, folder)
    else:
        outcome, fault = _command(read.replace("@", str(folder)).split(), ones=format_.ones)
    if fault is None:
        try:
            format_.extra(folder)
        except AssertionError as contradiction:
            fault = f"accepted a contradiction: {contradiction}"
        except Exception:
            fault = traceback.format_exc()
    return outcome, fault


def whole(name: str, seeds: Path, work: Path) -> list[str]:
    """What refuses a format's files as they are, which would make its changed ones prove nothing."""
    format_, refused = FORMATS[name], []
    for read in format_.reads:
        if not copy(seeds, work / "x", format_.copies):
            return []
        if callable(read):
            outcome, fault = _called(read, work / "x")
        else:
            outcome, fault = _command(read.replace("@", str(work / "x")).split(), ones=format_.ones)
        if fault is not None or outcome in ("2", "refused"):
            refused.append(f"{read}: {outcome} {fault}")
    return refused


def _options(seeds: Path, folder: Path, rng: random.Random) -> tuple[str, str | None]:
    copy(seeds, folder, ("b.edgeadv", "p.pack", "r.json", "run", "pictures", "key.pem", "theirs.onnx"))
    (folder / "x.py").write_text("def f(path):\n    return path\n")
    given = [word.replace("@", str(folder)) for word in command_line(rng)]
    before = Path.cwd()
    os.chdir(folder)
    try:
        # a gate may judge, and two pipelines differ
        outcome, fault = _command(given, ones=given[0] in ("gate", "diff"))
    finally:
        os.chdir(before)
    return outcome, None if fault is None else f"{given!r:.600}: {fault}"


def _called(read: Callable[[Path], object], folder: Path) -> tuple[str, str | None]:
    try:
        read(folder)
    except EdgeAdvError as error:
        return "refused", _unclear(str(error).replace(str(folder), "."))  # where the caller works is not theirs
    except Exception:
        return "untyped", traceback.format_exc()
    return "accepted", None


def _command(given: list[str], *, ones: bool) -> tuple[str, str | None]:
    from edgeadv.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(given)
        except BaseException:
            return "untyped", traceback.format_exc()
    said = err.getvalue()
    if "\x1b" in out.getvalue() + said:
        return str(status), "an escape reaches the terminal"
    if status == 0 or (ones and status == 1):
        return str(status), None if "Traceback" not in said else said
    if status != 2 or "Traceback" in said:
        return str(status), said or f"status {status}"
    lines = [line for line in said.splitlines() if line.startswith("edgeadv: ")]
    return "2", _unclear(lines[-1].removeprefix("edgeadv: ")) if lines else "2 without a line" if given[1:] else None


def _unclear(message: str) -> str | None:
    """What is wrong with a message: it is one line of at most 300 characters."""
    if not message or not message.isprintable():
        return f"not one line: {message!r:.400}"
    return f"{len(message)} characters: {message[:500]}" if len(message) > LONGEST else None


def as_line(name: str, found: dict[str, object]) -> str:
    """A line of the table of inputs."""
    return f"{name}: {json.dumps({key: value for key, value in found.items() if key != 'faults'})}"


def peak_mib() -> int:
    """The most memory that this program has had; ``getrusage`` counts what its parent had when it was forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) // 1024
