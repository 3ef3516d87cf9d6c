"""Time to a worst case that one believes: edgeadv evaluate against torchattacks' AutoAttack, same artefact, same
images.

Ours is all of ``edgeadv evaluate`` on fp32 in ONNX Runtime: opening, attacks, scoring, verdict. AutoAttack is the call
alone, on the artefact's own graph in PyTorch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from paired import in_turn, save

import edgeadv as ea
from edgeadv.attacks.adapters import autoattack
from edgeadv.data.datasets import balanced_subset, batches, open_data
from edgeadv.gradients.artefact import open_graph
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.statistics import wilson_interval

# of a batch of the peer's
_BATCH = 100


@dataclass
class Contest:
    """One artefact at one budget.

    Attributes:
        bundle: the artefact's.
        data: images, as ``edgeadv evaluate`` takes them.
        eps: the budget.
        n: images, as many of each class.
        suite: of ours.
        threads: of the processor, for both.
        found: images left and processor seconds, by who attacked.
    """

    bundle: Bundle
    data: str
    eps: Eps
    n: int
    suite: str
    threads: int
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ours(self, number: int) -> None:
        """The whole evaluation."""
        results = ea.evaluate(
            self.bundle,
            self.data,
            eps=[self.eps.text],
            suite=self.suite,
            precisions=["fp32"],
            plan=ea.AttackPlan(limit=self.n),
            execution=ea.Execution(threads=self.threads),
        )
        row = results.worst_case(self.eps)
        self.found[self.suite] = {"left": row.correct_top1, "n": row.n, "verdict": row.verdict}

    def theirs(self, steps: int | None, number: int) -> None:
        """AutoAttack, on images that are right and on those that are not, as it takes them."""
        model = open_graph(self.bundle, "fp32", device=torch.device("cpu"))
        images = open_data(self.data, split="test").relabel(self.bundle.classes)
        attack = autoattack(
            model, eps=self.eps, gradients_sha256=None, n_classes=min(10, len(self.bundle.classes)), steps=steps
        )
        left = n = 0
        for part in batches(
            images, self.bundle.preprocess, batch_size=_BATCH, order=balanced_subset(images.labels, self.n)
        ):
            x = to_tensor(part.pixels)
            right = _right(model, x, part.labels) & _right(model, attack.craft(x, part.labels)[0].x, part.labels)
            left, n = left + int(right.sum()), n + len(right)
        self.found[_peer(steps)] = {"left": left, "n": n}

    def rows(self, rounds: int, peers: list[int | None]) -> list[dict[str, Any]]:
        """One row for each peer."""
        used: dict[str, list[float]] = {}

        def clocked(name: str, call: Any) -> Any:
            def run(number: int) -> None:
                before = time.process_time()
                call(number)
                used.setdefault(name, []).append(round(time.process_time() - before, 2))

            return run

        calls = {self.suite: clocked(self.suite, self.ours)}
        for steps in peers:
            calls[_peer(steps)] = clocked(_peer(steps), lambda number, steps=steps: self.theirs(steps, number))
        seconds = in_turn(calls, rounds=rounds, warm_up=0)
        rows = []
        for steps in peers:
            name, mine, other = _peer(steps), self.found[self.suite], self.found[_peer(steps)]
            assert mine["n"] == other["n"]
            pairs = list(zip(seconds[self.suite], seconds[name], strict=True))
            row = {
                "model": self.bundle.manifest.title,
                "bundle": self.bundle.path.name,
                "eps": self.eps.text,
                "n": mine["n"],
                "ours": self.suite,
                "theirs": name,
                "left_ours": mine["left"],
                "left_ours_ci95": wilson_interval(mine["left"], mine["n"]),
                "left_theirs": other["left"],
                "left_theirs_ci95": wilson_interval(other["left"], other["n"]),
                "verdict": mine["verdict"],
                "seconds_ours": [round(ours, 1) for ours, _ in pairs],
                "seconds_theirs": [round(theirs, 1) for _, theirs in pairs],
                "processor_seconds_ours": used[self.suite],
                "processor_seconds_theirs": used[name],
                "ratio": [round(ours / theirs, 3) for ours, theirs in pairs],
            }
            print(
                f"{row['model'][:34]:34s} eps {row['eps']:6s} {self.suite} left {mine['left']}/{mine['n']} in "
                f"{min(row['seconds_ours'])} s, {name} {other['left']}/{other['n']} in {min(row['seconds_theirs'])} s: "
                f"ratio {row['ratio']}",
                flush=True,
            )
            rows.append(row)
        return rows


def _peer(steps: int | None) -> str:
    return "AutoAttack" if steps is None else f"AutoAttack, {steps} steps"


def _right(model: torch.nn.Module, x: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    with torch.no_grad():
        answers: NDArray[np.bool_] = model(torch.from_numpy(x)).argmax(dim=1).numpy() == labels
    return answers


def main() -> None:
    """Measure, print as it goes, and write the JSON after every contest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contests", nargs="+", help="BUNDLE:EPS[:EPS...]")
    parser.add_argument("--data", required=True, help="a name or a folder, as in edgeadv evaluate")
    parser.add_argument("--n", type=int, default=200, help="images, as many of each class")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", help="comma-separated: AutoAttack with these steps of APGD and FAB, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers = [None, *(int(text) for text in (options.steps or "").split(",") if text)]
    rows: list[dict[str, Any]] = []
    for text in options.contests:
        place, *budgets = text.split(":")
        for eps in Eps.parse_list(",".join(budgets)):
            contest = Contest(Bundle.open(place), options.data, eps, options.n, options.suite, options.threads)
            rows += contest.rows(options.rounds, peers)
            arguments = {**vars(options), "contests": [Path(each).name for each in options.contests]}
            save(options.out, "worst_case", arguments, rows)


if __name__ == "__main__":
    main()
