"""Traffic signs: clean accuracy and worst case of each network and artefact, by the command line alone.

A row is trained, exported and evaluated in one place. Its JSON is written when it is done, and rows that are there
already are passed over: call it again to go on, also after ``--time-limit``, for trainings resume. What each row ran is
in its ``commands``. A network that is published is put into ``examples/models``, and taken from there if it is there:
delete its folder to train it again.

    python benchmarks/signs.py --data gtsrb/ --work runs/signs --out benchmarks/results/signs-cpu.json
    python benchmarks/signs.py --data gtsrb/ --work runs/signs --out benchmarks/results/signs-cpu.json --rows robust

The folder is what ``examples/signs/convert.py`` makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cifar10_grid import run

from edgeadv_runtime.device.facts import environment
from edgeadv_runtime.files import read_json, write_json
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE

BUDGETS = ("8/255", "4/255")
IMAGES, ARTEFACT_IMAGES = 1000, 500
ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "examples" / "models"
TRACKS = ROOT / "examples" / "signs" / "holdout-tracks.txt"
SHARED = ["--no-mirror", "--holdout-list", str(TRACKS), "--batch-size", "128"]
PLAIN = [*SHARED, "--lr", "0.1", "--augment", "trivial", "--epochs", "30", "--ema", "0.9995"]
# half of the largest budget first, from the weights of the undefended network, and then a little more: who begins with
# the whole pays with clean accuracy
HARD = [*SHARED, "--augment", "affine", "--recipe", "n-fgsm", "--holdout", "500"]
ROBUST = [*HARD, "--lr", "0.1", "--epochs", "20", "--eps", "4/255"]
HARDER = [*HARD, "--lr", "0.02", "--epochs", "4", "--eps", "5/255", "--ema", "0.998"]
# a student that is told more than a label needs fewer epochs, and papernot trains its teacher too
DISTILLED = [*SHARED, "--lr", "0.1", "--augment", "trivial", "--epochs", "15", "--ema", "0.9995"]
LARGE, SMALL = ["--arch", "regnet_y_400mf"], ["--arch", "shufflenet_v2_x1_0"]
ROWS: dict[str, list[str]] = {
    "undefended": ["train", *LARGE, *PLAIN],
    "papernot": ["distill", *LARGE, *DISTILLED, "--recipe", "papernot", "-T", "40"],
    "soft-label": ["distill", *LARGE, *DISTILLED, "--recipe", "soft-label", "--teacher", "{undefended}"],
    "robust-begin": ["train", *LARGE, *ROBUST, "--weights", "{undefended}/weights.safetensors"],
    "robust": ["train", *LARGE, *HARDER, "--weights", "{robust-begin}/weights.safetensors"],
    "small": ["train", *SMALL, *PLAIN],
    "small-robust": ["train", *SMALL, *ROBUST, "--weights", "{small}/weights.safetensors"],
}
SEEDS = {"undefended": (0, 1), "robust-begin": (0, 1), "robust": (0, 1)}
BEGUN = ("undefended", "robust-begin", "small")
"""What others begin with, or learn from."""
UNSEEN = ("robust-begin",)
"""Trained for others only."""
# names in the zoo, of seed 0
PUBLISHED = {
    "undefended": "signs-undefended",
    "soft-label": "signs-soft-label",
    "robust": "signs-robust",
    "small": "signs-small-undefended",
    "small-robust": "signs-small-robust",
}


def clean_figures(file: Path) -> list[dict[str, Any]]:
    """Clean accuracy of each artefact; what FGSM alone leaves is no worst case."""
    rows = [row for row in Results.load(file).rows if row.attack == CLEAN]
    keys = ("backend", "variant", "n", "top1", "top1_ci95")
    return [{key: getattr(row, key) for key in keys} for row in rows]


def figures(file: Path) -> list[dict[str, Any]]:
    """Clean accuracy and worst case of each artefact at each budget, with intervals and verdict."""
    results, found = Results.load(file), []
    for row in results.rows:
        if row.attack == WORST_CASE:
            key = {"backend": row.backend, "variant": row.variant}
            clean = results.clean(**key)
            found.append(
                {
                    **key,
                    "eps": row.eps,
                    "n": row.n,
                    "clean": clean.top1,
                    "clean_ci95": clean.top1_ci95,
                    "worst_case": row.top1,
                    "worst_case_ci95": row.top1_ci95,
                    "verdict": results.verdict(row.eps, **key),
                }
            )
    return found


def row(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Train, export and evaluate one row; None if it is not to be evaluated now, or the time is over first."""
    label, zoo = f"{name}-{seed}", PUBLISHED.get(name) if seed == 0 else None
    home: Path = options.work / label
    home.mkdir(parents=True, exist_ok=True)
    limit = [] if options.time_limit is None else ["--time-limit", options.time_limit]
    train, place = training(name, seed, options), ["--data", str(options.data)]
    trained = made(name, seed, options.work)
    if not (trained / "run.json").exists():
        if run([*train, "--resume", *limit]) != 0:
            raise SystemExit(f"{label}: training failed")
        if not (trained / "run.json").exists():
            return None
        if zoo is not None:
            subprocess.run([sys.executable, str(ROOT / "scripts" / "zoo.py"), str(trained), zoo], check=True)
            trained = MODELS / zoo
    if options.train_only or name in UNSEEN:
        return None
    bundle = home / "m.edgeadv"
    commands = steps(name, seed, bundle, ["--zoo", zoo] if zoo else [str(trained)], place)
    for command in commands:
        if not Path(command[-1]).exists() and run(command) != 0:
            raise SystemExit(f"{label}: {command[0]} failed")
    info = read_json(trained / "run.json", what="run")
    named = [made(each, seed, options.work) for each in before(name)]
    if (teacher := trained / "teacher" / "run.json").exists():
        named.append(teacher.parent)
    known = all((path / "run.json").exists() for path in named)
    return {
        "row": name,
        "seed": seed,
        "title": info["title"],
        "config": info["config"],
        "kept_epoch": info["stages"][-1].get("kept_epoch"),
        "train_minutes": round(trained_for(trained), 1),
        # null where what it began with is no longer there
        "train_minutes_before": round(sum(map(trained_for, named)), 1) if known else None,
        "commands": [
            " ".join(["edgeadv", *(shown(part, options.work) for part in command)])
            for command in (
                *(training(each, seed, options) for each in before(name) if each in UNSEEN),
                train,
                *commands,
            )
        ],
        "clean": clean_figures(home / "clean.json"),
        "results": [entry for file in attacked(home) for entry in figures(file)],
        **({"artefacts": figures(file)} if (file := home / "artefacts.json").exists() else {}),
    }


def attacked(home: Path) -> list[Path]:
    """The results files of a row's fp32, by budget."""
    return sorted(home.glob("results*.json"))


def training(name: str, seed: int, options: argparse.Namespace) -> list[str]:
    """What trains a row."""
    begun = {each: made(each, seed, options.work) for each in BEGUN}
    kind, *more = [part.format(**begun) for part in ROWS[name]]
    run_folder = options.work / f"{name}-{seed}" / "run"
    return [kind, "--data", str(options.data), *more, "--seed", str(seed), "--out", str(run_folder)]


def before(name: str) -> list[str]:
    """What had to be trained before a row, and before that."""
    direct = [each for each in BEGUN if any(part.startswith(f"{{{each}}}") for part in ROWS[name])]
    return [found for each in direct for found in (each, *before(each))]


def made(name: str, seed: int, work: Path) -> Path:
    """Where a trained row is: in the zoo, if it was put there, as the others build on what is published."""
    zoo = MODELS / PUBLISHED.get(name, "none")
    return zoo if seed == 0 and (zoo / "run.json").exists() else work / f"{name}-{seed}" / "run"


def steps(name: str, seed: int, bundle: Path, source: list[str], place: list[str]) -> list[list[str]]:
    """What comes after a training; the last word of each is the file that it makes."""
    whole = name == "robust" and seed == 0
    more = ["--precision", "fp32,fp16,int8", "--calibration-list", str(TRACKS)] if whole else ["--precision", "fp32"]
    home = bundle.parent
    shared = ["evaluate", str(bundle), *place, "--backend", "onnxruntime"]
    standard = ["--suite", "standard", "--resume"]
    judged = [*shared, "--precision", "fp32", *standard, "--limit", str(IMAGES)]
    found = [
        ["export", *source, *place, *more, "--out", str(bundle)],
        [*shared, "--precision", "all", "--attack", "fgsm", "--eps", "8/255", "--out", str(home / "clean.json")],
        # each budget in a file of its own: the one that counts comes first, and either may take an hour
        *([*judged, "--eps", eps, "--out", str(home / f"results-{eps.partition('/')[0]}.json")] for eps in BUDGETS),
    ]
    if whole:
        fewer = ["--eps", "8/255", "--limit", str(ARTEFACT_IMAGES), "--out", str(home / "artefacts.json")]
        found.append([*shared, "--precision", "all", *standard, *fewer])
    return found


def write_cards(work: Path) -> None:
    """Time each published network, and write its card beside its weights. Nothing else should run meanwhile."""
    for name, zoo in PUBLISHED.items():
        home = work / f"{name}-0"
        found = [*attacked(home), *home.glob("artefacts.json")]
        if not found:
            continue
        bundle, bench = home / "m.edgeadv", home / "bench.json"
        if not bench.exists() and run(["bench", str(bundle), "--rate", "15", "--out", str(bench)]) != 0:
            raise SystemExit(f"{zoo}: bench failed")
        for kind in ("json", "html", "md"):
            card = ["card", *map(str, found), str(bench), "--bundle", str(bundle)]
            if run([*card, "--out", str(MODELS / zoo / f"card.{kind}")]) != 0:
                raise SystemExit(f"{zoo}: card failed")


def trained_for(run_folder: Path) -> float:
    """Minutes that the training of a run took, measuring included."""
    epochs = [epoch for stage in read_json(run_folder / "run.json", what="run")["stages"] for epoch in stage["epochs"]]
    return sum(epoch["duration_s"] + epoch["measured_s"] for epoch in epochs) / 60


def shown(part: str, work: Path) -> str:
    """An argument without the places of this machine."""
    path = Path(part)
    if path.is_relative_to(work):
        return str("runs" / Path("signs") / path.relative_to(work))
    if not path.is_absolute():
        return part
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def main() -> None:
    """Fill the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and bundles")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", help="comma-separated; by default those of each row")
    parser.add_argument("--train-only", action="store_true", help="leave exports and evaluations to a later call")
    parser.add_argument("--time-limit", help="of each call's training, e.g. 9m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cards", action="store_true", help="time what is in the zoo, and write its cards, in the end")
    options = parser.parse_args()
    done: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    have = {(each["row"], each["seed"]) for each in done}
    for name in options.rows.split(","):
        for seed in SEEDS.get(name, (0,)):
            if (name, seed) in have or (options.seeds and str(seed) not in options.seeds.split(",")):
                continue
            if (entry := row(name, seed, options)) is None:
                print(f"{name} {seed}: not evaluated; call again to go on", flush=True)
                continue
            done.append(entry)
            write_json(options.out, {"benchmark": "signs", "environment": environment(), "rows": done})
    if options.cards:
        write_cards(options.work)


if __name__ == "__main__":
    main()
