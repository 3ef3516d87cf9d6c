"""A release gate for a build server: attack what is about to ship, and fail the build if too little is left.

    python examples/05_gate.py robust.edgeadv signs/test --eps 8/255 --min-clean 0.9 --min-robust 0.4

The exit status is 0 if all rules hold, 1 if one does not, 2 if it cannot be told.
It needs ``pip install "edgeadv[export]"``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import edgeadv as ea


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path, help="What is about to ship.")
    options.add_argument("data", type=Path, help="Folder of class folders that the network was not trained on.")
    options.add_argument("--eps", default="8/255", help="Budget of the attacker.")
    options.add_argument("--suite", default="standard", help="The least that a robust figure may rest on.")
    options.add_argument("--limit", type=int, default=1000, help="Images that are attacked.")
    options.add_argument("--min-clean", type=float, required=True, help="Least clean accuracy.")
    options.add_argument("--min-robust", type=float, required=True, help="Least worst case.")
    given = options.parse_args()
    try:
        results = ea.evaluate(
            given.bundle,
            given.data,
            eps=given.eps,
            suite=given.suite,
            backends=["onnxruntime"],
            plan=ea.AttackPlan(limit=given.limit),
        )
        outcome = results.gate(eps=given.eps, suite=given.suite, min_clean=given.min_clean, min_robust=given.min_robust)
    except ea.EdgeAdvError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(outcome.lines))
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
