"""Three networks by five recipes on CIFAR-10, by the command line alone: clean, FGSM, worst case, verdict, minutes of
each.

A row is trained, exported and evaluated in one place, its JSON is written when it is done, and rows that are there
already are passed over: call it again to go on, also after ``--time-limit``, for trainings resume. What each row ran is
in its ``commands``.

    python benchmarks/cifar10_grid.py --data cifar10-png/ --work grid/ --out benchmarks/results/cifar10_grid-h100.json
    python benchmarks/cifar10_grid.py --data cifar10-png/ --work grid-cpu/ --small --limit 1000 \\
        --out benchmarks/results/cifar10_grid-cpu.json

A teacher is the row of its own network and recipe where that is in ``--work`` already, else it is trained for the row,
with the student's epochs and enlargement; its minutes count only then. For one teacher for all, run its row first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import read_json, write_json
from edgeadv_runtime.records.results import Results

EPS = "8/255"
ARCHITECTURES = ("regnet_y_400mf", "alexnet", "resnet101")
# the robust row first; of AlexNet, which has no BatchNorm, with a smaller step
RECIPES: dict[str, list[str]] = {
    "n-fgsm": ["train", "--recipe", "n-fgsm", "--at-eps", EPS],
    "rslad": ["distill", "--recipe", "rslad", "--at-eps", EPS],
    "undefended": ["train"],
    "papernot": ["distill", "--recipe", "papernot", "-T", "40"],
    "soft-label": ["distill", "--recipe", "soft-label"],
}
TAUGHT_BY = {"rslad": "n-fgsm", "soft-label": "undefended"}
# on a CPU, where ResNet-101 takes nine times as long as RegNetY
SMALL_EPOCHS = {"regnet_y_400mf": 20, "alexnet": 12, "resnet101": 6}


def common(architecture: str, options: argparse.Namespace) -> list[str]:
    """What all trainings of one network share: on a GPU that of the references, on a CPU a subset that takes
    minutes."""
    side = ["--upsample", "2"] if architecture == "alexnet" or not options.small else []
    if options.small:
        epochs = options.epochs or SMALL_EPOCHS[architecture]
        return [
            *side,
            "--augment",
            "crop-flip",
            "--epochs",
            str(epochs),
            "--limit",
            "5000",
            "--holdout",
            "500",
            "--lr",
            "0.01" if architecture == "alexnet" else "0.05",
        ]
    return [
        *side,
        "--augment",
        "crop-flip",
        "--epochs",
        str(options.epochs or 30),
        "--batch-size",
        "256",
        "--lr",
        "0.2",
        "--workers",
        "12",
    ]


def teacher(architecture: str, recipe: str, options: argparse.Namespace) -> list[str]:
    """Where the teacher of a row comes from."""
    if recipe not in TAUGHT_BY:
        return []
    # with so few images a ResNet-101 learns less than its student
    own = architecture if options.small else "resnet101"
    network = options.teacher or own
    run: Path = options.work / f"{network}-{TAUGHT_BY[recipe]}" / "run"
    if (run / "run.json").exists():
        return ["--teacher", str(run)]
    how = ["--teacher-recipe", TAUGHT_BY[recipe]] if recipe == "rslad" else []
    return ["--teacher-arch", network, *how]


def run(arguments: list[str]) -> int:
    """One edgeadv command, in this Python; its exit status."""
    print("edgeadv", *arguments, flush=True)
    return subprocess.run([sys.executable, "-m", "edgeadv", *arguments], check=False).returncode


def measured(file: Path) -> dict[str, Any]:
    """The figures of a results file, PyTorch fp32 first, and of every other artefact beside it."""
    results = Results.load(file)
    by_artefact: dict[str, dict[str, Any]] = {}
    for row in results.rows:
        if row.attack in ("clean", "fgsm", "worst-case"):
            by_artefact.setdefault(f"{row.backend} {row.variant}", {"n": row.n})[row.attack] = row.top1
    return {"artefacts": by_artefact, "verdict": results.masking.verdict, "data_sha256": results.data.sha256}


def row(architecture: str, recipe: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Train, export and evaluate one row; None if the time is over first."""
    work: Path = options.work / f"{architecture}-{recipe}"
    work.mkdir(parents=True, exist_ok=True)
    kind, *more = RECIPES[recipe]
    limit = [] if options.time_limit is None else ["--time-limit", options.time_limit]
    train = [
        kind,
        "--data",
        str(options.data),
        "--arch",
        architecture,
        *more,
        *teacher(architecture, recipe, options),
        *common(architecture, options),
        "--seed",
        str(options.seed),
        "--out",
        str(work / "run"),
        "--resume",
        *limit,
    ]
    started = time.monotonic()
    if (status := run(train)) != 0:
        return {"architecture": architecture, "recipe": recipe, "failed": f"training ended with exit status {status}"}
    if not (work / "run" / "run.json").exists():
        return None
    export = [
        "export",
        str(work / "run"),
        "--precision",
        options.precision,
        "--out",
        str(work / "m.edgeadv"),
        "--overwrite",
    ]
    evaluate = [
        "evaluate",
        str(work / "m.edgeadv"),
        "--data",
        str(options.data),
        "--eps",
        EPS,
        "--suite",
        options.suite,
        "--backend",
        "torch,onnxruntime",
        "--precision",
        "all",
        "--resume",
        "--out",
        str(work / "results.json"),
        *(["--limit", str(options.limit)] if options.limit else []),
    ]
    # a bundle that is there stays: half of its evaluation may be done
    todo = [evaluate] if (work / "m.edgeadv").exists() else [export, evaluate]
    for command in todo:
        if (status := run(command)) != 0:
            return {
                "architecture": architecture,
                "recipe": recipe,
                "failed": f"{command[0]} ended with exit status {status}",
            }
    files = [file for file in (work / "run" / "run.json", work / "run" / "teacher" / "run.json") if file.exists()]
    infos = [read_json(file, what="run") for file in files]
    info, epochs = infos[0], [e for each in infos for stage in each["stages"] for e in stage["epochs"]]
    return {
        "architecture": architecture,
        "recipe": recipe,
        "title": info["title"],
        "config": info["config"],
        "train_minutes": round(sum(e["duration_s"] + e["measured_s"] for e in epochs) / 60, 2),
        "last_call_minutes": round((time.monotonic() - started) / 60, 2),
        "stopped": info["stages"][-1].get("stopped"),
        "commands": [" ".join(["edgeadv", *c]) for c in (train, export, evaluate)],
        **measured(work / "results.json"),
    }


def main() -> None:
    """Fill the grid, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and bundles")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument(
        "--teacher",
        help="architecture that rslad and soft-label learn from; None is ResNet-101, with --small the network's own",
    )
    parser.add_argument("--small", action="store_true", help="a subset that a CPU trains in minutes")
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument("--limit", type=int, help="test images")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--precision", default="fp32,fp16,int8", help="of the files that are exported and evaluated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", help="of each call's training, e.g. 9m")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    have = {(r["architecture"], r["recipe"]) for r in done if "failed" not in r}
    done = [r for r in done if "failed" not in r]
    for architecture in options.architectures.split(","):
        for recipe in options.recipes.split(","):
            if (architecture, recipe) in have:
                continue
            made = row(architecture, recipe, options)
            if made is None:
                print(f"{architecture} {recipe}: not done in time; call again to go on", flush=True)
                return
            done.append(made)
            write_json(options.out, {"benchmark": "cifar10_grid", "environment": environment(), "rows": done})
            print(json.dumps({k: v for k, v in made.items() if k != "commands"}), flush=True)
    sys.exit(any("failed" in each for each in done))


if __name__ == "__main__":
    main()
